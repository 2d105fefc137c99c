"""Scores of novelty against scikit-learn and scipy, by planted strangers, and by what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.special import softmax as scipy_softmax
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from marrowscope.evaluate import novelty
from marrowscope.evaluate.novelty import Features, Statistics, fit_statistics
from marrowscope.triage import energy, softmax

CLASSES, D = 4, 24


def _cells(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[Features, np.ndarray]:
    """Features of classes that lie apart, with one covariance; `shift` moves them out of all classes."""
    world = np.random.default_rng(99)
    means = world.normal(0, 3, (CLASSES, D))
    mix = world.normal(0, 1, (D, D)) * np.linspace(2, 0.2, D)[:, None]
    away = world.normal(0, 1, D)
    labels = rng.integers(0, CLASSES, n)
    x = means[labels] + rng.normal(0, 1, (n, D)) @ mix + shift * away
    return x.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize(("n", "k"), [(30, 20), (400, 12), (2000, 6)])
def test_shrunk_covariance_is_that_of_scikit_learn(n: int, k: int) -> None:
    x = np.random.default_rng(n).normal(0, np.linspace(0.1, 3, k), (n, k))
    fitted = LedoitWolf(assume_centered=True).fit(x)
    share, multiple = novelty.shrinkage(x)
    assert share == pytest.approx(fitted.shrinkage_, rel=1e-9)
    ours = (1 - share) * x.T @ x / n + share * multiple * np.eye(k)
    assert ours == pytest.approx(fitted.covariance_, rel=1e-9, abs=1e-12)


def test_mahalanobis_is_scipys_where_nothing_is_left_outside() -> None:
    x, y = _cells(np.random.default_rng(0), 800)
    statistics = fit_statistics(x, y)
    assert statistics.axes_DK.shape == (D, D)
    assert statistics.rest == 0
    new, _ = _cells(np.random.default_rng(1), 50, shift=1.0)
    means = np.stack([x[y == c].astype(float).mean(0) for c in range(CLASSES)])
    within = LedoitWolf(assume_centered=True).fit(x - means[y]).covariance_
    theirs = cdist(new, means, "mahalanobis", VI=np.linalg.inv(within)).min(1) ** 2
    assert novelty.mahalanobis(statistics, new) == pytest.approx(theirs / D, rel=1e-5)
    share, multiple = novelty.shrinkage(x - means[y])
    total = (1 - share) * np.cov(x.T.astype(float), bias=True) + share * multiple * np.eye(D)
    background = cdist(new, x.astype(float).mean(0, keepdims=True), "mahalanobis", VI=np.linalg.inv(total))[:, 0] ** 2
    assert novelty.relative_mahalanobis(statistics, new) == pytest.approx(theirs - background, rel=1e-4, abs=1e-3)
    assert novelty.mahalanobis(statistics, x).mean() == pytest.approx(0.85, abs=0.1)


def test_what_lies_outside_the_components_counts_with_one_variance() -> None:
    x, y = _cells(np.random.default_rng(0), 800)
    statistics = fit_statistics(x, y, rank=10)
    assert statistics.axes_DK.shape == (D, 10)
    centred = x.astype(float) - x.astype(float).mean(0)
    left = centred - centred @ statistics.axes_DK @ statistics.axes_DK.T
    assert statistics.rest == pytest.approx((D - 10) / (left**2).sum(1).mean(), rel=1e-6)
    # A step outside of all components is seen by the one score, and not by the relative one.
    step = left[0] / np.linalg.norm(left[0]) * 30
    moved = (x[:1] + step).astype(np.float32)
    assert novelty.mahalanobis(statistics, moved)[0] > novelty.mahalanobis(statistics, x[:1])[0] + 1
    same = novelty.relative_mahalanobis(statistics, moved)
    assert same == pytest.approx(novelty.relative_mahalanobis(statistics, x[:1]), abs=1e-3)


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_nearest_neighbour_is_that_of_scikit_learn(k: int) -> None:
    bank, _ = _cells(np.random.default_rng(0), 300)
    new, _ = _cells(np.random.default_rng(1), 600)
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (bank, new)]
    theirs = NearestNeighbors(n_neighbors=min(k, 300)).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    assert novelty.nearest_neighbour(bank, new, k) == pytest.approx(theirs, abs=2e-3)


def test_planted_strangers_are_found_and_auroc_is_scikit_learns() -> None:
    train, val, strange = (
        _cells(np.random.default_rng(s), n, shift) for s, n, shift in ((0, 1200, 0), (1, 300, 0), (2, 300, 8.0))
    )
    statistics = fit_statistics(*train)
    known, odd = (
        novelty.novelty_scores(statistics, train[0], np.zeros((300, CLASSES), "f4"), x[0]) for x in (val, strange)
    )
    for method in ("mahalanobis", "relative-mahalanobis", "knn"):
        value = novelty.auroc(known[method], odd[method])
        assert value == pytest.approx(
            roc_auc_score([0] * 300 + [1] * 300, np.r_[known[method], odd[method]]), rel=1e-12
        )
        assert value > 0.9, method
    assert novelty.auroc(known["energy"], odd["energy"]) == 0.5
    assert novelty.mahalanobis(statistics, val[0])[:3] == pytest.approx(STORED, abs=1e-4)


STORED = (0.789674, 1.392238, 0.776290)


def test_stored_values_of_the_other_scores() -> None:
    train, val = (_cells(np.random.default_rng(s), n) for s, n in ((3, 600), (4, 3)))
    relative = novelty.relative_mahalanobis(fit_statistics(*train), val[0])
    assert relative == pytest.approx(RELATIVE, abs=1e-3)
    assert novelty.nearest_neighbour(train[0], val[0], 5) == pytest.approx(NEIGHBOUR, abs=1e-4)


RELATIVE = (-0.172901, -1.070876, -1.806546)
NEIGHBOUR = (0.910937, 0.823770, 0.922424)


def test_order_of_cells_and_classes_and_duplicates_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    x, y = _cells(rng, 500)
    new, _ = _cells(rng, 20, shift=0.5)
    order, renamed = rng.permutation(500), np.array([2, 0, 3, 1])
    same = (fit_statistics(x[order], y[order]), fit_statistics(x, renamed[y]))
    for other in same:
        for score in (novelty.mahalanobis, novelty.relative_mahalanobis):
            assert score(other, new) == pytest.approx(score(fit_statistics(x, y), new), rel=1e-6)
    # Shrinkage sees twice the cells; without it nothing changes.
    doubled = fit_statistics(np.repeat(x, 2, axis=0), np.repeat(y, 2))
    ranks = spearmanr(novelty.mahalanobis(doubled, new), novelty.mahalanobis(same[0], new))
    assert ranks.statistic > 0.98


def test_turning_and_stretching_the_features_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    x, y = _cells(rng, 3000)
    new, _ = _cells(rng, 20, shift=0.5)
    turn = np.linalg.qr(rng.normal(0, 1, (D, D)))[0]
    changed = [(f @ turn * 5 + 3).astype(np.float32) for f in (x, new)]
    ours, theirs = (novelty.mahalanobis(fit_statistics(a, y), b) for a, b in ((x, new), changed))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_dead_features_do_no_harm() -> None:
    """Features that are the same for all cells (dead units) have no variance to divide by."""
    x, y = _cells(np.random.default_rng(5), 300)
    wide = np.concatenate([x, np.zeros((300, 8), "f4")], axis=1)
    statistics = fit_statistics(wide, y)
    assert statistics.axes_DK.shape[1] <= D
    assert np.isfinite(novelty.mahalanobis(statistics, wide)).all()
    with pytest.raises(ValueError, match="different features"):
        fit_statistics(np.ones((5, 3), "f4"), np.zeros(5, np.int64))


def test_the_threshold_keeps_new_cells_as_it_says() -> None:
    rng = np.random.default_rng(6)
    flagged = []
    for _ in range(300):
        threshold, kept = novelty.novelty_threshold(rng.normal(0, 1, 99))
        assert kept == pytest.approx(95 / 99)
        flagged.append((rng.normal(0, 1, 200) > threshold).mean())
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.006)
    assert novelty.novelty_threshold(np.array([1.0, 3.0, 2.0])) == (3.0, 1.0)


def test_the_choice_is_made_on_what_stands_in_for_strangers() -> None:
    train, val = _cells(np.random.default_rng(0), 800), _cells(np.random.default_rng(1), 400)
    means = np.stack([train[0][train[1] == c].mean(0) for c in range(CLASSES)])
    logits = (-((val[0][:, None] - means[None]) ** 2).sum(2) / D).astype(np.float32)
    statistics: Statistics = fit_statistics(*train)
    found = novelty.left_out_aurocs(statistics, train, (val[0], logits, val[1]))
    assert set(found) == set(novelty.METHODS)
    assert found["mahalanobis"] > 0.9
    assert (
        novelty.chosen_method(
            {
                "classes": {"energy": 0.6, "mahalanobis": 0.7, "relative-mahalanobis": 0.8, "knn": 1.0},
                "altered": {"energy": 0.6, "mahalanobis": 0.95, "relative-mahalanobis": 0.8, "knn": 1.0},
            }
        )
        == "mahalanobis"
    )


def test_shuffled_tiles_are_the_same_pixels_elsewhere() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 42, 3), dtype=np.uint8)
    mixed = novelty.shuffled_tiles(picture, 1)
    assert mixed.shape == (48, 40, 3)
    assert np.array_equal(np.sort(mixed.ravel()), np.sort(picture[:48, :40].ravel()))
    assert not np.array_equal(mixed, picture[:48, :40])
    assert np.array_equal(mixed, novelty.shuffled_tiles(picture, 1))


def test_energy_is_scipys_log_sum_exp() -> None:
    logits = np.random.default_rng(7).normal(0, 40, (50, 6)).astype(np.float32)
    assert energy(logits) == pytest.approx(-logsumexp(logits.astype(np.float64), axis=1), rel=1e-12)
    order = np.random.default_rng(8).permutation(6)
    assert energy(logits[:, order]) == pytest.approx(energy(logits), rel=1e-12)
    assert energy(np.array([[1.0, 2.0, 3.0]])) == pytest.approx([-3.407606], abs=1e-6)
    assert softmax(logits) == pytest.approx(scipy_softmax(logits.astype(np.float64), axis=1), rel=1e-12, abs=1e-300)
