"""Accuracy on changed pictures, from which answers were right: the figures of `corruptions`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from marrowscope.evaluate.compare import paired_difference
from marrowscope.evaluate.corruptions import AMOUNTS, KINDS, STRENGTHS, Kind
from marrowscope.evaluate.figures import NO_WIDTH, figure, proportion
from marrowscope.evaluate.intervals import bootstrap_weights, percentile_interval
from marrowscope.evaluate.metrics import Bools, Floats, Integers, ratio
from marrowscope.schema import Figure, Robustness, RobustnessKind, RobustnessPoint

Condition = tuple[Kind, int]
CONDITIONS: tuple[Condition, ...] = tuple((kind, strength) for kind in KINDS for strength in STRENGTHS)


def robustness_figures(
    clean_N: Bools, right: Mapping[Condition, Bools], group_N: Integers, *, model: str, seed: int, draws: int = 2000
) -> Robustness:
    """Accuracy and what is lost, by kind and strength and over all.

    The mean over kinds and strengths is that of Hendrycks & Dietterich 2019 (mean corruption accuracy; their error is
    divided by AlexNet's, which has no counterpart here). Intervals draw whole cells with all their changes.

    Args:
        clean_N: Whether the answer for each picture as it is is right; N above 0.
        right: The same for each of `CONDITIONS`.
        group_N: Numbers 0..G-1 of what belongs together.
        model: What answered.
        seed: Kept in the result, and of the bootstrap.
        draws: Of the bootstrap.
    """
    weights = np.concatenate(list(bootstrap_weights(group_N, draws, seed)))

    def mean_and_drop(hits_NK: Floats) -> tuple[Figure, Figure]:
        return _mean(hits_NK, weights), _drop(clean_N.astype(np.float64), hits_NK, weights)

    kinds = []
    for kind in KINDS:
        points = []
        for strength in STRENGTHS:
            hits_N = right[kind, strength]
            points.append(
                RobustnessPoint(
                    strength=strength,
                    amount=AMOUNTS[kind][strength - 1],
                    accuracy=proportion(hits_N, group_N),
                    change=paired_difference(clean_N, hits_N, group_N, draws, seed),
                    relative_drop=_drop(clean_N.astype(np.float64), hits_N[:, None].astype(np.float64), weights),
                )
            )
        accuracy, drop = mean_and_drop(np.stack([right[kind, s] for s in STRENGTHS], axis=1).astype(np.float64))
        kinds.append(RobustnessKind(kind=kind, accuracy=accuracy, relative_drop=drop, points=tuple(points)))
    accuracy, drop = mean_and_drop(np.stack([right[c] for c in CONDITIONS], axis=1).astype(np.float64))
    return Robustness(
        model=model,
        seed=seed,
        n=len(clean_N),
        clean=proportion(clean_N, group_N),
        accuracy=accuracy,
        relative_drop=drop,
        kinds=tuple(kinds),
    )


def _mean(hits_NK: Floats, weights: Floats) -> Figure:
    """Mean of all hits, cells drawn whole."""
    mean_N = hits_NK.mean(1)
    return _bootstrapped(float(mean_N.mean()), weights @ mean_N / weights.sum(1), len(hits_NK))


def _drop(clean_N: Floats, hits_NK: Floats, weights: Floats) -> Figure:
    """1 - accuracy on changed pictures / accuracy on those as they are."""
    mean_N = hits_NK.mean(1)
    value = 1 - ratio(mean_N.sum(), clean_N.sum())
    return _bootstrapped(float(value), 1 - ratio(weights @ mean_N, weights @ clean_N), len(hits_NK))


def _bootstrapped(value: float, draws: Floats, n: int) -> Figure:
    if np.isnan(value):
        return figure(value, None, n, "none (undefined)")
    low, high = percentile_interval(draws)
    if high - low < NO_WIDTH:
        return figure(value, None, n, "none (the bootstrap has no width)")
    return figure(value, (low, high), n, f"bootstrap over cells ({len(draws)} draws)")
