"""Intervals against statsmodels and scipy, their coverage, and what must not change them."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from marrowscope.evaluate import intervals


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (3, 7), (19, 20), (20, 20), (480, 523), (1, 4000)])
def test_wilson_is_that_of_statsmodels(hits: int, n: int) -> None:
    expected = proportion_confint(hits, n, method="wilson")
    assert intervals.wilson_interval(hits, n) == pytest.approx(expected, abs=1e-12)
    expected = proportion_confint(hits, n, alpha=0.1, method="wilson")
    assert intervals.wilson_interval(hits, n, level=0.9) == pytest.approx(expected, abs=1e-12)


def test_wilson_stored_value() -> None:
    assert intervals.wilson_interval(90, 100) == pytest.approx((0.8256343384950865, 0.9447708629393249), abs=1e-14)
    assert intervals.wilson_interval(0, 10)[0] == 0
    assert intervals.wilson_interval(10, 10)[1] == 1


def test_effective_n_is_n_without_groups_and_the_number_of_groups_with_duplicates() -> None:
    hits = np.random.default_rng(1).random(200) < 0.8
    assert intervals.effective_n(hits, np.arange(200)) == pytest.approx(200)
    twice, groups = np.concatenate([hits, hits]), np.concatenate([np.arange(200)] * 2)
    assert intervals.effective_n(twice, groups) == pytest.approx(200)
    assert intervals.effective_n(np.ones(50, bool), np.repeat(np.arange(5), 10)) == 5
    assert intervals.effective_n(hits, np.zeros(200, int)) == 1
    assert intervals.effective_n(np.tile([True, False], 50), np.repeat(np.arange(50), 2)) == 100


def test_the_name_of_a_group_and_the_order_of_rows_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    hits, groups = rng.random(300) < 0.7, rng.integers(0, 40, 300)
    order = rng.permutation(300)
    expected = intervals.effective_n(hits, groups)
    assert intervals.effective_n(hits[order], groups[order] * 7 + 3) == pytest.approx(expected, rel=1e-12)
    low, high, method = intervals.proportion_interval(hits, groups)
    assert low < hits.mean() < high
    assert method == f"Wilson (effective n {expected:.0f}, 40 groups)"
    assert intervals.proportion_interval(hits, np.arange(300))[2] == "Wilson"


@pytest.mark.parametrize("between", [0.0, 0.25])
def test_wilson_on_effective_n_covers_as_it_says(between: float) -> None:
    """40 patients of 25 cells each, whose accuracies differ between patients: the truth is 0.8."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 25)
    inside = plain = 0
    for _ in range(400):
        p = rng.beta(0.8 / between, 0.2 / between, 40) if between else np.full(40, 0.8)
        hits = rng.random(1000) < p[groups]
        low, high, _ = intervals.proportion_interval(hits, groups)
        inside += low <= 0.8 <= high
        low, high = intervals.wilson_interval(float(hits.sum()), 1000)
        plain += low <= 0.8 <= high
    assert inside / 400 > 0.92
    assert plain / 400 < 0.75 or not between  # what ignoring the patients would do


def test_bootstrap_weights_draw_whole_groups() -> None:
    groups = np.array([0, 1, 1, 2, 2, 2])
    draws = np.concatenate(list(intervals.bootstrap_weights(groups, 500, seed=4)))
    assert draws.shape == (500, 6)
    assert (draws[:, 1] == draws[:, 2]).all()
    assert (draws[:, 3] == draws[:, 5]).all()
    assert (draws[:, [0, 1, 3]].sum(1) == 3).all()
    again = np.concatenate(list(intervals.bootstrap_weights(groups, 500, seed=4)))
    assert (draws == again).all()
    assert draws[:, 0].mean() == pytest.approx(1, abs=0.1)


def test_bootstrap_draws_do_not_depend_on_the_size_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(100)
    whole = np.concatenate(list(intervals.bootstrap_weights(groups, 60, seed=5)))
    monkeypatch.setattr(intervals, "_CHUNK", 700)
    parts = list(intervals.bootstrap_weights(groups, 60, seed=5))
    assert len(parts) == 9
    assert (np.concatenate(parts) == whole).all()


def test_bootstrap_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(6).exponential(size=400)
    draws = np.concatenate([w @ values / w.sum(1) for w in intervals.bootstrap_weights(np.arange(400), 8000, seed=7)])
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert intervals.percentile_interval(draws) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_confusion_draws_are_weighted_matrices() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    weights = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 0.0]])
    m = intervals.confusion_draws(weights, truth * 2 + predicted, 2)
    assert m.tolist() == [[[1, 2], [0, 7]], [[0, 0], [0, 1]]]


def test_percentile_interval_leaves_out_nan() -> None:
    draws = np.concatenate([np.linspace(0, 1, 101), [np.nan] * 50])
    assert intervals.percentile_interval(draws) == pytest.approx((0.025, 0.975))
    assert np.isnan(intervals.percentile_interval(np.array([np.nan, np.nan]))).all()


def test_the_effective_number_is_that_of_a_cluster_robust_variance() -> None:
    """The variance of a mean of grouped images, by statsmodels' sandwich estimator."""
    rng = np.random.default_rng(9)
    groups = rng.integers(0, 30, 400)
    hits = rng.random(400) < rng.beta(4, 1, 30)[groups]
    fitted = OLS(hits.astype(float), np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    p = hits.mean()
    n = intervals.effective_n(hits, groups)
    assert n == pytest.approx(1 + p * (1 - p) / fitted.bse[0] ** 2, rel=1e-9)
    low, high, _ = intervals.proportion_interval(hits, groups)
    assert (low, high) == pytest.approx(proportion_confint(p * n, n, method="wilson"), rel=1e-9)
    assert n < 200
