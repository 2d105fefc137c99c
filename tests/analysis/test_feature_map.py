"""The map of the features: against scikit-learn, the same for the same seed, honest where UMAP is missing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import manifold
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from marrowscope.analysis import feature_map as module
from marrowscope.analysis.feature_map import feature_map, framed, neighbour_alike, pca, trustworthiness
from marrowscope.evaluate.case import Case


def _planted(n: int = 120, classes: int = 4) -> tuple[Case, tuple[str, ...], np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.arange(n) % classes
    features = (rng.normal(0, 0.3, (n, 20)) + rng.normal(0, 1, (classes, 20))[truth]).astype(np.float32)
    probs = np.eye(classes)[truth]
    codes = ("BLA", "EOS", "LYT", "MON")[:classes]
    case = Case(codes, truth.astype(np.int64), truth.astype(np.int64), probs, np.arange(n))
    return case, tuple(f"{i:03d}.jpg" for i in range(n)), features


def test_pca_is_scikit_learns() -> None:
    values = np.random.default_rng(1).normal(0, [5, 3, 1, 1], (60, 4)).astype(np.float32)
    np.testing.assert_allclose(np.abs(pca(values)), np.abs(PCA(2).fit_transform(values.astype(np.float64))), rtol=1e-6)
    assert pca(np.ones((3, 1), np.float32)).shape == (3, 2)


def test_trustworthiness_is_scikit_learns() -> None:
    _, _, features = _planted(700)
    plane = pca(features)
    ours = trustworthiness(features, plane, 15)
    assert ours == pytest.approx(manifold.trustworthiness(features.astype(np.float64), plane, n_neighbors=15), abs=1e-9)
    assert trustworthiness(features[:30], plane[:30], 15) is None


def test_nearest_neighbours_are_scikit_learns() -> None:
    case, _, features = _planted(600)
    shuffled = np.random.default_rng(0).permutation(case.truth_N)
    near = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features, return_distance=False)[:, 1]
    np.testing.assert_array_equal(neighbour_alike(features, shuffled), shuffled[near] == shuffled)


def test_framed_keeps_the_shape() -> None:
    plane = np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0]])
    np.testing.assert_allclose(framed(plane), [[0, 0.25], [1, 0.5], [0.5, 0.75]])
    np.testing.assert_allclose(framed(np.ones((3, 2))), 0.5)


def test_without_umap_it_is_pca_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    case, paths, features = _planted()
    found = feature_map(case, paths, features, 0)
    assert found.method == "PCA"
    assert "pip install" in found.note
    assert "umap-learn" in found.note
    assert found.neighbours_alike.value == 1
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose([found.points[p] for p in paths], framed(pca(unit)), atol=1e-4)


def test_few_cells_are_no_umap() -> None:
    case, paths, features = _planted(5)
    found = feature_map(case, paths, features, 0)
    assert found.method == "PCA"
    assert "too few" in found.note
    assert found.trustworthiness is None
    one = feature_map(*_planted(1, 1)[:2], np.ones((1, 3), np.float32), 0)
    assert list(one.points.values()) == [(0.5, 0.5)]


@pytest.mark.slow
def test_umap_keeps_neighbours_and_is_the_same_for_the_same_seed() -> None:
    # Slow because the package compiles itself when it is loaded.
    pytest.importorskip("umap", reason="umap-learn is not installed")
    case, paths, features = _planted()
    found = feature_map(case, paths, features, 0)
    assert found.method == "UMAP"
    assert not found.note
    assert found == feature_map(case, paths, features, 0)
    assert found.points != feature_map(case, paths, features, 1).points
    assert found.trustworthiness is not None
    assert found.trustworthiness > (trustworthiness(features, pca(features), 15) or 0)
    # The planted groups lie apart.
    plane = np.array([found.points[p] for p in paths], np.float32)
    assert neighbour_alike(plane, case.truth_N).mean() == 1


def test_order_of_cells_does_not_matter_to_the_plane_of_principal_components() -> None:
    case, paths, features = _planted()
    order = np.random.default_rng(2).permutation(len(paths))
    plane = pca(features)
    np.testing.assert_allclose(pca(features[order]), plane[order], atol=1e-5)
    np.testing.assert_array_equal(
        neighbour_alike(features[order], case.truth_N[order]), neighbour_alike(features, case.truth_N)[order]
    )
    whole = trustworthiness(features, plane, 15)
    assert trustworthiness(features[order], plane[order], 15) == pytest.approx(whole, abs=1e-9)
    assert whole == pytest.approx(STORED, abs=1e-6)


STORED = 0.971134
