"""What a model said of N files: predictions.csv, and the same as JSON lines or Parquet."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from marrowscope.errors import FileFormatError, MissingExtraError
from marrowscope.files import UNDECODABLE, UTF8, atomic_open, csv_line
from marrowscope.schema.base import OK

Cell = str | float | bool | list[str] | None
"""A cell of a table as JSON and Parquet have it; None where the file has no answer."""

TRUTH, SETS, SCORE, FLAG, ACCEPTED = "truth", "conformal_set", "ood_score", "ood", "accepted"
TRIAGE_COLUMNS = (SETS, SCORE, FLAG, ACCEPTED)
"""Columns behind the probabilities, in this order; each is there where the model has such a thing."""

_KIND = "table of predictions"
_FLAGS = {"1": True, "0": False}


@dataclass(frozen=True)
class Predictions:
    """What a model said of N files, in the order they were given.

    A column that the model has nothing for is left out, so that an empty cell of `conformal_set` in a row that is `ok`
    is a set without a class.

    Attributes:
        paths: N names as given.
        status: N times ``ok``, or the reason why the file has no answer.
        codes: The C class codes, in the order of the columns.
        probs_NC: float64 (N, C); rows of `ok` files sum to 1, the others are nan.
        truth: N class codes, or None where no truth is known.
        sets_NC: bool (N, C), the classes in each conformal set; all False without an answer. None: no sets.
        ood_score_N: float64 (N,), higher for a stranger picture; nan without an answer. None: no score.
        ood_N: bool (N,), whether the score is above the model's threshold; False without an answer. None: no score.
        accepted_N: bool (N,), whether the answer may stand without a second look; False without an answer. None: the
            model has no threshold for it.
    """

    paths: tuple[str, ...]
    status: tuple[str, ...]
    codes: tuple[str, ...]
    probs_NC: npt.NDArray[np.float64]
    truth: tuple[str, ...] | None = None
    sets_NC: npt.NDArray[np.bool_] | None = None
    ood_score_N: npt.NDArray[np.float64] | None = None
    ood_N: npt.NDArray[np.bool_] | None = None
    accepted_N: npt.NDArray[np.bool_] | None = None

    FIXED: ClassVar[tuple[str, ...]] = ("path", "status", "predicted", "confidence")

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the file has an answer."""
        return np.array([s == OK for s in self.status], dtype=bool)

    def header(self) -> list[str]:
        """Column names."""
        further = (self.truth, self.sets_NC, self.ood_score_N, self.ood_N, self.accepted_N)
        names = (TRUTH, *TRIAGE_COLUMNS)
        return [*self.FIXED, *self.codes, *(n for n, v in zip(names, further, strict=True) if v is not None)]

    def rows(self) -> Iterator[list[str]]:
        """Rows as text; empty cells where a file has no answer. Six significant digits keep 1e-6 of a probability."""
        nothing = [""] * sum(a is not None for a in (self.sets_NC, self.ood_score_N, self.ood_N, self.accepted_N))
        for i, (path, status) in enumerate(zip(self.paths, self.status, strict=True)):
            truth = [] if self.truth is None else [self.truth[i]]
            if status != OK:
                yield [path, status, "", "", *([""] * len(self.codes)), *truth, *nothing]
                continue
            p: list[float] = self.probs_NC[i].tolist()
            best = p.index(max(p))
            yield [path, status, self.codes[best], *(f"{v:.6g}" for v in (p[best], *p)), *truth, *self._triage(i)]

    def _triage(self, i: int) -> Iterator[str]:
        if self.sets_NC is not None:
            yield "|".join(c for c, inside in zip(self.codes, self.sets_NC[i], strict=True) if inside)
        if self.ood_score_N is not None:
            yield f"{self.ood_score_N[i]:.6g}"
        if self.ood_N is not None:
            yield "1" if self.ood_N[i] else "0"
        if self.accepted_N is not None:
            yield "1" if self.accepted_N[i] else "0"

    def write(self, path: Path) -> None:
        """Write predictions.csv."""
        with atomic_open(path) as f:
            f.write(csv_line(self.header()))
            f.writelines(map(csv_line, self.rows()))

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Self:
        """One table out of several of one model, in their order; at least one."""

        def column(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        return cls(
            paths=tuple(p for part in parts for p in part.paths),
            status=tuple(s for part in parts for s in part.status),
            codes=parts[0].codes,
            probs_NC=column("probs_NC"),
            truth=None if parts[0].truth is None else tuple(t for part in parts for t in part.truth or ()),
            sets_NC=column("sets_NC"),
            ood_score_N=column("ood_score_N"),
            ood_N=column("ood_N"),
            accepted_N=column("accepted_N"),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read predictions.csv, .jsonl or .parquet, of this program or of another that keeps to its columns.

        Raises:
            FileFormatError: A column is missing, a number is none, probabilities do not sum to 1 (within 1e-3), or a
                conformal set names an unknown class.
            MissingExtraError: A Parquet file, and pyarrow is not installed.
        """
        header, rows = _open_table(Path(path))
        if tuple(header[:4]) != cls.FIXED or len(header) < 6:
            raise FileFormatError(
                f"{path} is not a {_KIND}: its columns must be {','.join(cls.FIXED)}, then one per class "
                f"code, then perhaps truth,{','.join(TRIAGE_COLUMNS)}; they are {','.join(header)[:120]!r}."
            )
        # A class code is three capitals; whatever else stands behind them is no probability.
        codes = tuple(c for c in header[4:] if len(c) == 3 and c.isupper())
        parser = _Parser(path, codes, {c: i for i, c in enumerate(header)})
        for line, row in rows:
            if len(row) != len(header):
                raise FileFormatError(f"{path}, line {line}: {len(row)} cells where the header has {len(header)}.")
            parser.add(line, row)
        array = np.array(parser.probs, dtype=np.float64).reshape(len(parser.paths), len(codes))
        # Printed with six digits they sum to 1 within a few 1e-6; make it exact again.
        array /= np.where(np.isnan(array).any(1, keepdims=True), 1.0, array.sum(1, keepdims=True))
        there = parser.where
        return cls(
            tuple(parser.paths),
            tuple(parser.status),
            codes,
            array,
            tuple(parser.truth) if TRUTH in there else None,
            np.array(parser.sets, dtype=bool).reshape(array.shape) if SETS in there else None,
            np.array(parser.scores, dtype=np.float64) if SCORE in there else None,
            np.array(parser.flags[FLAG], dtype=bool) if FLAG in there else None,
            np.array(parser.flags[ACCEPTED], dtype=bool) if ACCEPTED in there else None,
        )


class _Parser:
    """The columns of a table, filled row by row."""

    def __init__(self, path: Path, codes: Sequence[str], where: Mapping[str, int]) -> None:
        self.path, self.codes, self.where = path, codes, where
        self.paths: list[str] = []
        self.status: list[str] = []
        self.truth: list[str] = []
        self.probs: list[list[float]] = []
        self.sets: list[list[bool]] = []
        self.scores: list[float] = []
        self.flags: dict[str, list[bool]] = {FLAG: [], ACCEPTED: []}

    def add(self, line: int, row: Sequence[str]) -> None:
        ok = row[1] == OK
        self.paths.append(row[0])
        self.status.append(row[1])
        if TRUTH in self.where:
            self.truth.append(row[self.where[TRUTH]])
        self.probs.append(self._probabilities(line, row) if ok else [math.nan] * len(self.codes))
        if SETS in self.where:
            self.sets.append(self._set(line, row[self.where[SETS]] if ok else ""))
        if SCORE in self.where:
            self.scores.append(self._numbers(line, [row[self.where[SCORE]]], SCORE)[0] if ok else math.nan)
        for name, values in self.flags.items():
            if name in self.where:
                values.append(self._flag(line, name, row[self.where[name]]) if ok else False)

    def _numbers(self, line: int, cells: Sequence[str], what: str) -> list[float]:
        try:
            return [float(c) for c in cells]
        except ValueError:
            raise FileFormatError(f"{self.path}, line {line}: a {what} is not a number.") from None

    def _probabilities(self, line: int, row: Sequence[str]) -> list[float]:
        p = self._numbers(line, [row[self.where[c]] for c in self.codes], "probability")
        if not all(0.0 <= v <= 1.0 for v in p) or abs(sum(p) - 1.0) > 1e-3:
            raise FileFormatError(
                f"{self.path}, line {line}: probabilities must lie in 0..1 and sum to 1 (they sum to {sum(p):.4g})."
            )
        return p

    def _set(self, line: int, cell: str) -> list[bool]:
        inside = set(cell.split("|")) if cell else set()
        if unknown := inside - set(self.codes):
            raise FileFormatError(
                f"{self.path}, line {line}: {SETS} names {min(unknown)!r}; allowed are the table's classes, "
                f"{' '.join(self.codes)}, with | between them."
            )
        return [c in inside for c in self.codes]

    def _flag(self, line: int, name: str, cell: str) -> bool:
        if cell not in _FLAGS:
            raise FileFormatError(f"{self.path}, line {line}: {name} is {cell!r}; allowed are 1 and 0.")
        return _FLAGS[cell]


def typed_cells(header: Sequence[str], row: Sequence[str]) -> list[Cell]:
    """A row of text as JSON and Parquet have it: numbers, lists and truth values; None without an answer."""
    ok = row[1] == OK
    return [_typed(column, cell, ok) for column, cell in zip(header, row, strict=True)]


def _typed(column: str, cell: str, ok: bool) -> Cell:
    if column in {"path", "status", TRUTH}:
        return cell
    if not ok:
        return None
    if column == "predicted":
        return cell
    if column == SETS:
        return cell.split("|") if cell else []
    return _FLAGS[cell] if column in {FLAG, ACCEPTED} else float(cell)


# ------------------------------------------------------------------------------------------------------------ reading


def _open_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Column names, and (number, cells as text) of each row."""
    kinds = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    rows = kinds.get(path.suffix.lower(), csv_rows)(path)
    _, header = next(rows, (0, []))
    return header, rows


def csv_rows(path: Path, kind: str = _KIND) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV file, the header first.

    Raises:
        FileFormatError: It can't be read, or is no CSV; `kind` says what it should be.
    """
    try:
        with Path(path).open(newline="", encoding=UTF8, errors=UNDECODABLE) as f:
            reader = csv.reader(f, strict=True)
            for row in reader:
                yield reader.line_num, row
    except OSError as e:
        raise FileFormatError(f"Can't read the {kind} {path}: {e.strerror or e}.") from e
    except csv.Error as e:
        raise FileFormatError(f"{path} is not a {kind}: {e}.") from e


def _json_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    header: list[str] | None = None
    try:
        with path.open(encoding=UTF8, errors=UNDECODABLE) as f:
            for line, text in enumerate(f, 1):
                record = json.loads(text)
                if not isinstance(record, dict):
                    raise FileFormatError(f"{path}, line {line}: a JSON object is needed, one a line.")
                if header is None:
                    header = list(record)
                    yield 0, header
                if list(record) != header:
                    raise FileFormatError(f"{path}, line {line}: its keys are not those of the first line.")
                yield line, [_as_text(v) for v in record.values()]
    except OSError as e:
        raise FileFormatError(f"Can't read the {_KIND} {path}: {e.strerror or e}.") from e
    except ValueError as e:
        raise FileFormatError(f"{path} is not a {_KIND} in JSON lines: {e}.") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "Reading .parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            yield 0, list(file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches():
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    line += 1
                    yield line, [_as_text(v) for v in row]
    except FileFormatError:
        raise
    except OSError as e:
        raise FileFormatError(f"Can't read the {_KIND} {path}: {e.strerror or e}.") from e
    except ValueError as e:  # pyarrow's ArrowInvalid
        raise FileFormatError(f"{path} is not a {_KIND} in Parquet: {e}.") from None


def _as_text(value: object) -> str:
    """A cell of JSON or Parquet as CSV has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list):
        return "|".join(map(str, value))
    return str(value)
