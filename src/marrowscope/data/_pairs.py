"""Candidate pairs of the audit and what comparing them found, kept in a file so that stopped work goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from marrowscope.data._neighbours import Match
from marrowscope.errors import OutputError

Pairs = npt.NDArray[np.intp]
Found = tuple[int, int, Match]
"""Places of the two pictures, and how they fit."""

_FORMAT = "marrowscope pairs 1"


class PairJournal:
    """A line of JSON that says what the file is for, the candidates, then one line of JSON a chunk compared.

    Attributes:
        done: By the first query of a chunk, what comparing this chunk found.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """Open or make a journal; without a path nothing is kept.

        Args:
            path: The file.
            key: What the candidates depend on; a file with another key is begun anew.

        Raises:
            OutputError: The file can't be made or written.
        """
        self.path = path
        self.key = key
        self.done: dict[int, list[Found]] = {}
        self._pairs: Pairs | None = None
        self._file: IO[bytes] | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("r+b" if path.exists() else "w+b")
                self._read(self._file)
            except OSError as e:
                self.__exit__()
                raise self._error(e) from None

    def pairs(self, find: Callable[[], Pairs]) -> Pairs:
        """The candidates of the file, or else what `find` gives, which the file keeps: (M, 2)."""
        if self._pairs is None:
            self._pairs = find()
            data = self._pairs.astype("<i4").tobytes()
            head = {"format": _FORMAT, "key": self.key, "pairs": len(self._pairs), "sha256": _sha256(data)}
            self._write(json.dumps(head).encode("ascii") + b"\n" + data + b"\n")
        return self._pairs

    def add(self, first: int, found: Sequence[Found]) -> None:
        """Keep what comparing one chunk found."""
        self._write(json.dumps([first, found]).encode("ascii") + b"\n")

    def _read(self, file: IO[bytes]) -> None:
        """Take what fits and is whole; the end may have been cut off when the work was stopped."""
        try:
            head = json.loads(file.readline(1000))
            if (head["format"], head["key"]) == (_FORMAT, self.key):
                data = file.read(8 * head["pairs"])
                if _sha256(data) == head["sha256"]:
                    self._pairs = np.frombuffer(data, dtype="<i4").reshape(-1, 2).astype(np.intp)
        except (ValueError, TypeError, LookupError):
            self._pairs = None
        if self._pairs is None:
            file.seek(0)
            file.truncate()
            return
        for line in file.read().split(b"\n"):
            try:
                first, found = json.loads(line)
                self.done[int(first)] = [
                    (int(i), int(j), Match(float(m[0]), int(m[1]), int(m[2]), int(m[3]))) for i, j, m in found
                ]
            except (ValueError, TypeError):
                continue
        # A line that was cut off must not swallow the next one.
        file.write(b"\n")

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as e:
            raise self._error(e) from None

    def _error(self, e: OSError) -> OutputError:
        return OutputError(
            f"Can't write the audit's working file {self.path}: {e.strerror or e}. "
            "Choose a folder that can be written and has free space."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
