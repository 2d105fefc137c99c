"""How unlike the training cells a picture is, from what the network sees before its last layer.

Four scores, each higher for the stranger picture:

    energy                -log sum exp of the logits (Liu et al. 2020, NeurIPS); `triage.energy`
    mahalanobis           distance to the nearest class mean, by the covariance in classes (Lee et al. 2018, NeurIPS)
    relative-mahalanobis  the same less the distance to the mean of all cells, by the covariance of all cells, which
                          takes off what is the same for all classes (Ren et al. 2021, arXiv:2106.09022)
    knn                   distance to the k-th nearest training cell, features of length 1 (Sun et al. 2022, ICML)

Which one a model card takes is decided on validation cells alone (`chosen_method`), never on what it is judged on. kNN
is measured beside the others and not taken: a model file would have to hold the features of training cells.

Covariances are estimated in the space of the first `RANK` principal components of the training features. What lies
outside of it counts with one variance for all directions (as in probabilistic PCA: Tipping & Bishop 1999, J R Stat Soc
B 61, 611-622). So a file grows by D x RANK numbers and not by D x D, which for 2,048 features would be 16 MB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marrowscope.evaluate.metrics import Floats, Integers
from marrowscope.evaluate.ranking import rank_scores
from marrowscope.triage import energy

RANK = 256
"""Most principal components that are kept."""

NEIGHBOURS = 10
"""k of the k-th nearest neighbour."""

KEPT = 0.95
"""Share of cells like those of training that must not be flagged.

A flag costs a second look at a cell, and a missing flag a wrong answer for something that has no right one; so it is
the usual 95 % and not 99 %, which 500 validation cells could not tell well either (5 cells lie above it)."""

METHODS = ("energy", "mahalanobis", "relative-mahalanobis", "knn")
CARD_METHODS = ("energy", "mahalanobis", "relative-mahalanobis")
"""Those that a model file can hold."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """What is known of the training features. D features, K components, C classes.

    Attributes:
        mean_D: Mean of all.
        axes_DK: Principal components, orthonormal columns.
        spread_K: Standard deviation of all cells along each, of a covariance shrunk like that within classes.
        whiten_KK: Takes components to a space where cells of a class scatter alike in all directions.
        centres_CK: Class means there.
        rest: 1 / variance along a direction outside of the components; 0 where there is none.
    """

    mean_D: Floats
    axes_DK: Floats
    spread_K: Floats
    whiten_KK: Floats
    centres_CK: Floats
    rest: float

    def components(self, features_ND: Features) -> Floats:
        """Features as components, (N, K)."""
        return np.asarray((features_ND.astype(np.float64) - self.mean_D) @ self.axes_DK)


def shrinkage(centred_NK: Floats) -> tuple[float, float]:
    """How far to draw the covariance of vectors with mean 0 towards the identity: share, and the identity's multiple.

    (Ledoit & Wolf 2004, J Multivar Anal 88, 365-411: the share that makes the expected squared error least.) The
    covariance is then (1 - share) X^T X / N + share multiple I.
    """
    n, k = centred_NK.shape
    sample = centred_NK.T @ centred_NK / n
    mean = float(np.trace(sample)) / k
    distance = float(((sample - mean * np.eye(k)) ** 2).sum())
    noise = float(((centred_NK**2).sum(1) ** 2).sum()) / n**2 - float((sample**2).sum()) / n
    return (1.0 if distance == 0 else min(max(noise, 0.0) / distance, 1.0)), mean


def fit_statistics(features_ND: Features, labels_N: Integers, rank: int = RANK) -> Statistics:
    """Estimate from training cells; classes without a cell are left out.

    Raises:
        ValueError: Fewer than two cells, or features that are all the same.
    """
    x = features_ND.astype(np.float64)
    mean_D = x.mean(0)
    centred = x - mean_D
    total = float((centred**2).sum()) / len(x)
    if len(x) < 2 or total == 0:
        raise ValueError("Statistics of novelty need at least two training cells with different features.")
    variances, axes = np.linalg.eigh(centred.T @ centred / len(x))
    # Components of no variance can't be told from rounding.
    kept = min(rank, int((variances > 1e-10 * variances[-1]).sum()))
    variance_K, axes_DK = variances[::-1][:kept], np.ascontiguousarray(axes[:, ::-1][:, :kept])
    outside = x.shape[1] - kept
    left = total - float(variance_K.sum())
    rest = outside / left if outside and left > 1e-9 * total else 0.0
    return Statistics(mean_D, axes_DK, *_spreads(centred @ axes_DK, labels_N), rest)


def _spreads(components_NK: Floats, labels_N: Integers) -> tuple[Floats, Floats, Floats]:
    """`spread_K`, `whiten_KK` and `centres_CK` of `Statistics`.

    The covariance of all cells is shrunk by the same share to the same multiple as that within classes, so that it
    stays the larger one in every direction; otherwise the relative score would turn round where cells scatter little.
    """
    classes = np.unique(labels_N)
    means_CK = np.stack([components_NK[labels_N == c].mean(0) for c in classes])
    centred_NK = components_NK - means_CK[np.searchsorted(classes, labels_N)]
    share, multiple = shrinkage(centred_NK)
    floor = max(share * multiple, 1e-9 * float((components_NK**2).mean()))
    values, vectors = np.linalg.eigh((1 - share) * (centred_NK.T @ centred_NK) / len(centred_NK))
    whiten_KK = vectors / np.sqrt(np.maximum(values, 0.0) + floor)
    return np.sqrt((1 - share) * components_NK.var(0) + floor), whiten_KK, means_CK @ whiten_KK


def mahalanobis(statistics: Statistics, features_ND: Features) -> Floats:
    """Squared Mahalanobis distance to the nearest class mean, per feature, (N,): about 1 for a training cell."""
    components = statistics.components(features_ND)
    centred = features_ND.astype(np.float64) - statistics.mean_D
    outside = ((centred - components @ statistics.axes_DK.T) ** 2).sum(1)
    return np.asarray((_nearest_centre(statistics, components) + statistics.rest * outside) / features_ND.shape[1])


def relative_mahalanobis(statistics: Statistics, features_ND: Features) -> Floats:
    """Squared distance to the nearest class mean less that to the mean of all, (N,); what lies outside cancels."""
    components = statistics.components(features_ND)
    background = ((components / statistics.spread_K) ** 2).sum(1)
    return np.asarray(_nearest_centre(statistics, components) - background)


def _nearest_centre(statistics: Statistics, components_NK: Floats) -> Floats:
    white = components_NK @ statistics.whiten_KK
    return np.asarray(np.min([((white - c) ** 2).sum(1) for c in statistics.centres_CK], axis=0))


def nearest_neighbour(bank_MD: Features, features_ND: Features, k: int = NEIGHBOURS) -> Floats:
    """Distance to the k-th nearest of the bank, (N,), all features scaled to length 1."""
    bank, x = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (bank_MD, features_ND))
    k = min(k, len(bank))
    nearest = [np.partition(part @ bank.T, len(bank) - k, axis=1)[:, len(bank) - k] for part in _parts(x)]
    return np.sqrt(np.maximum(2 - 2 * np.concatenate(nearest).astype(np.float64), 0.0))


def _parts(x: Features) -> list[Features]:
    return [x[i : i + 512] for i in range(0, max(len(x), 1), 512)]


def novelty_scores(
    statistics: Statistics, bank_MD: Features, logits_NC: npt.NDArray[np.float32], features_ND: Features
) -> dict[str, Floats]:
    """All four scores by name, each (N,)."""
    return {
        "energy": energy(logits_NC),
        "mahalanobis": mahalanobis(statistics, features_ND),
        "relative-mahalanobis": relative_mahalanobis(statistics, features_ND),
        "knn": nearest_neighbour(bank_MD, features_ND),
    }


def card_score(
    statistics: Statistics, method: str, logits_NC: npt.NDArray[np.float32], features_ND: Features
) -> Floats:
    """The score of one of `CARD_METHODS`, (N,)."""
    if method == "energy":
        return energy(logits_NC)
    return (mahalanobis if method == "mahalanobis" else relative_mahalanobis)(statistics, features_ND)


def novelty_threshold(score_N: Floats, kept: float = KEPT) -> tuple[float, float]:
    """Threshold from validation cells, and the share of them at or below it.

    It is the score of rank ceil((N + 1) kept), so that a new cell like them is flagged in at most 1 - kept of all
    cases, on average over validation sets, whatever the score (conformal p-values of outliers: Bates et al. 2023, Ann
    Stat 51, 149-178). With fewer than kept / (1 - kept) cells it is the highest score. N above 0.
    """
    rank = min(math.ceil((len(score_N) + 1) * kept - 1e-9), len(score_N))
    threshold = float(np.sort(score_N)[rank - 1])
    return threshold, float(np.mean(score_N <= threshold))


# ------------------------------------------------------------------------------------------------ choosing a method


def auroc(known_N: Floats, strange_M: Floats) -> float:
    """How often a strange picture scores higher than a known one, ties counting half; nan where one is empty."""
    is_strange = np.repeat([False, True], [len(known_N), len(strange_M)])
    return float(rank_scores(is_strange, np.concatenate([known_N, strange_M])).auroc[0])


def left_out_aurocs(
    statistics: Statistics,
    training: tuple[Features, Integers],
    validation: tuple[Features, npt.NDArray[np.float32], Integers],
) -> dict[str, float]:
    """AUROC of each method for validation cells of a class that the score doesn't know, mean over the classes.

    Class by class, the class is taken out of the statistics, the bank and the logits; its validation cells are then
    the strange ones. The network itself has learnt the class, so these figures flatter every method.

    Args:
        statistics: Whose principal components are used.
        training: Features (M, D) and labels (M,).
        validation: Features (N, D), logits (N, C) and labels (N,).
    """
    (bank_MD, label_M), (features_ND, logits_NC, label_N) = training, validation
    components_MK = statistics.components(bank_MD)
    found: dict[str, list[float]] = {m: [] for m in METHODS}
    for c in np.unique(label_N):
        others, known = label_M != c, label_N != c
        if len(np.unique(label_M[others])) < 2 or not known.any() or logits_NC.shape[1] < 3:
            continue
        spreads = _spreads(components_MK[others], label_M[others])
        without = Statistics(statistics.mean_D, statistics.axes_DK, *spreads, statistics.rest)
        scores = novelty_scores(without, bank_MD[others], np.delete(logits_NC, c, axis=1), features_ND)
        for method, score_N in scores.items():
            found[method].append(auroc(score_N[known], score_N[~known]))
    return {m: float(np.mean(v)) for m, v in found.items() if v}


def chosen_method(aurocs: Mapping[str, Mapping[str, float]]) -> str:
    """The method of `CARD_METHODS` with the highest mean AUROC over all kinds of proxy; the first where equal.

    Args:
        aurocs: By kind of proxy, then method.
    """
    means = {m: float(np.mean([kind[m] for kind in aurocs.values()])) for m in CARD_METHODS}
    return max(CARD_METHODS, key=lambda m: means[m]) if aurocs else "mahalanobis"


def shuffled_tiles(pixels_HWC: npt.NDArray[np.uint8], seed: int, tiles: int = 4) -> npt.NDArray[np.uint8]:
    """A picture cut into tiles x tiles pieces in another order: colours of a smear, and no cell."""
    height, width = (s // tiles * tiles for s in pixels_HWC.shape[:2])
    h, w = height // tiles, width // tiles
    pieces = pixels_HWC[:height, :width].reshape(tiles, h, tiles, w, 3).transpose(0, 2, 1, 3, 4).reshape(-1, h, w, 3)
    mixed = pieces[np.random.default_rng(seed).permutation(tiles * tiles)].reshape(tiles, tiles, h, w, 3)
    return np.ascontiguousarray(mixed.transpose(0, 2, 1, 3, 4).reshape(height, width, 3))
