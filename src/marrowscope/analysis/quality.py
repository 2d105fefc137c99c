"""Errors against measures of the picture: is the model wrong more often on dark, unsharp or small cells?

Classes differ in size and stain and in how hard they are, so a plain comparison of right and wrong answers would
compare classes. The test here compares within each true class: van Elteren's (1960, Bull Inst Int Stat 37, 351-361),
Wilcoxon's rank-sum test stratified, with midranks for ties.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope.data._features import statistics
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.compare import holm_adjusted
from marrowscope.evaluate.figures import Bootstrap, figure, proportion
from marrowscope.evaluate.intervals import bootstrap_weights, percentile_interval
from marrowscope.evaluate.metrics import Bools, Floats, Integers
from marrowscope.images import Pixels
from marrowscope.schema import Figure, QualityBin, QualityMeasure

BINS = 5
SIDE = 96
"""Pixels of the longer side at which the stained body is measured."""


class Measure(NamedTuple):
    """What is measured of a picture."""

    name: str
    unit: str
    what: str


MEASURES = (
    Measure("brightness", "grey value", "mean of the grey values, 0 to 255"),
    Measure("contrast", "grey value", "standard deviation of the grey values"),
    Measure("sharpness", "log10 of variance", "variance of the Laplacian of the grey values, on a log scale"),
    Measure("stain", "optical density", "mean optical density over the three channels"),
    Measure("size", "px", "diameter of a circle as large as the blue-stained body nearest the middle, mostly nucleus"),
)


def measure_picture(pixels_HWC: Pixels) -> Floats:
    """(len(MEASURES),) float64 of one picture, uint8 RGB."""
    brightness, contrast, sharpness, stain = (float(v) for v in statistics(pixels_HWC)[:4])
    return np.array([brightness, contrast, sharpness, stain, stained_diameter(pixels_HWC)])


def stained_diameter(pixels_HWC: Pixels) -> float:
    """Diameter, in pixels of the picture, of a circle as large as the stained body nearest to the middle.

    Nuclei and basophilic cytoplasm absorb red light and red cells hardly do, so the body is where the red channel's
    optical density is above Otsu's threshold (1979, IEEE Trans Syst Man Cybern 9, 62-66), as far as it is connected.
    """
    height, width = pixels_HWC.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(3, round(width * scale)), max(3, round(height * scale)))
    red = Image.fromarray(pixels_HWC[..., 0]).resize(size, Image.Resampling.BOX)
    density_HW = -np.log10((np.asarray(red, dtype=np.float64) + 1) / 256)
    mask_HW = density_HW > otsu(density_HW)
    if not mask_HW.any():
        return 0.0
    rows, columns = np.nonzero(mask_HW)
    away = (rows - (size[1] - 1) / 2) ** 2 + (columns - (size[0] - 1) / 2) ** 2
    start = int(away.argmin())
    area = int(_connected(mask_HW, int(rows[start]), int(columns[start])).sum())
    diameter: float = 2 * math.sqrt(area / math.pi) / scale
    return diameter


def otsu(values: Floats) -> float:
    """The threshold that parts values into two groups of the largest variance between them; the value itself of one."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    counts, edges = np.histogram(values, bins=128, range=(low, high))
    share = np.cumsum(counts) / values.size
    middle = (edges[:-1] + edges[1:]) / 2
    mean = np.cumsum(counts * middle) / values.size
    inside = share * (1 - share)
    between = np.divide((mean[-1] * share - mean) ** 2, inside, out=np.zeros_like(mean), where=inside > 0)
    # Where a gap lies between the groups, all thresholds in it part them alike: take its middle.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def _connected(mask_HW: Bools, row: int, column: int) -> Bools:
    """The part of a mask that is connected with one of its pixels, by sides."""
    part = np.zeros_like(mask_HW)
    part[row, column] = True
    while True:
        grown = part.copy()
        grown[1:] |= part[:-1]
        grown[:-1] |= part[1:]
        grown[:, 1:] |= part[:, :-1]
        grown[:, :-1] |= part[:, 1:]
        grown &= mask_HW
        if (grown == part).all():
            return part
        part = grown


# ------------------------------------------------------------------------------------------------- the statistics


def quality_measures(case: Case, values_NC: Floats, bootstrap: Bootstrap) -> tuple[QualityMeasure, ...]:
    """Judge each of the `MEASURES`.

    Args:
        case: N judged cells; at least one.
        values_NC: Their measures; finite.
        bootstrap: How the intervals of the effects are drawn.
    """
    tests = [van_elteren(values_NC[:, m], ~case.right_N, case.truth_N) for m in range(len(MEASURES))]
    tested = [i for i, (_, p) in enumerate(tests) if p is not None]
    adjusted = dict(zip(tested, holm_adjusted([float(tests[i][1] or 0.0) for i in tested]), strict=True))
    out = []
    for i, measure in enumerate(MEASURES):
        out.append(
            QualityMeasure(
                name=measure.name,
                unit=measure.unit,
                what=measure.what,
                bins=_bins(case, values_NC[:, i]),
                effect=_effect(case, values_NC[:, i], bootstrap),
                p_value=tests[i][1],
                p_adjusted=adjusted.get(i),
            )
        )
    return tuple(out)


def _bins(case: Case, values_N: Floats) -> tuple[QualityBin, ...]:
    """Error rates in bins equal in cells; cells of one value share a bin."""
    edges = np.unique(np.quantile(values_N, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_N = np.searchsorted(edges, values_N, side="left")
    out = []
    for b in np.unique(bin_N):
        inside = bin_N == b
        low, high = float(values_N[inside].min()), float(values_N[inside].max())
        error = proportion(~case.right_N[inside], case.group_N[inside])
        out.append(QualityBin(low=round(low, 4), high=round(high, 4), error=error))
    return tuple(out)


def midranks(values_N: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    out: Floats = (last - (counts - 1) / 2)[inverse]
    return out


def van_elteren(values_N: Floats, wrong_N: Bools, stratum_N: Integers) -> tuple[float, float | None]:
    """Whether values differ between wrong and right within strata: the z of van Elteren's test and its two-sided p.

    Strata without a wrong or without a right answer say nothing. With one stratum it is the Wilcoxon-Mann-Whitney test
    in its normal approximation, corrected for ties, not for continuity.

    Returns:
        z above 0 where wrong answers have the higher values; p None where no stratum says anything.
    """
    total, variance = 0.0, 0.0
    for s in np.unique(stratum_N):
        own = stratum_N == s
        n = int(own.sum())
        wrong = int(wrong_N[own].sum())
        if not 0 < wrong < n:
            continue
        ranks = midranks(values_N[own])
        ties = np.unique(values_N[own], return_counts=True)[1].astype(np.float64)
        spread = wrong * (n - wrong) / 12 * ((n + 1) - float((ties**3 - ties).sum()) / (n * (n - 1)))
        total += (float(ranks[wrong_N[own]].sum()) - wrong * (n + 1) / 2) / (n + 1)
        variance += spread / (n + 1) ** 2
    if variance <= 0:
        return 0.0, None
    z = total / math.sqrt(variance)
    return z, math.erfc(abs(z) / math.sqrt(2))


def superiority(values_N: Floats, wrong_N: Bools, stratum_N: Integers, weights: Floats) -> npt.NDArray[np.float64]:
    """Probability that a wrong answer's value is above a right one's of its stratum, (B,); ties count half.

    Strata weigh as in van Elteren's test: wrong * right / (all + 1). nan where no stratum has both.
    """
    total, weight = np.zeros(len(weights)), np.zeros(len(weights))
    for s in np.unique(stratum_N):
        wrong, right = (np.flatnonzero((stratum_N == s) & m) for m in (wrong_N, ~wrong_N))
        if not len(wrong) or not len(right):
            continue
        order = np.sort(values_N[right])
        place = np.argsort(values_N[right], kind="stable")
        # Cumulated weights of the right answers give those below each wrong one without all pairs.
        cumulated = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, right[place]], 1)], axis=1)
        below, upto = (np.searchsorted(order, values_N[wrong], side=side) for side in ("left", "right"))
        wins = (weights[:, wrong] * (cumulated[:, below] + cumulated[:, upto]) / 2).sum(1)
        ones, zeros = weights[:, wrong].sum(1), cumulated[:, -1]
        total += wins / (ones + zeros + 1)
        weight += ones * zeros / (ones + zeros + 1)
    out: Floats = np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)
    return out


def _effect(case: Case, values_N: Floats, bootstrap: Bootstrap) -> Figure:
    wrong_N = ~case.right_N
    value = float(superiority(values_N, wrong_N, case.truth_N, np.ones((1, len(case))))[0])
    if math.isnan(value):
        return figure(value, None, len(case), "none (no class with right and wrong answers)")
    draws = [
        superiority(values_N, wrong_N, case.truth_N, weights)
        for weights in bootstrap_weights(case.group_N, bootstrap.draws, bootstrap.seed)
    ]
    return figure(value, percentile_interval(np.concatenate(draws)), len(case), bootstrap.method(case))
