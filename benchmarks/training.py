"""Images a second of a ResNet-50's training, data loading included: marrowscope against the original study's way.

    python benchmarks/training.py CELLS [--cores N] [--steps N] [--rounds N] [--clock wall|cpu] [--json RECORD]

CELLS is a folder with one folder a class (`marrowscope phantom CELLS --per-class 30` draws one). Both sides train the
same network with the same settings (recipes/seed-resnet50.toml): 224 px, batches of 32, flips and turns of up to 10
degrees, cross-entropy, Adam.

- original: torchvision's ResNet-50 in float32 and contiguous memory, `ImageFolder`, a `DataLoader` without workers, and
  transforms of one picture at a time (resize, flips, rotation, to tensor, normalise).
- marrowscope: its own training loop, with what its recipes set by default: bfloat16 where the processor has it,
  channels_last, pictures prepared once and kept in memory, augmentation of whole batches.

Sides take turns, so that other work on the machine meets both; the ratio is the median over the rounds of the ratios
within a round. Reading the pictures into memory happens once a run and is printed beside it, not counted. Where other
work takes much of the core, `--clock cpu` counts the time that each side has of it (on one core only).

Goal: 2.5 times as many images a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from marrowscope.config import Recipe, load_recipe
from marrowscope.datasets import CellImages
from marrowscope.models import build_model
from marrowscope.schema import SplitRow
from marrowscope.train.checkpoint import Progress
from marrowscope.train.loop import Learner, train_epoch
from marrowscope.train.runtime import make_fabric
from marrowscope.train.schedule import make_optimizer

GOAL = 2.5
RECIPE = Path(__file__).parent.parent / "recipes" / "seed-resnet50.toml"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Side = Callable[[int], None]
"""Does so many training steps."""


def original_side(folder: ImageFolder, recipe: Recipe) -> Side:
    """The loop that the study's notebook had."""
    size, image = recipe.image.size, recipe.image
    folder.transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(recipe.augment.rotation),
            transforms.ToTensor(),
            transforms.Normalize(image.mean, image.std),
        ]
    )
    loader = DataLoader(folder, recipe.engine.batch_size, shuffle=True, drop_last=True, num_workers=0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    model = torchvision.models.resnet50(num_classes=len(folder.classes)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.optimizer.learning_rate)
    criterion = nn.CrossEntropyLoss()

    def run(steps: int) -> None:
        for images, labels in itertools.islice(batches, steps):
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            assert np.isfinite(loss.item())

    return run


def our_side(images: CellImages, recipe: Recipe) -> tuple[Side, str]:
    """marrowscope's own loop, and its precision."""
    fabric = make_fabric(recipe.engine)
    module = build_model(recipe.model, len(recipe.codes), recipe.image).to(fabric.device)
    if recipe.engine.channels_last:
        module = module.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(module, make_optimizer(module, recipe.optimizer))
    learner = Learner(fabric, recipe, module, model, optimizer, None, images, images, len(recipe.codes))
    state = [Progress(recipe_sha256="", split_sha256="")]
    epoch = len(learner.order(0))

    def run(steps: int) -> None:
        while steps:
            before = state[0]
            end = before.step + min(steps, epoch - before.step_in_epoch)
            after = train_epoch(
                learner,
                before,
                after_step=lambda p, n: None,
                should_pause=lambda p: p.step == end,  # noqa: B023
            )
            steps -= after.step - before.step
            ended = after.step_in_epoch == epoch
            state[0] = after.model_copy(update={"epoch": after.epoch + 1, "step_in_epoch": 0} if ended else {})

    return run, str(fabric._precision.precision)


def measure(
    sides: dict[str, Side], rounds: int, steps: int, batch: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Images a second of each side in each round, after one step that doesn't count."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(1)
    for _ in range(rounds):
        for name, side in sides.items():
            begin = clock()
            side(steps)
            rates[name].append(steps * batch / (clock() - begin))
    return rates


def processor() -> str:
    """Name of the processor, as Linux calls it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Images a second of a ResNet-50's training, both ways.")
    parser.add_argument("data", type=Path, help="folder with one folder a class")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads")
    parser.add_argument("--steps", type=int, default=6, help="training steps of a side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe of both")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on one core only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.cores != 1:
        parser.error("--clock cpu needs --cores 1: it adds up the time of all threads")
    return options


def main() -> None:
    """Measure, print, and write the record if asked."""
    options = options_of()
    torch.set_num_threads(options.cores)
    folder = ImageFolder(str(options.data))
    classes = ",".join(folder.classes)
    recipe = load_recipe(RECIPE, ["model.weights=none", f"classes={classes}", *options.set])
    batch = recipe.engine.batch_size
    if len(folder.samples) < batch:
        raise SystemExit(f"{options.data} has {len(folder.samples)} pictures, fewer than a batch ({batch}). Draw more.")
    names = [(Path(p).relative_to(options.data).as_posix(), folder.classes[k]) for p, k in folder.samples]
    images = CellImages(options.data, [SplitRow(p, c, "train") for p, c in names], recipe.codes, recipe.image)
    begin = time.perf_counter()
    images.fill_cache(workers=options.cores)
    reading = time.perf_counter() - begin
    ours, precision = our_side(images, recipe)
    sides = {"original": original_side(folder, recipe), "marrowscope": ours}
    rates = measure(sides, options.rounds, options.steps, batch, CLOCKS[options.clock])
    ratio = statistics.median(a / b for a, b in zip(rates["marrowscope"], rates["original"], strict=True))
    for name, values in rates.items():
        print(f"{name:12} {statistics.median(values):7.2f} images/s")
    print(f"reading {len(images)} pictures into memory took {reading:.1f} s, once ({precision})")
    print(f"ratio {ratio:.2f} x  (goal {GOAL} x: {'reached' if ratio >= GOAL else 'missed'})")
    record: dict[str, Any] = {
        "processor": processor(),
        "cores": options.cores,
        "clock": options.clock,
        "precision": precision,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "network": recipe.model.name,
        "size": recipe.image.size,
        "batch": batch,
        "images": len(images),
        "reading_seconds": round(reading, 2),
        "images_per_second": {k: [round(r, 2) for r in v] for k, v in rates.items()},
        "ratio": round(ratio, 2),
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
