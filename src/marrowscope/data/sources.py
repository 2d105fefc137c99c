"""Where picture bytes come from: every kind of collection behind one small class.

A source lists its files by relative POSIX name and reads one at a time, from any thread.
"""

from __future__ import annotations

import functools
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path, PurePosixPath

from marrowscope.cells import BY_CODE
from marrowscope.errors import DataError, ImageError
from marrowscope.images import SUFFIXES, read_bytes

_JUNK = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information", "@eadir", "synthetic.txt"}
)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by an operating system or by `marrowscope phantom`."""
    return name.startswith(".") or name.lower() in _JUNK


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def label_of(name: str) -> str | None:
    """Class code of the folder nearest to a picture that has one, or None."""
    for folder in reversed(name.split("/")[:-1]):
        if folder in BY_CODE:
            return folder
    return None


class Source(ABC):
    """A collection of pictures.

    Attributes:
        where: What the user gave, for messages.
        ignored: Number of other files, by suffix (``""`` where a name has none); known once `names` was asked.
    """

    where: str
    ignored: Counter[str]

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Relative POSIX names of all pictures, sorted.

        Raises:
            DataError: They can't be listed.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read the bytes of one picture; may be called from many threads at once.

        Raises:
            ImageError: It is missing or can't be read, is empty or too large.
        """

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def label(self, name: str) -> str | None:
        """What the collection itself says of a picture's class, where that is not in its name."""
        return None

    @abstractmethod
    def stamp(self, name: str) -> str:
        """What changes when the file does: size and time of change; empty where they can't be told."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Size of one file in bytes, 0 where it can't be told."""


class FolderSource(Source):
    """A folder tree. Links are followed; one that leads back above itself is left alone."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.where = str(root)
        self.ignored = Counter()

    @functools.cached_property
    def names(self) -> list[str]:
        return sorted(self._walk())

    def read(self, name: str) -> bytes:
        if name.startswith("/") or ".." in name.split("/"):  # of a split that somebody else wrote
            raise ImageError("missing: the name points outside of the data folder")
        return read_bytes(self.root / name)

    def has(self, name: str) -> bool:
        if name.startswith("/") or ".." in name.split("/"):
            return False
        try:
            return (self.root / name).exists()
        except (OSError, ValueError):
            return False

    def stamp(self, name: str) -> str:
        try:
            status = (self.root / name).stat()
        except OSError:
            return ""
        return f"{status.st_size}:{status.st_mtime_ns}"

    def size(self, name: str) -> int:
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return 0

    def parquet_files(self) -> list[Path]:
        """Parquet files at the top, or in a folder ``data`` there, as data hubs lay them out.

        Raises:
            DataError: Class folders or pictures lie beside them.
        """
        for folder in (self.root, self.root / "data"):
            try:
                entries = [e for e in folder.iterdir() if not is_junk(e.name)]
            except OSError:
                continue
            tables = [e for e in entries if e.suffix.lower() == ".parquet"]
            beside = [e.name for e in entries if e.name in BY_CODE or is_image_name(e.name)]
            if tables and beside:
                raise DataError(
                    f"{folder} holds Parquet files and also pictures or class folders ({beside[0]!r}); "
                    "give one of them."
                )
            if tables:
                return tables
        return []

    def _walk(self) -> list[str]:
        """Relative names of all pictures below the root."""
        found: list[str] = []
        # Each folder comes with the identities of those above it, so that a looping link ends where it closes.
        todo: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while todo:
            folder, above = todo.pop()
            try:
                status = (self.root / folder).stat()
                here = (status.st_dev, status.st_ino)
                if here in above:
                    continue
                entries = list(os.scandir(self.root / folder))
            except OSError as e:
                raise DataError(
                    f"Can't list the folder {self.root / folder}: {e.strerror or e}. "
                    "Allow reading it, or move it out of the data folder."
                ) from None
            for entry in entries:
                if is_junk(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if _is_folder(entry):
                    todo.append((name, above | {here}))
                elif is_image_name(entry.name):
                    found.append(name)
                else:
                    self.ignored[PurePosixPath(entry.name).suffix.lower()] += 1
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def open_source(data: Path) -> Source:
    """Open what the user gave as DATA: a folder of pictures or of Parquet files, a .zip, a .tar or a .parquet file.

    Raises:
        DataError: It doesn't exist, or is of an unknown kind.
        MissingExtraError: Parquet files are given, and pyarrow is not installed.
    """
    # Here, for these modules build on this one.
    from marrowscope.data.archives import TarSource, ZipSource
    from marrowscope.data.parquet import ParquetSource

    data = Path(data)
    try:
        mode = data.stat().st_mode
    except OSError as e:
        raise DataError(
            f"Can't open the data {data}: {e.strerror or e}. Give a folder or archive that exists."
        ) from None
    except ValueError as e:
        raise DataError(f"Can't open the data {str(data)!r}: {e}.") from None
    if stat.S_ISDIR(mode):
        folder = FolderSource(data)
        tables = folder.parquet_files()
        return ParquetSource(data, tables) if tables else folder
    suffix = data.suffix.lower()
    if suffix == ".zip":
        return ZipSource(data)
    if suffix in {".tar", ".tgz", ".tbz", ".tbz2", ".txz"} or data.stem.lower().endswith(".tar"):
        return TarSource(data)
    if suffix == ".parquet":
        return ParquetSource(data, [data])
    raise DataError(
        f"{data} is a file, not a folder. Give the folder that holds one folder per class, or a .zip, .tar or .parquet "
        "file."
    )
