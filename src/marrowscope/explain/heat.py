"""Heat maps as arrays: what makes one flat, and maps that know nothing of any network, to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope.images import Pixels

Heat = npt.NDArray[np.float32]
"""Heat of each pixel, 0 or more, not scaled: float32 (H, W), or (N, H, W)."""

FLAT = 1e-3
"""A map whose range is below this share of its peak is the same everywhere."""

NOTHING = 1e-9
"""A peak below this is no heat at all: rounding."""


def is_flat(heat_HW: Heat) -> bool:
    """Whether a map is the same everywhere (within `FLAT` of its peak), or has no heat, and so says nothing."""
    peak = float(heat_HW.max())
    return not np.isfinite(peak) or peak <= NOTHING or peak - float(heat_HW.min()) < FLAT * peak


def shown(heat_HW: Heat) -> Heat:
    """Scaled to a peak of 1, for looking at; all 0 where the map is flat."""
    return np.zeros_like(heat_HW) if is_flat(heat_HW) else heat_HW / heat_HW.max()


def enlarged(heat_HW: npt.NDArray[np.floating], size: int) -> Heat:
    """Bilinear, to (size, size)."""
    image = Image.fromarray(np.ascontiguousarray(heat_HW, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)


# ------------------------------------------------------------------------------------------------------------ controls


def random_maps(pictures_NHWC: Pixels, seed: int = 0, cells: int = 14) -> Heat:
    """Blobs of chance: uniform numbers on a grid of `cells` a side, enlarged; as coarse as real maps are.

    Noise of single pixels would be no fair opponent: taking away scattered pixels ruins a picture faster than taking
    away places does.
    """
    size = pictures_NHWC.shape[1]
    draws = [np.random.default_rng([seed, i]).random((cells, cells)) for i in range(len(pictures_NHWC))]
    return np.stack([enlarged(d, size) for d in draws])


def centre_maps(pictures_NHWC: Pixels) -> Heat:
    """A blob in the middle (standard deviation a fifth of the side), where these pictures have their cell."""
    n, size = pictures_NHWC.shape[:2]
    x = (np.arange(size) + 0.5) / size - 0.5
    blob = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.2**2)).astype(np.float32)
    return np.repeat(blob[None], n, axis=0)


def edge_maps(pictures_NHWC: Pixels) -> Heat:
    """Strength of the edges of the grey picture (gradient of central differences)."""
    grey = pictures_NHWC.astype(np.float32).mean(3)
    down, right = np.gradient(grey, axis=(1, 2))
    strength: Heat = np.hypot(down, right).astype(np.float32)
    return strength


CONTROLS: dict[str, tuple[str, Callable[[Pixels], Heat]]] = {
    "random": ("Control: chance", random_maps),
    "centre": ("Control: a blob in the middle", centre_maps),
    "edges": ("Control: edges of the picture", edge_maps),
}
"""Maps that don't look at the network; a test that lets one of them pass tests nothing."""
