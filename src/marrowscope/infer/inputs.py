"""What PATH may be, and the files it stands for."""

# ruff: noqa: PTH -- names stay as given, and pathlib is slow and large for a million names

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from marrowscope import images
from marrowscope.errors import DataError, ImageError


@dataclass(frozen=True, slots=True)
class Item:
    """One file to predict.

    Attributes:
        name: As the user gave it, or the folder as given joined with the way from there to the file.
        read: Gives the file's bytes, or raises ImageError.
    """

    name: str
    read: Callable[[], bytes]


def find_images(inputs: Sequence[str | Path]) -> Iterator[Item]:
    """The files that the inputs stand for, in the order given; in a folder its files sorted by name, then its folders.

    A file named here is always taken, whatever its ending and even if it is missing (reading it then gives the
    reason). A folder is searched at any depth for the endings `images.SUFFIXES`; symbolic links are followed, and
    each folder is visited once. A folder that can't be listed is an item whose reading gives the reason.

    Raises:
        DataError: Nothing is given, or a folder holds no image.
    """
    if not inputs:
        raise DataError("No input. Give files or folders of images.")
    for given in inputs:
        name = os.fspath(given)
        if not os.path.isdir(name):
            yield _file(name)
            continue
        empty = True
        for item in _walk(name):
            empty = False
            yield item
        if empty:
            raise _no_image(name)


def check_inputs(inputs: Sequence[str | Path]) -> None:
    """Look for the mistakes that `find_images` would come upon late: a folder without any image.

    Raises:
        DataError: As `find_images`.
    """
    for given in inputs:
        name = os.fspath(given)
        if os.path.isdir(name) and next(_walk(name), None) is None:
            raise _no_image(name)


def _file(name: str) -> Item:
    return Item(name, partial(images.read_bytes, Path(name)))


def _no_image(name: str) -> DataError:
    return DataError(f"The folder {name} holds no image ({' '.join(sorted(images.SUFFIXES))}). Give another folder.")


def _walk(folder: str) -> Iterator[Item]:
    """Files with an image's ending below a folder; only the names of the folders on the way are held."""
    waiting, visited = [folder], set()
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            files, folders = _listing(here)
        except OSError as e:
            yield Item(here, partial(_refuse, f"unreadable: {e.strerror or e}"))
            continue
        waiting.extend(os.path.join(here, name) for name in reversed(folders))
        for name in files:
            yield _file(os.path.join(here, name))


def _listing(folder: str) -> tuple[list[str], list[str]]:
    """Names of the images and of the folders in one folder, each sorted."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in images.SUFFIXES:
                files.append(entry.name)
    return sorted(files), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False


def _refuse(reason: str) -> bytes:
    raise ImageError(reason)
