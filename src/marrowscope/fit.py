"""What a run's model card says beyond the network: calibration, conformal sets, novelty and acceptance.

All of it is fitted on validation cells, with training cells for what the network has learnt; the test part is not
looked at. It is fitted once for the weights of a run, when the run is first evaluated or exported, and stored in
``card.json`` and ``novelty.safetensors`` of the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from marrowscope.data.split import check_split
from marrowscope.datasets import CellImages, unreadable
from marrowscope.errors import ImageError, ModelError, SplitError
from marrowscope.evaluate import novelty
from marrowscope.evaluate.corruptions import corrupt, direction_of
from marrowscope.evaluate.novelty import Features, Statistics
from marrowscope.evaluate.thresholds import ScalingMethod, with_thresholds
from marrowscope.files import atomic_path
from marrowscope.images import Pixels, decode, prepare
from marrowscope.models import CellClassifier, load_run_model
from marrowscope.outputs import Outputs, cell_outputs, picture_outputs
from marrowscope.schema import Card, RunInfo, Split
from marrowscope.triage import energy

STATISTICS = "novelty.safetensors"
"""File in the run folder: statistics of the training features."""

TRAINING_CELLS = 2048
"""Training cells, at most, that the statistics rest on, spread evenly over the training part."""

STAND_INS = 128
"""Validation cells, at most, that are altered to stand in for strangers when the method is chosen."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Known:
    """What a run knows of its training features.

    Attributes:
        statistics: Of the features.
        bank_MD: Features of M training cells, for the nearest neighbour.
        aurocs: How the method was chosen: by stand-in, then method.
    """

    statistics: Statistics
    bank_MD: Features
    aurocs: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Fitted:
    """A run's model, its card as fitted, and what it knows; `known` is None where features tell nothing."""

    model: CellClassifier
    card: Card
    known: Known | None

    def score(self, outputs: Outputs) -> npt.NDArray[np.float64] | None:
        """The card's score of novelty, (N,); None where the card has none."""
        if self.card.novelty is None or self.known is None:
            return None
        return novelty.card_score(self.known.statistics, self.card.novelty.method, *outputs)


def data_folder(run: Path, data: Path | None) -> Path:
    """The folder of images that is given, or the one that the run was trained on."""
    return Path(RunInfo.read(run / "run.json").data) if data is None else Path(data)


def load_fitted(run: Path) -> Fitted:
    """A run as it was fitted; a run that was not has a card without calibration.

    Raises:
        ModelError: The run has no model yet, or the statistics that its card needs are missing or of other weights.
    """
    model, card = load_run_model(run)
    known = _read_known(run, card)
    if known is None and card.novelty is not None and card.novelty.method != "energy":
        raise ModelError(
            f"{run / STATISTICS} is missing, or not of the weights that card.json describes. Fit them again: "
            f"marrowscope evaluate {run} --refit"
        )
    return Fitted(model, card, known)


def fit_card(
    run: Path,
    *,
    data: Path | None = None,
    scaling: ScalingMethod = "auto",
    again: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Fit what the card of a run lacks, and write it into the run folder; nothing is done where nothing lacks.

    Args:
        run: Run folder.
        data: Folder of images; without it, the one that the run was trained on.
        scaling: ``temperature``, ``vector``, or ``auto``: what is there, else the better one in cross-validation.
        again: Fit anew what is there.
        progress: Called with (done, total) cells.

    Raises:
        ModelError: The run has no model yet.
        SplitError: The validation part is empty, or its files are not under `data`.
        DataError: A picture can't be read any more.
        OutputError: The run folder can't be written.
    """
    model, card = load_run_model(run)
    known = _read_known(run, card)
    there = card.scaling is not None and scaling in {"auto", card.scaling.method}
    if there and known is not None and not again:
        return Fitted(model, card, known)
    split, root = Split.read(run / "split.csv"), data_folder(run, data)
    rows = split.part("val")
    if not rows:
        raise SplitError(f"{run / 'split.csv'} has no image in the part 'val', which calibration is fitted on.")
    check_split(split, root)
    training = split.part("train")
    training = [training[i] for i in spread(len(training), TRAINING_CELLS)]
    parts = [CellImages(root, r, card.codes, card.preprocessing) for r in (rows, training)]
    altered = spread(len(rows), STAND_INS)
    total = len(rows) + len(training) + 3 * len(altered)
    done = _Counter(total, progress)
    validation, trained = (cell_outputs(model, images, progress=done.stage()) for images in parts)
    labels_N = parts[0].labels
    known = None
    method = "energy"
    if np.ptp(trained.features_ND, axis=0).max(initial=0) > 0:
        statistics = novelty.fit_statistics(trained.features_ND, parts[1].labels)
        aurocs = _stand_ins(model, parts, (validation, trained), statistics, altered, done)
        known = Known(statistics, trained.features_ND, aurocs)
        method = novelty.chosen_method(aurocs)
        _write_known(run, card, known)
    fitted = Fitted(
        model,
        with_thresholds(
            card,
            labels_N,
            validation.logits_NC,
            novelty_method=method,
            ood_score_N=novelty.card_score(known.statistics, method, *validation)
            if known is not None
            else energy(validation.logits_NC),
            scaling=scaling,
        ),
        known,
    )
    fitted.card.write(run / "card.json")
    return fitted


class _Counter:
    """One progress over several stages."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.before, self.now = total, progress, 0, 0

    def stage(self) -> Progress:
        self.before += self.now
        self.now = 0

        def step(done: int, _: int) -> None:
            self.now = done
            if self.progress is not None:
                self.progress(self.before + done, self.total)

        return step


def spread(n: int, most: int) -> list[int]:
    """At most `most` places out of n, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))] if n else []


def _stand_ins(
    model: CellClassifier,
    parts: Sequence[CellImages],
    outputs: Sequence[Outputs],
    statistics: Statistics,
    altered: Sequence[int],
    done: _Counter,
) -> dict[str, dict[str, float]]:
    """AUROC of each method for what stands in for strangers, all of it made of validation cells.

    Classes that the score is not told of; and cells in another stain, out of focus, and cut into tiles.
    """
    images, (validation, trained) = parts[0], outputs
    labels = (images.labels, parts[1].labels)
    found = {
        "class left out": novelty.left_out_aurocs(
            statistics,
            (trained.features_ND, labels[1]),
            (validation.features_ND, validation.logits_NC, labels[0]),
        )
    }
    known = novelty.novelty_scores(statistics, trained.features_ND, *validation)
    for name, change in ALTERATIONS.items():
        pictures = (prepare(change(raw(images, i), images.rows[i].path), images.spec) for i in altered)
        strange = picture_outputs(model, pictures, len(altered), progress=done.stage())
        scores = novelty.novelty_scores(statistics, trained.features_ND, *strange)
        found[name] = {m: novelty.auroc(known[m], scores[m]) for m in novelty.METHODS}
    return {name: aurocs for name, aurocs in found.items() if aurocs}


ALTERATIONS: dict[str, Callable[[Pixels, str], Pixels]] = {
    "other stain": lambda pixels, name: corrupt(pixels, "stain", 5, direction_of(name, "stain", seed=1)),
    "out of focus": lambda pixels, name: corrupt(pixels, "blur", 5),
    "cut into tiles": lambda pixels, name: novelty.shuffled_tiles(pixels, seed=len(name)),
}


def raw(images: CellImages, place: int) -> Pixels:
    """A cell as decoded, before it is prepared.

    Raises:
        DataError: It can't be read any more.
    """
    path = images.rows[place].path
    try:
        return decode(images.source.read(path))
    except ImageError as e:
        raise unreadable([f"{path}: {e}"]) from None


# ------------------------------------------------------------------------------------------------ file of statistics

_ARRAYS = ("mean_D", "axes_DK", "spread_K", "whiten_KK", "centres_CK")


def _write_known(run: Path, card: Card, known: Known) -> None:
    arrays: dict[str, Any] = {name: np.ascontiguousarray(getattr(known.statistics, name)) for name in _ARRAYS}
    arrays |= {"rest": np.array([known.statistics.rest]), "bank_MD": known.bank_MD.astype(np.float16)}
    about = {"weights_sha256": card.weights_sha256, "aurocs": json.dumps(known.aurocs)}
    with atomic_path(run / STATISTICS) as temporary:
        temporary.write_bytes(save(arrays, metadata=about))


def _read_known(run: Path, card: Card) -> Known | None:
    """The statistics of these very weights; None where there are none."""
    path = run / STATISTICS
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as f:
            about = f.metadata() or {}
            if about.get("weights_sha256") != card.weights_sha256:
                return None
            arrays = {name: f.get_tensor(name) for name in (*_ARRAYS, "rest", "bank_MD")}
            aurocs = json.loads(about["aurocs"])
    except (SafetensorError, OSError, KeyError, ValueError) as e:
        raise ModelError(f"{path} is damaged ({e}). Delete it and evaluate the run again.") from None
    statistics = Statistics(**{name: arrays[name] for name in _ARRAYS}, rest=float(arrays["rest"][0]))
    return Known(statistics, arrays["bank_MD"].astype(np.float32), aurocs)
