"""Answering only where the model is sure: what is left unanswered, and how good the rest is.

A threshold can't part images of equal confidence, so everything here is taken at the distinct confidences.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from marrowscope.evaluate.metrics import Bools, Floats, ratio

TARGETS = (0.95, 0.98)
CURVE_POINTS = 300


def _cumulated(
    confidence_N: Floats, wrong_N: Bools, weights: Floats | None
) -> tuple[Floats, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Distinct confidences (K,) falling, and images and errors from each upward, (K, B)."""
    columns = np.ones((1, len(confidence_N))) if weights is None else weights
    order = np.argsort(-confidence_N, kind="stable")
    ordered = confidence_N[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    # Whole numbers below 2^24 are exact in float32.
    sorted_weights = np.ascontiguousarray(columns.T, dtype=np.float32)[order]
    errors = np.where(wrong_N[order][:, None], sorted_weights, np.float32(0))
    if len(starts) < len(ordered):
        sorted_weights, errors = (np.add.reduceat(a, starts, axis=0) for a in (sorted_weights, errors))
    return ordered[starts], np.cumsum(sorted_weights, axis=0), np.cumsum(errors, axis=0)


def risk_coverage(confidence_N: Floats, right_N: Bools) -> tuple[Floats, Floats, Floats]:
    """Threshold, coverage and error rate at each distinct confidence, falling; three arrays (K,). N above 0.

    (El-Yaniv & Wiener 2010, J Mach Learn Res 11, 1605-1641.)
    """
    threshold, covered, errors = _cumulated(confidence_N, ~right_N, None)
    error = errors[:, 0].astype(np.float64) / covered[:, 0]
    return threshold, covered[:, 0].astype(np.float64) / len(right_N), error


def selective_statistics(confidence_N: Floats, right_N: Bools, weights: Floats | None = None) -> dict[str, Floats]:
    """Figures of the risk-coverage curve, each (B,), for weightings (B, N) of the images (whole numbers). N above 0.

    ``aurc_error``: area under it, 0..1, the sum of error rate times coverage gained (Geifman & El-Yaniv 2017, NeurIPS).
    ``excess_aurc_error``: what it has above the curve of an ideal confidence of the same accuracy,
    r + (1 - r) ln(1 - r) at an error rate r (Geifman et al. 2019, ICLR). ``coverage_at_95`` and ``coverage_at_98``: the
    largest share answered with at least that accuracy, 0 where no threshold reaches it.
    """
    _, covered, errors = _cumulated(confidence_N, ~right_N, weights)
    n = covered[-1].astype(np.float64)
    gained = np.diff(covered, axis=0, prepend=np.float32(0))
    error = np.divide(errors, covered, out=np.zeros_like(errors), where=covered > 0)
    out = {"aurc_error": np.asarray(np.einsum("kb,kb->b", gained, error, dtype=np.float64) / n)}
    r = errors[-1] / n
    right = 1.0 - r
    ideal = r + right * np.log(np.where(right > 0, right, 1.0))
    out["excess_aurc_error"] = np.maximum(out["aurc_error"] - ideal, 0.0)
    for target in TARGETS:
        reached = errors <= (1.0 - target) * covered * (1 + 1e-6)
        out[coverage_name(target)] = ratio(np.where(reached, covered, 0).max(0), n)
    return out


def coverage_name(target: float) -> str:
    """Name of the figure, ``coverage_at_95``."""
    return f"coverage_at_{round(100 * target)}"


def threshold_for(confidence_N: Floats, right_N: Bools, target: float) -> float | None:
    """Least confidence from which the answers have at least the target accuracy; None where there is none."""
    threshold, covered, errors = _cumulated(confidence_N, ~right_N, None)
    reached = np.flatnonzero(errors[:, 0] <= (1.0 - target) * covered[:, 0] * (1 + 1e-6))
    return float(threshold[reached[-1]]) if len(reached) else None


def thin(n_points: int, most: int = CURVE_POINTS) -> npt.NDArray[np.int64]:
    """Numbers of at most `most` points, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n_points - 1, min(n_points, most)).round().astype(np.int64))


# ------------------------------------------------------------------------------------------- a threshold that holds

ASSURANCE = 0.9
"""Confidence with which accepted answers have the wanted accuracy, over the draw of the validation cells."""
STARTS = (0.5, 0.25)
"""Shares of the cells accepted, where the search for an assured threshold begins."""
STEP = 0.05
"""By how much that share then grows at a time."""


def binomial_tail(errors: int, n: int, rate: float) -> float:
    """P(X <= errors) of X ~ Binomial(n, rate), 0 < rate < 1: the p-value of "the error rate is at least `rate`"."""
    base = math.lgamma(n + 1) + n * math.log1p(-rate)
    odds = math.log(rate) - math.log1p(-rate)
    logs = [base - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * odds for k in range(min(errors, n) + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def assured_threshold(
    confidence_N: Floats, right_N: Bools, target: float, assurance: float = ASSURANCE
) -> float | None:
    """Least confidence from which answers have the target accuracy, with that assurance; None where there is none.

    The least threshold with the accuracy on these very cells (`threshold_for`) is chosen by its luck: on new cells it
    has less in half of all cases. Here thresholds are tried in an order that is fixed beforehand: from each of
    `STARTS` on, `STEP` more of the cells at a time, until the exact binomial test of "the error rate is above
    1 - target" fails, each start at its share of the level 1 - assurance; the most lenient threshold that passed is
    taken (fixed-sequence testing with several starts: Angelopoulos et al. 2021, arXiv:2110.01052, section 3.2; a plain
    Bonferroni correction for all thresholds as in Geifman & El-Yaniv 2017, NeurIPS, finds fewer).

    Args:
        confidence_N: Of validation cells, which the model was not trained on.
        right_N: Whether each answer is right.
        target: Accuracy of the accepted answers, in (0, 1).
        assurance: Probability, over validation sets, that the accuracy on cells like them is at least the target.
    """
    if not len(confidence_N):
        return None
    threshold, covered, errors = _cumulated(confidence_N, ~right_N, None)
    level, found = (1.0 - assurance) / len(STARTS), None
    for start in STARTS:
        for wanted in np.arange(start, 1.0 + STEP / 2, STEP) * len(confidence_N):
            # The strictest threshold that accepts as many; cells of equal confidence come together.
            i = min(int(np.searchsorted(covered[:, 0], wanted - 1e-6)), len(threshold) - 1)
            if binomial_tail(int(errors[i, 0]), int(covered[i, 0]), 1.0 - target) > level:
                break
            found = float(threshold[i]) if found is None else min(found, float(threshold[i]))
    return found
