"""The training loop: steps, epochs, validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from marrowscope.augment import Augment, mix, while_reading
from marrowscope.config import Recipe
from marrowscope.datasets import Batch, CellImages, Indices, batches, epoch_order
from marrowscope.errors import ModelError
from marrowscope.evaluate.metrics import Integers, accuracy_score, f1_scores, macro_score
from marrowscope.models import CellClassifier
from marrowscope.train.checkpoint import Progress
from marrowscope.train.distil import Teachers, resized
from marrowscope.train.losses import (
    class_weights,
    distillation_loss,
    logit_offsets,
    smooth_targets,
    soft_cross_entropy,
)
from marrowscope.train.schedule import Ema, learning_rate_factor, set_learning_rate
from marrowscope.train.tally import Tally, not_finite

StepReport = Callable[[Progress, int], None]
"""Called after each step with the progress and the steps of an epoch."""


@dataclass
class Learner:
    """All that a step needs.

    `module` is the network itself; `model` is what Fabric made of it (autocast, DDP, compiled code).
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
    teachers: Teachers | None = None

    def __post_init__(self) -> None:
        self.augment = (Augment if self.train_images.cached else while_reading)(self.recipe.augment)
        self.weights_C = self._on_device(class_weights(self.train_images.labels, self.n_classes, self.recipe.loss))
        self.offsets_C = self._on_device(logit_offsets(self.train_images.labels, self.n_classes, self.recipe.loss))
        self.frozen: list[nn.Parameter] = []

    def _on_device(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.fabric.device)

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

    def own_places(self, n: int) -> Indices:
        """The places of a step of `n` pictures that this process takes, sorted.

        Place i goes with place n - 1 - i, for `mix` mixes these two: a share, reversed, is then its own partner, and
        processes mix what one process would.
        """
        half = np.array_split(np.arange((n + 1) // 2), self.fabric.world_size)[self.fabric.global_rank]
        return np.unique(np.concatenate([half, n - 1 - half]))

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures and labels on the device; on a GPU copied from pinned memory, while the program goes on."""
        pair = (batch.images, batch.labels)
        if self.fabric.device.type != "cuda":
            return pair
        images, labels = (t.pin_memory().to(self.fabric.device, non_blocking=True) for t in pair)
        return images, labels

    def train_mode(self, head_only: bool) -> None:
        """Get ready for training steps: of all that learns, or of the classifier alone."""
        self.model.train()
        learning = [p for g in self.optimizer.param_groups for p in g["params"]]
        head = _head_parameters(self.module) if head_only else set()
        self.frozen = [p for p in learning if id(p) not in head] if head_only else []
        frozen = set(map(id, self.frozen))
        for p in learning:
            # DDP counts on the gradients that it saw when it was made; there, `train_step` drops them.
            p.requires_grad_(id(p) not in frozen or self.fabric.world_size > 1)
        if head_only:
            for m in self.module.modules():
                if isinstance(m, _BatchNorm):
                    m.eval()


def _head_parameters(module: CellClassifier) -> set[int]:
    heads: Any = module.backbone.get_classifier()  # type: ignore[operator]
    found = {id(p) for h in (heads if isinstance(heads, tuple) else (heads,)) for p in h.parameters()}
    if not found:
        raise ModelError("schedule.head_epochs: this network has no classifier of its own that could learn alone.")
    return found


class Step(NamedTuple):
    """What a step came to, on the device: mean loss, right answers (among the augmented pictures), gradient norm."""

    loss: Tensor
    correct: Tensor
    norm: Tensor | None


def train_step(learner: Learner, batch: Batch, whole: Indices, step: int) -> Step:
    """One optimiser step on this process's share `batch` of the pictures `whole`.

    Raises:
        DivergedError: The loss or its gradient is not finite; the weights are then still those before the step. On a
            GPU, where asking would make the program wait, `Tally` finds it some steps later.
    """
    recipe, fabric = learner.recipe, learner.fabric
    ask_now = fabric.device.type == "cpu"
    # Every step has its own random numbers, so that a resumed run draws what the undisturbed one drew; and every
    # process draws those of the whole step's pictures, so that processes see what one process would.
    for_network, _ = np.random.SeedSequence([recipe.seed, step, fabric.global_rank]).generate_state(2)
    _, for_pictures = np.random.SeedSequence([recipe.seed, step, 0]).generate_state(2)
    torch.manual_seed(int(for_network))
    generator = torch.Generator().manual_seed(int(for_pictures))
    images, labels = learner.to_device(batch)
    pictures, targets, answers = _pictures_and_targets(learner, batch, whole, images, labels, generator)
    if recipe.engine.channels_last:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    logits = learner.model(pictures)
    loss = _loss(learner, logits, targets, answers, whole)
    value = loss.detach()
    if ask_now and not math.isfinite(float(value)):
        raise not_finite(f"loss is {float(value)}", f"step {step}")
    learner.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    for p in learner.frozen:
        p.grad = None
    norm = None
    if recipe.optimizer.clip:
        try:
            norm = fabric.clip_gradients(
                learner.model, learner.optimizer, max_norm=recipe.optimizer.clip, error_if_nonfinite=ask_now
            )
        except RuntimeError as e:  # torch's word for a norm that is not finite
            raise not_finite("gradient is not finite", f"step {step}") from e
    learner.optimizer.step()
    if learner.ema is not None:
        learner.ema.update(learner.module, step)
    return Step(value, (logits.detach().argmax(1) == labels).sum(), norm)


def _pictures_and_targets(
    learner: Learner, batch: Batch, whole: Indices, images: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Augmented and mixed pictures at the network's size, targets of the labels (B, C), answers of the teachers."""
    recipe, teachers, n = learner.recipe, learner.teachers, learner.n_classes
    share = None
    if learner.fabric.world_size > 1:
        share = (len(whole), torch.from_numpy(learner.own_places(len(whole))))
    targets = smooth_targets(labels, n, recipe.loss.label_smoothing)
    known = None if teachers is None else teachers.known(batch.indices)
    if known is not None:  # mixed as the labels are
        targets = torch.cat([targets, known], dim=1)
    pictures, targets = mix(learner.augment(images, generator, share=share), targets, recipe.augment, generator)
    if teachers is None:
        return pictures, targets, None
    answers = targets[:, n:] if known is not None else teachers.answer(pictures)
    return resized(pictures, recipe.image.size), targets[:, :n], answers


def _loss(learner: Learner, logits: Tensor, targets: Tensor, answers: Tensor | None, whole: Indices) -> Tensor:
    """The loss of this process's share, scaled so that the mean over the processes is the loss of the whole step."""
    recipe, weights = learner.recipe, learner.weights_C
    adjusted = logits if learner.offsets_C is None else logits + learner.offsets_C
    loss = soft_cross_entropy(adjusted, targets, weights, recipe.loss.focal_gamma)
    size: float | Tensor = 1.0
    if learner.fabric.world_size > 1:
        size = len(logits) * learner.fabric.world_size / len(whole)
        loss = loss * (size if weights is None else _weight_share(learner, targets, weights, whole))
    if answers is None:
        return loss
    distil = recipe.distil
    return (1 - distil.weight) * loss + distil.weight * size * distillation_loss(logits, answers, distil.temperature)


def _weight_share(learner: Learner, targets: Tensor, weights: Tensor, whole: Indices) -> Tensor:
    """This process's share of a step's class weights, times the processes. Mixing leaves the step's sum as it is."""
    labels = torch.from_numpy(learner.train_images.labels[whole]).to(weights.device)
    everything = smooth_targets(labels, learner.n_classes, learner.recipe.loss.label_smoothing) * weights
    return (targets * weights).sum() * learner.fabric.world_size / everything.sum()


def train_epoch(
    learner: Learner, progress: Progress, *, after_step: StepReport, should_pause: Callable[[Progress], bool]
) -> Progress:
    """Do what is left of the epoch under way; returns where the run stands then.

    `should_pause` is asked after each step; when it says yes the epoch is left unfinished.
    """
    schedule, base = learner.recipe.schedule, learner.recipe.optimizer.learning_rate
    order = learner.order(progress.epoch)
    todo = order[progress.step_in_epoch :]
    own = [whole[learner.own_places(len(whole))] for whole in todo]
    learner.train_mode(head_only=progress.epoch < schedule.head_epochs)
    tally = Tally(learner.fabric, progress.sums)
    for whole, batch in zip(todo, batches(learner.train_images, own), strict=True):
        set_learning_rate(learner.optimizer, base * learning_rate_factor(progress.step, len(order), schedule))
        done = train_step(learner, batch, whole, progress.step)
        tally.add(done.loss, done.correct, len(batch.indices), done.norm)
        step = progress.step + 1
        progress = progress.model_copy(
            update={"step": step, "step_in_epoch": progress.step_in_epoch + 1, "sums": tally.look(step)}
        )
        after_step(progress, len(order))
        if progress.step_in_epoch < len(order) and should_pause(progress):
            break
    return progress.model_copy(update={"sums": tally.total(progress.step)})


@torch.no_grad()
def validate(learner: Learner) -> dict[str, float]:
    """Loss, accuracy and macro F1 on the validation part; each picture counts once, however many processes."""
    fabric, images = learner.fabric, learner.val_images
    network = learner.averaged
    if fabric.world_size > 1:
        # Where batch statistics are not synchronised, each process has its own; the first one's are saved.
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)
    was_training = network.training
    network.eval()
    own = np.array_split(np.arange(len(images)), fabric.world_size)[fabric.global_rank]
    size = 2 * learner.recipe.engine.batch_size
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    confusion = torch.zeros(learner.n_classes, learner.n_classes, dtype=torch.int64, device=fabric.device)
    for batch in batches(images, [own[i : i + size] for i in range(0, len(own), size)]):
        pictures, labels = learner.to_device(batch)
        with fabric.autocast():
            logits = network(pictures).float()
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += len(labels)
        confusion.index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    network.train(was_training)
    sums = fabric.all_reduce(sums, reduce_op="sum")  # type: ignore[assignment]
    counts = fabric.all_reduce(confusion, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
    return validation_scores(float(sums[0] / sums[1]), counts)


def validation_scores(loss: float, counts_CC: Integers) -> dict[str, float]:
    """What metrics.csv and a card say of validation, from the mean loss and the confusion matrix."""
    return {
        "val_loss": loss,
        "val_accuracy": float(accuracy_score(counts_CC)),
        "val_macro_f1": float(macro_score(f1_scores(counts_CC), counts_CC, np.ones(len(counts_CC), bool))),
    }
