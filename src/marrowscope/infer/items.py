"""One file to predict, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from marrowscope import images
from marrowscope.errors import ImageError


@dataclass(frozen=True, slots=True)
class Item:
    """One file to predict.

    Attributes:
        name: As the user gave it; what lies in a folder or an archive is joined to that with ``/``.
        read: Gives the file's bytes, or raises ImageError; may be called from any thread, once.
        held: Bytes that the item holds in memory until it is read.
        refused: Why it can't be read, where that is known before reading.
    """

    name: str
    read: Callable[[], bytes]
    held: int = 0
    refused: str = ""


def file_item(name: str) -> Item:
    """A file on the disk."""
    return Item(name, partial(_read, name))


def refused_item(name: str, reason: str) -> Item:
    """What can't be read, for this reason."""
    return Item(name, partial(_refuse, reason), refused=reason)


def _read(name: str) -> bytes:
    return images.read_bytes(Path(name))


def _refuse(reason: str) -> bytes:
    raise ImageError(reason)
