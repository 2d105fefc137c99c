"""What PATH may be, and the files it stands for."""

# Names stay as given, and pathlib is slow and large for a million of them.
# ruff: noqa: PTH112, PTH116, PTH118, PTH122, PTH207

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from marrowscope import images
from marrowscope.data.sources import is_junk
from marrowscope.errors import DataError
from marrowscope.infer import archives
from marrowscope.infer.items import Item, file_item, refused_item

STDIN = "-"
"""PATH that stands for a list of paths on standard input."""


def find_images(inputs: Sequence[str | Path], stdin: BinaryIO | None = None) -> Iterator[Item]:
    """The files that the inputs stand for, in the order given.

    - A file is always taken, whatever its ending and even if it is missing (reading it then gives the reason).
    - A folder is searched at any depth for the endings `images.SUFFIXES`, hidden files and folders left out: first
      its files sorted by name, then its folders. Symbolic links are followed, and each folder is visited once. A
      folder that can't be listed is an item whose reading gives the reason.
    - A .zip or .tar file (.tar.gz, .tar.bz2, .tar.xz too) gives its images in the archive's order.
    - A pattern with ``*``, ``?`` or ``[...]`` that is no file's name gives what it matches, sorted; ``**`` stands for
      folders of any depth. One that matches nothing is an item whose reading says so.
    - ``-`` gives what stands on standard input: a path on each line, or paths with a null byte after each.

    Args:
        inputs: Paths as above.
        stdin: Where ``-`` reads from; None for standard input.

    Raises:
        DataError: Nothing is given, or a folder or archive holds no image; raised at once.
    """
    _check(inputs)
    return (item for given in inputs for name in _names(os.fspath(given), stdin) for item in _items(name))


def _check(inputs: Sequence[str | Path]) -> None:
    """Find the mistakes that would otherwise show when much work is done."""
    if not inputs:
        raise DataError("No input. Give files or folders of images.")
    given = [os.fspath(x) for x in inputs]
    if given.count(STDIN) > 1:
        raise DataError("Standard input ('-') is given twice; it can be read once.")
    for name in given:
        for found in () if name == STDIN else _names(name, None):
            if not _holds_something(found):
                raise DataError(
                    f"{found} holds no image ({' '.join(sorted(images.SUFFIXES))}). Give another folder or archive."
                )


def _holds_something(name: str) -> bool:
    """Whether there will be an item; ends at the first, so that a large folder is not listed twice."""
    if not os.path.isdir(name):
        return not archives.is_archive(name) or next(archives.members(name), None) is not None
    waiting, visited = [name], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            for entry, is_folder in _entries(here) if _is_new(here, visited) else ():
                if is_folder:
                    waiting.append(os.path.join(here, entry))
                elif _is_image(entry):
                    return True
        except OSError:  # an item will say so
            return True
    return False


def _items(name: str) -> Iterator[Item]:
    """The files behind one name that is neither a pattern nor standard input."""
    content = _content(name)
    if content is None:
        yield file_item(name)
        return
    first = next(content, None)
    if first is None:  # of a list on standard input, or emptied a moment ago
        yield refused_item(name, "no image in it")
        return
    yield first
    yield from content


def _content(name: str) -> Iterator[Item] | None:
    """The images in a folder or an archive; None for what is neither."""
    if os.path.isdir(name):
        return (refused_item(p, why) if why else file_item(p) for p, why in _walk(name, _is_image))
    return archives.members(name) if archives.is_archive(name) else None


def _names(given: str, stdin: BinaryIO | None) -> Iterator[str]:
    """The paths that one input stands for."""
    if given == STDIN:
        if stdin is None and sys.stdin is None:
            raise DataError("There is no standard input to read the list of paths from.")
        yield from listed(stdin or sys.stdin.buffer)
    elif not glob.has_magic(given) or os.path.lexists(given):
        yield given
    else:
        # A pattern without a match stays itself: a path that is missing.
        yield from sorted(_deep(given) if "**" in given.split("/") else glob.iglob(given)) or [given]


def listed(stream: BinaryIO) -> Iterator[str]:
    """Paths from a stream, as they come: a null byte after each, or else each on its line."""
    rest, end = b"", b""
    while chunk := stream.read1(65536) if hasattr(stream, "read1") else stream.read(65536):
        end = end or (b"\0" if b"\0" in chunk else b"\n" if b"\n" in chunk else b"")
        if not end:
            rest += chunk
            continue
        *names, rest = (rest + chunk).split(end)
        yield from (_decoded(name) for name in names if name.strip(b"\r"))
    if rest.strip(b"\r"):
        yield _decoded(rest)


def _decoded(name: bytes) -> str:
    return os.fsdecode(name.removesuffix(b"\r"))


def _deep(pattern: str) -> Iterator[str]:
    """Matches of a pattern with ``**``; unlike `glob`, it ends where symbolic links go round."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = "/".join(parts[:first]) or ("/" if first else "")
    for name, _ in _walk(root or ".", _is_image if parts[-1] == "**" else lambda _: True):
        inside = os.path.relpath(name, root or ".")
        if matches(inside.split("/"), parts[first:]):
            yield os.path.join(root, inside)


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern, in which ``**`` stands for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _walk(folder: str, take: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Files below a folder whose name is to be taken, and folders that can't be listed with the reason.

    Only the names in one folder, and of the folders yet to visit, are held.
    """
    waiting, visited = [folder], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            if not _is_new(here, visited):
                continue
            files, folders = _listing(here, take)
        except OSError as e:
            yield here, f"unreadable: {e.strerror or e}"
            continue
        waiting.extend(os.path.join(here, name) for name in reversed(folders))
        yield from ((os.path.join(here, name), "") for name in files)


def _listing(folder: str, take: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Names of the files to take and of the folders in one folder, each sorted."""
    files: list[str] = []
    folders: list[str] = []
    for name, is_folder in _entries(folder):
        if is_folder or take(name):
            (folders if is_folder else files).append(name)
    return sorted(files), sorted(folders)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Names in one folder, hidden ones left out, and whether each is a folder."""
    with os.scandir(folder) as entries:
        yield from ((entry.name, _is_folder(entry)) for entry in entries if not is_junk(entry.name))


def _is_new(folder: str, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder was not visited yet, by whatever name; notes it."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in visited:
        return False
    visited.add(here)
    return True


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in images.SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False
