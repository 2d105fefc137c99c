"""Figures with intervals, made of a case: proportions by Wilson, everything else by the bootstrap over groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from marrowscope.evaluate.case import Case
from marrowscope.evaluate.intervals import bootstrap_weights, percentile_interval, proportion_interval
from marrowscope.evaluate.metrics import Bools, Floats, Integers
from marrowscope.schema import Figure

NO_IMAGES = "none (no images)"
UNDEFINED = "none (undefined)"
NO_WIDTH = 1e-12
"""Bootstrap intervals narrower than this say that every draw gave the same, not that the figure is certain."""


def figure(value: float, interval: tuple[float, float] | None, n: int, method: str) -> Figure:
    """A `schema.Figure` in which nan has become None."""
    value, low, high = (float(v) for v in (value, *(interval or (np.nan, np.nan))))
    return Figure(
        value=None if np.isnan(value) else value,
        low=None if np.isnan(low) else low,
        high=None if np.isnan(high) else high,
        n=n,
        method=method,
    )


def proportion(hits_N: Bools, group_N: Integers) -> Figure:
    """The share of hits with Wilson's interval."""
    if not len(hits_N):
        return figure(np.nan, None, 0, NO_IMAGES)
    low, high, method = proportion_interval(hits_N, group_N)
    return figure(float(np.mean(hits_N)), (low, high), len(hits_N), method)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn; the same draws serve every figure of a case.

    Attributes:
        draws: How many, at least 1.
        seed: Of the draws.
    """

    draws: int
    seed: int

    def method(self, case: Case) -> str:
        """What a figure says of its interval."""
        return f"bootstrap ({self.draws} draws{', by group' if case.grouped else ''})"

    def run(self, case: Case, statistics: Callable[[Floats], Mapping[str, Floats]]) -> dict[str, Floats]:
        """Draws of some statistics, by name, each (draws, ...).

        Args:
            case: With at least one image.
            statistics: Takes weights (B, N) and gives arrays (B, ...).
        """
        parts: dict[str, list[Floats]] = {}
        for weights in bootstrap_weights(case.group_N, self.draws, self.seed):
            for name, values in statistics(weights).items():
                parts.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def figure(
        self, value: float, draws: Floats, n: int, case: Case, no_width: Callable[[], tuple[float, float]] | None = None
    ) -> Figure:
        """A figure with the percentile interval of its draws.

        Args:
            value: The figure; nan where undefined.
            draws: (draws,), nan where undefined.
            n: Number of images it rests on.
            case: The images.
            no_width: Gives a wider interval where all draws are equal, as when every answer is right. Resampling right
                answers can't show how little they say.
        """
        if np.isnan(value):
            return figure(value, None, n, UNDEFINED)
        low, high = percentile_interval(draws)
        if high - low < NO_WIDTH:
            if no_width is None:
                return figure(value, None, n, "none (the bootstrap has no width)")
            return figure(value, no_width(), n, "Wilson of its parts (the bootstrap has no width)")
        return figure(value, (low, high), n, self.method(case))

    def mean(self, values_N: Floats, case: Case, worst: float | None = None) -> Figure:
        """Mean of one value an image; `worst` is the largest that one could have, for where all have 0."""
        if not len(case):
            return figure(np.nan, None, 0, NO_IMAGES)
        draws = self.run(case, lambda w: {"mean": w @ values_N / w.sum(1)})["mean"]
        none_so_far = worst is not None and not values_N.any()

        def bounds() -> tuple[float, float]:
            return 0.0, (worst or 0.0) * proportion_interval(values_N > 0, case.group_N)[1]

        return self.figure(float(values_N.mean()), draws, len(case), case, bounds if none_so_far else None)
