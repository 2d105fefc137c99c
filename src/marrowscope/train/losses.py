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


def _counts(labels_N: Indices, n_classes: int) -> Tensor:
    return torch.bincount(torch.from_numpy(labels_N), minlength=n_classes).float().clamp_min(1)


def class_weights(labels_N: Indices, n_classes: int, config: LossConfig) -> Tensor | None:
    """Weights (C,) of the classes with mean 1, inverse to their counts in the training part; None where off."""
    if config.class_weights == "none":
        return None
    weights = 1 / _counts(labels_N, n_classes)
    return weights / weights.mean()


def logit_offsets(labels_N: Indices, n_classes: int, config: LossConfig) -> Tensor | None:
    """What is added to the logits (C,) in training: tau log(share of the class in the training part), Menon et al.
    (2021), eq. 10. Answers are given without it, and so favour no class for being frequent. None where off."""
    if not config.logit_adjustment:
        return None
    counts = _counts(labels_N, n_classes)
    return config.logit_adjustment * torch.log(counts / counts.sum())


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


def distillation_loss(logits_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), mean over the batch (Hinton et al. 2015, section 2).

    `teacher_BC` are the teachers' probabilities at that temperature. The square keeps the size of the gradient when T
    changes.
    """
    log_probs = F.log_softmax(logits_BC.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_probs, teacher_BC, reduction="batchmean")
