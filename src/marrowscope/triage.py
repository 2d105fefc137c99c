"""From a network's raw outputs to answers that say how far to trust them, by what the model card tells.

Calibrated probabilities, a conformal set of classes, a flag for pictures of something the model has not learnt, and
whether the answer may stand without a second look. All of it is fitted on validation cells when a run is evaluated;
here it is only applied, the same way for `predict`, the service and the evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from marrowscope.errors import ModelError
from marrowscope.schema import Card, CardAcceptance, CardConformal

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ALPHA = 0.05
"""Share of misses of the conformal sets that are reported."""

ACCURACY = 0.95
"""Accuracy that answers must have to be accepted."""


@dataclass(frozen=True)
class Answers:
    """What a model says of N pictures.

    Attributes:
        probs_NC: Calibrated probabilities, rows sum to 1.
        sets_NC: Which classes are in each conformal set; None where the card has no thresholds.
        ood_score_N: The higher, the less like the training cells; None where the card has no such score.
        ood_N: True where the score is above the card's threshold; None likewise.
        accepted_N: True where the answer may stand: confident enough and not out of distribution; None where the card
            has no threshold of confidence.
    """

    probs_NC: Floats
    sets_NC: Bools | None = None
    ood_score_N: Floats | None = None
    ood_N: Bools | None = None
    accepted_N: Bools | None = None

    def __len__(self) -> int:
        return len(self.probs_NC)


def softmax(logits_NC: npt.NDArray[np.floating[Any]]) -> Floats:
    """Logits (N, C) to probabilities, float64 (N, C), without overflow."""
    x = logits_NC.astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    out: Floats = e / e.sum(axis=1, keepdims=True)
    return out


def energy(logits_NC: npt.NDArray[np.floating[Any]]) -> Floats:
    """-log sum exp of the logits, (N,): high where no class fits (Liu et al. 2020, NeurIPS, eq. 4, T = 1)."""
    x = logits_NC.astype(np.float64)
    top = x.max(axis=1)
    out: Floats = -(top + np.log(np.exp(x - top[:, None]).sum(axis=1)))
    return out


def calibrated(card: Card, logits_NC: npt.NDArray[np.floating[Any]]) -> Floats:
    """Probabilities, (N, C), with the card's scaling where it has one."""
    if card.scaling is None:
        return softmax(logits_NC)
    # ln p: the logits less a constant a picture, which a vector of scales would not leave without effect.
    logs_NC = logits_NC.astype(np.float64) + energy(logits_NC)[:, None]
    return softmax(logs_NC * np.array(card.scaling.scale) + np.array(card.scaling.bias))


def conformal_entry(card: Card, alpha: float = ALPHA, method: str = "class-conditional") -> CardConformal | None:
    """The card's thresholds for this share of misses; None where it has none at all.

    Raises:
        ModelError: The card has thresholds, but not for this `alpha` and `method`.
    """
    for entry in card.conformal:
        if entry.method == method and abs(entry.alpha - alpha) < 1e-9:
            return entry
    if not card.conformal:
        return None
    have = ", ".join(f"{c.method} {c.alpha:g}" for c in card.conformal)
    raise ModelError(f"The model {card.name!r} has no conformal thresholds for {method} {alpha:g}; it has: {have}.")


def acceptance_entry(card: Card, accuracy: float = ACCURACY) -> CardAcceptance | None:
    """The card's least confidence for this accuracy; None where it has none at all.

    Raises:
        ModelError: The card has such thresholds, but not for this accuracy.
    """
    for entry in card.acceptance:
        if abs(entry.accuracy - accuracy) < 1e-9:
            return entry
    if not card.acceptance:
        return None
    have = ", ".join(f"{a.accuracy:g}" for a in card.acceptance)
    raise ModelError(f"The model {card.name!r} has no threshold for an accuracy of {accuracy:g}; it has: {have}.")


def judge(
    card: Card,
    logits_NC: npt.NDArray[np.floating[Any]],
    ood_score_N: npt.NDArray[np.floating[Any]] | None = None,
    *,
    alpha: float = ALPHA,
    accuracy: float = ACCURACY,
) -> Answers:
    """Apply a model card to its model's outputs.

    Args:
        card: Of the model.
        logits_NC: As the network gives them.
        ood_score_N: The network's output of that name, where it has one; the energy needs none.
        alpha: Share of misses of the conformal sets; one that the card has thresholds for.
        accuracy: That accepted answers should have; one that the card has a threshold for.

    Raises:
        ModelError: The card has no thresholds for `alpha` or `accuracy`, or its score is missing.
    """
    probs_NC = calibrated(card, logits_NC)
    if card.novelty is not None and card.novelty.method == "energy":
        ood_score_N = energy(logits_NC)
    if card.novelty is not None and ood_score_N is None:
        raise ModelError(
            f"The card of {card.name!r} tells of a score {card.novelty.method!r}, and the network has no output for it."
        )
    return apply(card, probs_NC, ood_score_N, alpha=alpha, accuracy=accuracy)


def apply(
    card: Card,
    probs_NC: Floats,
    ood_score_N: npt.NDArray[np.floating[Any]] | None = None,
    *,
    alpha: float = ALPHA,
    accuracy: float = ACCURACY,
) -> Answers:
    """As `judge`, from calibrated probabilities."""
    conformal = conformal_entry(card, alpha)
    acceptance = acceptance_entry(card, accuracy)
    sets = None if conformal is None else np.asarray(probs_NC >= np.array(conformal.thresholds))
    score, flagged = None, None
    if card.novelty is not None and ood_score_N is not None:
        score = ood_score_N.astype(np.float64)
        flagged = np.asarray(score > card.novelty.threshold)
    accepted = None
    if acceptance is not None:
        accepted = np.asarray(probs_NC.max(axis=1, initial=0.0) >= acceptance.threshold)
        accepted &= ~flagged if flagged is not None else True
    return Answers(probs_NC, sets, score, flagged, accepted)
