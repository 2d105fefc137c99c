"""The pictures that a table of predictions names, out of a folder, an archive or Parquet files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from marrowscope.data.sources import FolderSource, open_source
from marrowscope.errors import ImageError

OUTSIDE = "lies outside the data"


class Pictures:
    """Pictures of one data folder or archive, and of nowhere else: a table may come from a stranger."""

    def __init__(self, data: Path) -> None:
        """Open the data.

        Raises:
            DataError: `data` doesn't exist, or is of an unknown kind.
            MissingExtraError: It is Parquet, and pyarrow is not installed.
        """
        data = Path(data)
        self._source = open_source(data)
        # A table of `predict` has the names that it was given: with the folder or archive in front.
        self._prefixes = (PurePosixPath(data.absolute().as_posix()), PurePosixPath(data.as_posix()))

    def read(self, path: str) -> bytes:
        """Bytes of one picture.

        Args:
            path: Relative to the data, or with its place in front.

        Raises:
            ImageError: Missing, unreadable, empty or too large, or it lies outside the data.
        """
        name = self._inside(path)
        source = self._source
        if not source.has(name) or (isinstance(source, FolderSource) and (source.root / name).is_dir()):
            raise ImageError("file not found")
        return source.read(name)

    def _inside(self, path: str) -> str:
        name = PurePosixPath(path)
        if ".." in name.parts:
            raise ImageError(OUTSIDE)
        if not name.is_absolute() and self._source.has(path):
            return path
        for prefix in self._prefixes:
            if prefix.parts and name.is_relative_to(prefix):
                return name.relative_to(prefix).as_posix()
        if name.is_absolute():
            raise ImageError(OUTSIDE)
        return path
