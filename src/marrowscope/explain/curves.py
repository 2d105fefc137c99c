"""Does the answer hang on the hottest pixels? Deletion and insertion curves (Petsiuk et al. 2018, BMVC,
arXiv:1806.07421, section 3.3).

Deletion takes the hottest pixels away first: the faster the probability falls, the smaller the area under its curve.
Insertion starts from a blurred picture and brings the hottest pixels back first: there a larger area is better. Both
are compared with a map of chance on the same cells, for their areas depend on the cells and on what is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marrowscope.explain.heat import Heat
from marrowscope.images import Pixels
from marrowscope.occlusion import Answer, Fill, filled

Floats = npt.NDArray[np.float64]

DELETED: Fill = "background"
INSERTED: Fill = "blur"


@dataclass(frozen=True)
class Curves:
    """Probabilities of the explained class, float64 (N, K + 1), for 0/K, 1/K .. K/K of the pixels taken or brought."""

    deletion_NK: Floats
    insertion_NK: Floats

    @property
    def deletion_area(self) -> Floats:
        """Area under each deletion curve, (N,), 0..1; less is better."""
        return area(self.deletion_NK)

    @property
    def insertion_area(self) -> Floats:
        """Area under each insertion curve, (N,), 0..1; more is better."""
        return area(self.insertion_NK)


def area(curve_NK: Floats) -> Floats:
    """Trapezoidal area under curves on equally spaced shares 0..1, (N, K + 1) -> (N,)."""
    inner = curve_NK[:, 1:-1].sum(1)
    mean: Floats = (inner + (curve_NK[:, 0] + curve_NK[:, -1]) / 2) / (curve_NK.shape[1] - 1)
    return mean


def curves(
    answer: Answer,
    pictures_NHWC: Pixels,
    heat_NHW: Heat,
    target_N: npt.NDArray[np.int64],
    *,
    steps: int = 10,
    seed: int = 0,
) -> Curves:
    """Both curves for each picture.

    Pixels of equal heat go in an order of chance: in reading order a coarse map would get a lucky or unlucky corner.

    Args:
        answer: Gives probabilities; asked for ``2 * (steps + 1)`` pictures for each.
        pictures_NHWC: Prepared pictures, uint8.
        heat_NHW: Their maps.
        target_N: Column of the class.
        steps: K, 1 or more.
        seed: Of the order of ties.
    """
    out: dict[str, list[Floats]] = {"deletion": [], "insertion": []}
    for i, (picture, heat, target) in enumerate(zip(pictures_NHWC, heat_NHW, target_N, strict=True)):
        chance = np.random.default_rng([seed, i]).random(heat.size)
        order = np.lexsort((chance, -heat.ravel()))
        rank = np.empty(heat.size, dtype=np.int64)
        rank[order] = np.arange(heat.size)
        rank_HW = rank.reshape(heat.shape)
        cut = [round(k * heat.size / steps) for k in range(steps + 1)]
        gone, blurred = filled(picture, DELETED), filled(picture, INSERTED)
        less = np.stack([np.where((rank_HW < c)[:, :, None], gone, picture) for c in cut])
        more = np.stack([np.where((rank_HW < c)[:, :, None], picture, blurred) for c in cut])
        out["deletion"].append(np.asarray(answer(less), dtype=np.float64)[:, target])
        out["insertion"].append(np.asarray(answer(more), dtype=np.float64)[:, target])
    empty = np.empty((0, steps + 1))
    return Curves(*(np.stack(out[name]) if out[name] else empty for name in ("deletion", "insertion")))
