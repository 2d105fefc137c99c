"""The training loop: steps, epochs, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from marrowscope.augment import Augment, mix
from marrowscope.config import Recipe
from marrowscope.datasets import CellImages, Indices, batches, epoch_order
from marrowscope.errors import TrainingError
from marrowscope.evaluate.metrics import accuracy_score, f1_scores, macro_score
from marrowscope.models import CellClassifier
from marrowscope.train.checkpoint import Progress
from marrowscope.train.losses import class_weights, smooth_targets, soft_cross_entropy
from marrowscope.train.schedule import Ema, learning_rate_factor, set_learning_rate

StepReport = Callable[[Progress, int], None]
"""Called after each step with the progress and the steps of an epoch."""


@dataclass
class Learner:
    """All that a step needs.

    `module` is the network itself; `model` is what Fabric made of it (autocast, DDP).
    """

    fabric: Fabric
    recipe: Recipe
    module: CellClassifier
    model: Any
    optimizer: Any
    ema: Ema | None
    train_images: CellImages
    val_images: CellImages
    n_classes: int

    def __post_init__(self) -> None:
        self.augment = Augment(self.recipe.augment)
        weights = class_weights(self.train_images.labels, self.n_classes, self.recipe.loss)
        self.weights_C = None if weights is None else weights.to(self.fabric.device)

    @property
    def averaged(self) -> nn.Module:
        """The weights that are validated and saved as best."""
        return self.module if self.ema is None else self.ema.module

    def order(self, epoch: int) -> list[Indices]:
        """Steps of an epoch, for all processes together."""
        return epoch_order(
            self.train_images.labels,
            seed=self.recipe.seed,
            epoch=epoch,
            sampling=self.recipe.data.sampling,
            batch_size=self.recipe.engine.batch_size,
        )

    def own_share(self, indices: Indices) -> Indices:
        """The places of a step that this process takes."""
        return np.array_split(indices, self.fabric.world_size)[self.fabric.global_rank]


def train_step(learner: Learner, images: Tensor, labels: Tensor, step: int) -> tuple[float, int]:
    """One optimiser step; returns the loss and how many answers were right (among the augmented pictures).

    Raises:
        TrainingError: The loss is not finite; the weights are then still those before the step.
    """
    recipe, fabric = learner.recipe, learner.fabric
    # Every step has its own random numbers, so that a resumed run draws what the undisturbed one drew.
    for_network, for_pictures = np.random.SeedSequence([recipe.seed, step, fabric.global_rank]).generate_state(2)
    torch.manual_seed(int(for_network))
    generator = torch.Generator().manual_seed(int(for_pictures))
    targets = smooth_targets(labels, learner.n_classes, recipe.loss.label_smoothing)
    pictures, targets = mix(learner.augment(images, generator), targets, recipe.augment, generator)
    if recipe.engine.channels_last:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    logits = learner.model(pictures)
    loss = soft_cross_entropy(logits, targets, learner.weights_C, recipe.loss.focal_gamma)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _not_finite(f"loss is {value}", step)
    learner.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if recipe.optimizer.clip:
        try:
            fabric.clip_gradients(
                learner.model, learner.optimizer, max_norm=recipe.optimizer.clip, error_if_nonfinite=True
            )
        except RuntimeError as e:  # torch's word for a norm that is not finite
            raise _not_finite("gradient is not finite", step) from e
    learner.optimizer.step()
    if learner.ema is not None:
        learner.ema.update(learner.module, step)
    return value, int((logits.argmax(1) == labels).sum())


def _not_finite(what: str, step: int) -> TrainingError:
    return TrainingError(
        f"The {what} at step {step}; nothing was updated. The last checkpoint is good: lower "
        "optimizer.learning_rate, set optimizer.clip, or use engine.precision = 'fp32', and train again."
    )


def train_epoch(
    learner: Learner, progress: Progress, *, after_step: StepReport, should_pause: Callable[[Progress], bool]
) -> Progress:
    """Do what is left of the epoch under way; returns where the run stands then.

    `should_pause` is asked after each step; when it says yes the epoch is left unfinished.
    """
    order = learner.order(progress.epoch)
    base = learner.recipe.optimizer.learning_rate
    todo = [learner.own_share(indices) for indices in order[progress.step_in_epoch :]]
    learner.model.train()
    for batch in batches(learner.train_images, todo):
        begin = time.perf_counter()
        set_learning_rate(
            learner.optimizer, base * learning_rate_factor(progress.step, len(order), learner.recipe.schedule)
        )
        loss, correct = train_step(
            learner, learner.fabric.to_device(batch.images), learner.fabric.to_device(batch.labels), progress.step
        )
        n = len(batch.indices)
        added = {"loss": loss * n, "correct": correct, "seen": n, "seconds": time.perf_counter() - begin}
        progress = progress.model_copy(
            update={
                "step": progress.step + 1,
                "step_in_epoch": progress.step_in_epoch + 1,
                "sums": {k: progress.sums[k] + v for k, v in added.items()},
            }
        )
        after_step(progress, len(order))
        if progress.step_in_epoch < len(order) and should_pause(progress):
            break
    return progress


@torch.no_grad()
def validate(learner: Learner) -> dict[str, float]:
    """Loss, accuracy and macro F1 on the validation part; each picture counts once, however many processes."""
    fabric, images = learner.fabric, learner.val_images
    network = learner.averaged
    was_training = network.training
    network.eval()
    own = learner.own_share(np.arange(len(images)))
    size = 2 * learner.recipe.engine.batch_size
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    confusion = torch.zeros(learner.n_classes, learner.n_classes, dtype=torch.int64, device=fabric.device)
    for batch in batches(images, [own[i : i + size] for i in range(0, len(own), size)]):
        labels = fabric.to_device(batch.labels)
        with fabric.autocast():
            logits = network(fabric.to_device(batch.images)).float()
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += len(labels)
        confusion.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    network.train(was_training)
    sums = fabric.all_reduce(sums, reduce_op="sum")  # type: ignore[assignment]
    counts = fabric.all_reduce(confusion, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
    return {
        "val_loss": float(sums[0] / sums[1]),
        "val_accuracy": float(accuracy_score(counts)),
        "val_macro_f1": float(macro_score(f1_scores(counts), counts, np.ones(learner.n_classes, bool))),
    }
