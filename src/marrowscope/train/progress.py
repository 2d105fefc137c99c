"""Progress on the screen: bars where there is a terminal, one line an epoch everywhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from marrowscope.config import Recipe
from marrowscope.train import checkpoint


class Reporter:
    """Shows what a run is doing, on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def task(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for one piece of work; gives the function (done, total) that moves it."""
        bar = self._bars.add_task(description, total=None, text="")
        try:
            yield lambda done, total: self._bars.update(bar, completed=done, total=total)
        finally:
            self._bars.remove_task(bar)

    @contextlib.contextmanager
    def training(self, recipe: Recipe) -> Iterator[TrainingReport]:
        """A bar for the epoch under way."""
        bar = self._bars.add_task("train", total=None, text="")
        try:
            yield TrainingReport(self, bar, recipe.schedule.epochs)
        finally:
            self._bars.remove_task(bar)

    def update(self, bar: TaskID, *, done: int, total: int, description: str, text: str) -> None:
        """Move a bar."""
        self._bars.update(bar, completed=done, total=total, description=description, text=text)


class TrainingReport:
    """Loss, accuracy, images a second and time left while an epoch runs; a line when it ends."""

    def __init__(self, reporter: Reporter, bar: TaskID, epochs: int) -> None:
        self._reporter, self._bar, self._epochs = reporter, bar, epochs
        self._clock, self._seen = time.monotonic(), -1.0

    def step(self, progress: checkpoint.Progress, steps: int) -> None:
        """After each step."""
        sums = progress.sums
        now = time.monotonic()
        rate = (sums["seen"] - self._seen) / max(now - self._clock, 1e-9) if 0 <= self._seen < sums["seen"] else 0.0
        self._clock, self._seen = now, sums["seen"]
        # The shown rate counts everything between two steps, reading and augmentation included.
        self._reporter.update(
            self._bar,
            # The bar is the whole run, so that the time left is that of the run.
            done=progress.step,
            total=steps * self._epochs,
            description=f"epoch {progress.epoch + 1}/{self._epochs}",
            text=f"loss {sums['loss'] / max(sums['seen'], 1):.3f}  "
            f"acc {sums['correct'] / max(sums['seen'], 1):.3f}  {rate:.0f} images/s",
        )

    def epoch(self, progress: checkpoint.Progress) -> None:
        """After each epoch."""
        row = progress.history[-1]
        best = "  best" if progress.best_epoch == progress.epoch - 1 else ""
        self._reporter.console.print(
            f"epoch {progress.epoch}/{self._epochs}  "
            f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}  "
            f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:.3f} macro F1 {row['val_macro_f1']:.3f}  "
            f"{row['images_per_second']:.1f} images/s  {row['seconds']:.0f} s{best}",
            highlight=False,
            soft_wrap=True,
        )
