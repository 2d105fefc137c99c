"""Calibration and scalings against scikit-learn and scipy."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from evaluate_cases import CODES, predictions, rows
from scipy import optimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from marrowscope.errors import FileFormatError
from marrowscope.evaluate import calibration, evaluate_predictions
from marrowscope.evaluate.calibration import Scaling
from marrowscope.schema import CardScaling, Predictions


def answers(seed: int, n: int = 1500, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from probabilities, and those probabilities made sharper or blunter by a power."""
    rng = np.random.default_rng(seed)
    right = rng.dirichlet(np.full(5, 0.4), n)
    truth = (right.cumsum(1) > rng.random((n, 1))).argmax(1)
    probs = np.maximum(right, 1e-9) ** sharpness
    return truth, probs / probs.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_bins_and_error_are_those_of_scikit_learn(seed: int) -> None:
    truth, probs = answers(seed, sharpness=1.7)
    confidence, hit = probs.max(1), (probs.argmax(1) == truth).astype(float)
    share, mean = calibration_curve(hit, confidence, n_bins=15, strategy="quantile")
    bins = calibration.equal_mass_bins(confidence)
    counts = np.bincount(bins)
    assert counts.tolist() == [100] * 15
    np.testing.assert_allclose(np.bincount(bins, weights=confidence) / counts, mean, atol=2e-3)
    np.testing.assert_allclose(np.bincount(bins, weights=hit) / counts, share, atol=0.02)
    by_hand = sum(
        abs(c.mean() - h.mean()) * len(c) / 1500
        for c, h in zip(
            np.array_split(np.sort(confidence), 15),
            np.array_split(hit[np.argsort(confidence, kind="stable")], 15),
            strict=True,
        )
    )
    assert calibration.calibration_error(confidence, hit) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_brier_is_that_of_scikit_learn(seed: int) -> None:
    truth, probs = answers(seed, sharpness=0.6)
    assert calibration.brier_losses(truth, probs).mean() == pytest.approx(
        brier_score_loss(truth, probs, labels=list(range(5)), scale_by_half=False), rel=1e-12
    )


def test_ties_share_a_bin_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    score = rng.integers(0, 7, 200) / 7
    hit = (rng.random(200) < score).astype(float)
    bins = calibration.equal_mass_bins(score)
    assert all(len(set(bins[score == s])) == 1 for s in set(score))
    assert sorted(set(bins)) == list(range(bins.max() + 1))
    order = rng.permutation(200)
    value = calibration.calibration_error(score, hit)
    assert calibration.calibration_error(score[order], hit[order]) == pytest.approx(value, rel=1e-12)
    twice = np.concatenate([score, score]), np.concatenate([hit, hit])
    assert calibration.calibration_error(*twice) == pytest.approx(value, rel=1e-12)
    assert calibration.equal_mass_bins(np.array([0.3])).tolist() == [0]
    assert calibration.equal_mass_bins(np.full(30, 0.3)).tolist() == [0] * 30


def test_what_chance_alone_shows() -> None:
    """Perfectly calibrated answers show about what `error_by_chance` says; sharpened ones far more."""
    errors = []
    for seed in range(40):
        truth, probs = answers(seed, n=600)
        errors.append(calibration.calibration_error(probs.max(1), (probs.argmax(1) == truth).astype(float)))
    mean, low, high = calibration.error_by_chance(answers(0, n=600)[1].max(1), draws=500, seed=0)
    assert mean == pytest.approx(np.mean(errors), rel=0.1)
    assert np.mean((np.array(errors) >= low) & (np.array(errors) <= high)) > 0.85
    truth, probs = answers(0, n=600, sharpness=3)
    assert calibration.calibration_error(probs.max(1), (probs.argmax(1) == truth).astype(float)) > high


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_temperature_is_the_one_scipy_finds_and_undoes_a_power(sharpness: float) -> None:
    truth, probs = answers(7, n=4000, sharpness=sharpness)

    def loss(log_t: float) -> float:
        return float(log_loss(truth, Scaling.of_temperature(float(np.exp(log_t)), 5).apply(probs)))

    t = calibration.fit_temperature(truth, probs)
    found = optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    assert t == pytest.approx(np.exp(found.x), rel=1e-5)
    assert t == pytest.approx(sharpness, rel=0.06)


def test_temperature_of_logits_is_that_of_probabilities() -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(50, 5)) * 3
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cooled = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum(1, keepdims=True)
    np.testing.assert_allclose(Scaling.of_temperature(2.5, 5).apply(softmax), cooled, rtol=1e-9)
    np.testing.assert_allclose(Scaling.of_temperature(1.0, 5).apply(softmax), softmax, rtol=1e-12)


def test_temperature_stays_within_bounds() -> None:
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert calibration.fit_temperature(np.array([0, 1]), sure) == pytest.approx(calibration.LEAST_TEMPERATURE)
    assert calibration.fit_temperature(np.array([1, 0]), sure) == pytest.approx(calibration.MOST_TEMPERATURE)
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(Scaling.of_temperature(0.02, 2).apply(certain)).all()
    assert np.isfinite(calibration.fit_vector(np.array([0, 1]), certain).scale).all()


@pytest.mark.parametrize("seed", range(3))
def test_vector_is_the_one_scipy_finds(seed: int) -> None:
    truth, probs = answers(seed, n=1000, sharpness=2.0)
    probs = probs * np.array([3.0, 1.0, 1.0, 0.5, 1.0])
    probs /= probs.sum(1, keepdims=True)
    centre = np.concatenate([np.full(5, 1 / calibration.fit_temperature(truth, probs)), np.zeros(5)])

    def loss(theta: np.ndarray) -> float:
        scaled = Scaling(theta[:5], theta[5:]).apply(probs)
        own = np.log(scaled[np.arange(1000), truth]).mean()
        return float(-own + 5e-4 * ((theta - centre) ** 2).sum())

    v = calibration.fit_vector(truth, probs)
    found = optimize.minimize(loss, centre, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(np.concatenate([v.scale, v.bias]), found.x, atol=1e-4)
    assert loss(np.concatenate([v.scale, v.bias])) <= found.fun + 1e-12
    scaled = v.apply(probs)
    np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-12)
    assert log_loss(truth, scaled) < log_loss(truth, probs) - 0.1


def test_a_class_without_validation_images_does_not_run_away() -> None:
    truth, probs = answers(9, n=300)
    few = truth != 4
    v = calibration.fit_vector(truth[few], probs[few])
    assert np.isfinite(v.scale).all()
    assert np.abs(v.bias).max() < 20


def table(name: str, truth: np.ndarray, probs: np.ndarray) -> Predictions:
    n = len(truth)
    return Predictions(
        tuple(f"{name}/{i:05}" for i in range(n)), ("ok",) * n, CODES, probs, tuple(CODES[t] for t in truth)
    )


def test_calibration_before_and_after_in_an_evaluation() -> None:
    test, validation = table("test", *answers(10, sharpness=3.0)), table("val", *answers(11, sharpness=3.0))
    e = evaluate_predictions(test, validation=validation, draws=500)
    before, temperature, vector = e.calibration
    assert [c.scaling for c in e.calibration] == ["none", "temperature", "vector"]
    assert [c.fitted_on for c in e.calibration] == [0, 1500, 1500]
    assert temperature.temperature == pytest.approx(3, rel=0.1)
    assert len(vector.scale) == len(vector.bias) == 5
    for name in ("expected_calibration_error", "classwise_calibration_error", "brier_loss", "log_loss"):
        f, g = before.figures[name], temperature.figures[name]
        assert g.value < f.value  # type: ignore[operator]
        for figure in (f, g, vector.figures[name]):
            assert figure.low <= figure.value <= figure.high  # type: ignore[operator]
    assert temperature.figures["accuracy"] == before.figures["accuracy"] == e.figures["accuracy"]
    assert before.figures["log_loss"] == e.figures["log_loss"]
    assert before.figures["expected_calibration_error"].low > before.by_chance.high  # type: ignore[operator]
    assert temperature.figures["expected_calibration_error"].low < temperature.by_chance.high  # type: ignore[operator]
    assert sum(b.accuracy.n for b in before.bins) == 1500
    assert all(b.low <= b.confidence <= b.high for b in before.bins)
    assert all(a.high < b.low for a, b in pairwise(before.bins))
    mean = np.mean([f.value for f in before.per_class.values()])  # type: ignore[misc]
    assert before.figures["classwise_calibration_error"].value == pytest.approx(mean)
    assert set(before.per_class) == set(CODES)
    assert [c.scaling for c in evaluate_predictions(test, draws=50).calibration] == ["none"]


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_table_that_is_calibrated_already_shows_the_network_without_it_too(method: str) -> None:
    """The same figures whether the table has raw probabilities or those after the scaling; only `applied` moves."""
    raw, held = (table(name, *answers(seed, sharpness=3.0)) for name, seed in (("test", 10), ("val", 11)))
    before = evaluate_predictions(raw, validation=held, draws=200)
    entry = {c.scaling: c for c in before.calibration}[method]
    scale = entry.scale or (1 / entry.temperature,) * 5
    bias = entry.bias or (0.0,) * 5
    applied = CardScaling.model_validate({"method": method, "scale": scale, "bias": bias, "fitted_on": 1500})
    scaling = calibration.Scaling(np.array(scale), np.array(bias))
    assert scaling.undo(scaling.apply(raw.probs_NC)) == pytest.approx(raw.probs_NC, abs=1e-12)
    scaled = [replace(p, probs_NC=scaling.apply(p.probs_NC)) for p in (raw, held)]
    after = evaluate_predictions(scaled[0], validation=scaled[1], scaling=applied, draws=200)
    assert [c.applied for c in before.calibration] == [True, False, False]
    assert [c.scaling for c in after.calibration if c.applied] == [method]
    assert [c.scaling for c in after.calibration] == ["none", "temperature", "vector"]
    for a, b in zip(before.calibration, after.calibration, strict=True):
        for name, f in a.figures.items():
            assert (f.value, f.low, f.high) == pytest.approx(
                (b.figures[name].value, b.figures[name].low, b.figures[name].high), abs=2e-4
            )
    assert after.figures["log_loss"] == {c.scaling: c for c in after.calibration}[method].figures["log_loss"]
    alone = evaluate_predictions(scaled[0], scaling=applied, draws=50)
    assert [(c.scaling, c.applied) for c in alone.calibration] == [("none", False), (method, True)]


def test_validation_may_have_its_columns_in_another_order_and_must_have_the_same() -> None:
    test, validation = predictions(12), predictions(13)
    order = [4, 2, 0, 1, 3]
    other = Predictions(
        validation.paths,
        validation.status,
        tuple(CODES[i] for i in order),
        validation.probs_NC[:, order],
        validation.truth,
    )
    a = evaluate_predictions(test, validation=validation, draws=50)
    assert evaluate_predictions(test, validation=other, draws=50) == a
    shuffled = rows(validation, np.random.default_rng(0).permutation(400))
    assert evaluate_predictions(test, validation=shuffled, draws=50) == a
    with pytest.raises(FileFormatError, match="must come from one model"):
        evaluate_predictions(test, validation=predictions(14, codes=("BLA", "LYT")), draws=50)


def test_validation_must_hold_other_images() -> None:
    with pytest.raises(FileFormatError, match="400 images are both"):
        evaluate_predictions(predictions(12), validation=predictions(12), draws=50)


@pytest.mark.parametrize("seed", range(3))
def test_errors_in_an_evaluation_are_those_of_scikit_learns_bins(seed: int) -> None:
    """1,500 answers without ties: its quantile bins and ours hold the same hundred cells each."""
    truth, probs = answers(20 + seed, sharpness=2.0)
    found = evaluate_predictions(table("test", truth, probs), draws=20).calibration[0]

    def theirs(hits: np.ndarray, scores: np.ndarray) -> float:
        share, mean = calibration_curve(hits, scores, n_bins=15, strategy="quantile")
        assert len(share) == 15
        return float(np.abs(share - mean).mean())

    by_class = [theirs(truth == c, probs[:, c]) for c in range(5)]
    figures = {name: f.value for name, f in found.figures.items()}
    whole = theirs(probs.argmax(1) == truth, probs.max(1))
    assert figures["expected_calibration_error"] == pytest.approx(whole, rel=1e-9)
    assert [f.value for f in found.per_class.values()] == pytest.approx(by_class, rel=1e-9)
    assert figures["classwise_calibration_error"] == pytest.approx(np.mean(by_class), rel=1e-9)
    labels = list(range(5))
    assert figures["log_loss"] == pytest.approx(log_loss(truth, probs, labels=labels), rel=1e-9)
    brier = brier_score_loss(truth, probs, labels=labels, scale_by_half=False)
    assert figures["brier_loss"] == pytest.approx(brier, rel=1e-9)


def test_scalings_do_not_see_the_order_of_rows_and_classes_or_copies_of_all_rows() -> None:
    truth, probs = answers(30, n=600, sharpness=2.5)
    temperature, vector = calibration.fit_temperature(truth, probs), calibration.fit_vector(truth, probs)
    rows_, classes = np.random.default_rng(0).permutation(600), np.array([3, 1, 4, 0, 2])
    renamed = np.argsort(classes)[truth], probs[:, classes]
    for other in ((truth[rows_], probs[rows_]), (np.tile(truth, 3), np.tile(probs, (3, 1))), renamed):
        assert calibration.fit_temperature(*other) == pytest.approx(temperature, rel=1e-9)
        again = calibration.fit_vector(*other)
        scale, bias = (vector.scale[classes], vector.bias[classes]) if other is renamed else (vector.scale, vector.bias)
        np.testing.assert_allclose(again.scale, scale, rtol=1e-6)
        np.testing.assert_allclose(again.bias, bias, atol=1e-6)


def test_stored_values_of_calibration() -> None:
    before, temperature, _ = evaluate_predictions(
        table("test", *answers(31, sharpness=2.0)), validation=table("val", *answers(32, sharpness=2.0)), draws=200
    ).calibration
    for name, stored in STORED.items():
        f = before.figures[name]
        assert (f.value, f.low, f.high) == pytest.approx(stored, abs=2e-6), name
    chance = before.by_chance
    assert (chance.value, chance.low, chance.high) == pytest.approx(STORED_CHANCE, abs=2e-6)
    assert temperature.temperature == pytest.approx(STORED_TEMPERATURE, abs=2e-6)


STORED = {
    "expected_calibration_error": (0.170662, 0.147232, 0.191458),
    "classwise_calibration_error": (0.072572, 0.061831, 0.078858),
    "brier_loss": (0.589009, 0.556114, 0.620535),
    "log_loss": (1.199855, 1.122835, 1.276898),
}
STORED_CHANCE = (0.029859, 0.018425, 0.040455)
STORED_TEMPERATURE = 2.00821
