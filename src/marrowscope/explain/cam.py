"""Class activation maps, with the package `grad-cam`.

Why three of them. Grad-CAM is what readers know. On a network that ends in a mean over the picture and one linear
layer, HiResCAM at the last stage equals it; elsewhere, and above all in transformers, averaging the gradient over the
picture first makes Grad-CAM point at places that lower the score, which HiResCAM does not (Draelos & Carin 2020,
arXiv:2011.08891). LayerCAM (Jiang et al. 2021, IEEE TIP, doi:10.1109/TIP.2021.3089943) stays meaningful in shallower
stages, so that it has a finer grid where the last stage is 3 x 3 places, as that of a ResNet is at 96 px.
`explain.judge` says which of them to believe for a given network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from marrowscope.explain.heat import NOTHING, Heat, enlarged
from marrowscope.explain.layers import Target, target_layers
from marrowscope.models import CellClassifier

_KINDS: dict[str, Any] = {"gradcam": GradCAM, "hirescam": HiResCAM, "layercam": LayerCAM}
STAGES = {"gradcam": 1, "hirescam": 1, "layercam": 2}
"""How many stages, counted from the last, each method takes together."""


def cam_targets(model: CellClassifier, method: str, size: int) -> list[Target]:
    """The layers that a method looks at; errors as `layers.target_layers`."""
    return target_layers(model.backbone, size, STAGES[method])


def cam_maps(
    model: CellClassifier, targets: Sequence[Target], images_BCHW: Tensor, target_B: Tensor, method: str
) -> Heat:
    """Maps of a batch, float32 (B, size, size), 0 or more.

    A map of one layer is as the method defines it, not scaled, so that a flat one can be told. Where there are several
    layers, each is scaled to a peak of 1 and the mean is taken, as grad-cam does.

    Args:
        model: In evaluation mode.
        targets: As `cam_targets` finds them.
        images_BCHW: Pixels 0..255.
        target_B: Column of the class for each picture, int64.
        method: ``gradcam``, ``hirescam`` or ``layercam``.
    """
    per_layer = [_one_layer(model, target, images_BCHW, target_B, method) for target in targets]
    size = int(images_BCHW.shape[-1])
    out = []
    for maps in zip(*per_layer, strict=True):
        if len(maps) > 1:
            maps = tuple(m / m.max() if m.max() > NOTHING else np.zeros_like(m) for m in maps)
        out.append(np.mean([enlarged(m, size) for m in maps], axis=0, dtype=np.float32))
    return np.stack(out)


def _one_layer(model: CellClassifier, target: Target, images_BCHW: Tensor, target_B: Tensor, method: str) -> Heat:
    """Maps on the layer's own grid, float32 (B, rows, columns), 0 or more."""
    # grad-cam's own call scales each map to 0..1, which would blow up a flat one; its parts give the map itself.
    cam = _KINDS[method](model, [target.module], target.reshape)
    try:
        images = images_BCHW.float().requires_grad_()
        with torch.enable_grad():
            logits = cam.activations_and_grads(images)
            wanted = [ClassifierOutputTarget(int(t)) for t in target_B]
            score = sum(ask(row) for ask, row in zip(wanted, logits, strict=True))
            score.backward()
        (activation,) = (a.numpy() for a in cam.activations_and_grads.activations)
        gradients = [g.numpy() for g in cam.activations_and_grads.gradients]
        # No gradient comes back from a layer that the answer does not depend on.
        gradient = gradients[0] if gradients else np.zeros_like(activation)
        heat = cam.get_cam_image(images, target.module, wanted, activation, gradient, False)
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
    positive: Heat = np.maximum(heat, 0).astype(np.float32)
    return positive
