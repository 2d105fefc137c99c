"""A model's features in the plane, so that near cells are those that look alike to the model."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import proportion
from marrowscope.evaluate.metrics import Bools, Floats
from marrowscope.schema import FeatureMap

NEIGHBOURS = 15
MIN_DISTANCE = 0.3
JUDGED = 4000
"""Cells, at most, among which the map is judged; of more, a random sample."""

NO_UMAP = (
    "This is the plane of the two largest principal components: the package umap-learn, which makes a map that keeps "
    "neighbours better, is not installed (pip install 'marrowscope[map]')."
)
FEW = "This is the plane of the two largest principal components: there are too few cells for UMAP."


def feature_map(case: Case, paths: tuple[str, ...], features_NC: npt.NDArray[np.float32], seed: int) -> FeatureMap:
    """Lay the cells in the plane by UMAP (McInnes et al. 2018, arXiv:1802.03426), or by PCA where it is not installed.

    Args:
        case: N judged cells.
        paths: Their names.
        features_NC: Their features; finite.
        seed: The same seed gives the same map on the same machine.
    """
    unit = features_NC.astype(np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    neighbours = min(NEIGHBOURS, len(unit) - 1)
    enough = neighbours >= 5
    plane_NC: Floats
    if enough and find_spec("umap") is not None:
        plane_NC, method, note = _umap(unit, neighbours, seed), "UMAP", ""
        settings = f"{neighbours} neighbours, cosine distance, least distance {MIN_DISTANCE:g}, start at PCA"
    else:
        plane_NC, method, note = pca(unit), "PCA", NO_UMAP if enough else FEW
        settings = "features of length 1"
    plane_NC = framed(plane_NC)
    chosen = np.arange(len(unit))
    if len(chosen) > JUDGED:
        chosen = np.sort(np.random.default_rng(seed).choice(len(unit), JUDGED, replace=False))
    alike_N = neighbour_alike(unit[chosen], case.truth_N[chosen])
    return FeatureMap.model_validate(
        {
            "method": method,
            "settings": settings,
            "seed": seed,
            "note": note,
            "dimension": features_NC.shape[1],
            "trustworthiness": trustworthiness(unit[chosen], plane_NC[chosen], NEIGHBOURS),
            "neighbours_alike": proportion(alike_N, case.group_N[chosen]),
            "points": {p: (float(x), float(y)) for p, (x, y) in zip(paths, plane_NC.tolist(), strict=True)},
        }
    )


def _umap(unit_NC: npt.NDArray[np.float32], neighbours: int, seed: int) -> Floats:
    with warnings.catch_warnings():
        # Of the compiler behind it, not of what is done here.
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(
            n_neighbors=neighbours, min_dist=MIN_DISTANCE, metric="cosine", init="pca", random_state=seed, n_jobs=1
        )
        return np.asarray(model.fit_transform(unit_NC), dtype=np.float64)


def pca(values_NC: npt.NDArray[np.float32]) -> Floats:
    """The first two principal components, (N, 2); each turned so that its largest entry is positive."""
    centred = values_NC.astype(np.float64) - values_NC.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    out = np.zeros((len(values_NC), 2))
    size = min(2, len(s))
    out[:, :size] = u[:, :size] * s[:size]
    extreme = out[np.abs(out).argmax(0), [0, 1]]
    return np.asarray(out * np.where(extreme < 0, -1.0, 1.0), dtype=np.float64)


def framed(plane_NC: Floats) -> Floats:
    """Moved and shrunk into 0..1, both axes alike, the smaller in the middle; four decimals."""
    low, high = plane_NC.min(0), plane_NC.max(0)
    side = float((high - low).max()) or 1.0
    out: Floats = np.round((plane_NC - (low + high) / 2) / side + 0.5, 4)
    return out


def _squared_distances(points_NC: Floats, rows: slice) -> Floats:
    square = (points_NC**2).sum(1)
    out: Floats = square[rows, None] + square[None] - 2 * points_NC[rows] @ points_NC.T
    here = np.arange(rows.start, rows.start + len(out))
    out[np.arange(len(out)), here] = np.inf  # never its own neighbour
    return out


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + 512, n)) for start in range(0, n, 512)]


def neighbour_alike(features_NC: npt.NDArray[np.float32], truth_N: npt.NDArray[np.int64]) -> Bools:
    """Whether the nearest other cell has the same class, (N,); False for a cell alone."""
    n, features = len(truth_N), features_NC.astype(np.float64)
    if n < 2:
        return np.zeros(n, dtype=bool)
    nearest = np.concatenate([_squared_distances(features, rows).argmin(1) for rows in _chunks(n)])
    return np.asarray(truth_N[nearest] == truth_N)


def trustworthiness(features_NC: npt.NDArray[np.float32], plane_NC: Floats, neighbours: int) -> float | None:
    """How far neighbours on the map are neighbours in the features: 1 all, about 0.5 a map at random.

    (Venna & Kaski 2001, ICANN, 485-491.) None for too few cells: N must be above 2 * neighbours.
    """
    n = len(plane_NC)
    if n <= 2 * neighbours:
        return None
    features, penalty = features_NC.astype(np.float64), 0
    for rows in _chunks(n):
        order = _squared_distances(features, rows).argsort(1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(1, n + 1), order.shape), axis=1)
        near = _squared_distances(plane_NC, rows).argsort(1, kind="stable")[:, :neighbours]
        penalty += int(np.maximum(np.take_along_axis(rank, near, axis=1) - neighbours, 0).sum())
    return float(1 - 2 * penalty / (n * neighbours * (2 * n - 3 * neighbours - 1)))
