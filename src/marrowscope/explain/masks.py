"""Does the heat lie on the cell? Phantoms have masks, so it can be counted.

A cell stands in the middle of its picture, and so a blob in the middle, which knows nothing, would win any such game.
The phantoms are therefore moved out of the middle as far as their cell stays whole; and the share that chance would
reach (the area of the mask) and what a blob in the middle reaches are given beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marrowscope.data.phantom import MORPHOLOGY, Phantom, draw
from marrowscope.explain.heat import Heat
from marrowscope.images import Pixels, prepare
from marrowscope.schema import Preprocessing

Masks = npt.NDArray[np.bool_]

NO_CELL = frozenset({"ART", "NIF"})
"""Classes of phantoms that have no whole cell to point at."""

MOST_SHIFT = 0.2
"""Of the side: no phantom is moved by more."""


@dataclass(frozen=True)
class MaskedCells:
    """Prepared phantoms with their masks.

    Attributes:
        pictures_NHWC: uint8 (N, size, size, 3).
        cell_NHW: bool (N, size, size), the cell with its nucleus.
        nucleus_NHW: bool (N, size, size).
        codes: N class codes.
    """

    pictures_NHWC: Pixels
    cell_NHW: Masks
    nucleus_NHW: Masks
    codes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)


def masked_cells(codes: Sequence[str], spec: Preprocessing, n: int, seed: int) -> MaskedCells:
    """Draw `n` phantoms of those classes that have a cell, in turn, moved out of the middle, and prepare them.

    Args:
        codes: Classes of a model; those that can't be drawn, and `NO_CELL`, are left out.
        spec: The model's preprocessing; the masks go the same way.
        n: How many; 0 come where no class can be drawn.
        seed: Of the phantoms and of their places. Take one that no training used.
    """
    drawable = [c for c in codes if c in MORPHOLOGY and c not in NO_CELL]
    pictures, cells, nuclei, labels = [], [], [], []
    for i in range(n if drawable else 0):
        code = drawable[i % len(drawable)]
        phantom = moved(draw(code, seed, i // len(drawable)), np.random.default_rng([seed, i]))
        pictures.append(prepare(phantom.image, spec))
        cells.append(_prepared_mask(phantom.cell, spec))
        nuclei.append(_prepared_mask(phantom.nucleus, spec))
        labels.append(code)
    empty = np.empty((0, spec.size, spec.size), dtype=bool)
    return MaskedCells(
        np.stack(pictures) if pictures else np.empty((0, spec.size, spec.size, 3), dtype=np.uint8),
        np.stack(cells) if cells else empty,
        np.stack(nuclei) if nuclei else empty,
        tuple(labels),
    )


def moved(phantom: Phantom, rng: np.random.Generator) -> Phantom:
    """The phantom moved by chance, as far as its cell stays whole and none of it is mirrored into the picture.

    What comes in from outside is the picture mirrored at its edge.
    """
    shifts = []
    for axis in (0, 1):
        taken = np.flatnonzero(phantom.cell.any(1 - axis))
        side = phantom.cell.shape[axis]
        slack = int(min(taken[0], side - 1 - taken[-1], MOST_SHIFT * side)) if len(taken) else 0
        shifts.append(int(rng.integers(-slack, slack + 1)))
    down, right = shifts
    pad = ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0)))
    height, width = phantom.cell.shape
    window = slice(max(-down, 0), max(-down, 0) + height), slice(max(-right, 0), max(-right, 0) + width)

    def move(mask: Masks) -> Masks:
        return np.pad(mask, pad)[window]

    image = np.pad(phantom.image, (*pad, (0, 0)), mode="reflect")[window]
    return Phantom(np.ascontiguousarray(image), move(phantom.nucleus), move(phantom.cell), phantom.code)


def _prepared_mask(mask_HW: Masks, spec: Preprocessing) -> Masks:
    as_picture = np.repeat(mask_HW[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return prepare(as_picture, spec)[:, :, 0] > 127


def pointing_hits(heat_NHW: Heat, mask_NHW: Masks) -> Masks:
    """Whether the hottest pixel lies in the mask, (N,): the pointing game (Zhang et al. 2018, IJCV, section 4.1).

    Where several pixels are equally hot, as in a coarse or a flat map, the middle one of them in reading order counts,
    so that no corner is preferred. The game's usual tolerance of 15 pixels is not given.
    """
    hits = []
    for heat, mask in zip(heat_NHW, mask_NHW, strict=True):
        hottest = np.flatnonzero(heat.ravel() == heat.max())
        hits.append(bool(mask.ravel()[hottest[len(hottest) // 2]]))
    return np.array(hits, dtype=bool)


def energy_inside(heat_NHW: Heat, mask_NHW: Masks) -> npt.NDArray[np.float64]:
    """Share of the heat that lies in the mask, (N,), 0..1 (Wang et al. 2020, Score-CAM, section 4.3).

    A map without any heat gets the mask's share of the area: it says nothing, as chance does.
    """
    total = heat_NHW.sum((1, 2), dtype=np.float64)
    inside = np.where(mask_NHW, heat_NHW, 0).sum((1, 2), dtype=np.float64)
    area = mask_NHW.mean((1, 2))
    share: npt.NDArray[np.float64] = np.where(total > 0, inside / np.where(total > 0, total, 1.0), area)
    return share
