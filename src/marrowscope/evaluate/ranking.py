"""How well the probability of one class ranks its images above the others: AUROC and average precision.

Both are found for any number of weightings of the same images at once (the bootstrap's draws): a class is sorted once,
and only the scores of its own images are looked at one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from marrowscope.evaluate.metrics import Bools, Floats, Integers, ratio


class Ranking(NamedTuple):
    """Both scores, in arrays of one shape.

    Attributes:
        auroc: Area under the ROC curve, 0..1: how often an image of the class scores higher than one of another, ties
            counting half (the Mann-Whitney form: Hanley & McNeil 1982, Radiology 143, 29-36). nan where there are only
            images of the class, or none.
        average_precision: 0..1: the sum over thresholds of the precision times the recall gained there, not
            interpolated. By chance it is the share of the class. nan where the other is.
    """

    auroc: Floats
    average_precision: Floats


def rank_scores(is_class_N: Bools, score_N: Floats, weights: Floats | None = None) -> Ranking:
    """Score one class against the rest.

    Args:
        is_class_N: Which images are of the class.
        score_N: Higher for the class.
        weights: (B, N), whole numbers from 0: how often each image counts; None: each once.

    Returns:
        Arrays (B,); B = 1 without weights.
    """
    columns = np.ones((1, len(score_N))) if weights is None else weights
    return _rank(is_class_N, score_N, np.ascontiguousarray(columns.T, dtype=np.float32))


def one_vs_rest(truth_N: Integers, probs_NC: Floats, weights: Floats | None = None) -> Ranking:
    """Score each class by its own probability; arrays (B, C), B = 1 without weights."""
    columns = np.ones((1, len(truth_N))) if weights is None else weights
    # Whole numbers below 2^24 are exact in float32, and half the memory is half the time.
    transposed = np.ascontiguousarray(columns.T, dtype=np.float32)
    each = [_rank(truth_N == c, probs_NC[:, c], transposed) for c in range(probs_NC.shape[1])]
    return Ranking(np.stack([r.auroc for r in each], 1), np.stack([r.average_precision for r in each], 1))


def _rank(is_class_N: Bools, score_N: Floats, transposed: npt.NDArray[np.float32]) -> Ranking:
    """As `rank_scores`; weights as (N, B), so that sorting the images moves whole rows."""
    if not is_class_N.any() or is_class_N.all():
        return Ranking(*np.full((2, transposed.shape[1]), np.nan))
    order = np.argsort(-score_N, kind="stable")
    ordered, is_class = score_N[order], is_class_N[order]
    # Blocks: the runs of equal scores that hold an image of the class. A gap between two blocks is one segment.
    run_starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    run_ends = np.r_[run_starts[1:], len(ordered)]
    holds = np.add.reduceat(is_class.astype(np.int64), run_starts) > 0
    starts, ends = run_starts[holds], run_ends[holds]
    segments = np.unique(np.r_[0, starts, ends[ends < len(ordered)]])
    total = np.add.reduceat(transposed[order], segments, axis=0)
    blocks = np.searchsorted(segments, starts)
    own = np.flatnonzero(is_class)
    positive = np.add.reduceat(transposed[order[own]], np.searchsorted(own, starts), axis=0).astype(np.float64)

    called = np.cumsum(total, axis=0)[blocks].astype(np.float64)
    found = np.cumsum(positive, axis=0)
    at_block = total[blocks] - positive
    above = called - found - at_block
    positives = found[-1]
    negatives = total.sum(0, dtype=np.float64) - positives
    pairs = (positive * (negatives - above - at_block / 2)).sum(0)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return Ranking(ratio(pairs, positives * negatives), ratio((precision * positive).sum(0), positives))
