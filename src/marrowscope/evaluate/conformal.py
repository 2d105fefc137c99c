"""Conformal prediction: sets of classes that hold the truth in at least 1 - alpha of cases, whatever the model.

The promise holds for images drawn like those that the thresholds were calibrated on, on average over calibrations. A
class is in the set when its probability reaches a threshold. ``split`` has one threshold for all classes (the score
1 - p of the truth: Sadinle, Lei & Wasserman 2019, J Am Stat Assoc 114, 223-234; quantile: Angelopoulos & Bates 2023,
Found Trends Mach Learn 16, 494-591, section 1.1). ``class-conditional`` has one for each, from the images of that class
only, so that the promise holds for each class (Vovk 2012, ACML; Mondrian). A set may be empty: nothing fits.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from marrowscope.evaluate.metrics import Bools, Floats, Integers

Method = Literal["split", "class-conditional"]
METHODS: tuple[Method, ...] = ("split", "class-conditional")
ALPHAS = (0.1, 0.05)


def least_probability(own_N: Floats, alpha: float) -> float:
    """Threshold from the truths' probabilities (N,): that of rank ceil((N + 1)(1 - alpha)) from the top.

    0 (every class is in every set) where N is too small for alpha, below 1 / alpha - 1.
    """
    # Less a rounding error, so that (N + 1)(1 - alpha) = 95.00000000000001 is 95.
    rank = math.ceil((len(own_N) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(own_N)[::-1][rank - 1]) if rank <= len(own_N) else 0.0


def conformal_thresholds(truth_N: Integers, probs_NC: Floats, alpha: float, method: Method) -> Floats:
    """Least probability by which each class enters a set, (C,), from images that the model was not trained on.

    Args:
        truth_N: Class numbers.
        probs_NC: Their probabilities; scaled, if sets are made of scaled ones.
        alpha: Share of misses allowed, in (0, 1).
        method: One threshold for all classes, or one each; a class of too few images has 0 and is in every set.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; it is {alpha}.")
    own_N = probs_NC[np.arange(len(truth_N)), truth_N]
    n_classes = probs_NC.shape[1]
    if method == "split":
        return np.full(n_classes, least_probability(own_N, alpha))
    return np.array([least_probability(own_N[truth_N == c], alpha) for c in range(n_classes)])


def prediction_sets(probs_NC: Floats, thresholds: Floats) -> Bools:
    """Which classes are in each image's set, bool (N, C)."""
    return np.asarray(probs_NC >= thresholds)
