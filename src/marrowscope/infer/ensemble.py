"""Several models, or several views of each picture, averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marrowscope import images
from marrowscope.errors import ModelError
from marrowscope.infer.classifier import Classifier
from marrowscope.infer.predictor import Predictor
from marrowscope.triage import Answers

VIEWS = (1, 2, 4, 8)
"""A picture as it is; with its mirror image; its four turns by right angles; these and their mirror images."""


class Ensemble(Predictor):
    """The mean of the probabilities that several models give, each for several views of a picture.

    A cell has no up and no down, so each of the eight flips and right-angle turns is as good a picture of it; their
    mean cannot depend on how the cell happened to lie.

    The mean is of calibrated probabilities. A model's thresholds (conformal sets, acceptance) hold for its own answer
    for the picture as it is, and not for a mean, which is less confident; so a mean has neither. The score of how
    strange a picture is does not rest on the views: a single model with several views keeps that of the picture as
    it is. One model with one view answers as it does alone.

    Attributes:
        members: The models.
        views: How many views of each picture, one of `VIEWS`.
    """

    def __init__(self, members: Sequence[Classifier], views: int = 1) -> None:
        """Join models.

        Raises:
            ModelError: No model, models with different classes, or a number of views that is not allowed.
        """
        if not members:
            raise ModelError("An ensemble needs at least one model.")
        if views not in VIEWS:
            raise ModelError(f"views is {views}; allowed are {', '.join(map(str, VIEWS))}.")
        for m in members:
            if m.codes != members[0].codes:
                raise ModelError(
                    f"The models {members[0].card.name!r} and {m.card.name!r} have different classes "
                    f"({' '.join(members[0].codes)}; {' '.join(m.codes)}); average models of one class set."
                )
        self.members = tuple(members)
        self.views = views
        self.codes = members[0].codes
        self.specs = tuple(dict.fromkeys(m.card.preprocessing for m in members))
        self.threads = max(m.threads for m in members)

    @property
    def identity(self) -> str:
        """SHA-256 over the models' files and the number of views."""
        return hashlib.sha256(" ".join([*(m.identity for m in self.members), str(self.views)]).encode()).hexdigest()

    def answer(self, prepared: Sequence[images.Pixels]) -> Answers:
        """As `Predictor.answer`."""
        ways = dict(zip(self.specs, prepared, strict=True))
        answers = [
            member.answer([np.ascontiguousarray(view)])
            for member in self.members
            for view in views_of(ways[member.card.preprocessing], self.views)
        ]
        if len(answers) == 1:
            return answers[0]
        mean: npt.NDArray[np.float64] = np.mean([a.probs_NC for a in answers], axis=0)
        if len(self.members) > 1:
            return Answers(mean)
        return Answers(mean, ood_score_N=answers[0].ood_score_N, ood_N=answers[0].ood_N)


def load_predictor(
    models: Sequence[str | Path],
    *,
    views: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    alpha: float | None = None,
    accuracy: float | None = None,
) -> Predictor:
    """Open one model, or several to average.

    Args:
        models: ONNX files or names of bundled models.
        views: How many views of each picture are averaged, one of `VIEWS`.
        threads: As `Classifier.load`.
        device: As `Classifier.load`.
        alpha: As `Classifier.load`; a mean of several answers has no conformal sets.
        accuracy: As `Classifier.load`; a mean of several answers is not judged.

    Raises:
        ModelError: As `Classifier.load` and `Ensemble`; or `alpha` or `accuracy` for a mean.
    """
    if len(models) == views == 1:
        return Classifier.load(models[0], threads=threads, device=device, alpha=alpha, accuracy=accuracy)
    if alpha is not None or accuracy is not None:
        raise ModelError(
            "Conformal sets and acceptance rest on thresholds for one model's answer to a picture as it is, and don't "
            "hold for a mean of models or views. Give one model and one view, or neither alpha nor accuracy."
        )
    return Ensemble([Classifier.load(m, threads=threads, device=device) for m in models], views)


def views_of(pixels_NHWC: images.Pixels, number: int) -> list[images.Pixels]:
    """The first `number` (one of `VIEWS`) of a picture's views: uint8 (N, H, H, 3) each."""
    if number == 2:
        return [pixels_NHWC, pixels_NHWC[:, :, ::-1]]
    turns = [np.rot90(pixels_NHWC, k, axes=(1, 2)) for k in range(min(number, 4))]
    return turns if number < 8 else [*turns, *(t[:, :, ::-1] for t in turns)]
