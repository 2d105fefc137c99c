"""Images a second of a ViT's training steps on a CPU: plain attention against torch's fused one.

    python benchmarks/attention.py [--cores N] [--sizes PIXELS,...] [--steps N] [--rounds N] [--set KEY=VALUE]

The network is that of recipes/marrow8-vit.toml with random weights, on random pictures (forward, backward, optimiser;
no reading), in the precision that `engine.precision` comes to here. Sides take turns; the ratio is the median over the
rounds of the ratios within a round, in processor time where there is one core, so that other work disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from marrowscope.config import Recipe, load_recipe
from marrowscope.models import build_model
from marrowscope.train.runtime import choose_attention, make_fabric
from marrowscope.train.schedule import make_optimizer

RECIPE = Path(__file__).parent.parent / "recipes" / "marrow8-vit.toml"
SIDES = ("fused", "plain")


def side_of(recipe: Recipe, fabric: Fabric) -> Callable[[], None]:
    """One training step of the recipe's network."""
    module = build_model(recipe.model, len(recipe.codes), recipe.image).train().to(memory_format=torch.channels_last)
    choose_attention(module, recipe.engine, fabric)
    model, optimizer = fabric.setup(module, make_optimizer(module, recipe.optimizer))
    size, batch = recipe.image.size, recipe.engine.batch_size
    pictures = (255 * torch.rand(batch, 3, size, size)).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % len(recipe.codes)

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(pictures).float(), labels))
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images a second of a ViT's training, by kind of attention.")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads")
    parser.add_argument("--sizes", default="98,196,252", help="sides of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe of both")
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    clock = time.process_time if options.cores == 1 else time.perf_counter
    for size in map(int, options.sizes.split(",")):
        sides, batch = {}, 0
        for kind in SIDES:
            changes = ["model.weights=none", f"image.size={size}", *options.set, f"engine.attention={kind}"]
            recipe = load_recipe(RECIPE, changes)
            fabric, batch = make_fabric(recipe.engine), recipe.engine.batch_size
            sides[kind] = side_of(recipe, fabric)
            sides[kind]()
        rates: dict[str, list[float]] = {kind: [] for kind in SIDES}
        for _ in range(options.rounds):
            for kind, step in sides.items():
                begin = clock()
                for _ in range(options.steps):
                    step()
                rates[kind].append(options.steps * batch / (clock() - begin))
        ratio = statistics.median(p / f for p, f in zip(rates["plain"], rates["fused"], strict=True))
        shown = ", ".join(f"{kind} {statistics.median(rates[kind]):.2f}" for kind in SIDES)
        print(f"{size} px, {fabric._precision.precision}: {shown} images/s; plain / fused {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
