"""The reference set of a model: labelled cells that a person compares a new one with.

A file beside the model, ``NAME.reference.npz`` beside ``NAME.onnx``, made by `make_reference` from the user's own
cells. It holds the features that the model sees in each cell, its class, and a small picture without metadata; so it
shows cells of those data, and is shared or kept to oneself like them.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from marrowscope import __version__, images
from marrowscope.cells import BY_CODE
from marrowscope.data.sources import Source, label_of, open_source
from marrowscope.errors import DataError, FileFormatError, ImageError, ModelError
from marrowscope.files import atomic_path
from marrowscope.infer import Classifier, bundled
from marrowscope.infer.predictor import batches
from marrowscope.schema import Document, Part, Split
from marrowscope.serve import pictures
from marrowscope.serve.problems import busy

SUFFIX = ".reference.npz"
PER_CLASS = 200
"""Cells of each class, at most, in a new reference set."""

NEAREST = 8
"""Cells that are shown."""

_BATCH = 16
_WAIT_SECONDS = 20.0
_ARRAYS = {"about": "U", "codes": "U", "features": "f", "thumbnails": "u", "ends": "i"}


class ReferenceInfo(Document):
    """What a reference set is (inside the file)."""

    kind: ClassVar[str] = "reference set"
    format: Literal["marrowscope reference 1"] = "marrowscope reference 1"
    program: str
    model: str
    model_sha256: str
    cells: int


@dataclass(frozen=True)
class Neighbour:
    """A cell of the reference set: its place, its class, and the cosine of the angle between the features, -1..1."""

    place: int
    code: str
    similarity: float


class ReferenceSet:
    """A reference set in memory.

    Attributes:
        info: Which model it is for.
        codes: Class code of each of the M cells.
    """

    def __init__(
        self,
        info: ReferenceInfo,
        codes: Sequence[str],
        features_MD: npt.NDArray[np.floating],
        thumbnails: Sequence[bytes],
    ) -> None:
        """`features_MD` need not have length 1; `thumbnails` are WebP files."""
        self.info = info
        self.codes = tuple(codes)
        self._features_MD = _unit(features_MD)
        self._thumbnails = tuple(thumbnails)

    def __len__(self) -> int:
        return len(self.codes)

    def nearest(self, features_D: npt.NDArray[np.floating], k: int = NEAREST) -> list[Neighbour]:
        """The k cells whose features point most nearly the same way, the nearest first.

        Raises:
            FileFormatError: Features of another size than those of the set.
        """
        if features_D.shape != self._features_MD.shape[1:]:
            raise FileFormatError(
                f"The reference set has {self._features_MD.shape[1]} features a cell, and the model gives "
                f"{features_D.shape[0]}. Make the set anew with this model."
            )
        similarity_M = self._features_MD @ _unit(features_D[None])[0]
        order = np.argsort(-similarity_M, kind="stable")[:k]
        return [Neighbour(int(i), self.codes[i], min(1.0, float(similarity_M[i]))) for i in order]

    def thumbnail(self, place: int) -> bytes | None:
        """The small picture of a cell; None where there is no such cell."""
        return self._thumbnails[place] if 0 <= place < len(self) else None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It can't be written.
        """
        ends = np.cumsum([len(t) for t in self._thumbnails], dtype=np.int64)
        with atomic_path(path) as temporary, temporary.open("wb") as f:
            np.savez(
                f,
                about=np.array(self.info.model_dump_json()),
                codes=np.array(self.codes),
                features=self._features_MD.astype(np.float16),
                thumbnails=np.frombuffer(b"".join(self._thumbnails), dtype=np.uint8),
                ends=ends,
            )

    @classmethod
    def read(cls, path: Path) -> ReferenceSet:
        """Read a file; nothing in it is run.

        Raises:
            FileFormatError: Not a whole reference set of this version.
        """
        try:
            # numpy would leave a file open that it opened itself and can't read.
            with path.open("rb") as f, np.load(f, allow_pickle=False) as archive:
                found = {name: archive[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise FileFormatError(f"{path} can't be read as a reference set: {e}. {_MAKE}") from None
        wrong = [name for name, kind in _ARRAYS.items() if found[name].dtype.kind != kind]
        features_MD, codes, ends = found["features"], found["codes"], found["ends"]
        m = len(codes) if codes.ndim == 1 else -1
        if wrong or features_MD.ndim != 2 or not len(features_MD) == len(ends) == m > 0:
            what = ", ".join(wrong) or "lengths differ"
            raise FileFormatError(f"{path} is not a whole reference set ({what}). {_MAKE}")
        info = ReferenceInfo.parse(str(found["about"]), f"The description in {path}")
        unknown = sorted({str(c) for c in codes} - BY_CODE.keys())
        starts = np.concatenate([[0], ends[:-1]])
        if (
            unknown
            or (ends < starts).any()
            or ends[-1] != found["thumbnails"].size
            or not np.isfinite(features_MD).all()
        ):
            raise FileFormatError(
                f"{path} is damaged: {' '.join(unknown) or 'its numbers do not fit together'}. {_MAKE}"
            )
        data = found["thumbnails"].tobytes()
        thumbnails = [data[a:b] for a, b in zip(starts, ends, strict=True)]
        return cls(info, [str(c) for c in codes], features_MD, thumbnails)


_MAKE = "Make one with: marrowscope serve reference MODEL CELLS"


def _unit(features_MD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    x = features_MD.astype(np.float32)
    out: npt.NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return out


def digest_of(model: Classifier) -> str:
    """SHA-256 of a model's ONNX file: the first word of its identity, before the thresholds that are used."""
    return model.identity.split()[0]


def reference_path(model: Path) -> Path:
    """Where the reference set of a model file is looked for."""
    return model.with_name(model.name.removesuffix(".onnx") + SUFFIX)


def find_references(models: Sequence[Classifier], given: Sequence[Path]) -> dict[str, ReferenceSet]:
    """Reference sets by the SHA-256 of their models: those given, and those that lie beside a model.

    Raises:
        FileFormatError: A file is none, or belongs to none of the models.
    """
    beside = [p for p in (reference_path(m.path) for m in models) if p.is_file()]
    digests = {digest_of(m): m.card.name for m in models}
    out: dict[str, ReferenceSet] = {}
    for path in dict.fromkeys([*beside, *given]):
        found = ReferenceSet.read(path)
        if found.info.model_sha256 not in digests:
            raise FileFormatError(
                f"{path} belongs to another file of the model {found.info.model!r} than is loaded "
                f"({', '.join(digests.values())}). Make it anew with: marrowscope serve reference"
            )
        out[found.info.model_sha256] = found
    return out


class Neighbours:
    """Finds the nearest cells of a reference set; one at a time, beside the model's queue."""

    def __init__(self) -> None:
        self._turn = threading.BoundedSemaphore(1)

    def of(self, model: Classifier, reference: ReferenceSet, pixels_HWC: images.Pixels) -> list[Neighbour]:
        """The nearest cells of one picture.

        Raises:
            Problem: 503, too many ask at once.
        """
        prepared = images.prepare(pixels_HWC, model.card.preprocessing)
        if not self._turn.acquire(timeout=_WAIT_SECONDS):
            raise busy(5, "Other similar cells are being looked for. Try again in a moment.")
        try:
            features_D = model.features(prepared[None])[0]
        finally:
            self._turn.release()
        return reference.nearest(features_D)


# --------------------------------------------------------------------------------------------------------- making one


def make_reference(
    model: str | Path,
    data: Path,
    output: Path | None = None,
    *,
    split: Path | None = None,
    part: Part = "train",
    per_class: int = PER_CLASS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, ReferenceSet, int]:
    """Make the reference set of a model from labelled cells.

    Args:
        model: ONNX file with the output ``features``, or a bundled name.
        data: Folder or archive of cells, a folder a class; classes that the model does not know may be among them.
        output: File to write; None for the place beside the model, where the service looks for it, and for this folder
            where the model is a bundled one.
        split: Take only cells of `part` of this split.csv: those of the test part are best left out.
        per_class: Cells of each class at the most, evenly spread over the names.
        progress: Called with (done, total).

    Returns:
        Where it was written, the set, and how many pictures could not be used.

    Raises:
        ModelError: The model can't be used, or has no such output.
        DataError: No labelled picture, or none that can be read.
        FileFormatError: The split is none.
        OutputError: The file can't be written.
    """
    if per_class < 1:
        raise DataError(f"per_class is {per_class}; allowed are 1 and more.")
    classifier = Classifier.load(model)
    if not classifier.has_features:
        raise ModelError(f"The model {classifier.card.name!r} has no output 'features'. Export it anew.")
    if output is None:
        output = Path(f"{model}{SUFFIX}") if model in bundled() else reference_path(classifier.path)
    source = open_source(data)
    chosen = _chosen(source, split, part, per_class)
    codes: list[str] = []
    features, thumbnails = [], []
    for done, some in enumerate(batches(chosen, _BATCH)):
        kept = [(code, p) for code, p in ((code, _pixels(source, name)) for name, code in some) if p is not None]
        if kept:
            spec = classifier.card.preprocessing
            features.append(classifier.features(np.stack([images.prepare(p, spec) for _, p in kept])))
            thumbnails += [pictures.thumbnail(p) for _, p in kept]
            codes += [code for code, _ in kept]
        progress(min(len(chosen), (done + 1) * _BATCH), len(chosen))
    if not codes:
        raise DataError(f"None of the {len(chosen)} pictures chosen from {data} can be read.")
    info = ReferenceInfo(
        program=f"marrowscope {__version__}",
        model=classifier.card.name,
        model_sha256=digest_of(classifier),
        cells=len(codes),
    )
    made = ReferenceSet(info, codes, np.concatenate(features), thumbnails)
    made.write(output)
    return output, made, len(chosen) - len(codes)


def _chosen(source: Source, split: Path | None, part: Part, per_class: int) -> list[tuple[str, str]]:
    """(name, class code) of the cells to take, class by class."""
    if split is not None:
        labelled = [(r.path, r.label) for r in Split.read(split).part(part)]
    else:
        named = ((n, source.label(n) or label_of(n)) for n in source.names)
        labelled = [(n, code) for n, code in named if code is not None and code in BY_CODE]
    by_code: dict[str, list[str]] = {}
    for name, code in sorted(labelled):
        by_code.setdefault(code, []).append(name)
    if not by_code:
        what = f"the part {part!r} of {split}" if split is not None else source.where
        raise DataError(f"No labelled picture in {what}. Give a folder that holds one folder per class code.")
    out = []
    for code, names in sorted(by_code.items()):
        places = np.unique(np.linspace(0, len(names) - 1, min(per_class, len(names))).round().astype(int))
        out += [(names[i], code) for i in places]
    return out


def _pixels(source: Source, name: str) -> images.Pixels | None:
    """The pixels of one picture; None where it can't be used."""
    try:
        return images.decode(source.read(name))
    except ImageError:
        return None
