"""Rows of an index as they are made, so that stopped work goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Self

from marrowscope.errors import OutputError
from marrowscope.schema import IndexRow

_FORMAT = "marrowscope index journal 1"


class Journal:
    """A file of one JSON line a row, each with the stamp that its file had."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.known: dict[str, tuple[str, IndexRow]] = {}
        self._file: IO[str] | None = None
        try:
            with self.path.open(encoding="ascii") as f:
                self._read(f)
        except (FileNotFoundError, UnicodeDecodeError):
            pass  # none yet, or damaged from some line on: what is not known is read from the images again
        except OSError as e:
            raise self._error(e) from None

    def _read(self, lines: Iterable[str]) -> None:
        """Take what can be read; the last line may be half written, and damage only means work done again."""
        for i, line in enumerate(lines):
            try:
                value = json.loads(line)
                if i == 0:
                    if value != _FORMAT:
                        return
                    continue
                stamp, row = value
                made = IndexRow(*row)
                ok = all(isinstance(v, int if i in {2, 3, 4} else str) for i, v in enumerate(made))
                if ok and isinstance(stamp, str):
                    self.known[made.path] = (stamp, made)
            except (ValueError, TypeError):
                continue

    def find(self, path: str, stamp: str) -> IndexRow | None:
        """The row of a file that has not changed."""
        known = self.known.get(path)
        return known[1] if known is not None and known[0] == stamp else None

    def add(self, rows: Iterable[tuple[str, IndexRow]]) -> None:
        """Append rows and their stamps; those that are known already are not written again."""
        assert self._file is not None
        lines = [
            json.dumps([stamp, row]) + "\n" for stamp, row in rows if stamp and self.known.get(row.path) != (stamp, row)
        ]
        try:
            self._file.writelines(lines)
            self._file.flush()
        except OSError as e:
            raise self._error(e) from None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a" if self.known else "w", encoding="ascii")
            # A line that was cut off when the work was stopped must not swallow the next one.
            self._file.write("\n" if self.known else json.dumps(_FORMAT) + "\n")
        except OSError as e:
            raise self._error(e) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        try:
            self._file.close()
        except OSError as e:
            # Lines that could not be written are tried once more on closing; the first error has been raised already.
            if kind is None:
                raise self._error(e) from None

    def _error(self, e: OSError) -> OutputError:
        return OutputError(
            f"Can't write the journal {self.path}: {e.strerror or e}. "
            "Choose a folder that can be written and has free space."
        )
