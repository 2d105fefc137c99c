"""Prepared pictures of one part, batch by batch, read ahead of the training step."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from marrowscope.errors import DataError, ImageError
from marrowscope.images import Pixels, load_prepared
from marrowscope.schema import Preprocessing, SplitRow

Indices = npt.NDArray[np.int64]


class CellImages:
    """The pictures of some rows of a split, prepared for one model.

    Attributes:
        rows: The rows, N of them.
        labels: int64 (N,), places in `codes`.
        spec: How pictures are prepared.
    """

    def __init__(self, data: Path, rows: Sequence[SplitRow], codes: Sequence[str], spec: Preprocessing) -> None:
        place = {code: i for i, code in enumerate(codes)}
        self.data = Path(data)
        self.rows = tuple(rows)
        self.labels: Indices = np.array([place[r.label] for r in rows], dtype=np.int64)
        self.spec = spec
        self._cache: Pixels | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Pixels:
        """One prepared picture, uint8 (size, size, 3).

        Raises:
            ImageError: It can't be read; the message has no path.
        """
        if self._cache is not None:
            cached: Pixels = self._cache[index]
            return cached
        return load_prepared(self.data / self.rows[index].path, self.spec)

    def fill_cache(self, progress: Callable[[int, int], None] | None = None, workers: int | None = None) -> None:
        """Decode everything into memory, N x size x size x 3 bytes.

        Raises:
            DataError: Pictures can't be read; the message names the first of them. A split holds readable pictures
                only, so the data have changed since.
        """
        cache = np.empty((len(self), self.spec.size, self.spec.size, 3), dtype=np.uint8)
        broken: list[str] = []

        def fill(i: int) -> None:
            try:
                cache[i] = load_prepared(self.data / self.rows[i].path, self.spec)
            except ImageError as e:
                broken.append(f"{self.rows[i].path}: {e}")

        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(fill, range(len(self))), 1):
                if progress is not None:
                    progress(done, len(self))
        if broken:
            raise unreadable(broken)
        self._cache = cache


def unreadable(broken: Sequence[str]) -> DataError:
    """The error for pictures that were readable when the split was drawn."""
    first = "\n  ".join(sorted(broken)[:5])
    return DataError(
        f"{len(broken)} picture(s) of the split can't be read any more:\n  {first}\n"
        "The data changed after the split was drawn: mend them, or index and split again."
    )


@dataclass(frozen=True)
class Batch:
    """Pictures uint8 (B, 3, H, W), labels int64 (B,), and their places in the data set, int64 (B,)."""

    images: Tensor
    labels: Tensor
    indices: Indices


def batches(
    images: CellImages, order: Iterable[Indices], *, workers: int | None = None, ahead: int = 3
) -> Iterator[Batch]:
    """Read batches in the given order of places, `ahead` of them in the background.

    Raises:
        DataError: A picture can't be read.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        waiting: deque[tuple[Indices, list[Future[Pixels]]]] = deque()
        places = iter(order)

        def push() -> None:
            indices = next(places, None)
            if indices is not None:
                waiting.append((indices, [pool.submit(images.load, int(i)) for i in indices]))

        for _ in range(ahead):
            push()
        try:
            while waiting:
                indices, futures = waiting.popleft()
                push()
                yield _collect(images, indices, futures)
        finally:
            for _, futures in waiting:
                for f in futures:
                    f.cancel()


def _collect(images: CellImages, indices: Indices, futures: Sequence[Future[Pixels]]) -> Batch:
    pictures, broken = [], []
    for i, future in zip(indices, futures, strict=True):
        try:
            pictures.append(future.result())
        except ImageError as e:
            broken.append(f"{images.rows[i].path}: {e}")
    if broken:
        raise unreadable(broken)
    array = np.stack(pictures) if pictures else np.empty((0, images.spec.size, images.spec.size, 3), np.uint8)
    # A permuted view of NHWC is what torch calls channels_last; no copy is needed.
    return Batch(torch.from_numpy(array).permute(0, 3, 1, 2), torch.from_numpy(images.labels[indices]), indices)


def epoch_order(labels: Indices, *, seed: int, epoch: int, sampling: str, batch_size: int) -> list[Indices]:
    """Places in the data set for each step of one epoch; a pure function of its arguments.

    `natural` shows each picture once, in random order; `balanced` draws as many pictures, each class equally often.
    A last batch smaller than `batch_size` is left out (unless it is the only one): its pictures differ each epoch.
    """
    rng = np.random.default_rng([seed, epoch, 1])
    n = len(labels)
    if sampling == "balanced":
        classes = np.unique(labels)
        per_class = -(-n // len(classes))
        drawn = [_repeat_shuffled(np.flatnonzero(labels == c), per_class, rng) for c in classes]
        order = rng.permutation(np.concatenate(drawn))[:n]
    else:
        order = rng.permutation(n)
    if n <= batch_size:
        return [order]
    return [order[i : i + batch_size] for i in range(0, n - n % batch_size, batch_size)]


def _repeat_shuffled(items: Indices, n: int, rng: np.random.Generator) -> Indices:
    """`n` draws that use every item equally often, as nearly as can be."""
    rounds = [rng.permutation(items) for _ in range(-(-n // len(items)))]
    return np.concatenate(rounds)[:n]
