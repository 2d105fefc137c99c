"""Optimiser and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from marrowscope.config import OptimizerConfig, ScheduleConfig
from marrowscope.models import CellClassifier


def learning_rate_factor(step: int, steps_per_epoch: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate at a step (0 is the first): linear warm-up, then half a cosine to the floor
    (Loshchilov & Hutter 2017), or constant."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.constant:
        return 1.0
    total = config.epochs * steps_per_epoch
    progress = (step - warmup) / max(1.0, total - warmup)
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: CellClassifier, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW with parameter groups: no decay on biases, norms and position embeddings; layer-wise rates."""
    backbone = model.backbone
    skip: set[str] = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()  # type: ignore[operator]
    if config.layer_decay < 1:
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            backbone, config.weight_decay, no_weight_decay_list=tuple(skip), layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(backbone, config.weight_decay, no_weight_decay_list=tuple(skip))
    for group in groups:
        group.setdefault("lr_scale", 1.0)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, each with its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class Ema:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992), faster while it is young.

    Attributes:
        module: The averaged model, for validation and saving.
    """

    def __init__(self, model: nn.Module, module: nn.Module, decay: float) -> None:
        self.module = module.eval().requires_grad_(False)
        self.decay = decay
        self.module.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after its `step`-th step (0 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours = self.module.state_dict()
        for name, theirs in model.state_dict().items():
            if theirs.dtype.is_floating_point:
                ours[name].lerp_(theirs, 1 - decay)
            else:
                ours[name].copy_(theirs)
