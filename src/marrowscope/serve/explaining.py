"""Heat maps by occlusion, through the same queue as everything else, one at a time."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from marrowscope import images
from marrowscope.occlusion import occlude
from marrowscope.serve import pictures
from marrowscope.serve.batcher import QueueFullError
from marrowscope.serve.models import Model
from marrowscope.serve.problems import busy

_WAIT_SECONDS = 60.0


class Explainer:
    """Makes heat maps; one at a time, for each asks the model some 150 times."""

    def __init__(self) -> None:
        self._turn = threading.BoundedSemaphore(1)

    def overlay(self, model: Model, pixels_HWC: images.Pixels, code: str) -> bytes:
        """A PNG to lay over the picture, see `pictures.overlay`.

        Raises:
            Problem: 503, another one is being made or the model has too much to do.
        """
        if not self._turn.acquire(timeout=10.0):
            raise busy(5, "Another explanation is being made. Try again in a moment.")
        try:
            spec = model.classifier.card.preprocessing
            square = images.prepare(pixels_HWC, spec)
            column = model.classifier.codes.index(code)
            found = occlude(lambda some: _ask(model, some), square, column, batch_size=model.batcher.batch)
        finally:
            self._turn.release()
        height, width = pixels_HWC.shape[:2]
        return pictures.overlay(found.drop_HW, spec.crop, width, height)


def _ask(model: Model, prepared_NHWC: images.Pixels) -> npt.NDArray[np.floating]:
    n = len(prepared_NHWC)
    if not model.batcher.wait_for_room(n, _WAIT_SECONDS):
        raise busy(5, "The model has too much to do for an explanation. Try again later.")
    try:
        model.batcher.reserve(n)
    except QueueFullError as e:
        raise busy(e.seconds, "The model has too much to do for an explanation. Try again later.") from None
    return model.batcher.submit([(p,) for p in prepared_NHWC]).result().probs_NC
