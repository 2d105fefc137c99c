"""Several models, or several views of each picture, averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from marrowscope import images
from marrowscope.errors import ModelError
from marrowscope.infer.classifier import Classifier
from marrowscope.infer.predictor import Predictor

VIEWS = (1, 2, 4, 8)
"""A picture as it is; with its mirror image; its four turns by right angles; these and their mirror images."""


class Ensemble(Predictor):
    """The mean of the probabilities that several models give, each for several views of a picture.

    A cell has no up and no down, so each of the eight flips and right-angle turns is as good a picture of it; their
    mean cannot depend on how the cell happened to lie.

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

    @property
    def identity(self) -> str:
        """SHA-256 over the models' files and the number of views."""
        return hashlib.sha256(" ".join([*(m.identity for m in self.members), str(self.views)]).encode()).hexdigest()

    def answer(self, prepared: Sequence[images.Pixels]) -> npt.NDArray[np.float64]:
        """As `Predictor.answer`."""
        ways = dict(zip(self.specs, prepared, strict=True))
        answers = [
            member.probabilities(np.ascontiguousarray(view))
            for member in self.members
            for view in views_of(ways[member.card.preprocessing], self.views)
        ]
        mean: npt.NDArray[np.float64] = np.mean(answers, axis=0)
        return mean


def views_of(pixels_NHWC: images.Pixels, number: int) -> list[images.Pixels]:
    """The first `number` (one of `VIEWS`) of a picture's views: uint8 (N, H, H, 3) each."""
    if number == 2:
        return [pixels_NHWC, pixels_NHWC[:, :, ::-1]]
    turns = [np.rot90(pixels_NHWC, k, axes=(1, 2)) for k in range(min(number, 4))]
    return turns if number < 8 else [*turns, *(t[:, :, ::-1] for t in turns)]
