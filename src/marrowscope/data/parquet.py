"""Pictures in Parquet files: a column of image bytes and a column of labels, as data hubs keep them."""

from __future__ import annotations

import functools
import importlib
import json
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

from marrowscope.data.sources import Source
from marrowscope.errors import DataError, ImageError, MissingExtraError
from marrowscope.images import MAX_BYTES

IMAGE_COLUMNS = ("image", "img", "picture", "bytes", "image_bytes", "data")
LABEL_COLUMNS = ("label", "labels", "class", "cell_type", "target")

MAX_GROUP_BYTES = 1 << 30
"""A row group is read as a whole; a larger one, unpacked, is refused."""

_HELD = 2  # row groups in memory: neighbouring threads work on neighbouring rows


class ParquetSource(Source):
    """One or several Parquet files; a picture is called ``<file>/<row>``, with eight digits.

    The image column holds bytes, or a struct with a field ``bytes``; the label column holds text, or whole numbers
    whose names the file's metadata may give (as the Hugging Face hub writes them).
    """

    def __init__(self, where: Path, files: list[Path]) -> None:
        self.where = str(where)
        self.ignored = Counter()
        root = where if where.is_dir() else where.parent
        self.files = {f.relative_to(root).as_posix(): f for f in sorted(files)}
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, int], list[bytes | None]] = OrderedDict()

    @functools.cached_property
    def names(self) -> list[str]:
        return sorted(self._labels)

    @functools.cached_property
    def _tables(self) -> dict[str, _Table]:
        return {name: _Table(path) for name, path in self.files.items()}

    @functools.cached_property
    def _labels(self) -> dict[str, str]:
        return {f"{f}/{i:08}": label for f, table in self._tables.items() for i, label in enumerate(table.labels())}

    def label(self, name: str) -> str | None:
        return self._labels.get(name)

    def has(self, name: str) -> bool:
        return name in self._labels

    def size(self, name: str) -> int:
        try:
            return len(self.read(name))
        except ImageError:
            return 0

    def stamp(self, name: str) -> str:
        status = self.files[name.rpartition("/")[0]].stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, name: str) -> bytes:
        if name not in self._labels:
            raise ImageError("missing: no such row")
        file, _, row = name.rpartition("/")
        group, at = self._tables[file].place(int(row))
        with self._lock:
            cells = self._held.get((file, group))
            if cells is None:
                cells = self._tables[file].images(group)
                self._held[file, group] = cells
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end((file, group))
        data = cells[at]
        if not data:
            raise ImageError("empty file")
        if len(data) > MAX_BYTES:
            raise ImageError(f"file too large: {len(data):,} bytes; allowed are {MAX_BYTES:,}")
        return data

    def __getstate__(self) -> dict[str, object]:  # a spawned worker opens the files itself
        gone = {"_lock", "_held", "_tables"}
        return {k: v for k, v in self.__dict__.items() if k not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._held = OrderedDict()


class _Table:
    """One Parquet file."""

    def __init__(self, path: Path) -> None:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise MissingExtraError("pyarrow", "parquet", "Reading Parquet files") from None
        self.path = path
        try:
            self.file: Any = parquet.ParquetFile(path)
        except Exception as e:  # ArrowInvalid, OSError, ...
            raise DataError(f"Can't read the Parquet file {path}: {' '.join(str(e).split())[:200]}.") from None
        self.schema: Any = self.file.schema_arrow
        self.image = self._column(IMAGE_COLUMNS, "image")
        self.labelled = self._column(LABEL_COLUMNS, "label")
        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        largest = max((self.file.metadata.row_group(i).total_byte_size for i in range(len(sizes))), default=0)
        if largest > MAX_GROUP_BYTES:
            raise DataError(
                f"{path} has a row group of {largest:,} bytes; allowed are {MAX_GROUP_BYTES:,}. "
                "Write it anew with smaller row groups."
            )

    def _column(self, allowed: tuple[str, ...], kind: str) -> str:
        found = [n for n in self.schema.names if n.lower() in allowed]
        if len(found) != 1:
            raise DataError(
                f"{self.path} has {'no' if not found else 'more than one'} {kind} column; exactly one must be called "
                f"{', '.join(allowed)}. Its columns are {', '.join(self.schema.names[:20])}."
            )
        return str(found[0])

    def labels(self) -> list[str]:
        """The label of each row as text, empty where there is none."""
        try:
            values = self._read(lambda: self.file.read(columns=[self.labelled]).column(0).to_pylist())
        except ImageError as e:
            raise DataError(f"Can't read the labels of {self.path}: {e}.") from None
        names = self._label_names()
        return [self._label(v, names) for v in values]

    def _label(self, value: object, names: list[str]) -> str:
        if isinstance(value, int) and not isinstance(value, bool) and names:
            if not 0 <= value < len(names):
                raise DataError(f"{self.path}: label {value} is none of the {len(names)} that its metadata names.")
            return names[value]
        return "" if value is None else str(value)

    def _label_names(self) -> list[str]:
        """Names of whole-number labels, as the Hugging Face hub writes them into the metadata."""
        metadata = self.schema.metadata or {}
        try:
            feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][self.labelled]
            return [str(n) for n in feature["names"]]
        except (ValueError, KeyError, TypeError):
            return []

    def place(self, row: int) -> tuple[int, int]:
        """Row group of a row, and its place there."""
        group = bisect_right(self.starts, row) - 1
        return group, row - self.starts[group]

    def images(self, group: int) -> list[bytes | None]:
        """The pictures of one row group."""
        cells = self._read(lambda: self.file.read_row_group(group, columns=[self.image]).column(0).to_pylist())
        return [c.get("bytes") if isinstance(c, dict) else c for c in cells]

    def _read(self, what: Any) -> list[Any]:
        try:
            return list(what())
        except Exception as e:
            raise ImageError(f"damaged Parquet file: {' '.join(str(e).split())[:80]}") from None
