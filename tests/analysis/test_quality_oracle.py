"""Errors against the quality of pictures: against scipy, permutations, phantoms with known masks, planted effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from marrowscope.analysis.quality import (
    MEASURES,
    _connected,
    measure_picture,
    midranks,
    otsu,
    quality_measures,
    stained_diameter,
    superiority,
    van_elteren,
)
from marrowscope.data.phantom import draw
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import Bootstrap


def _case(truth: np.ndarray, wrong: np.ndarray) -> Case:
    classes = int(truth.max()) + 2
    predicted = np.where(wrong, classes - 1, truth)
    probs = np.full((len(truth), classes), 0.1)
    probs[np.arange(len(truth)), predicted] = 1.0
    probs /= probs.sum(1, keepdims=True)
    codes = ("BLA", "EOS", "LYT", "MON", "PMO")[:classes]
    return Case(codes, truth.astype(np.int64), predicted.astype(np.int64), probs, np.arange(len(truth)))


@pytest.mark.parametrize("ties", [False, True])
def test_one_stratum_is_the_mann_whitney_test(ties: bool) -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(80) < 0.3
    values = rng.normal(0, 1, 80) + wrong * 0.4
    values = np.round(values) if ties else values
    expected = stats.mannwhitneyu(values[wrong], values[~wrong], method="asymptotic", use_continuity=False)
    z, p = van_elteren(values, wrong, np.zeros(80, np.int64))
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    share = superiority(values, wrong, np.zeros(80, np.int64), np.ones((1, 80)))[0]
    # Weights of one stratum cancel out.
    assert share == pytest.approx(expected.statistic / (wrong.sum() * (~wrong).sum()), rel=1e-12)
    assert (z > 0) == (share > 0.5)


def test_several_strata_agree_with_permutations() -> None:
    rng = np.random.default_rng(3)
    stratum = np.repeat([0, 1, 2], [20, 35, 50])
    values = rng.normal(0, 1, 105) + stratum * 3.0
    wrong = rng.random(105) < np.array([0.2, 0.4, 0.6])[stratum]
    z, p = van_elteren(values, wrong, stratum)
    drawn = []
    for _ in range(1500):
        mixed = wrong.copy()
        for s in range(3):
            mixed[stratum == s] = rng.permutation(wrong[stratum == s])
        drawn.append(van_elteren(values, mixed, stratum)[0])
    assert np.std(drawn) == pytest.approx(1, abs=0.06)
    assert np.mean(np.abs(drawn) >= abs(z)) == pytest.approx(p, abs=0.04)


def test_a_difference_between_classes_is_none_of_quality() -> None:
    rng = np.random.default_rng(4)
    stratum = np.repeat([0, 1], 200)
    wrong = rng.random(400) < np.array([0.1, 0.6])[stratum]
    values = rng.normal(0, 1, 400) + 4.0 * stratum
    assert stats.mannwhitneyu(values[wrong], values[~wrong]).pvalue < 1e-10
    assert (van_elteren(values, wrong, stratum)[1] or 0) > 0.05


def test_strata_without_both_answers_say_nothing() -> None:
    values, stratum = np.arange(6.0), np.array([0, 0, 0, 1, 1, 1])
    assert van_elteren(values, np.array([True] * 3 + [False] * 3), stratum) == (0.0, None)
    assert np.isnan(superiority(values, np.array([True] * 3 + [False] * 3), stratum, np.ones((1, 6)))[0])
    assert van_elteren(np.ones(6), np.array([True, False, False] * 2), stratum)[1] is None


def test_weights_are_repeated_rows() -> None:
    rng = np.random.default_rng(6)
    values, wrong, stratum = rng.normal(0, 1, 40), rng.random(40) < 0.4, rng.integers(0, 3, 40)
    times = rng.integers(0, 4, 40)
    rows = np.repeat(np.arange(40), times)
    weighted = superiority(values, wrong, stratum, times[None].astype(float))
    repeated = superiority(values[rows], wrong[rows], stratum[rows], np.ones((1, len(rows))))
    np.testing.assert_allclose(weighted, repeated, rtol=1e-12)


def test_midranks_are_scipys() -> None:
    values = np.random.default_rng(0).integers(0, 6, 50).astype(float)
    np.testing.assert_array_equal(midranks(values), stats.rankdata(values))


def test_a_planted_effect_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 3, 600)
    wrong = rng.random(600) < 0.3
    values = rng.normal(100, 10, (600, len(MEASURES)))
    values[wrong, 2] -= 10
    found = quality_measures(_case(truth, wrong), values, Bootstrap(200, 0))
    assert [m.name for m in found] == [m.name for m in MEASURES]
    low = [m.name for m in found if m.p_adjusted is not None and m.p_adjusted < 0.01]
    assert low == ["sharpness"]
    effect = found[2].effect
    # A shift of one standard deviation: P(higher) = Phi(-1 / sqrt 2) = 0.24.
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < 0.24 < effect.high < 0.5
    for m in found:
        assert sum(b.error.n for b in m.bins) == 600
        assert len(m.bins) == 5
        assert {b.error.n for b in m.bins} == {120}
        assert sum((b.error.value or 0) * b.error.n for b in m.bins) == pytest.approx(wrong.sum())
        assert m.p_adjusted is not None
        assert m.p_value is not None
        assert m.p_adjusted >= m.p_value


def test_values_that_are_all_equal_share_a_bin() -> None:
    truth = np.arange(40) % 2
    found = quality_measures(_case(truth, np.arange(40) % 3 == 0), np.ones((40, len(MEASURES))), Bootstrap(20, 0))
    assert all(len(m.bins) == 1 and m.p_value is None and m.effect.value == 0.5 for m in found)


def test_otsu_has_the_largest_variance_between_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.2, 0.05, 900), rng.normal(0.7, 0.1, 300)])

    def between(threshold: float) -> float:
        above = values > threshold
        if not 0 < above.sum() < len(values):
            return 0.0
        return float(above.mean() * (1 - above.mean()) * (values[above].mean() - values[~above].mean()) ** 2)

    best = max(between(t) for t in np.linspace(values.min(), values.max(), 2000))
    assert between(otsu(values)) > 0.999 * best
    assert otsu(np.full(5, 0.3)) == 0.3
    assert 0 < otsu(np.array([0.0, 0.0, 1.0])) < 1


def test_connected_is_scipys_label() -> None:
    mask = np.random.default_rng(2).random((40, 50)) < 0.62
    labels, _ = ndimage.label(mask)
    row, column = np.argwhere(mask)[100]
    np.testing.assert_array_equal(_connected(mask, row, column), labels == labels[row, column])


def test_the_stained_diameter_follows_the_nucleus_of_phantoms() -> None:
    measured, true = [], []
    for i in range(40):
        phantom = draw(("BLA", "LYT", "EBO", "PMO", "PLM", "NGS", "MON", "MYB")[i % 8], 3, i)
        measured.append(stained_diameter(phantom.image))
        true.append(2 * np.sqrt(phantom.nucleus.sum() / np.pi))
    assert stats.spearmanr(measured, true).statistic > 0.75
    assert np.median(np.divide(measured, true)) == pytest.approx(1, abs=0.15)


def test_measures_of_plain_pictures() -> None:
    grey = measure_picture(np.full((50, 80, 3), 120, np.uint8))
    assert grey[0] == pytest.approx(120)
    assert grey[1] == grey[2] == 0
    assert grey[4] == 0
    disc = np.full((250, 250, 3), 230, np.uint8)
    y, x = np.mgrid[:250, :250]
    disc[(x - 120) ** 2 + (y - 130) ** 2 < 40**2] = (80, 40, 130)
    assert stained_diameter(disc) == pytest.approx(80, rel=0.03)
    assert stained_diameter(disc[::2, ::2]) == pytest.approx(40, rel=0.05)


def test_order_of_cells_names_of_classes_and_rising_changes_do_not_matter() -> None:
    rng = np.random.default_rng(8)
    values, wrong, stratum = rng.normal(0, 1, 200), rng.random(200) < 0.3, rng.integers(0, 4, 200)
    ones, order = np.ones((1, 200)), rng.permutation(200)
    z, p = van_elteren(values, wrong, stratum)
    share = superiority(values, wrong, stratum, ones)[0]
    for v, w, s in (
        (values[order], wrong[order], stratum[order]),
        (values, wrong, np.array([2, 0, 3, 1])[stratum]),
        (np.exp(values), wrong, stratum),
    ):
        assert van_elteren(v, w, s) == pytest.approx((z, p), rel=1e-9)
        assert superiority(v, w, s, ones)[0] == pytest.approx(share, rel=1e-9)
    assert van_elteren(-values, wrong, stratum) == pytest.approx((-z, p), rel=1e-9)
    assert (z, p, share) == pytest.approx(STORED, abs=1e-6)


STORED = (-0.069913, 0.944263, 0.496732)
