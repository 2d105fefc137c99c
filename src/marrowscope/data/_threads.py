"""Work on many pictures at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (done, total) from the thread that began the work."""


def processors() -> int:
    """How many processors this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[Sequence[S]], T], items: Sequence[S], jobs: int | None, chunk: int = 32) -> Iterator[T]:
    """What `work` makes of chunks of `items`, in order; `jobs` threads, all processors by default.

    Pillow's decoders and numpy's large operations release the interpreter lock, so that threads keep all processors
    busy and need no second process.
    """
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    # Filters of warnings are common to all threads; set once here, no thread can bring them back too early.
    with warnings.catch_warnings(), ThreadPoolExecutor(jobs or processors()) as pool:
        warnings.simplefilter("ignore")
        try:
            yield from pool.map(work, chunks)
        except BaseException:  # Ctrl-C, or an error of ours: don't do the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
