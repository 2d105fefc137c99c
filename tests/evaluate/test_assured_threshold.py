"""Thresholds of confidence that hold on new cells: against scipy, by planted truth, by what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from marrowscope.evaluate.selective import ASSURANCE, assured_threshold, binomial_tail, threshold_for


@pytest.mark.parametrize(
    ("errors", "n", "rate"), [(0, 1, 0.05), (3, 153, 0.05), (20, 1000, 0.02), (50, 50, 0.3), (9, 4000, 0.01)]
)
def test_the_tail_is_that_of_scipy(errors: int, n: int, rate: float) -> None:
    assert binomial_tail(errors, n, rate) == pytest.approx(stats.binom.cdf(errors, n, rate), rel=1e-9)
    theirs = stats.binomtest(errors, n, rate, alternative="less").pvalue
    assert binomial_tail(errors, n, rate) == pytest.approx(theirs, rel=1e-9)


def _draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of a model that is right with probability `_right`."""
    confidence = rng.beta(3, 1, n)
    return confidence, rng.random(n) < _right(confidence)


def _right(confidence: np.ndarray) -> np.ndarray:
    return np.clip(0.4 + 0.6 * confidence**0.5, 0, 0.999)


def test_the_accuracy_holds_on_new_cells_as_often_as_it_says() -> None:
    """Planted truth: the accuracy above any threshold is known."""
    rng = np.random.default_rng(0)
    grid = rng.beta(3, 1, 400_000)
    right = _right(grid)
    missed = {"assured": 0, "lucky": 0}
    found = 0
    for _ in range(400):
        confidence, hits = _draw(rng, 500)
        for name, threshold in (
            ("assured", assured_threshold(confidence, hits, 0.95)),
            ("lucky", threshold_for(confidence, hits, 0.95)),
        ):
            if threshold is None:
                continue
            found += name == "assured"
            missed[name] += float(right[grid >= threshold].mean()) < 0.95
    assert missed["assured"] / 400 <= 1 - ASSURANCE
    assert missed["lucky"] / 400 > 0.3, "why the plain threshold is not taken"
    assert found > 100, "a rule that never accepts would hold too"


def test_more_cells_come_nearer_to_the_limit() -> None:
    rng = np.random.default_rng(1)
    thresholds = [assured_threshold(*_draw(rng, n), 0.95) for n in (500, 5000, 50_000)]
    grid = np.sort(rng.beta(3, 1, 400_000))
    limit = next(t for t in np.linspace(0, 1, 400) if _right(grid[grid >= t]).mean() >= 0.95)
    assert all(t is not None for t in thresholds[1:])
    assert thresholds[2] == pytest.approx(limit, abs=0.05)
    assert thresholds[2] >= limit  # type: ignore[operator]


def test_order_of_rows_does_not_matter_and_ties_stay_together() -> None:
    rng = np.random.default_rng(2)
    confidence = np.round(rng.beta(3, 1, 800), 2)
    hits = rng.random(800) < np.clip(confidence + 0.3, 0, 1)
    found = assured_threshold(confidence, hits, 0.95)
    order = rng.permutation(800)
    assert found is not None
    assert found in confidence
    assert assured_threshold(confidence[order], hits[order], 0.95) == found
    assert found == pytest.approx(0.47)


def test_out_of_reach_and_too_few() -> None:
    nothing = np.zeros(0)
    assert assured_threshold(nothing, nothing.astype(bool), 0.95) is None
    few = np.linspace(0.9, 1, 20)
    assert assured_threshold(few, np.ones(20, bool), 0.95) is None, "twenty right answers show no 95 %"
    many = np.linspace(0.9, 1, 2000)
    assert assured_threshold(many, np.ones(2000, bool), 0.95) == 0.9, "all are right: all are accepted"
    assert assured_threshold(many, np.zeros(2000, bool), 0.95) is None
