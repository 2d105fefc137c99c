"""Whether probabilities are what they say, and the scalings that bring them nearer to it.

Logits are not needed: a scaling works on ln p, which differs from the logits by one constant an image, and temperature
scaling does not see it. Vector scaling would; on ln p it depends on the probabilities alone.

`calibration_error` is the plug-in estimate, which noise makes too large: it is above 0 for a perfectly calibrated model
too. So it never stands alone: `error_by_chance` tells what a perfect model would show, and its bootstrap interval is
the pivotal one (`pivotal_interval`), which takes that bias off where the percentile one adds it a second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from marrowscope.evaluate.intervals import LEVEL
from marrowscope.evaluate.metrics import LEAST_PROBABILITY, Floats, Integers

BINS = 15
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.02, 50.0


def brier_losses(truth_N: Integers, probs_NC: Floats) -> Floats:
    """Squared distance of each answer from the truth, summed over classes, (N,), 0..2.

    The original form (Brier 1950, Mon Weather Rev 78, 1-3); for two classes it is twice the other common one.
    """
    wrong = probs_NC.copy()
    wrong[np.arange(len(truth_N)), truth_N] -= 1.0
    return np.asarray((wrong**2).sum(1))


def equal_mass_bins(score_N: Floats, bins: int = BINS) -> Integers:
    """Bin of each image, (N,), 0..B-1 without gaps by rising score: as equal in images as ties allow.

    Images of one score share a bin, whatever their order: that of the middle of their ranks.
    """
    n = len(score_N)
    _, which, count = np.unique(score_N, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2  # mean rank, 0..n-1
    bin_of_score = np.minimum((middle * min(bins, n) / max(n, 1)).astype(np.int64), bins - 1)
    return np.unique(bin_of_score[which], return_inverse=True)[1].astype(np.int64)


def binned_gaps(score_N: Floats, hit_N: Floats, bin_N: Integers) -> Floats:
    """score - hit of each image in the column of its bin, (N, B), 0 elsewhere."""
    out = np.zeros((len(score_N), int(bin_N.max()) + 1))
    out[np.arange(len(score_N)), bin_N] = score_N - hit_N
    return out


def calibration_errors(score_N: Floats, hit_N: Floats, bin_N: Integers, weights: Floats) -> Floats:
    """Expected calibration error, (B,), 0..1, for weightings (B, N) of the images.

    The mean over bins, by their weight, of |mean score - share of hits| (Naeini et al. 2015, AAAI; Guo et al. 2017,
    ICML, eq. 5). Bins stay those of `bin_N` in every weighting.
    """
    return np.asarray(np.abs(weights @ binned_gaps(score_N, hit_N, bin_N)).sum(1) / weights.sum(1))


def calibration_error(score_N: Floats, hit_N: Floats, bins: int = BINS) -> float:
    """Expected calibration error over equal-mass bins, 0..1; see `calibration_errors`. N above 0."""
    bin_N = equal_mass_bins(score_N, bins)
    return float(calibration_errors(score_N, hit_N, bin_N, np.ones((1, len(score_N))))[0])


def error_by_chance(
    score_N: Floats, draws: int, seed: int, bins: int = BINS, level: float = LEVEL
) -> tuple[float, float, float]:
    """Calibration error that a perfectly calibrated model with these scores shows: mean, low and high end.

    Hits are drawn with the scores as probabilities (consistency resampling: Vaicenavicius et al. 2019, AISTATS).
    """
    bin_N = equal_mass_bins(score_N, bins)
    order = np.argsort(bin_N, kind="stable")
    starts = np.searchsorted(bin_N[order], np.arange(int(bin_N.max()) + 1))
    sorted_scores = score_N[order]
    rng = np.random.default_rng(seed)
    out = np.empty(draws)
    for i in range(draws):
        hits = rng.random(len(score_N)) < sorted_scores
        out[i] = np.abs(np.add.reduceat(sorted_scores - hits, starts)).sum() / len(score_N)
    low, high = np.quantile(out, [(1 - level) / 2, (1 + level) / 2])
    return float(out.mean()), float(low), float(high)


def pivotal_interval(value: float, draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Basic bootstrap interval, 2 value - quantiles (Davison & Hinkley 1997, ch. 5.2), kept from 0 to at least value.

    For a small error it lies below the estimate, most of which is then bias; its upper end is not let below it.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return min(max(0.0, float(2 * value - high)), value), max(value, float(2 * value - low))


# -------------------------------------------------------------------------------------------------------- scalings


@dataclass(frozen=True)
class Scaling:
    """softmax(scale * ln p + bias): temperature scaling where all scales are 1 / T and the biases 0.

    Attributes:
        scale: (C,).
        bias: (C,), summing to 0.
    """

    scale: Floats
    bias: Floats

    @classmethod
    def of_temperature(cls, temperature: float, n_classes: int) -> Scaling:
        """The scaling that divides all logits by a temperature (above 1: less confident)."""
        return cls(np.full(n_classes, 1.0 / temperature), np.zeros(n_classes))

    def apply(self, probs_NC: Floats) -> Floats:
        """Scaled probabilities, (N, C); rows sum to 1. Rows of nan stay so."""
        return _softmax(_logs(probs_NC) * self.scale + self.bias)

    def undo(self, probs_NC: Floats) -> Floats:
        """The probabilities, (N, C), that `apply` turns into these.

        ln p is (ln p' - bias + z) / scale, where the z of each image is found by Newton's method from above: the sum of
        p is convex in it, and must be 1.
        """
        shifted = _logs(probs_NC) - self.bias
        z_N = -shifted.max(1)
        for _ in range(100):
            logs_NC = (shifted + z_N[:, None]) / self.scale
            top = logs_NC.max(1)
            total = top + np.log(np.exp(logs_NC - top[:, None]).sum(1))
            step = total / (_softmax(logs_NC) / self.scale).sum(1)
            z_N = z_N - step
            if np.abs(step).max(initial=0.0) < 1e-13:
                break
        return _softmax((shifted + z_N[:, None]) / self.scale)


def _logs(probs_NC: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probs_NC, LEAST_PROBABILITY)))


def _softmax(logits_NC: Floats) -> Floats:
    e = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def fit_temperature(truth_N: Integers, probs_NC: Floats) -> float:
    """Temperature with the least log loss (Guo et al. 2017, ICML, section 4.2), within 0.02..50.

    The log loss is convex in 1 / T, so its slope there is followed to 0 by bisection. N above 0.
    """
    logs_NC = _logs(probs_NC)
    own_N = logs_NC[np.arange(len(truth_N)), truth_N]

    def slope(inverse: float) -> float:
        return float(((_softmax(logs_NC * inverse) * logs_NC).sum(1) - own_N).mean())

    low, high = 1.0 / MOST_TEMPERATURE, 1.0 / LEAST_TEMPERATURE
    if slope(low) >= 0:
        return 1.0 / low
    if slope(high) <= 0:
        return 1.0 / high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1.0 / math.sqrt(low * high)


def fit_vector(truth_N: Integers, probs_NC: Floats, strength: float = 1e-3) -> Scaling:
    """A scale and a bias per class with the least log loss (vector scaling: Guo et al. 2017, section 4.2).

    Newton's method on a convex loss, with halved steps where one does not help. A small quadratic penalty draws scales
    to the fitted temperature's and biases to 0, so that a class of few validation images can't run away.

    Args:
        truth_N: N above 0.
        probs_NC: Of the validation images.
        strength: Of the penalty; the mean log loss plus strength / 2 times the squared distances is minimised.
    """
    n, c = probs_NC.shape
    logs_NC = _logs(probs_NC)
    onehot_NC = np.eye(c)[truth_N]
    centre = np.concatenate([np.full(c, 1.0 / fit_temperature(truth_N, probs_NC)), np.zeros(c)])
    theta = centre.copy()

    def loss(t: Floats) -> float:
        p = _softmax(logs_NC * t[:c] + t[c:])
        own = np.maximum(p[np.arange(n), truth_N], 1e-300)
        return float(-np.log(own).mean() + strength / 2 * ((t - centre) ** 2).sum())

    for _ in range(100):
        p = _softmax(logs_NC * theta[:c] + theta[c:])
        slope_NC = (p - onehot_NC) / n
        gradient = np.concatenate([(slope_NC * logs_NC).sum(0), slope_NC.sum(0)]) + strength * (theta - centre)
        if np.abs(gradient).max() < 1e-10:
            break
        # d2 loss / dz_i dz_j = p_i (1[i=j] - p_j); z = scale * ln p + bias, so rows and columns gain ln p or 1.
        features = np.concatenate([p * logs_NC, p], axis=1)
        hessian = -features.T @ features / n + strength * np.eye(2 * c)
        squares, firsts, zeroths = ((p * logs_NC**k).sum(0) / n for k in (2, 1, 0))
        hessian += np.block([[np.diag(squares), np.diag(firsts)], [np.diag(firsts), np.diag(zeroths)]])
        step = np.linalg.solve(hessian, gradient)
        size, before = 1.0, loss(theta)
        while loss(theta - size * step) > before and size > 1e-8:
            size /= 2
        theta = theta - size * step
    return Scaling(theta[:c], theta[c:] - theta[c:].mean())
