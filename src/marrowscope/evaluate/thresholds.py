"""What a model card says of how far answers can be trusted, fitted on validation cells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from marrowscope.errors import ModelError
from marrowscope.evaluate import calibration, conformal, novelty, selective
from marrowscope.evaluate.metrics import Bools, Floats, Integers, confusion_matrix
from marrowscope.schema import Card, CardAcceptance, CardConformal, CardNovelty, CardScaling
from marrowscope.triage import calibrated, softmax

ScalingMethod = Literal["auto", "temperature", "vector"]

CHOICE_FOLDS = 10
"""Folds of the validation cells in which ``auto`` compares the two scalings."""

UNREACHABLE = 2.0
"""Threshold of confidence that no answer reaches."""


def fit_scaling(truth_N: Integers, logits_NC: npt.NDArray[np.float32], method: ScalingMethod) -> CardScaling:
    """Scaling of the logits with the least log loss on validation cells.

    ``auto`` takes the vector where it has the lower log loss on validation cells that it was not fitted on
    (`better_scaling`), else the temperature.

    Raises:
        ModelError: A vector with a scale that is not above 0, by which a class would turn into its opposite.
    """
    probs_NC, n = softmax(logits_NC), len(truth_N)
    if method == "auto":
        method = better_scaling(truth_N, probs_NC)
    if method == "temperature":
        inverse = 1.0 / calibration.fit_temperature(truth_N, probs_NC)
        classes = probs_NC.shape[1]
        return CardScaling(method=method, scale=(inverse,) * classes, bias=(0.0,) * classes, fitted_on=n)
    fitted = calibration.fit_vector(truth_N, probs_NC)
    if fitted.scale.min() <= 0:
        raise ModelError(
            f"Vector scaling fits a scale of {fitted.scale.min():.3g} to {n} validation cells, which turns a class "
            "into its opposite. Take temperature scaling."
        )
    return CardScaling(method=method, scale=tuple(fitted.scale), bias=tuple(fitted.bias), fitted_on=n)


def better_scaling(truth_N: Integers, probs_NC: Floats) -> Literal["temperature", "vector"]:
    """The scaling with the lower log loss in cross-validation on validation cells; in doubt the temperature.

    The cells of each class go to the folds in turn. A vector that turns a class into its opposite is never taken, nor
    one where a class has fewer cells than there are folds.

    Args:
        truth_N: Class numbers.
        probs_NC: Probabilities as predicted, C classes.
    """
    n_C = np.bincount(truth_N, minlength=probs_NC.shape[1])
    if n_C.min() < CHOICE_FOLDS:
        return "temperature"
    fold_N = np.empty(len(truth_N), dtype=np.int64)
    for label, n in enumerate(n_C):
        fold_N[truth_N == label] = np.arange(n) % CHOICE_FOLDS
    gain = 0.0
    for fold in range(CHOICE_FOLDS):
        fit_N, held_N = fold_N != fold, fold_N == fold
        vector = calibration.fit_vector(truth_N[fit_N], probs_NC[fit_N])
        if vector.scale.min() <= 0:
            return "temperature"
        temperature = calibration.fit_temperature(truth_N[fit_N], probs_NC[fit_N])
        single = calibration.Scaling.of_temperature(temperature, len(n_C))
        own = (np.arange(int(held_N.sum())), truth_N[held_N])
        likely = [np.maximum(s.apply(probs_NC[held_N])[own], 1e-300) for s in (vector, single)]
        gain += float((np.log(likely[0]) - np.log(likely[1])).sum())
    return "vector" if gain > 0 and calibration.fit_vector(truth_N, probs_NC).scale.min() > 0 else "temperature"


def with_thresholds(
    card: Card,
    truth_N: Integers,
    logits_NC: npt.NDArray[np.float32],
    *,
    novelty_method: str | None,
    ood_score_N: Floats | None = None,
    scaling: ScalingMethod = "auto",
) -> Card:
    """The card with all that is fitted on validation cells.

    Scaling first; all the rest on scaled probabilities. Thresholds of acceptance rest on all validation cells, as in
    `trust.operating_points`; the flag of novelty then takes its share of those off what is accepted.

    Args:
        card: Of the model.
        truth_N: Class numbers of N validation cells, N above 0.
        logits_NC: The model's.
        novelty_method: One of `novelty.CARD_METHODS`; None: the card says nothing of novelty.
        ood_score_N: The scores of that method.
        scaling: ``temperature``, ``vector``, or ``auto``, which compares them (`better_scaling`).
    """
    n = len(truth_N)
    card = card.model_copy(update={"scaling": fit_scaling(truth_N, logits_NC, scaling)})
    probs_NC = calibrated(card, logits_NC)
    flagged_N = np.zeros(n, dtype=bool)
    update: dict[str, Any] = {"novelty": None}
    if novelty_method is not None and ood_score_N is not None:
        threshold, kept = novelty.novelty_threshold(ood_score_N)
        flagged_N = np.asarray(ood_score_N > threshold)
        update["novelty"] = CardNovelty.model_validate(
            {"method": novelty_method, "threshold": threshold, "kept": kept, "fitted_on": n}
        )
    counts = confusion_matrix(truth_N, probs_NC.argmax(1).astype(np.int64), probs_NC.shape[1])
    return card.model_copy(
        update={
            **update,
            "conformal": tuple(
                _conformal(truth_N, probs_NC, method, alpha)
                for method in conformal.METHODS
                for alpha in conformal.ALPHAS
            ),
            "acceptance": tuple(_acceptance(truth_N, probs_NC, flagged_N, t) for t in selective.TARGETS),
            "confusion": tuple(tuple(int(v) for v in row) for row in counts),
        }
    )


def _conformal(truth_N: Integers, probs_NC: Floats, method: conformal.Method, alpha: float) -> CardConformal:
    thresholds = conformal.conformal_thresholds(truth_N, probs_NC, alpha, method)
    return CardConformal(
        method=method, alpha=alpha, thresholds=tuple(float(t) for t in thresholds), fitted_on=len(truth_N)
    )


def _acceptance(truth_N: Integers, probs_NC: Floats, flagged_N: Bools, target: float) -> CardAcceptance:
    confidence_N, right_N = probs_NC.max(1), probs_NC.argmax(1) == truth_N
    threshold = selective.assured_threshold(confidence_N, right_N, target)
    accepted = ~flagged_N & (confidence_N >= (UNREACHABLE if threshold is None else threshold))
    return CardAcceptance(
        accuracy=target,
        threshold=UNREACHABLE if threshold is None else threshold,
        coverage=float(accepted.mean()),
        fitted_on=len(truth_N),
        assurance=selective.ASSURANCE,
    )
