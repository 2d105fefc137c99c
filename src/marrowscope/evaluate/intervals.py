"""95 % intervals: Wilson's for proportions, the percentile bootstrap over groups for the rest.

Images that belong together (identical files, one slide, one patient) are no independent evidence. Where such groups are
known the bootstrap draws whole groups, and Wilson's interval rests on the effective number of images, that is, the
number of independent ones that would leave the same uncertainty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from marrowscope.evaluate.metrics import Bools, Floats, Integers

LEVEL = 0.95
_CHUNK = 1 << 20  # weights held at a time: 8 MB


def wilson_interval(hits: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of the proportion hits / n (Wilson 1927, J Am Stat Assoc 22, 209-212).

    Args:
        hits: 0..n; need not be whole (an effective number).
        n: Above 0.
        level: Confidence, in (0, 1).

    Returns:
        Lower and upper end, 0..1; unlike the bootstrap's it has a width when hits is 0 or n.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and n the end is the proportion itself, which rounding must not miss.
    return (0.0 if p <= 0 else max(0.0, centre - half)), (1.0 if p >= 1 else min(1.0, centre + half))


def number_groups(groups: Sequence[str]) -> Integers:
    """Numbers 0..G-1 for group names, (N,) int64, in the names' sorted order."""
    numbers = {name: i for i, name in enumerate(sorted(set(groups)))}
    return np.array([numbers[g] for g in groups], dtype=np.int64)


def effective_n(hits_N: Bools, group_N: Integers) -> float:
    """Number of independent images that would estimate the proportion as well as these grouped ones.

    The variance of the proportion from whole groups (the ratio estimator of cluster sampling, Cochran 1977, Sampling
    Techniques, eq. 11.12; factor G / (G - 1)) is set equal to p (1 - p) / (n - 1). It is never above N, and N when
    each image is its own group. Where all or none hit, variance says nothing and it is the number of groups.

    Args:
        hits_N: Whether each image counts as a hit; N above 0.
        group_N: Group of each image, any integers.
    """
    _, group_N = np.unique(group_N, return_inverse=True)
    size = np.bincount(group_N).astype(np.float64)
    n, g = float(len(hits_N)), len(size)
    p = float(np.mean(hits_N))
    if g == 1 or p in (0.0, 1.0):
        return float(g)
    residual = np.bincount(group_N, weights=hits_N.astype(np.float64)) - p * size
    variance = g / (g - 1) * float((residual**2).sum()) / (n * n)
    return n if variance == 0 else min(n, 1.0 + p * (1 - p) / variance)


def proportion_interval(hits_N: Bools, group_N: Integers) -> tuple[float, float, str]:
    """Wilson's interval of the share of hits, (low, high, method); on the effective n where images are grouped."""
    n = len(hits_N)
    groups = len(np.unique(group_N))
    m = float(n) if groups == n else effective_n(hits_N, group_N)
    low, high = wilson_interval(float(np.mean(hits_N)) * m, m)
    return low, high, "Wilson" if groups == n else f"Wilson (effective n {m:.0f}, {groups} groups)"


def bootstrap_weights(group_N: Integers, draws: int, seed: int) -> Iterator[Floats]:
    """Yield arrays (B, N): how often each image is in each draw of the bootstrap over groups; `draws` rows in all.

    Each draw takes G of the G groups with replacement, an image as often as its group.
    """
    rng = np.random.default_rng(seed)
    g = int(group_N.max()) + 1 if len(group_N) else 0
    step = max(1, _CHUNK // max(len(group_N), g, 1))
    for start in range(0, draws, step):
        b = min(step, draws - start)
        chosen = rng.integers(0, g, size=(b, g)) + np.arange(b)[:, None] * g
        weights = np.bincount(chosen.ravel(), minlength=b * g).reshape(b, g).astype(np.float64)
        yield weights[:, group_N]


def confusion_draws(weights: Floats, cell_N: Integers, n_classes: int) -> Floats:
    """Confusion matrices (B, C, C) of weighted images; `cell_N` is truth * C + prediction."""
    b, size = len(weights), n_classes * n_classes
    cells = np.arange(b)[:, None] * size + cell_N[None, :]
    flat = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=b * size).astype(np.float64)
    return flat.reshape(b, n_classes, n_classes)


def percentile_interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (Efron & Tibshirani 1993, ch. 13); draws that are nan don't count."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
