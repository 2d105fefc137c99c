"""Teachers: trained runs whose answers a network learns from (Hinton et al. 2015).

By default they answer for the very picture that the network sees, augmented and mixed (Beyer et al. 2022, "a good
teacher is patient and consistent"): where a crop or a turn hides what the label rests on, the teacher says so. Such a
picture is augmented at the largest size that any of them takes, and made smaller for the others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from torch import Tensor

from marrowscope.config import DistilConfig, Recipe
from marrowscope.datasets import CellImages, Indices, Report, batches
from marrowscope.errors import ModelError, SplitError, TrainingError
from marrowscope.models import CellClassifier, load_run_model
from marrowscope.schema import Card, Document, Frozen, Preprocessing, Split, to_json
from marrowscope.train.checkpoint import save_tensors

RECORD, ANSWERS = "teachers.json", "teachers.safetensors"
"""Files in the run folder: which teachers, and (`distil.view` = plain or held-out) their answers."""


class TeacherRecord(Frozen):
    """One teacher: its run folder as the recipe names it, its name, and the SHA-256 of its weights."""

    path: str
    name: str
    weights_sha256: str


class TeacherRecords(Document):
    """The teachers of a run (teachers.json)."""

    kind: ClassVar[str] = "record of teachers"
    format: Literal["marrowscope teachers 1"] = "marrowscope teachers 1"
    teachers: tuple[TeacherRecord, ...]


@dataclass(frozen=True)
class Teacher:
    """One trained network.

    Attributes:
        path: Its run folder, as the recipe names it.
        model: The network.
        card: What it is.
        order: (C,) brings its classes into the order of the recipe's.
        learnt: Paths of the pictures that it was trained on.
    """

    path: Path
    model: CellClassifier
    card: Card
    order: list[int]
    learnt: frozenset[str]


class Teachers:
    """The teachers of a run, on its device.

    Attributes:
        config: The recipe's section.
        size: Side in pixels at which training pictures are augmented.
    """

    def __init__(self, teachers: Sequence[Teacher], recipe: Recipe, fabric: Fabric) -> None:
        self.config: DistilConfig = recipe.distil
        self._teachers, self._fabric = tuple(teachers), fabric
        sizes = [t.card.preprocessing.size for t in teachers] if self.config.view == "augmented" else []
        self.size = max([recipe.image.size, *sizes])
        self._known: Tensor | None = None

    @property
    def record(self) -> TeacherRecords:
        """What they are."""
        return TeacherRecords(
            teachers=tuple(
                TeacherRecord(path=str(t.path), name=t.card.name, weights_sha256=t.card.weights_sha256)
                for t in self._teachers
            )
        )

    def known(self, indices: Indices) -> Tensor | None:
        """Their answers for training pictures as they are, float32 (B, C); None where they answer step by step."""
        return None if self._known is None else self._known[torch.from_numpy(indices)].to(self._fabric.device)

    @torch.no_grad()
    def answer(self, pictures_BCHW: Tensor) -> Tensor:
        """Their mean probabilities at the recipe's temperature, float32 (B, C), for pictures of any size, 0..255."""
        return torch.stack([self._one(t, pictures_BCHW) for t in self._teachers]).mean(0)

    def _one(self, teacher: Teacher, pictures_BCHW: Tensor) -> Tensor:
        pictures = resized(pictures_BCHW, teacher.card.preprocessing.size)
        with self._fabric.autocast():
            logits: Tensor = teacher.model(pictures.contiguous(memory_format=torch.channels_last))
        return F.softmax(logits.float()[:, teacher.order] / self.config.temperature, dim=1)

    def answer_all(self, images: CellImages, out: Path, progress: Report | None = None) -> None:
        """Unless the view is ``augmented``, let them answer once for all training pictures, or take earlier answers.

        The first process does the work and keeps the answers in the run folder, with what they depend on; they are
        used again only where that, and their own hash, are the same.

        Raises:
            SplitError: The view is ``held-out``, and each teacher was trained on some picture.
        """
        if self.config.view == "augmented":
            return
        path, key = out / ANSWERS, self._key(images)
        if self._fabric.global_rank == 0 and _read_answers(path, key) is None:
            answers = self._answers(images, progress)
            save_tensors(path, {"probabilities": answers}, {"key": key, "sha256": _digest(answers)})
        self._fabric.barrier()
        self._known = _read_answers(path, key)
        if self._known is None:
            raise TrainingError(f"{path} was changed by somebody else while the run was starting. Start it again.")

    def _key(self, images: CellImages) -> str:
        """Digest of all that the answers depend on, but the pictures' bytes, which the split stands for."""
        what = {
            "teachers": [t.weights_sha256 for t in self.record.teachers],
            "temperature": self.config.temperature,
            "view": self.config.view,
            "codes": [t.order for t in self._teachers],
            "paths": [r.path for r in images.rows],
        }
        return hashlib.sha256(to_json(what).encode(errors="surrogateescape")).hexdigest()

    @torch.no_grad()
    def _answers(self, images: CellImages, progress: Report | None) -> Tensor:
        asked_TN = self._asked(images)
        out = torch.zeros(len(images), len(self._teachers[0].order))
        done = 0
        for teacher, asked_N in zip(self._teachers, asked_TN, strict=True):
            # Prepared as for serving, each at its own size.
            own = CellImages(images.data, images.rows, teacher.card.codes, teacher.card.preprocessing)
            places = np.flatnonzero(asked_N)
            for batch in batches(own, [places[i : i + 64] for i in range(0, len(places), 64)]):
                pictures = self._fabric.to_device(batch.images).float()
                out[torch.from_numpy(batch.indices)] += self._one(teacher, pictures).cpu()
                done += len(batch.indices)
                if progress is not None:
                    progress(done, int(asked_TN.sum()))
        return out / torch.from_numpy(asked_TN.sum(0))[:, None]

    def _asked(self, images: CellImages) -> npt.NDArray[np.bool_]:
        """Which teacher answers for which picture: (T, N), at least one for each."""
        if self.config.view != "held-out":
            return np.ones((len(self._teachers), len(images)), dtype=bool)
        asked_TN = np.array([[r.path not in t.learnt for r in images.rows] for t in self._teachers])
        known_N = ~asked_TN.any(0)
        if known_N.any():
            raise SplitError(
                f"{int(known_N.sum())} training pictures, such as {images.rows[int(known_N.argmax())].path!r}, were "
                'learnt by every teacher, and distil.view = "held-out" asks those that were not trained on a picture. '
                "Name the networks of all folds (marrowscope sweep --folds 3 --train-only), or take another view."
            )
        idle = [str(t.path) for t, asked_N in zip(self._teachers, asked_TN, strict=True) if not asked_N.any()]
        if idle:
            raise SplitError(
                f"The teacher {idle[0]} was trained on every picture of this run, so that it would not be asked "
                '(distil.view = "held-out"). Leave it out, or take another view.'
            )
        return asked_TN


def resized(pictures_BCHW: Tensor, size: int) -> Tensor:
    """float (B, 3, H, W), 0..255, at another size: bicubic with antialiasing, as `images.prepare` does it on bytes."""
    if pictures_BCHW.shape[2] == size:
        return pictures_BCHW
    out = F.interpolate(pictures_BCHW, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return out.clamp_(0, 255)


def training_spec(recipe: Recipe, teachers: Teachers | None) -> Preprocessing:
    """How training pictures are prepared: as the recipe says, at the largest size that anyone takes."""
    return recipe.image if teachers is None else recipe.image.model_copy(update={"size": teachers.size})


def load_teachers(recipe: Recipe, split: Split, fabric: Fabric) -> Teachers | None:
    """The recipe's teachers, on the device; None where it has none.

    Raises:
        ModelError: A teacher is no run folder with a model, knows other classes, or crops pictures differently.
        SplitError: A teacher was trained (or its epoch chosen) on pictures that this run validates or tests on.
    """
    if not recipe.distil.teacher:
        return None
    return Teachers([_load(Path(p), recipe, split, fabric) for p in recipe.distil.teacher], recipe, fabric)


def _load(path: Path, recipe: Recipe, split: Split, fabric: Fabric) -> Teacher:
    if path.suffix == ".onnx":
        raise ModelError(f"The teacher {path} is an ONNX file; give the run folder that it was exported from.")
    # Building a network draws random numbers; the student's must not depend on its teachers.
    with torch.random.fork_rng(devices=[]), _named(path):
        model, card = load_run_model(path)
    if set(card.codes) != set(recipe.codes):
        raise ModelError(
            f"The teacher {path} knows the classes {' '.join(card.codes)}; the recipe's are {' '.join(recipe.codes)}."
        )
    if recipe.distil.view == "augmented" and card.preprocessing.crop != recipe.image.crop:
        raise ModelError(
            f"The teacher {path} sees a crop of {card.preprocessing.crop:g}, the recipe's network of "
            f'{recipe.image.crop:g}. Give image.crop the teacher\'s value, or take distil.view = "plain".'
        )
    check_unseen(path, split, f"The teacher {path}")
    learnt = frozenset(r.path for r in Split.read(path / "split.csv").part("train"))
    model = model.to(fabric.device).to(memory_format=torch.channels_last).requires_grad_(False).eval()
    return Teacher(path, model, card, [card.codes.index(c) for c in recipe.codes], learnt)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelError as e:
        raise ModelError(f"The teacher {path} can't be used: {e}") from e


def check_unseen(run: Path, split: Split, who: str) -> None:
    """Check that a trained run, named as `who`, knows nothing of what another is judged on.

    Raises:
        SplitError: It was trained (or its epoch chosen) on pictures that `split` validates or tests on.
    """
    theirs = {r.path: r.part for r in Split.read(run / "split.csv").rows}
    seen = [
        r.path
        for r in split.rows
        if (r.part == "test" and theirs.get(r.path) in {"train", "val"})
        or (r.part == "val" and theirs.get(r.path) == "train")
    ]
    if seen:
        raise SplitError(
            f"{who} learnt from {len(seen)} pictures that this run validates or tests on, such as {seen[0]!r}: the "
            f"scores would say nothing. Train on the same split: --split {run / 'split.csv'}"
        )


def keep_record(teachers: Teachers | None, out: Path) -> None:
    """Write which teachers a run has, or check that they are those that it was begun with.

    Raises:
        TrainingError: A teacher has other weights than when the run was begun.
    """
    if teachers is None:
        return
    path, now = out / RECORD, teachers.record
    if not path.exists():
        now.write(path)
        return
    then = TeacherRecords.read(path)
    if [t.weights_sha256 for t in then.teachers] != [t.weights_sha256 for t in now.teachers]:
        raise TrainingError(
            f"A teacher's weights are not those that the run was begun with ({path}). Resume with the same teachers, "
            "or choose another --out."
        )


def _digest(answers: Tensor) -> str:
    return hashlib.sha256(answers.contiguous().numpy().tobytes()).hexdigest()


def _read_answers(path: Path, key: str) -> Tensor | None:
    """Answers that were kept, if they are for `key` and whole."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as f:
            metadata: dict[str, Any] = f.metadata() or {}
            answers: Tensor = f.get_tensor("probabilities")
    except (SafetensorError, OSError):
        return None
    return answers if metadata.get("key") == key and metadata.get("sha256") == _digest(answers) else None
