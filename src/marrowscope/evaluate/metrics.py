"""Metrics of single-label classification, as pure functions on arrays.

Shapes are in the names: N images, C classes. Most functions take a confusion matrix of shape (..., C, C), row = truth,
column = prediction, and work on any number of matrices at once; so a bootstrap is one call. Counts may be weights.

A name ending in ``_score`` or ``_scores`` is better when higher, one ending in ``_loss``, ``_losses`` or ``_error``
when lower.

What is undefined (0/0) is nan here and None in `schema.Figure`; nothing is set to 0 or 1 in silence. One convention
needs stating, that for a class that has images and is never predicted. Its recall is 0. Its F1, 2TP / (2TP + FP + FN),
is 0. Its precision is 0/0, so it has none of its own, but a mean over classes (macro, weighted) counts it as 0, as
scikit-learn does: leaving it out would reward a model for never naming the class. `schema.Evaluation.never_predicted`
names those classes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""A probability below this counts as this, so that one answer can't make the log loss infinite; as in scikit-learn."""
WORST_LOG_LOSS = -math.log(LEAST_PROBABILITY)

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Divide, with nan where the denominator is 0."""
    a, b = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    out = np.full(a.shape, np.nan, dtype=np.float64)
    np.divide(a, b, out=out, where=b != 0)
    return out


def mean_where(values: Floats, keep: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the last axis of the kept values; nan where none is kept."""
    keep = np.broadcast_to(keep, values.shape)
    return ratio(np.where(keep, values, 0.0).sum(-1), keep.sum(-1))


def confusion_matrix(truth_N: Integers, predicted_N: Integers, n_classes: int) -> Integers:
    """Counts (C, C) int64, row = truth, column = prediction, of class numbers in 0..C-1."""
    cells = np.asarray(truth_N, np.int64) * n_classes + np.asarray(predicted_N, np.int64)
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes).astype(np.int64)


def true_positives(counts_CC: Counts) -> Floats:
    """Diagonal, (..., C)."""
    return np.diagonal(counts_CC, axis1=-2, axis2=-1).astype(np.float64)


def accuracy_score(counts_CC: Counts) -> Floats:
    """Share of right answers, 0..1, shape (...)."""
    return ratio(true_positives(counts_CC).sum(-1), counts_CC.sum((-2, -1)))


def recall_scores(counts_CC: Counts) -> Floats:
    """TP / (TP + FN) per class, 0..1, (..., C); nan for a class without images."""
    return ratio(true_positives(counts_CC), counts_CC.sum(-1))


def precision_scores(counts_CC: Counts) -> Floats:
    """TP / (TP + FP) per class, 0..1, (..., C); nan for a class that is never predicted."""
    return ratio(true_positives(counts_CC), counts_CC.sum(-2))


def f1_scores(counts_CC: Counts) -> Floats:
    """2 TP / (2 TP + FP + FN) per class, 0..1, (..., C); nan for a class neither present nor predicted."""
    return ratio(2 * true_positives(counts_CC), counts_CC.sum(-1) + counts_CC.sum(-2))


def balanced_accuracy_score(counts_CC: Counts) -> Floats:
    """Mean recall of all classes that have an image, 0..1, shape (...); not corrected for chance."""
    recall = recall_scores(counts_CC)
    return mean_where(recall, ~np.isnan(recall))


def macro_score(scores: Floats, counts_CC: Counts, keep: Bools) -> Floats:
    """Plain mean over the kept classes, shape (...).

    Args:
        scores: Per class, (..., C), of the same confusion matrices.
        counts_CC: (..., C, C). A kept class without images (it happens in a draw of the bootstrap) is left out; one
            with images and an undefined score (a precision) counts as 0, see the head of this module.
        keep: True for the classes to take.
    """
    present = counts_CC.sum(-1) > 0
    return mean_where(np.nan_to_num(scores, nan=0.0), present & keep)


def weighted_score(scores: Floats, counts_CC: Counts) -> Floats:
    """Mean over classes weighted by their images, shape (...); an undefined precision counts as 0."""
    support = counts_CC.sum(-1).astype(np.float64)
    return ratio((np.nan_to_num(scores, nan=0.0) * support).sum(-1), support.sum(-1))


def cohen_kappa_score(counts_CC: Counts) -> Floats:
    """Agreement beyond chance, -1..1, shape (...) (Cohen 1960, Educ Psychol Meas 20, 37-46).

    nan where chance alone would agree always (one class is all there is and all that is predicted).
    """
    n = counts_CC.sum((-2, -1)).astype(np.float64)
    observed = ratio(true_positives(counts_CC).sum(-1), n)
    chance = ratio((counts_CC.sum(-1).astype(np.float64) * counts_CC.sum(-2)).sum(-1), n * n)
    return ratio(observed - chance, 1.0 - chance)


def matthews_score(counts_CC: Counts) -> Floats:
    """Matthews correlation of several classes, -1..1, shape (...) (Gorodkin 2004, Comput Biol Chem 28, 367-374).

    nan where truth or prediction is one class only.
    """
    n = counts_CC.sum((-2, -1)).astype(np.float64)
    truth, predicted = counts_CC.sum(-1).astype(np.float64), counts_CC.sum(-2).astype(np.float64)
    covariance = true_positives(counts_CC).sum(-1) * n - (truth * predicted).sum(-1)
    return ratio(covariance, np.sqrt((n * n - (truth**2).sum(-1)) * (n * n - (predicted**2).sum(-1))))


def top_k_hits(truth_N: Integers, probs_NC: Floats, k: int) -> Bools:
    """Whether the truth is among the `k` most probable classes, bool (N,).

    Of equally probable classes the first in column order goes first, as with argmax; so k = 1 is the prediction.
    """
    own = probs_NC[np.arange(len(truth_N)), truth_N][:, None]
    before = np.arange(probs_NC.shape[1])[None, :] < np.asarray(truth_N)[:, None]
    rank = ((probs_NC > own) | ((probs_NC == own) & before)).sum(1)
    return np.asarray(rank < k)


def log_losses(truth_N: Integers, probs_NC: Floats) -> Floats:
    """-ln of the truth's probability, (N,), 0 upward; a probability below 2.2e-16 counts as that."""
    own = probs_NC[np.arange(len(truth_N)), truth_N]
    return np.asarray(-np.log(np.clip(own, LEAST_PROBABILITY, 1.0)))
