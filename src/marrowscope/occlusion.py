"""Where hiding a part of a picture changes the answer: a heat map of any model, without a look inside.

A window slides over the picture and is filled with something that shows no cell; the heat of a pixel is the mean fall
of the class's probability over all windows that covered it (Zeiler & Fergus 2014, ECCV, arXiv:1311.2901, section 4.2).
It needs probabilities alone, so it works for an ONNX file, for an ensemble and for a network in training alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from marrowscope.errors import ModelError
from marrowscope.images import Pixels
from marrowscope.infer.predictor import Predictor

Answer = Callable[[Pixels], npt.NDArray[np.floating]]
"""Pictures uint8 (N, H, W, 3) -> probabilities (N, C), rows sum to 1."""

Fill = Literal["background", "mean", "blur"]
"""What stands for nothing: the median colour of the picture's rim (on a smear mostly background), the picture's mean
colour, or the picture blurred until a cell of it is a smudge."""

FILLS: tuple[Fill, ...] = get_args(Fill)

BLUR = 0.08
"""Standard deviation of the blur, as a share of the side: on these pictures about a quarter of a nucleus."""


@dataclass(frozen=True)
class Occlusion:
    """What hiding did.

    Attributes:
        drop_HW: float32, mean fall of the probability over the windows that covered a pixel, -1..1; below 0 where
            hiding raised it.
        drop_GG: float32, the fall for each window, by row and column.
        base: Probability on the whole picture, 0..1.
        target: Column of the class.
    """

    drop_HW: npt.NDArray[np.float32]
    drop_GG: npt.NDArray[np.float32]
    base: float
    target: int


def occlude(
    answer: Answer,
    picture_HWC: Pixels,
    target: int | None = None,
    *,
    window: float = 0.2,
    steps: int = 12,
    fill: Fill = "background",
    batch_size: int = 32,
) -> Occlusion:
    """Slide a window over one picture.

    Args:
        answer: Gives probabilities; asked for ``1 + steps ** 2`` pictures, `batch_size` at a time.
        picture_HWC: The picture, uint8, as `answer` takes it.
        target: Column of the class; None for the most probable one.
        window: Side of the window as a share of the picture's, above 0 and below 1.
        steps: Places of the window a side, 2 or more. More of them show finer, and cost more.
        fill: What stands in the window.
        batch_size: Pictures at a time.

    Raises:
        ModelError: An option is not allowed, the windows would leave gaps, or `answer` can't be run.
    """
    height, width = picture_HWC.shape[:2]
    rows, columns, tall, wide = _windows(height, width, window, steps)
    filling = filled(picture_HWC, fill)
    base_C = np.asarray(answer(picture_HWC[None]))[0]
    if target is None:
        target = int(base_C.argmax())
    if not 0 <= target < len(base_C):
        raise ModelError(f"The class to explain is column {target}; allowed: 0 to {len(base_C) - 1}.")
    places = [(y, x) for y in rows for x in columns]
    drops = np.empty(len(places), dtype=np.float32)
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        hidden = np.repeat(picture_HWC[None], len(some), axis=0)
        for picture, (y, x) in zip(hidden, some, strict=True):
            picture[y : y + tall, x : x + wide] = filling[y : y + tall, x : x + wide]
        drops[start : start + len(some)] = base_C[target] - np.asarray(answer(hidden))[:, target]
    total = np.zeros((height, width), dtype=np.float64)
    covered = np.zeros((height, width), dtype=np.float64)
    for (y, x), drop in zip(places, drops, strict=True):
        total[y : y + tall, x : x + wide] += drop
        covered[y : y + tall, x : x + wide] += 1
    drop_HW = (total / covered).astype(np.float32)
    return Occlusion(drop_HW, drops.reshape(steps, steps), float(base_C[target]), target)


def occlude_with(model: Predictor, picture_HWC: Pixels, code: str | None = None, **options: object) -> Occlusion:
    """As `occlude`, for a `Classifier` or an `Ensemble` and a decoded picture of any size.

    The window hides parts of the picture as given, before it is prepared, so the map has the picture's own size.

    Args:
        model: What answers.
        picture_HWC: Decoded picture, uint8 (H, W, 3).
        code: Class to explain; None for the most probable one.
        **options: As `occlude` takes them.

    Raises:
        ModelError: The model has no such class; or as `occlude`.
    """
    if code is not None and code not in model.codes:
        raise ModelError(f"The model has no class {code!r}; allowed: {' '.join(model.codes)}.")
    target = None if code is None else model.codes.index(code)
    return occlude(model.predict_proba, picture_HWC, target, **options)  # type: ignore[arg-type]


def filled(picture_HWC: Pixels, fill: Fill) -> Pixels:
    """The picture with nothing on it, in the way of `fill`: uint8, of the same shape.

    Raises:
        ModelError: Unknown `fill`.
    """
    if fill == "blur":
        radius = BLUR * min(picture_HWC.shape[:2])
        return np.asarray(Image.fromarray(picture_HWC).filter(ImageFilter.GaussianBlur(radius)), dtype=np.uint8)
    if fill == "mean":
        colour = picture_HWC.reshape(-1, 3).mean(0)
    elif fill == "background":
        colour = np.median(_rim(picture_HWC), axis=0)
    else:
        raise ModelError(f"The filling is {fill!r}; allowed: {', '.join(FILLS)}.")
    return np.broadcast_to(np.round(colour).astype(np.uint8), picture_HWC.shape)


def _rim(picture_HWC: Pixels) -> npt.NDArray[np.uint8]:
    """Pixels of the outer sixteenth of each side, (N, 3)."""
    height, width = picture_HWC.shape[:2]
    y, x = max(1, height // 16), max(1, width // 16)
    inside = np.zeros((height, width), dtype=bool)
    inside[y : height - y, x : width - x] = True
    rim: npt.NDArray[np.uint8] = picture_HWC[~inside]
    return rim


def _windows(height: int, width: int, window: float, steps: int) -> tuple[list[int], list[int], int, int]:
    """Upper and left edges of the windows, and their height and width, pixels; the first and last touch the rim."""
    if not 0 < window < 1:
        raise ModelError(f"The window is {window:g} of the side; allowed are shares above 0 and below 1.")
    if steps < 2:
        raise ModelError(f"steps is {steps}; allowed are 2 and more.")
    tall, wide = max(1, round(window * height)), max(1, round(window * width))
    rows = [round(y) for y in np.linspace(0, height - tall, steps)]
    columns = [round(x) for x in np.linspace(0, width - wide, steps)]
    if max(np.diff(rows)) > tall or max(np.diff(columns)) > wide:
        least = int(np.ceil(1 / window)) + 1
        raise ModelError(
            f"{steps} windows of {window:g} of the side leave gaps between them; take {least} steps or a larger window."
        )
    return rows, columns, tall, wide
