"""AUROC and average precision against scikit-learn, weights included."""

import numpy as np
import pytest
from evaluate_cases import CODES, predictions, rows
from sklearn import metrics as sk

from marrowscope.evaluate import evaluate_predictions
from marrowscope.evaluate.ranking import one_vs_rest, rank_scores
from marrowscope.schema import Predictions


@pytest.mark.parametrize("levels", [3, 20, 100_000])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int, levels: int) -> None:
    """With many ties, some, and none; each image once, and as often as a bootstrap draws it."""
    rng = np.random.default_rng(seed)
    is_class = rng.random(150) < 0.3
    score = rng.integers(0, levels, 150) / levels + 0.3 * is_class
    weights = rng.multinomial(150, np.full(150, 1 / 150), size=4).astype(float)
    for given, rank in ((None, rank_scores(is_class, score)), (weights, rank_scores(is_class, score, weights))):
        for b, w in enumerate([np.ones(150)] if given is None else given):
            assert rank.auroc[b] == pytest.approx(sk.roc_auc_score(is_class, score, sample_weight=w), rel=1e-12)
            expected = sk.average_precision_score(is_class, score, sample_weight=w)
            assert rank.average_precision[b] == pytest.approx(expected, rel=1e-12)


def test_what_is_undefined_is_nan() -> None:
    score = np.array([0.1, 0.5, 0.9])
    for is_class in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.isnan(rank_scores(is_class, score)).all()
    # A draw without any image of the class.
    draws = rank_scores(np.array([True, False, False]), score, np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]))
    assert np.isnan(draws.auroc[0])
    assert draws.auroc[1] == 0


def test_a_rising_change_of_the_score_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    is_class, score = rng.random(100) < 0.5, rng.random(100)
    order = rng.permutation(100)
    a = rank_scores(is_class, score)
    b = rank_scores(is_class[order], np.exp(5 * score[order]))
    assert np.allclose(a, b, rtol=1e-12)
    assert rank_scores(~is_class, -score).auroc == pytest.approx(a.auroc, rel=1e-12)


def test_one_vs_rest_per_class_and_macro() -> None:
    p = predictions(21)
    assert p.truth is not None
    e = evaluate_predictions(p)
    truth = np.array([CODES.index(t) for t in p.truth])
    ranking = one_vs_rest(truth, p.probs_NC)
    for i, c in enumerate(e.per_class):
        expected = sk.roc_auc_score(truth == i, p.probs_NC[:, i])
        assert ranking.auroc[0, i] == pytest.approx(expected, rel=1e-12)
        for f in (c.auroc, c.average_precision):
            assert f is not None
            assert f.value is not None
            assert f.low is not None
            assert f.high is not None
            assert f.low < f.value < f.high
        assert c.auroc is not None
        assert c.auroc.value == pytest.approx(expected, rel=1e-12)
    macro = sk.roc_auc_score(truth, p.probs_NC, multi_class="ovr", average="macro")
    assert e.figures["macro_auroc"].value == pytest.approx(macro, rel=1e-12)
    precision = np.mean([sk.average_precision_score(truth == i, p.probs_NC[:, i]) for i in range(5)])
    assert e.figures["macro_average_precision"].value == pytest.approx(precision, rel=1e-12)


def test_the_interval_agrees_with_delong() -> None:
    """DeLong's variance (1988, Biometrics 44, 837-845), reckoned from its definition."""
    p = predictions(22, n=600, skill=1.0)
    assert p.truth is not None
    f = evaluate_predictions(p).per_class[0].auroc
    assert f is not None
    is_class = np.array([t == CODES[0] for t in p.truth])
    own, other = p.probs_NC[is_class, 0], p.probs_NC[~is_class, 0]
    wins = (own[:, None] > other[None, :]) + 0.5 * (own[:, None] == other[None, :])
    error = np.sqrt(wins.mean(1).var(ddof=1) / len(own) + wins.mean(0).var(ddof=1) / len(other))
    assert f.value == pytest.approx(wins.mean(), rel=1e-12)
    assert (f.low, f.high) == pytest.approx((wins.mean() - 1.96 * error, wins.mean() + 1.96 * error), abs=0.01)


def test_a_class_apart_from_the_others_is_not_certain_to_stay_so() -> None:
    p = predictions(23, n=60, skill=50)
    for c in evaluate_predictions(p).per_class:
        for f in (c.auroc, c.average_precision):
            assert f is not None
            assert f.value == pytest.approx(1)
            assert f.low is not None
            assert f.low < 0.9
            assert f.high == 1


def test_small_and_absent_classes() -> None:
    p = predictions(24, n=100)
    assert p.truth is not None
    only = rows(p, np.array([i for i, t in enumerate(p.truth) if t != "BLA"]))
    e = evaluate_predictions(only, macro_minimum=5)
    assert e.per_class[0].auroc is not None
    assert e.per_class[0].auroc.value is None
    assert "BLA" in e.macro_left_out
    assert e.figures["macro_auroc"].value is not None
    alone = rows(p, np.array([i for i, t in enumerate(p.truth) if t == "NGS"]))
    assert evaluate_predictions(alone, macro_minimum=5).figures["macro_auroc"].value is None
    nothing = Predictions(("a",), ("bad",), CODES, np.full((1, 5), np.nan), ("BLA",))
    assert evaluate_predictions(nothing).figures["macro_auroc"].value is None
