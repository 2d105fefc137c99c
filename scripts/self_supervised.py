r"""Go on with pre-trained weights on cells whose labels are not looked at, before they are fine-tuned.

    python scripts/self_supervised.py recipes/marrow8-cnn.toml --data DATA --split split.csv -o cells.safetensors
    marrowscope train recipes/marrow8-cnn.toml --data DATA --split split.csv --out RUN \
        --set model.weights=cells.safetensors

Bootstrap your own latent (Grill et al. 2020, arXiv:2006.07733): from one augmented view of a cell the network foretells
what a slow average of itself says of another view. It sees the training cells of the split alone, so that the others
stay strangers to it. `--set` changes the recipe as in `marrowscope train`. docs/experiments.md says what it brought.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from marrowscope.augment import Augment
from marrowscope.config import AugmentConfig, Recipe, load_recipe
from marrowscope.datasets import CellImages, batches, epoch_order
from marrowscope.models import CellClassifier, build_model
from marrowscope.schema import Split
from marrowscope.train.checkpoint import save_tensors

VIEWS = AugmentConfig(
    flip=True, rotation=180, scale=0.25, shift=0.1, brightness=0.2, contrast=0.2, saturation=0.2, stain=0.2, blur=1.0
)
"""Stronger than in fine-tuning: what differs between two views is what the network learns to overlook."""


def mlp(inputs: int, hidden: int = 1024, outputs: int = 256) -> nn.Sequential:
    """The projector and the predictor of the paper, smaller."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def regression_loss(said: Tensor, wanted: Tensor) -> Tensor:
    """Equation 2 of the paper, the mean over pictures: 0 where both point the same way, 4 where opposite."""
    return (2 - 2 * F.cosine_similarity(said, wanted, dim=-1)).mean()


class Byol(nn.Module):
    """The online network, and the target network that it learns from: its own slow average.

    Not `train.schedule.Ema`: the momentum rises to 1 by the paper's schedule, and batch norm of the target takes its
    statistics from the batch.
    """

    def __init__(self, network: CellClassifier) -> None:
        super().__init__()
        width = network.backbone.num_features
        self.online = nn.Sequential(network, mlp(width))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = mlp(256)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        views = torch.cat([first, second])
        with torch.no_grad():
            wanted = self.target(views)
        said = self.predictor(self.online(views))
        a, b = said.chunk(2)
        x, y = wanted.chunk(2)
        return (regression_loss(a, y) + regression_loss(b, x)) / 2

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the average by one step."""
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


def pretrain(
    recipe: Recipe, data: Path, split: Split, output: Path, *, epochs: int, batch_size: int, learning_rate: float
) -> list[float]:
    """Learn without labels, and write the network's weights after each epoch; the mean loss of each."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    images = CellImages(data, split.part("train"), split.info.codes, recipe.image)
    images.fill_cache()
    byol = Byol(build_model(recipe.model, 0, recipe.image)).train()
    if recipe.engine.channels_last:
        byol = byol.to(memory_format=torch.channels_last)
    step = torch.compile(byol) if recipe.engine.compile else byol
    learnt = [p for p in byol.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=learning_rate, weight_decay=recipe.optimizer.weight_decay)
    augment = Augment(VIEWS)
    orders = [
        epoch_order(images.labels, seed=recipe.seed, epoch=e, sampling="natural", batch_size=batch_size)
        for e in range(epochs)
    ]
    total, done, means = sum(map(len, orders)), 0, []
    for epoch, order in enumerate(orders, 1):
        began, losses = time.monotonic(), []
        for batch in batches(images, order):
            share = done / total
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(10 * share + 0.01, (1 + math.cos(math.pi * share)) / 2)
            loss = step(augment(batch.images, generator), augment(batch.images, generator))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            byol.update_target(1 - 0.01 * (1 + math.cos(math.pi * share)) / 2)
            losses.append(loss.item())
            done += 1
        means.append(float(np.mean(losses)))
        print(f"epoch {epoch}/{epochs}  loss {means[-1]:.4f}  {time.monotonic() - began:.0f} s", flush=True)
        save_tensors(output, byol.online[0].backbone.state_dict())
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    given = parser.parse_args()
    pretrain(
        load_recipe(given.recipe, given.set),
        given.data,
        Split.read(given.split),
        given.output,
        epochs=given.epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
    )


if __name__ == "__main__":
    main()
