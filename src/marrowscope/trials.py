"""Trials beyond the test part as it is: strange pictures, and pictures changed for the worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from marrowscope.datasets import CellImages
from marrowscope.errors import ModelError
from marrowscope.evaluate.corruptions import corrupt, direction_of
from marrowscope.evaluate.robustness import CONDITIONS, Condition, robustness_figures
from marrowscope.fit import Fitted, load_fitted, raw, spread
from marrowscope.images import Pixels, prepare
from marrowscope.infer import Classifier
from marrowscope.outputs import picture_outputs
from marrowscope.schema import Document, Evaluation, Novelty, Robustness
from marrowscope.score import group_names, part_images
from marrowscope.triage import calibrated

Progress = Callable[[int, int], None]

ROBUSTNESS = "robustness.json"
"""File in the run folder: answers for changed pictures, as far as a trial came."""

CHECKPOINT = "checkpoint"
"""What answers where no ONNX file is given."""

CLEAN = "clean"
_BATCH = 64


class RobustnessAnswers(Document):
    """Answers for changed pictures, written after each kind and strength, so that a stopped trial goes on there.

    Attributes:
        model: Identity of what answered.
        seed: Of the directions of the changes.
        paths: The cells.
        predicted: Class codes of all cells, by ``clean`` or ``KIND STRENGTH``.
    """

    kind: ClassVar[str] = "record of a trial of robustness"
    format: Literal["marrowscope robustness 1"] = "marrowscope robustness 1"
    model: str
    seed: int
    paths: tuple[str, ...]
    predicted: dict[str, tuple[str, ...]] = Field(default_factory=dict)


def judge_robustness(
    run: Path,
    *,
    data: Path | None = None,
    cells: int | None = None,
    model: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Accuracy of a run on test cells that are changed in each way of `evaluate.corruptions`, at each strength.

    Answers are written into ``robustness.json`` of the run folder after each kind and strength; a trial of the same
    model, cells and seed goes on from there.

    Args:
        run: Run folder, after `fit.fit_card`.
        data: Folder of images; without it, the one that the run was trained on.
        cells: How many test cells, spread evenly over the classes; None for all.
        model: An ONNX file that answers in place of the run's checkpoint.
        seed: Of the directions of the changes.
        progress: Called with (done, total) pictures.

    Raises:
        ModelError: The run has no model, or the ONNX file is of another class set.
        SplitError: The test part is empty, or its files are not at hand.
        DataError: A picture can't be read any more.
        OutputError: The run folder can't be written.
    """
    fitted = load_fitted(run)
    images = part_images(run, fitted, "test", data)
    places = spread(len(images), len(images) if cells is None else cells)
    answerer = _checkpoint(fitted) if model is None else _onnx(model, fitted)
    rows = [images.rows[i] for i in places]
    record = RobustnessAnswers(model=answerer.identity, seed=seed, paths=tuple(r.path for r in rows))
    path = run / ROBUSTNESS
    if path.is_file():
        earlier = RobustnessAnswers.read(path)
        if earlier.model_copy(update={"predicted": {}}) == record:
            record = earlier
    total = (1 + len(CONDITIONS)) * len(places)
    for condition in (None, *CONDITIONS):
        name = CLEAN if condition is None else _name(condition)
        if name not in record.predicted:
            done = len(record.predicted) * len(places)
            step = None if progress is None else (lambda n, _, done=done: progress(done + n, total))
            answers = answerer(images, places, condition, seed, step)
            record = record.model_copy(update={"predicted": {**record.predicted, name: tuple(answers)}})
            record.write(path)
    truth = np.array([r.label for r in rows])
    right = {name: np.array(answers) == truth for name, answers in record.predicted.items()}
    group_N = np.unique(group_names(run, rows, images.data, None), return_inverse=True)[1].astype(np.int64)
    by_condition = {condition: right[_name(condition)] for condition in CONDITIONS}
    return robustness_figures(right[CLEAN], by_condition, group_N, model=answerer.name, seed=seed)


def _name(condition: Condition) -> str:
    return f"{condition[0]} {condition[1]}"


class _Answerer:
    """Names the class of changed cells, by a function from prepared pictures to class codes."""

    def __init__(self, name: str, identity: str, codes_of: Callable[[Sequence[Pixels]], list[str]]) -> None:
        self.name, self.identity, self._codes_of = name, identity, codes_of

    def __call__(
        self, images: CellImages, places: Sequence[int], condition: Condition | None, seed: int, step: Progress | None
    ) -> list[str]:
        out: list[str] = []
        for start in range(0, len(places), _BATCH):
            some = places[start : start + _BATCH]
            out += self._codes_of([prepare(self._changed(images, i, condition, seed), images.spec) for i in some])
            if step is not None:
                step(len(out), len(places))
        return out

    @staticmethod
    def _changed(images: CellImages, place: int, condition: Condition | None, seed: int) -> Pixels:
        pixels = raw(images, place)
        if condition is None:
            return pixels
        kind, strength = condition
        return corrupt(pixels, kind, strength, direction_of(images.rows[place].path, kind, seed))


def _checkpoint(fitted: Fitted) -> _Answerer:
    card = fitted.card

    def codes_of(prepared: Sequence[Pixels]) -> list[str]:
        outputs = picture_outputs(fitted.model, prepared, len(prepared))
        return [card.codes[i] for i in calibrated(card, outputs.logits_NC).argmax(1)]

    return _Answerer(CHECKPOINT, card.weights_sha256, codes_of)


def _onnx(path: Path, fitted: Fitted) -> _Answerer:
    served = Classifier.load(path)
    if served.codes != fitted.card.codes or served.card.preprocessing != fitted.card.preprocessing:
        raise ModelError(
            f"{path} knows the classes {' '.join(served.codes)} at {served.card.preprocessing.size} px, and the run "
            f"{' '.join(fitted.card.codes)} at {fitted.card.preprocessing.size} px; give a file that was exported "
            "from the run."
        )

    def codes_of(prepared: Sequence[Pixels]) -> list[str]:
        return [served.codes[i] for i in served.probabilities(np.stack(prepared)).argmax(1)]

    return _Answerer(path.name, served.identity, codes_of)


def add_trials(
    evaluation: Path,
    *,
    novelty: Novelty | None = None,
    robustness: Robustness | None = None,
) -> Evaluation:
    """Put the results of trials into an evaluation.json; those that are None stay as they are there.

    Raises:
        FileFormatError: Not an evaluation.
        OutputError: It can't be written.
    """
    found = {k: v for k, v in {"novelty": novelty, "robustness": robustness}.items() if v is not None}
    result = Evaluation.read(evaluation).model_copy(update=found)
    result.write(evaluation)
    return result
