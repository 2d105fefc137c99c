"""Losses on logits and probability targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from marrowscope.config import LossConfig
from marrowscope.datasets import Indices


def smooth_targets(labels_B: Tensor, n_classes: int, label_smoothing: float) -> Tensor:
    """int64 (B,) -> float32 (B, C): 1 - s on the label, plus s / C on every class (Szegedy et al. 2016, eq. 7)."""
    one_hot = F.one_hot(labels_B, n_classes).float()
    return one_hot * (1 - label_smoothing) + label_smoothing / n_classes


def class_weights(labels_N: Indices, n_classes: int, config: LossConfig) -> Tensor | None:
    """Weights (C,) of the classes with mean 1, inverse to their counts in the training part; None where off."""
    if config.class_weights == "none":
        return None
    counts = torch.bincount(torch.from_numpy(labels_N), minlength=n_classes).float().clamp_min(1)
    weights = 1 / counts
    return weights / weights.mean()


def soft_cross_entropy(
    logits_BC: Tensor, targets_BC: Tensor, weights_C: Tensor | None = None, focal_gamma: float = 0.0
) -> Tensor:
    """Mean cross-entropy of probability targets, each class weighted, with focusing (Lin et al. 2017, eq. 4).

    With weights, the mean is over the batch's weights, as in `torch.nn.functional.cross_entropy`.
    """
    log_probs = F.log_softmax(logits_BC.float(), dim=1)
    terms = -targets_BC * log_probs
    if focal_gamma:
        terms = terms * (1 - log_probs.exp()).pow(focal_gamma)
    if weights_C is None:
        return terms.sum(1).mean()
    return (terms * weights_C).sum() / (targets_BC * weights_C).sum()
