"""What a network gives for pictures: logits, and the features that its last layer decides on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marrowscope.datasets import CellImages, batches
from marrowscope.images import Pixels
from marrowscope.models import CellClassifier

BATCH_SIZE = 64


class Outputs(NamedTuple):
    """Of N pictures: logits float32 (N, C) and features float32 (N, D)."""

    logits_NC: npt.NDArray[np.float32]
    features_ND: npt.NDArray[np.float32]


def logits_and_features(model: CellClassifier, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """One pass through a network: logits (B, C) and features (B, D).

    Features are what timm calls pre-logits: pooled, normalised, just before the layer that tells the classes apart.
    """
    backbone: Any = model.backbone
    inside = backbone.forward_features((images_BCHW.to(model.mean.dtype) - model.mean) / model.std)
    features: Tensor = backbone.forward_head(inside, pre_logits=True)
    logits: Tensor = backbone.forward_head(inside)
    return logits, features.flatten(1)


def cell_outputs(
    model: CellClassifier,
    images: CellImages,
    *,
    places: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outputs:
    """Run cells through a network in float32, on a GPU where there is one.

    Args:
        model: In evaluation mode.
        images: Prepared cells.
        places: Which of them; None for all.
        progress: Called with (done, total).

    Raises:
        DataError: A picture can't be read any more.
    """
    order = np.arange(len(images)) if places is None else np.asarray(places, dtype=np.int64)
    chunks = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    return _run(model, (b.images for b in batches(images, chunks)), len(order), progress)


def picture_outputs(
    model: CellClassifier,
    pictures: Iterable[Pixels],
    total: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Outputs:
    """As `cell_outputs`, of prepared pictures, uint8 (size, size, 3) each."""

    def stacked() -> Iterable[Tensor]:
        held: list[Pixels] = []
        for picture in pictures:
            held.append(picture)
            if len(held) == BATCH_SIZE:
                yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)
                held = []
        if held:
            yield torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2)

    return _run(model, stacked(), total, progress)


def _run(
    model: CellClassifier, stacks: Iterable[Tensor], total: int, progress: Callable[[int, int], None] | None
) -> Outputs:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    logits: list[npt.NDArray[np.float32]] = []
    features: list[npt.NDArray[np.float32]] = []
    done = 0
    with torch.inference_mode():
        for stack in stacks:
            found = logits_and_features(model, stack.to(device))
            for parts, tensor in zip((logits, features), found, strict=True):
                parts.append(tensor.float().cpu().numpy())
            done += len(stack)
            if progress is not None:
                progress(done, total)
    return Outputs(np.concatenate(logits), np.concatenate(features))
