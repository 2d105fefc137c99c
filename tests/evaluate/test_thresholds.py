"""The card's thresholds are those that the evaluation judges, and triage applies them as they were fitted."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_cases import CODES, predictions

from marrowscope.errors import ModelError
from marrowscope.evaluate import evaluate_predictions
from marrowscope.evaluate.thresholds import UNREACHABLE, better_scaling, fit_scaling, with_thresholds
from marrowscope.schema import Card, Predictions
from marrowscope.triage import calibrated, judge, softmax
from tiny_onnx import card as tiny_card


def _held(seed: int) -> tuple[Predictions, np.ndarray, np.ndarray]:
    """Predictions, their logits with any constant a row, and true class numbers."""
    p = predictions(seed, n=2000, skill=2.7)
    rng = np.random.default_rng(seed)
    logits = (2 * np.log(p.probs_NC) + rng.normal(0, 3, (2000, 1))).astype(np.float32)
    raw = np.exp(2 * np.log(p.probs_NC))
    truth = np.array([CODES.index(t) for t in p.truth or ()])
    return Predictions(p.paths, p.status, p.codes, raw / raw.sum(1, keepdims=True), p.truth), logits, truth


def _fitted(scaling: str = "temperature") -> tuple[Card, Predictions, np.ndarray, np.ndarray, np.ndarray]:
    p, logits, truth = _held(1)
    score = np.random.default_rng(0).normal(0, 1, 2000)
    card = with_thresholds(
        tiny_card(CODES),
        truth,
        logits,
        novelty_method="mahalanobis",
        ood_score_N=score,
        scaling=scaling,  # type: ignore[arg-type]
    )
    return card, p, logits, truth, score


@pytest.mark.parametrize("scaling", ["temperature", "vector"])
def test_the_card_has_what_the_evaluation_judges(scaling: str) -> None:
    card, p, logits, truth, _ = _fitted(scaling)
    assert card.scaling is not None
    scaled = Predictions(p.paths, p.status, p.codes, calibrated(card, logits), p.truth)
    other, _, _ = _held(2)
    test = Predictions(other.paths, other.status, other.codes, other.probs_NC, other.truth)
    e = evaluate_predictions(test, validation=scaled, scaling=card.scaling, draws=20)
    (applied,) = [c for c in e.calibration if c.applied]
    assert applied.scaling == scaling
    assert (applied.scale or (1 / applied.temperature,) * 5) == pytest.approx(card.scaling.scale)
    assert {(c.method, c.alpha): c.thresholds for c in card.conformal} == {
        (c.method, c.alpha): pytest.approx(tuple(c.thresholds.values())) for c in e.conformal
    }
    assured = {o.target: o.threshold for o in e.operating_points if o.chosen_on == "assured"}
    assert {a.accuracy: a.threshold for a in card.acceptance} == pytest.approx(assured)
    assert np.array_equal(np.sum(card.confusion, axis=1), np.bincount(truth, minlength=5))


def test_triage_applies_what_was_fitted() -> None:
    card, _, logits, truth, score = _fitted()
    answers = judge(card, logits, score, alpha=0.1, accuracy=0.95)
    assert answers.sets_NC is not None
    assert answers.accepted_N is not None
    covered = answers.sets_NC[np.arange(2000), truth]
    assert all(covered[truth == c].mean() >= 0.9 for c in range(5))
    assert card.novelty is not None
    assert (answers.ood_score_N <= card.novelty.threshold).mean() == pytest.approx(0.95, abs=0.002)  # type: ignore[operator]
    entry = next(a for a in card.acceptance if a.accuracy == 0.95)
    assert answers.accepted_N.mean() == pytest.approx(entry.coverage)
    right = answers.probs_NC.argmax(1) == truth
    assert right[answers.accepted_N].mean() > 0.95
    assert not (answers.accepted_N & (score > card.novelty.threshold)).any()
    assert entry.assurance == 0.9


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    for scaling in ("temperature", "vector"):
        card, _, logits, _, _ = _fitted(scaling)
        assert calibrated(card, logits + 7) == pytest.approx(calibrated(card, logits), abs=1e-5)


def test_nothing_is_accepted_where_nothing_is_known_to_reach_the_accuracy() -> None:
    _, logits, truth = _held(3)
    card = with_thresholds(tiny_card(CODES), truth[:30], logits[:30], novelty_method=None)
    assert [a.threshold for a in card.acceptance] == [UNREACHABLE] * 2
    assert card.novelty is None
    answers = judge(card, logits)
    assert answers.accepted_N is not None
    assert not answers.accepted_N.any()


def _answers(seed: int, n: int, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """True classes and logits that are calibrated but for a tilt between the first two of three classes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 3))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (rng.random(n)[:, None] > np.cumsum(chances, axis=1)).sum(1).clip(0, 2)
    return truth, (logits + np.array([tilt, -tilt, 0.0])).astype(np.float32)


def test_auto_takes_the_vector_only_where_it_says_more_of_cells_it_has_not_seen() -> None:
    # A vector always fits the cells that it was fitted on better; where nothing is tilted, others show it up.
    chosen = [better_scaling(t, softmax(x)) for t, x in (_answers(s, 200, 0.0) for s in range(10))]
    assert chosen.count("temperature") >= 8
    truth, logits = _answers(3, 600, 1.0)
    assert better_scaling(truth, softmax(logits)) == "vector"
    fitted = fit_scaling(truth, logits, "auto")
    assert fitted == fit_scaling(truth, logits, "vector")
    assert fitted.bias[0] < -0.5 < 0.5 < fitted.bias[1]
    order = np.array([2, 0, 1])
    assert better_scaling(np.argsort(order)[truth], softmax(logits[:, order])) == "vector"


def test_auto_does_not_fit_a_vector_to_a_handful_of_cells() -> None:
    truth, logits = _answers(3, 600, 1.0)
    few = np.concatenate([np.flatnonzero(truth == 0)[:9], np.flatnonzero(truth > 0)])
    assert fit_scaling(truth[few], logits[few], "auto").method == "temperature"


def test_a_vector_that_turns_a_class_round_is_refused() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    logits = rng.normal(0, 1, (600, 3)).astype(np.float32)
    logits[np.arange(600), truth] += 2
    logits[:, 0] *= -1
    with pytest.raises(ModelError, match="Take temperature scaling"):
        fit_scaling(truth, logits, "vector")
