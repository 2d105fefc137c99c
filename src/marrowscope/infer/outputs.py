"""Where predictions go: a journal that survives a kill, and from it the finished output, whole or not at all.

While a run goes on, its rows stand in ``OUTPUT.partial``: one line of JSON that says whose rows they are, and then
predictions.csv. A run that ends well turns it into OUTPUT and removes it; one that does not leaves it, so that the
next one can go on from there.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

from marrowscope.errors import MissingExtraError, OutputError
from marrowscope.files import UNDECODABLE, UTF8, atomic_open, atomic_path, csv_line
from marrowscope.schema.predictions import ACCEPTED, FLAG, SETS, typed_cells


class Journal:
    """The rows of a run that has not ended yet. Use as a context manager.

    Attributes:
        output: The output that is to be.
        path: Where the rows stand until then.
    """

    def __init__(self, output: Path, identity: str, header: Sequence[str], *, resume: bool) -> None:
        """Start a journal, or open the one that a run left.

        Args:
            output: The output that is to be; its ending must be one of `FORMATS`.
            identity: Of the model and all options that change rows; rows of another identity are not gone on with.
            header: Column names.
            resume: Keep the rows that are there.

        Raises:
            OutputError: Another ending, another process is writing this output, it can't be written, or with
                `resume` the rows there are of another model or other options.
            MissingExtraError: The ending needs a package that is not installed.
        """
        self.output = Path(output)
        self.path = self.output.with_name(self.output.name + ".partial")
        self.header = list(header)
        self._finish = _finisher(self.output)
        self._end, self._empty = 0, True
        self._first = (json.dumps({"format": "marrowscope partial 1", "identity": identity}) + "\n").encode()
        with self._explained():
            if self.output.is_dir():
                raise OutputError(f"Can't write {self.output}: it is a folder. Give a file name.")
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self.path)
        try:
            with self._explained():
                if not (resume and self._recover()):
                    self._begin()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._empty:
            self._remove()
        with contextlib.suppress(OSError):  # of a full disk, said already
            self._file.close()

    def rows(self) -> Iterator[list[str]]:
        """Rows that are there already."""
        self._file.seek(len(self._first))
        return (row for row, _ in islice(_records(self._file), 1, None))

    def append(self, rows: Iterable[Sequence[str]]) -> None:
        """Add rows; they are with the operating system when this returns, and outlive the process.

        Raises:
            OutputError: The disk is full or gone.
        """
        with self._explained():
            self._write(rows)
        self._empty = False

    def finish(self) -> None:
        """Turn the rows into the output, whole or not at all, and remove the journal.

        Raises:
            OutputError: The output can't be written; the journal stays.
        """
        self._finish(self)
        self._remove()

    def content(self) -> IO[bytes]:
        """The file, at the start of what is predictions.csv."""
        self._file.seek(len(self._first))
        return self._file

    def _write(self, rows: Iterable[Sequence[str]]) -> None:
        data = "".join(map(csv_line, rows)).encode(UTF8, UNDECODABLE)
        self._file.seek(self._end)
        self._file.write(data)
        self._file.flush()
        self._end += len(data)

    def _begin(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(self._first)
        self._end = len(self._first)
        self._write([self.header])

    def _recover(self) -> bool:
        """Find where the last whole row ends, and cut off one that a kill left half; False where no row is there."""
        first = self._file.readline()
        if not first.endswith(b"\n"):
            return False
        if first != self._first:
            self._empty = False  # they may be of use to someone
            raise OutputError(
                f"Can't go on with {self.path}: its rows are of another model or other options. Give the same ones, "
                "or start anew without --resume."
            )
        lengths = [0, 0]
        for n, (row, length) in enumerate(_records(self._file)):
            if len(row) != len(self.header):
                break
            lengths[min(n, 1)] += length
        self._end = len(first) + sum(lengths)
        self._empty = lengths[1] == 0
        self._file.truncate(self._end)
        return not self._empty

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            kept = "" if self._empty else f" The rows so far are in {self.path}; go on from them with --resume."
            raise OutputError(
                f"Can't write {self.output}: {e.strerror or e}. Choose a folder that can be written and has free "
                f"space.{kept}"
            ) from e


def _locked(path: Path) -> IO[bytes]:
    """Open for reading and writing, for this process alone."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(
                f"Another process is writing {path.name.removesuffix('.partial')} in {path.parent} at this time. "
                "Wait until it ends, or choose another output."
            ) from None
        # Whoever had it before may have ended and removed it between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _records(file: IO[bytes]) -> Iterator[tuple[list[str], int]]:
    """Whole records of a CSV file from where it stands, each with its length in bytes; ends at one that is cut."""
    length = 0

    def lines() -> Iterator[str]:
        nonlocal length
        for line in file:
            if not line.endswith(b"\n"):
                return
            length += len(line)
            yield line.decode(UTF8, UNDECODABLE)

    with contextlib.suppress(csv.Error):  # a quote that is never closed
        for row in csv.reader(lines(), strict=True):
            yield row, length
            length = 0


# ------------------------------------------------------------------------------------------------------------ formats


def _finisher(output: Path) -> Callable[[Journal], None]:
    finish = FORMATS.get(output.suffix.lower())
    if finish is None:
        raise OutputError(f"Can't write {output}: its ending must be one of {', '.join(FORMATS)}.")
    if finish is _parquet:
        _pyarrow()
    return finish


def _csv(journal: Journal) -> None:
    with atomic_path(journal.output) as temporary, temporary.open("wb") as f:
        shutil.copyfileobj(journal.content(), f, 1 << 20)


def _jsonl(journal: Journal) -> None:
    with atomic_open(journal.output) as f:
        for row in journal.rows():
            f.write(json.dumps(dict(zip(journal.header, typed_cells(journal.header, row), strict=True))) + "\n")


def _parquet(journal: Journal) -> None:
    pa, pq = _pyarrow()
    kinds = {
        **dict.fromkeys(("path", "status", "predicted"), pa.string()),
        SETS: pa.list_(pa.string()),
        **dict.fromkeys((FLAG, ACCEPTED), pa.bool_()),
    }
    columns = [(name, kinds.get(name, pa.float64())) for name in journal.header]
    schema = pa.schema(columns)
    rows = journal.rows()
    with atomic_path(journal.output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while chunk := [typed_cells(journal.header, row) for row in islice(rows, 20_000)]:
            for row in chunk:
                # Parquet's strings are UTF-8; bytes of a name that are not stand as \xff.
                row[0] = str(row[0]).encode(UTF8, UNDECODABLE).decode(UTF8, "backslashreplace")
            arrays = [
                pa.array(column, kind) for column, (_, kind) in zip(zip(*chunk, strict=True), columns, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


FORMATS: dict[str, Callable[[Journal], None]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
"""How an output of each ending is written."""


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "Writing .parquet") from None
