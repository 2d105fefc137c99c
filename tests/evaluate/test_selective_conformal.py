"""Selective answers and conformal sets, against definitions spelt out and other libraries."""

from itertools import pairwise

import numpy as np
import pytest
from evaluate_cases import CODES, predictions

from marrowscope.evaluate import conformal, evaluate_predictions, selective
from marrowscope.schema import Predictions


def answers(seed: int, n: int = 300, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    right = rng.random(n) < 0.5 + 0.5 * confidence
    return (confidence if levels is None else np.ceil(confidence * levels) / levels), right


@pytest.mark.parametrize("levels", [None, 10])
@pytest.mark.parametrize("seed", range(4))
def test_the_curve_by_its_definition(seed: int, levels: int | None) -> None:
    confidence, right = answers(seed, levels=levels)
    threshold, coverage, error = selective.risk_coverage(confidence, right)
    assert threshold.tolist() == sorted(set(confidence), reverse=True)
    for t, c, e in zip(threshold, coverage, error, strict=True):
        answered = confidence >= t
        assert c == pytest.approx(answered.mean(), rel=1e-12)
        assert e == pytest.approx(1 - right[answered].mean(), abs=1e-12)
    s = selective.selective_statistics(confidence, right)
    by_hand = sum((1 - right[confidence >= t].mean()) * (confidence == t).mean() for t in set(confidence))
    assert s["aurc_error"][0] == pytest.approx(by_hand, rel=1e-6)
    for target in (0.95, 0.98):
        reaching = [(confidence >= t).mean() for t in set(confidence) if right[confidence >= t].mean() >= target]
        assert s[selective.coverage_name(target)][0] == pytest.approx(max(reaching, default=0.0), rel=1e-12)
        least = selective.threshold_for(confidence, right, target)
        assert ((confidence >= least).mean() if least is not None else 0.0) == pytest.approx(max(reaching, default=0.0))


def test_without_ties_the_area_is_the_mean_error_over_ranks() -> None:
    """The form of Geifman & El-Yaniv."""
    confidence, right = answers(5)
    wrong = ~right[np.argsort(-confidence)]
    expected = np.mean(np.cumsum(wrong) / np.arange(1, 301))
    assert selective.selective_statistics(confidence, right)["aurc_error"][0] == pytest.approx(expected, rel=1e-6)


def test_an_ideal_confidence_has_no_excess_and_a_random_one_the_error_rate() -> None:
    rng = np.random.default_rng(6)
    right = rng.random(20_000) < 0.8
    ideal = selective.selective_statistics(right + 0.5 * rng.random(20_000), right)
    assert ideal["excess_aurc_error"][0] == pytest.approx(0, abs=1e-4)
    blind = selective.selective_statistics(rng.random(20_000), right)
    assert blind["aurc_error"][0] == pytest.approx(1 - right.mean(), abs=0.01)


def test_order_duplication_and_weights() -> None:
    confidence, right = answers(7)
    order = np.random.default_rng(0).permutation(300)
    weights = np.random.default_rng(1).multinomial(300, np.full(300, 1 / 300), size=3).astype(float)
    plain = selective.selective_statistics(confidence, right)
    drawn = selective.selective_statistics(confidence, right, weights)
    for name, value in plain.items():
        shuffled = selective.selective_statistics(confidence[order], right[order])[name]
        assert shuffled == pytest.approx(value, rel=1e-9)
        twice = selective.selective_statistics(np.tile(confidence, 2), np.tile(right, 2))[name]
        assert twice == pytest.approx(value, rel=1e-6)
        for b in range(3):
            images = np.repeat(np.arange(300), weights[b].astype(int))
            expected = selective.selective_statistics(confidence[images], right[images])[name][0]
            assert drawn[name][b] == pytest.approx(expected, rel=1e-6)


def test_all_right_and_all_wrong() -> None:
    score = np.array([0.5, 0.7, 0.9])
    s = selective.selective_statistics(score, np.ones(3, bool))
    assert (s["aurc_error"][0], s["coverage_at_98"][0]) == (0, 1)
    s = selective.selective_statistics(score, np.zeros(3, bool))
    assert (s["aurc_error"][0], s["excess_aurc_error"][0], s["coverage_at_95"][0]) == (1, 0, 0)
    assert selective.threshold_for(score, np.zeros(3, bool), 0.95) is None


def test_operating_points_in_an_evaluation() -> None:
    test, validation = predictions(41, n=800), predictions(42, n=800)
    e = evaluate_predictions(test, validation=validation, draws=300)
    assert [(p.target, p.chosen_on) for p in e.operating_points] == [
        (0.95, "itself"),
        (0.95, "validation"),
        (0.95, "assured"),
        (0.98, "itself"),
        (0.98, "validation"),
        (0.98, "assured"),
    ]
    better = evaluate_predictions(
        predictions(44, n=2000, skill=2.5), validation=predictions(45, n=2000, skill=2.5), draws=50
    )
    points = {(p.target, p.chosen_on): p for p in better.operating_points}
    for target in (0.95, 0.98):
        assert points[target, "assured"].threshold > points[target, "validation"].threshold  # type: ignore[operator]
        assert points[target, "assured"].accuracy.value > target  # type: ignore[operator]
    for p in e.operating_points:
        if p.chosen_on == "assured":
            assert p.threshold is None, "800 cells that are right in 80 % show neither"
            continue
        assert p.accuracy.value is not None
        assert p.coverage.value is not None
        assert p.accuracy.n == round(p.coverage.value * 800)
        if p.chosen_on == "itself":
            assert p.accuracy.value >= p.target
            assert p.coverage == e.figures[selective.coverage_name(p.target)]
        else:
            assert p.accuracy.low <= p.target + 0.03  # type: ignore[operator]
    curve = e.risk_coverage
    assert len(curve) <= selective.CURVE_POINTS
    assert curve[-1].coverage == 1
    assert curve[-1].error == pytest.approx(1 - e.figures["accuracy"].value)  # type: ignore[operator]
    assert all(a.threshold > b.threshold and a.coverage < b.coverage for a, b in pairwise(curve))


def test_an_accuracy_out_of_reach_answers_nothing() -> None:
    test = predictions(43, n=60)
    wrong = Predictions(test.paths, test.status, CODES, 1 / 5 + 0 * test.probs_NC, ("NGS",) * 60)
    e = evaluate_predictions(wrong, draws=50)
    assert [p.threshold for p in e.operating_points] == [None, None]
    assert [p.accuracy.value for p in e.operating_points] == [None, None]
    assert [p.coverage.value for p in e.operating_points] == [0, 0]


# ---------------------------------------------------------------------------------------------------- conformal sets


def drawn(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.array([0.3, 0.5, 1.0, 0.2]), n)
    truth = (probs.cumsum(1) > rng.random((n, 1))).argmax(1)
    blurred = 0.8 * probs + 0.2 * rng.dirichlet(np.ones(4), n)
    return truth, blurred


@pytest.mark.parametrize("method", conformal.METHODS)
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.37])
def test_a_class_is_in_the_set_where_its_p_value_is_above_alpha(method: conformal.Method, alpha: float) -> None:
    """The p-value of Vovk et al. 2005: the share of images, this one among them, that fit as badly."""
    truth, probs = drawn(0, 119)
    _, new = drawn(1, 60)
    sets = conformal.prediction_sets(new, conformal.conformal_thresholds(truth, probs, alpha, method))
    own = probs[np.arange(119), truth]
    for i in range(60):
        for c in range(4):
            pool = own if method == "split" else own[truth == c]
            p_value = (np.sum(pool <= new[i, c]) + 1) / (len(pool) + 1)
            assert sets[i, c] == (p_value > alpha + 1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_split_sets_are_those_of_mapie(alpha: float) -> None:
    mapie = pytest.importorskip("mapie.classification")
    base = pytest.importorskip("sklearn.base")

    class AsGiven(base.ClassifierMixin, base.BaseEstimator):  # type: ignore[misc, name-defined]
        """A classifier whose input is its output."""

        classes_ = np.arange(4)

        def fit(self, x: np.ndarray, y: np.ndarray) -> "AsGiven":
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    truth, probs = drawn(2, 400)
    _, new = drawn(3, 300)
    other = mapie.SplitConformalClassifier(AsGiven(), confidence_level=1 - alpha, conformity_score="lac", prefit=True)
    other.conformalize(probs, truth)
    _, expected = other.predict_set(new)
    ours = conformal.prediction_sets(new, conformal.conformal_thresholds(truth, probs, alpha, "split"))
    assert (ours == expected[:, :, 0]).all()


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_class_conditional_sets_are_those_of_crepes(alpha: float) -> None:
    crepes = pytest.importorskip("crepes")
    truth, probs = drawn(4, 500)
    _, new = drawn(5, 300)
    own = 1 - probs[np.arange(500), truth]
    ours = conformal.prediction_sets(new, conformal.conformal_thresholds(truth, probs, alpha, "class-conditional"))
    for c in range(4):
        other = crepes.ConformalClassifier()
        other.fit(own[truth == c])
        p_values = other.predict_p(1 - new[:, [c]], smoothing=False)
        assert (ours[:, c] == (p_values[:, 0] > alpha)).all()


@pytest.mark.parametrize("method", conformal.METHODS)
def test_sets_cover_as_promised(method: conformal.Method) -> None:
    covered, per_class = [], []
    for seed in range(60):
        truth, probs = drawn(100 + seed, 400)
        new_truth, new = drawn(500 + seed, 400)
        sets = conformal.prediction_sets(new, conformal.conformal_thresholds(truth, probs, 0.1, method))
        holds = sets[np.arange(400), new_truth]
        covered.append(holds.mean())
        per_class.append([holds[new_truth == c].mean() for c in range(4)])
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015) or np.mean(covered) > 0.9
    if method == "class-conditional":
        assert (np.mean(per_class, axis=0) > 0.885).all()
    else:
        assert np.mean(per_class, axis=0).min() < 0.87  # why the class-conditional ones exist


def test_too_few_images_put_every_class_into_the_set() -> None:
    truth, probs = drawn(6, 18)
    assert (conformal.conformal_thresholds(truth, probs, 0.05, "split") == 0).all()
    assert conformal.least_probability(np.linspace(0.1, 1, 19), 0.05) == pytest.approx(0.1)
    assert conformal.least_probability(np.array([]), 0.05) == 0
    with pytest.raises(ValueError, match="alpha"):
        conformal.conformal_thresholds(truth, probs, 1.0, "split")


def test_conformal_sets_in_an_evaluation() -> None:
    test, validation = predictions(46, n=600), predictions(47, n=900)
    e = evaluate_predictions(test, validation=validation, draws=200)
    assert [(s.alpha, s.method) for s in e.conformal] == [
        (0.1, "split"),
        (0.1, "class-conditional"),
        (0.05, "split"),
        (0.05, "class-conditional"),
    ]
    for s in e.conformal:
        assert s.calibrated_on == 900
        assert s.coverage.value == pytest.approx(1 - s.alpha, abs=0.05)
        support = {c.code: c.support for c in e.per_class}
        total = sum(s.per_class[c]["coverage"].value * support[c] for c in CODES)  # type: ignore[operator]
        assert total / 600 == pytest.approx(s.coverage.value)
        total = sum(s.per_class[c]["size"].value * support[c] for c in CODES)  # type: ignore[operator]
        assert total / 600 == pytest.approx(s.size.value)
        assert set(s.thresholds) == set(CODES)
        if s.method == "split":
            assert len(set(s.thresholds.values())) == 1
    assert evaluate_predictions(test, draws=50).conformal == ()
