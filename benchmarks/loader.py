"""Images a second of marrowscope's loader against torchvision's, on the same files and cores, in one run.

    python benchmarks/loader.py CELLS [--cores N] [--images N] [--rounds N] [--clock wall|cpu] [--json RECORD]

CELLS is a folder with one folder a class (`marrowscope phantom CELLS --per-class 30` draws one). The other side is what
a training script usually has: `ImageFolder` and `DataLoader`, one picture at a time. Both sides give batches of
float32 (B, 3, 224, 224) after the same augmentation: flips, any rotation, scale, shift, stain, brightness, contrast.

Doubts are settled in favour of the other side: its colour changes and its rotation are Pillow's on bytes, what comes in
from outside is black (marrowscope mirrors the picture, which costs more), and on one core it reads in its own process
and not in a worker (as marrowscope then reads without threads). Sides take turns, so that
other work on the machine meets all of them; a ratio is the median over the rounds of the ratios within a round. Where
other work takes much of the core, `--clock cpu` counts the time that each side has of it (on one core only, where
neither side has other processes).

Goals: 3 times as fast from a cache of prepared pixels (in memory or on the disk), 1.5 times from the JPEG bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from marrowscope.augment import STAIN_VECTORS, Augment, while_reading
from marrowscope.config import AugmentConfig
from marrowscope.datasets import CellImages, batches, epoch_order, pack_on_disk
from marrowscope.schema import Preprocessing, SplitRow

AUGMENT = AugmentConfig(flip=True, rotation=180, scale=0.1, shift=0.05, brightness=0.1, contrast=0.1, stain=0.1)
GOALS = {"from JPEG bytes": 1.5, "from memory": 3.0, "from the disk cache": 3.0}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Side = Callable[[int], Iterable[Tensor]]
"""Gives the batches of an epoch."""


class Stain:
    """Stain shift of one picture, float (3, H, W), by the formula as it stands in Tellez et al. (2019)."""

    def __init__(self) -> None:
        self.vectors = STAIN_VECTORS[AUGMENT.stain_axes]
        self.inverse = torch.linalg.inv(self.vectors)

    def __call__(self, image: Tensor) -> Tensor:
        span = AUGMENT.stain
        factor, offset = 1 + (2 * torch.rand(3) - 1) * span, (2 * torch.rand(3) - 1) * span * 0.1
        density = -torch.log((image + 1) / 256)
        stains = torch.matmul(self.inverse.T, density.flatten(1)) * factor[:, None] + offset[:, None]
        density = torch.matmul(self.vectors.T, stains).view_as(image)
        return (256 * torch.exp(-density) - 1).clamp_(0, 255)


def torchvision_side(folder: ImageFolder, size: int, batch: int, cores: int) -> Side:
    """`ImageFolder` and `DataLoader`."""
    a = AUGMENT
    folder.transform = transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomAffine(
                a.rotation,
                translate=(a.shift, a.shift),
                scale=(1 / (1 + a.scale), 1 + a.scale),
                interpolation=transforms.InterpolationMode.BILINEAR,
            ),
            transforms.ColorJitter(brightness=a.brightness, contrast=a.contrast),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Lambda(_to_255),
            Stain(),
        ]
    )
    workers = cores if cores > 1 else 0
    loader = DataLoader(
        folder, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda epoch: (images for images, _ in loader)


def _to_255(image: Tensor) -> Tensor:
    return image.mul_(255)


def our_side(images: CellImages, batch: int, cores: int) -> Side:
    """`batches` and `Augment`, as the training loop uses them."""
    augment = Augment(AUGMENT) if images.cached or cores == 1 else while_reading(AUGMENT)

    def run(epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        order = epoch_order(images.labels, seed=0, epoch=epoch, sampling="natural", batch_size=batch)
        for b in batches(images, order, workers=cores if cores > 1 else 0):
            yield augment(b.images, generator)

    return run


def measure(sides: dict[str, Side], rounds: int, images: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Images a second of each side in each round, after a round that doesn't count."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(rounds + 1):
        for name, side in sides.items():
            begin = clock()
            seen = sum(len(b) for b in side(epoch))
            seconds = clock() - begin
            assert seen == images, f"{name} gave {seen} pictures"
            if epoch:
                rates[name].append(seen / seconds)
    return rates


def make_sides(
    data: Path, cache: Path, n: int | None, size: int, batch: int, cores: int
) -> tuple[dict[str, Side], int]:
    """All sides on the same pictures, and how many these are."""
    folder = ImageFolder(str(data))
    chosen = np.random.default_rng(0).permutation(len(folder.samples))[:n]
    if len(chosen) < batch:
        raise SystemExit(f"{data} has {len(chosen)} pictures, fewer than a batch ({batch}). Draw more.")
    chosen = chosen[: len(chosen) - len(chosen) % batch]
    folder.samples = folder.imgs = [folder.samples[i] for i in chosen]
    rows = [SplitRow(Path(p).relative_to(data).as_posix(), folder.classes[k], "train") for p, k in folder.samples]
    from_bytes, memory, disk = (CellImages(data, rows, folder.classes, Preprocessing(size=size)) for _ in range(3))
    memory.fill_cache(workers=cores)
    pack_on_disk([disk], cache)
    ours = zip(GOALS, (from_bytes, memory, disk), strict=True)
    sides = {"torchvision": torchvision_side(folder, size, batch, cores)}
    return sides | {name: our_side(images, batch, cores) for name, images in ours}, len(chosen)


def processor() -> str:
    """Name of the processor, as Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print, and write the record if asked."""
    parser = argparse.ArgumentParser(description="Images a second of marrowscope's loader and torchvision's.")
    parser.add_argument("data", type=Path, help="folder with one folder a class")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="threads and workers")
    parser.add_argument("--images", type=int, help="at most so many pictures (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on one core only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.clock == "cpu" and options.cores != 1:
        parser.error("--clock cpu needs --cores 1: the time of worker processes would not be counted")
    torch.set_num_threads(options.cores)
    with tempfile.TemporaryDirectory() as cache:
        sides, n = make_sides(options.data, Path(cache), options.images, options.size, options.batch, options.cores)
        rates = measure(sides, options.rounds, n, CLOCKS[options.clock])
    record: dict[str, Any] = {
        "processor": processor(),
        "cores": options.cores,
        "clock": options.clock,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
        "images": n,
        "batch": options.batch,
        "size": options.size,
        "augment": AUGMENT.model_dump(),
        "images_per_second": {k: [round(r, 1) for r in v] for k, v in rates.items()},
        "ratios": {},
    }
    print(f"{'torchvision':20} {statistics.median(rates['torchvision']):7.0f} images/s")
    for name, goal in GOALS.items():
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates["torchvision"], strict=True))
        record["ratios"][name] = round(ratio, 2)
        verdict = "reached" if ratio >= goal else "missed"
        print(f"{name:20} {statistics.median(rates[name]):7.0f} images/s  {ratio:5.2f} x  (goal {goal} x: {verdict})")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
