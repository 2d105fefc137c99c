"""Exit codes, progress bars and checks that the commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 130


class PartName(StrEnum):
    """Parts of a split."""

    train = "train"
    val = "val"
    test = "test"


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal; gives the function (done, total) that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def need_torch(purpose: str) -> None:
    from importlib.util import find_spec

    from marrowscope.errors import MissingExtraError

    for package in ("torch", "timm", "lightning_fabric", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)
