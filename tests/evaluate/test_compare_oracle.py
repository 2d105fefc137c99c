"""Comparisons against statsmodels and scipy, and what must not change them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from evaluate_cases import CODES, predictions, rows
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from marrowscope.errors import FileFormatError
from marrowscope.evaluate import compare
from marrowscope.evaluate.comparison import Comparison
from marrowscope.schema import Predictions


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (5, 5), (12, 30), (300, 350), (4000, 4200)])
def test_mcnemar_is_that_of_statsmodels(b: int, c: int) -> None:
    expected = mcnemar([[10, b], [c, 10]], exact=True).pvalue if b + c else 1.0
    assert compare.mcnemar_p_value(b, c) == pytest.approx(expected, rel=1e-9)
    assert compare.mcnemar_p_value(c, b) == compare.mcnemar_p_value(b, c)


def test_stored_values() -> None:
    assert compare.mcnemar_p_value(5, 16) == pytest.approx(
        27896 / 2**20, rel=1e-12
    )  # 1 + 21 + 210 + 1330 + 5985 + 20349 of 2^21, twice
    low, high = compare.newcombe_interval(48 / 80, 80, 56 / 70, 70)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998, table II: 56/70 - 48/80


@pytest.mark.parametrize(
    ("k1", "n1", "k2", "n2"),
    [(56, 70, 48, 80), (9, 10, 3, 10), (0, 10, 0, 20), (10, 10, 0, 10), (460, 523, 16800, 17000)],
)
def test_newcombe_is_that_of_statsmodels(k1: int, n1: int, k2: int, n2: int) -> None:
    expected = confint_proportions_2indep(k2, n2, k1, n1, method="newcomb", compare="diff")
    assert compare.newcombe_interval(k1 / n1, n1, k2 / n2, n2) == pytest.approx(expected, abs=1e-9)


def test_newcombe_wants_shares_of_something() -> None:
    for bad in ((1.2, 10, 0.5, 10), (0.5, 0, 0.5, 10), (0.5, 10, -0.1, 10)):
        with pytest.raises(ValueError, match="Shares must lie"):
            compare.newcombe_interval(*bad)
    f = compare.published_difference(0.92, 523, 0.90, 17_000)
    assert f.value == pytest.approx(0.02)
    assert f.low < 0.02 < f.high  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).random(12) ** 3
    expected = multipletests(p, method="holm")[1]
    assert compare.holm_adjusted(p.tolist()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert compare.holm_adjusted([]) == []


def test_sign_flips_of_single_cells_are_mcnemar() -> None:
    difference = np.array([1.0] * 9 + [-1.0] * 20 + [0.0] * 70)
    p = compare.sign_flip_p_value(difference, np.arange(99), seed=0, flips=40_000)
    assert p == pytest.approx(compare.mcnemar_p_value(9, 20), rel=0.1)


def test_sign_flips_by_every_flip_and_scipy() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(8), 5)
    difference = rng.integers(-1, 2, 40).astype(float)
    sums = np.bincount(groups, weights=difference)
    every = np.array([np.dot(s, sums) for s in product([-1, 1], repeat=8)])
    exact = np.mean(np.abs(every) >= abs(sums.sum()) - 1e-9)
    assert compare.sign_flip_p_value(difference, groups, seed=0, flips=40_000) == pytest.approx(exact, abs=0.01)
    expected = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert exact == pytest.approx(expected, abs=1e-9)


def test_paired_interval_agrees_with_the_normal_one() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(2000) < 0.85, rng.random(2000) < 0.88
    d = b.astype(float) - a
    f = compare.paired_difference(a, b, np.arange(2000), 4000, 0)
    half = 1.96 * d.std() / 2000**0.5
    assert f.value == pytest.approx(d.mean())
    assert (f.low, f.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=2e-3)


def test_equal_models_are_not_proved_equal() -> None:
    a = np.ones(100, bool)
    f = compare.paired_difference(a, a, np.arange(100), 200, 0)
    assert f.value == 0
    assert f.high == -f.low == pytest.approx(0.037, abs=1e-3)  # type: ignore[operator]
    f = compare.paired_difference(a, ~a, np.arange(100), 200, 0)
    assert (f.value, f.low) == (-1, -1)
    assert f.high == pytest.approx(-0.963, abs=1e-3)
    assert compare.paired_difference(a[:0], a[:0], np.arange(0), 200, 0).value is None


def second_opinion(p: Predictions, seed: int, share: float) -> Predictions:
    """The same cells with some answers shuffled among cells."""
    rng = np.random.default_rng(seed)
    probs = p.probs_NC.copy()
    some = rng.random(len(p.paths)) < share
    probs[some] = probs[some][rng.permutation(int(some.sum()))]
    return Predictions(p.paths, p.status, p.codes, probs, p.truth)


def test_a_comparison_by_hand() -> None:
    p = predictions(51)
    assert p.truth is not None
    models = {"a": second_opinion(p, 0, 0.3), "b": p, "c": second_opinion(p, 1, 0.1)}
    out = compare.compare_predictions(models, draws=500)
    right = {
        k: np.array([CODES[i] == t for i, t in zip(m.probs_NC.argmax(1), p.truth, strict=True)])
        for k, m in models.items()
    }
    assert [(d.first, d.second) for d in out.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert out.n == 400
    for m in out.models:
        assert m.accuracy.value == pytest.approx(right[m.name].mean())
        assert m.unknown == 0
    for d in out.pairs:
        a, b = right[d.first], right[d.second]
        assert d.only_first == (a & ~b).sum()
        assert d.only_second == (b & ~a).sum()
        assert d.difference.value == pytest.approx(b.mean() - a.mean())
        assert d.difference.low < d.difference.value < d.difference.high  # type: ignore[operator]
        expected = mcnemar([[0, d.only_first], [d.only_second, 0]], exact=True).pvalue
        assert d.p_value == pytest.approx(expected, rel=1e-9)
        assert sum(c.n for c in d.per_class) == 400
        assert sum(c.only_first for c in d.per_class) == d.only_first
        adjusted = multipletests([c.p_value for c in d.per_class], method="holm")[1]
        assert [c.p_adjusted for c in d.per_class] == pytest.approx(adjusted.tolist())
    adjusted = multipletests([d.p_value for d in out.pairs], method="holm")[1]
    assert [d.p_adjusted for d in out.pairs] == pytest.approx(adjusted.tolist())
    assert out.pairs[0].p_adjusted < 0.01
    assert Comparison.parse(out.model_dump_json(), "it") == out


def test_order_of_rows_and_columns_does_not_matter_and_models_swap_signs() -> None:
    p = predictions(52)
    q = second_opinion(p, 2, 0.2)
    order, columns = np.random.default_rng(0).permutation(400), [3, 1, 0, 4, 2]
    moved = rows(q, order)
    moved = Predictions(
        moved.paths, moved.status, tuple(CODES[i] for i in columns), moved.probs_NC[:, columns], moved.truth
    )
    out = compare.compare_predictions({"p": p, "q": q}, draws=300)
    assert compare.compare_predictions({"p": p, "q": moved}, draws=300) == out
    d, back = out.pairs[0], compare.compare_predictions({"q": q, "p": p}, draws=300).pairs[0]
    assert back.p_value == d.p_value
    ends = (-d.difference.value, -d.difference.high, -d.difference.low)  # type: ignore[operator]
    assert (back.difference.value, back.difference.low, back.difference.high) == pytest.approx(ends, abs=1e-9)


def test_duplicates_in_one_group_do_not_count_twice() -> None:
    p = predictions(53, n=200)
    q = second_opinion(p, 3, 0.2)
    assert p.truth is not None
    twice = []
    for m in (p, q):
        assert m.truth is not None
        names = tuple(f"{x}-{k}" for k in "ab" for x in m.paths)
        twice.append(Predictions(names, m.status * 2, CODES, np.tile(m.probs_NC, (2, 1)), m.truth * 2))
    groups = {x: x[:-2] for x in twice[0].paths}
    single = compare.compare_predictions({"p": p, "q": q}, draws=500).pairs[0]
    double = compare.compare_predictions({"p": twice[0], "q": twice[1]}, groups=groups, draws=500).pairs[0]
    naive = compare.compare_predictions({"p": twice[0], "q": twice[1]}, draws=500).pairs[0]
    assert double.p_value == pytest.approx(single.p_value, rel=0.2, abs=0.01)
    assert naive.p_value < single.p_value
    assert double.difference.value == pytest.approx(single.difference.value)
    width = [d.difference.high - d.difference.low for d in (single, double, naive)]  # type: ignore[operator]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < 0.85 * width[0]
    assert "sign flips" in double.test
    with pytest.raises(ValueError, match="have no group"):
        compare.compare_predictions({"p": p, "q": q}, groups={"x": "y"})


def test_somebody_else_s_csv_without_truth_and_with_fewer_classes_and_cells(tmp_path: Path) -> None:
    p = predictions(54, n=80)
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    p.write(ours)
    fewer = p.probs_NC[:70, 1:]
    fewer = fewer / fewer.sum(1, keepdims=True)
    Predictions(p.paths[:70], ("broken", *p.status[1:70]), CODES[1:], fewer).write(theirs)
    out = compare.compare_csvs([ours, theirs], draws=100)
    assert p.truth is not None
    assert out.n == 69
    assert out.left_out == {str(ours): 11, str(theirs): 1}
    assert [m.unknown for m in out.models] == [0, p.truth[1:70].count("BLA")]
    assert out.models[1].unknown > 0


def test_what_can_not_be_compared() -> None:
    p = predictions(55, n=30)
    assert p.truth is not None
    blind = Predictions(p.paths, p.status, CODES, p.probs_NC)
    elsewhere = Predictions(tuple(f"x/{n}" for n in p.paths), p.status, CODES, p.probs_NC, p.truth)
    other_truth = Predictions(
        p.paths, p.status, CODES, p.probs_NC, ("NGS" if p.truth[0] != "NGS" else "BLA", *p.truth[1:])
    )
    gaps = Predictions(p.paths, p.status, CODES, p.probs_NC, ("", *p.truth[1:]))
    twice = rows(p, np.r_[np.arange(30), 0])
    for others, message in (
        ({"b": elsewhere}, "No cell has an answer in all tables"),
        ({"b": other_truth}, "another truth for 1 cells"),
        ({"b": twice}, "b has 55/cell_00000.jpg twice"),
    ):
        with pytest.raises(FileFormatError, match=message):
            compare.compare_predictions({"a": p, **others})
    with pytest.raises(FileFormatError, match="column 'truth'"):
        compare.compare_predictions({"a": blind, "b": blind})
    with pytest.raises(FileFormatError, match="no truth for 1"):
        compare.compare_predictions({"a": gaps, "b": blind})
    with pytest.raises(ValueError, match="at least two models"):
        compare.compare_predictions({"a": p})
    with pytest.raises(ValueError, match="each file once"):
        compare.compare_csvs([Path("a.csv"), Path("a.csv")])


def test_stored_values_of_a_comparison() -> None:
    p = predictions(56)
    (pair,) = compare.compare_predictions({"p": p, "q": second_opinion(p, 4, 0.1)}, draws=500).pairs
    found = (pair.difference.value, pair.difference.low, pair.difference.high, pair.p_value)
    assert found == pytest.approx(STORED, abs=2e-6)
    assert [(c.only_first, c.only_second) for c in pair.per_class] == STORED_CLASSES
    assert min(c.p_adjusted for c in pair.per_class) == pytest.approx(STORED_ADJUSTED, abs=2e-6)
    groups = {path: f"patient {i % 40}" for i, path in enumerate(p.paths)}
    (grouped,) = compare.compare_predictions({"p": p, "q": second_opinion(p, 4, 0.1)}, groups=groups, draws=500).pairs
    assert (grouped.difference.low, grouped.difference.high, grouped.p_value) == pytest.approx(STORED_GROUPED, abs=2e-6)


STORED = (-0.0525, -0.0775, -0.03, 1.9431e-05)
STORED_CLASSES = [(3, 0), (5, 0), (5, 0), (5, 2), (5, 0)]
STORED_ADJUSTED = 0.3125
STORED_GROUPED = (-0.075, -0.0275, 0.0001)
