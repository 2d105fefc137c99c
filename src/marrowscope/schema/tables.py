"""The tables: what a folder holds, what each image is used for, how an epoch went."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from marrowscope.errors import FileFormatError
from marrowscope.files import UNDECODABLE, UTF8, atomic_open, csv_line
from marrowscope.schema.base import PARTS, Part
from marrowscope.schema.documents import SplitInfo
from marrowscope.schema.predictions import csv_rows


class IndexRow(NamedTuple):
    """One file of a data folder.

    `width` and `height` are in pixels as stored, 0 where they can't be told; `bytes` is the file's size; `sha256` is
    of the file's bytes, empty where the file can't be read; `label` is a class code.

    The rest is empty where nothing is known: `group` names pictures of the same cell (near duplicates), `slide` and
    `patient` where they come from, `original` the class as the collection itself calls it, before it was mapped.
    """

    path: str
    label: str
    width: int
    height: int
    bytes: int
    sha256: str
    status: str
    group: str = ""
    slide: str = ""
    patient: str = ""
    original: str = ""


class SplitRow(NamedTuple):
    """One image and the part it belongs to; and, in a split into folds, the fold that holds it out."""

    path: str
    label: str
    part: Part
    fold: int | None = None


INDEX_COLUMNS = IndexRow._fields[:7]
INDEX_EXTRA_COLUMNS = IndexRow._fields[7:]
"""Written where any row has a value, in this order; read in any choice of them."""
SPLIT_COLUMNS = SplitRow._fields[:3]


def _table(path: Path, kind: str, columns: Sequence[str], extra: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below a header that must be exactly `columns`, and then any of `extra` in their order.

    A row always has a cell for each of `columns` and of `extra`, empty where the file has no such column.
    """
    rows = csv_rows(path, kind)
    _, header = next(rows, (0, []))
    further = header[len(columns) :]
    if tuple(header[: len(columns)]) != tuple(columns) or further != [c for c in extra if c in further]:
        allowed = ",".join(columns) + (f"[,{','.join(extra)}]" if extra else "")
        raise FileFormatError(
            f"{path} is not a {kind}: its first line must be {allowed!r}, and is {','.join(header)[:120]!r}."
        )
    where = [header.index(c) if c in header else None for c in (*columns, *extra)]
    for line, row in rows:
        if len(row) != len(header):
            raise FileFormatError(f"{path}, line {line}: {len(row)} cells where the header has {len(header)}.")
        yield line, ["" if i is None else row[i] for i in where]


def write_index(path: Path, rows: Iterable[IndexRow]) -> None:
    """Write index.csv, with those of `INDEX_EXTRA_COLUMNS` that any row has a value in."""
    rows = list(rows)
    base = len(INDEX_COLUMNS)
    extra = [i for i in range(base, len(IndexRow._fields)) if any(r[i] for r in rows)]
    with atomic_open(path) as f:
        f.write(csv_line([*INDEX_COLUMNS, *(IndexRow._fields[i] for i in extra)]))
        f.writelines(csv_line([*map(str, r[:base]), *(str(r[i]) for i in extra)]) for r in rows)


def read_index(path: Path) -> list[IndexRow]:
    """Read index.csv.

    Raises:
        FileFormatError: Not an index; the message names the line.
    """
    out = []
    for line, cells in _table(path, "index", INDEX_COLUMNS, INDEX_EXTRA_COLUMNS):
        name, label, width, height, size, digest, status, *extra = cells
        try:
            out.append(IndexRow(name, label, int(width), int(height), int(size), digest, status, *extra))
        except ValueError:
            raise FileFormatError(f"{path}, line {line}: width, height and bytes must be whole numbers.") from None
    return out


def index_hash(rows: Iterable[IndexRow]) -> str:
    """SHA-256 over (path, label, sha256) of all rows, whatever their order: the identity of a data set."""
    h = hashlib.sha256()
    for r in sorted(rows):
        h.update(f"{r.path}\t{r.label}\t{r.sha256}\n".encode(UTF8, UNDECODABLE))
    return h.hexdigest()


@dataclass(frozen=True)
class Split:
    """Which image belongs to which part.

    Attributes:
        rows: One row an image, in path order.
        info: How it was drawn.
    """

    rows: tuple[SplitRow, ...]
    info: SplitInfo

    def part(self, part: Part) -> list[SplitRow]:
        """Rows of one part, in file order."""
        return [r for r in self.rows if r.part == part]

    def write(self, path: Path) -> None:
        """Write split.csv and split.json beside it (the JSON first: a table without it is refused on reading)."""
        self.info.write(Path(path).with_suffix(".json"))
        with atomic_open(path) as f:
            folds = self.info.folds is not None
            f.write(csv_line([*SPLIT_COLUMNS, "fold"] if folds else SPLIT_COLUMNS))
            f.writelines(csv_line([str(v) for v in (r if folds else r[:3])]) for r in self.rows)

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read split.csv and split.json.

        Raises:
            FileFormatError: Not a split; a path or part that is not allowed; a path named twice; or a table that is
                not the one that split.json describes.
        """
        rows, seen = [], set()
        for line, (name, label, part, fold) in _table(path, "split", SPLIT_COLUMNS, ["fold"]):
            if fold and not (fold.isascii() and fold.isdecimal()):
                raise FileFormatError(f"{path}, line {line}: fold is {fold!r}; it must be a whole number from 0.")
            if part not in PARTS:
                raise FileFormatError(f"{path}, line {line}: part is {part!r}; allowed: {', '.join(PARTS)}.")
            if name in seen:
                raise FileFormatError(f"{path}, line {line}: {name} stands twice; an image belongs to one part.")
            seen.add(name)
            rows.append(SplitRow(name, label, part, int(fold) if fold else None))
        if not rows:
            raise FileFormatError(f"{path} holds no image.")
        info = SplitInfo.read(Path(path).with_suffix(".json"))
        split = cls(tuple(rows), info)
        folds = {r.fold for r in rows}
        if folds != ({None} if info.folds is None else set(range(info.folds))):
            raise FileFormatError(f"{path} does not fit {Path(path).with_suffix('.json').name}: the folds differ.")
        if info.counts != split.counts():
            raise FileFormatError(
                f"{path} does not fit {Path(path).with_suffix('.json').name}: the counts per class and part differ. "
                "Draw the split again, and don't edit it by hand."
            )
        return split

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per part and class: ``{"train": {"BLA": 562, ...}, ...}``."""
        return count_parts(self.rows)


def count_parts(rows: Iterable[SplitRow]) -> dict[str, dict[str, int]]:
    """Images per part and class code, codes sorted."""
    out: dict[str, dict[str, int]] = {p: {} for p in PARTS}
    for r in rows:
        out[r.part][r.label] = out[r.part].get(r.label, 0) + 1
    return {p: dict(sorted(c.items())) for p, c in out.items()}


METRIC_COLUMNS = (
    "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1",
    "images_per_second", "seconds",
)  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.csv, one dict an epoch, keys `METRIC_COLUMNS`.

    Raises:
        FileFormatError: Not a table of metrics.
    """
    out = []
    for line, row in _table(path, "table of metrics", METRIC_COLUMNS):
        try:
            out.append({k: float(v) for k, v in zip(METRIC_COLUMNS, row, strict=True)})
        except ValueError:
            raise FileFormatError(f"{path}, line {line}: a cell is not a number.") from None
    return out


def write_metrics(path: Path, rows: Iterable[dict[str, float]]) -> None:
    """Write metrics.csv."""
    with atomic_open(path) as f:
        f.write(csv_line(METRIC_COLUMNS))
        f.writelines(csv_line([f"{r[k]:.8g}" for k in METRIC_COLUMNS]) for r in rows)
