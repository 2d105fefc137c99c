"""What the sources stand for, in a fixed order and cut into parts: the same sources always give the same parts."""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from marrowscope.cluster.packages import arrow
from marrowscope.cluster.stores import Folder, errors, find_objects, first_line, is_remote, locate, read_bytes
from marrowscope.errors import DataError, ImageError, StoreError
from marrowscope.files import UNDECODABLE, UTF8
from marrowscope.infer import Item, find_images
from marrowscope.infer.archives import is_archive
from marrowscope.infer.inputs import STDIN, listed
from marrowscope.infer.items import file_item, refused_item

LISTING = "_listing.parquet"
"""The listing inside a target: one row an image, one row group a part."""

LIST_MARK = "@"
"""Stands before the name of a file that lists images."""

_CHUNK = 50_000
_LEAST, _MOST, _AIM = 64, 8192, 1024


class Entry(NamedTuple):
    """One image of a listing.

    Attributes:
        path: As it will stand in the results.
        raw: The name's bytes, where it is not UTF-8.
        refused: Why it can't be read, where listing found that out.
    """

    path: str
    raw: bytes | None
    refused: str | None

    @classmethod
    def of(cls, name: str, refused: str = "") -> Entry:
        raw = name.encode(UTF8, UNDECODABLE)
        path = raw.decode(UTF8, "backslashreplace")
        return cls(path, raw if path != name else None, refused or None)

    def item(self, here: str) -> Item:
        """What reads it, on any machine; a relative name starts from the folder `here`."""
        name = self.path if self.raw is None else self.raw.decode(UTF8, UNDECODABLE)
        if self.refused is not None:
            return refused_item(name, self.refused)
        if is_remote(name):
            return Item(name, partial(_read_remote, name))
        return replace(file_item(os.path.join(here, name)), name=name)  # noqa: PTH118 -- pathlib would tidy the name up


def _read_remote(name: str) -> bytes:
    try:
        return read_bytes(name)
    except MemoryError:
        raise ImageError("too large for the memory") from None


@dataclass(frozen=True)
class Listing:
    """A listing on this machine's disk.

    Attributes:
        file: Parquet, with the columns of `Entry`.
        images: How many.
        sha256: Over the entries, in their order.
        witness: A local file that every machine must see; empty where all images lie in stores.
    """

    file: Path
    images: int
    sha256: str
    witness: str


def list_sources(sources: Sequence[str], file: Path, stdin: BinaryIO | None = None) -> Listing:
    """Write what the sources stand for to a Parquet file.

    Args:
        sources: Local files, folders and patterns, and ``-``, as in `find_images`; ``s3://`` and ``gs://`` objects,
            folders and patterns; and ``@FILE``, a local or remote file that lists images, one on each line.
        file: Where to write.
        stdin: Where ``-`` reads from; None for standard input.

    Raises:
        DataError: Nothing is given, a source holds no image or is an archive, or an image is named twice.
        StoreError: A store can't be reached.
    """
    if not sources:
        raise DataError("No input. Give folders, patterns or lists of images.")
    if sources.count(STDIN) > 1:
        raise DataError("Standard input ('-') is given twice; it can be read once.")
    pq, schema = arrow("parquet"), _schema()
    digest, hashes, witness = hashlib.sha256(), array("Q"), ""
    entries = (entry for source in sources for entry in _entries(source, stdin))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while chunk := list(islice(entries, _CHUNK)):
            for e in chunk:
                digest.update(f"{len(e.path)} {e.path} {e.refused or ''}\n".encode())
                digest.update(e.raw or b"")
                hashes.append(_hash(e))
            witness = witness or _witness(chunk)
            writer.write_table(_table(chunk, schema))
    _refuse_repeats(file, hashes)
    return Listing(file, len(hashes), digest.hexdigest(), witness)


def part_size(number: int) -> int:
    """Images in a part: some thousand parts, so that many machines have work, and none that is tiny or huge."""
    return min(_MOST, max(_LEAST, -(-number // _AIM)))


def publish(listing: Listing, target: Folder, size: int) -> None:
    """Write the listing into a target, a row group for each part of `size` images.

    Raises:
        OutputError: The target can't be written.
    """
    pq, schema = arrow("parquet"), _schema()
    again = listing.file.with_name("parts.parquet")
    rows = (row for batch in pq.ParquetFile(listing.file).iter_batches(_CHUNK) for row in _rows(batch))
    with pq.ParquetWriter(again, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, size)):
            writer.write_table(_table(chunk, schema), row_group_size=size)
    target.put(again, LISTING)


def read_part(file: Any, part: int) -> list[Entry]:
    """The images of one part; `file` is the opened listing."""
    return list(_rows(file.read_row_group(part)))


def _entries(source: str, stdin: BinaryIO | None) -> Iterator[Entry]:
    if source.startswith(LIST_MARK):
        yield from _from_file(source[len(LIST_MARK) :])
    elif source == STDIN:
        if stdin is None and sys.stdin is None:
            raise DataError("There is no standard input to read the list of images from.")
        yield from _from_list(stdin or sys.stdin.buffer)
    elif is_remote(source):
        yield from map(Entry.of, find_objects(source))
    else:
        yield from _local(find_images([source]))


def _local(items: Iterable[Item]) -> Iterator[Entry]:
    folder, inside = "", ""
    for item in items:
        above = os.path.dirname(item.name)  # noqa: PTH120 -- pathlib is slow for a million of them
        if above != folder:
            folder, inside = above, _archive_above(above)
        if inside or is_archive(item.name):
            raise DataError(
                f"{inside or item.name} is an archive; a cluster reads single files. Unpack it, and give the folder."
            )
        yield Entry.of(item.name, item.refused)


def _archive_above(folder: str) -> str:
    return next((str(p) for p in (Path(folder), *Path(folder).parents) if is_archive(str(p))), "")


def _from_file(name: str) -> Iterator[Entry]:
    fs, path = locate(name)
    try:
        with fs.open_input_stream(path) as f:
            yield from _from_list(f)
    except errors() as e:
        raise StoreError(f"Can't read the list {name}: {first_line(e)}.") from None


def _from_list(stream: BinaryIO) -> Iterator[Entry]:
    """Remote names are taken as they are: to look at each of them now would take longer than to read it later."""
    for remote, names in groupby(listed(stream), is_remote):
        if remote:
            yield from map(Entry.of, names)
            continue
        while chunk := list(islice(names, _CHUNK)):
            text = "".join(name + "\0" for name in chunk).encode(UTF8, UNDECODABLE)
            yield from _local(find_images([STDIN], BytesIO(text)))


def _witness(chunk: Iterable[Entry]) -> str:
    local = (e.path for e in chunk if e.raw is None and e.refused is None and not is_remote(e.path))
    return next((str(Path(p).absolute()) for p in local if Path(p).is_file()), "")


# ------------------------------------------------------------------------------------------------------------- repeats


def _hash(entry: Entry) -> int:
    return int.from_bytes(hashlib.blake2b(entry.raw or entry.path.encode(), digest_size=8).digest(), "little")


def _refuse_repeats(file: Path, hashes: array[int]) -> None:
    """Eight bytes an image are held; where two are alike, the names themselves are compared."""
    if not hashes:
        raise DataError("The list holds no image.")
    values = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    alike = {int(v) for v in values[1:][values[1:] == values[:-1]]}
    if not alike:
        return
    seen: set[Entry] = set()
    repeated: list[str] = []
    for batch in arrow("parquet").ParquetFile(file).iter_batches(_CHUNK):
        for entry in _rows(batch):
            if _hash(entry) in alike:
                bare = entry._replace(refused=None)
                if bare in seen:
                    repeated.append(entry.path)
                seen.add(bare)
    if repeated:
        raise DataError(
            f"{len(repeated)} images are named more than once, the first is {repeated[0]}. Each image has one row in "
            "the results: name each folder once, and none inside another."
        )


def _schema() -> Any:
    lib = arrow("lib")
    return lib.schema([("path", lib.string()), ("raw", lib.binary()), ("refused", lib.string())])


def _table(chunk: Sequence[Entry], schema: Any) -> Any:
    columns = zip(*chunk, strict=True)
    lib = arrow("lib")
    return lib.Table.from_arrays([lib.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _rows(batch: Any) -> Iterator[Entry]:
    return map(Entry, *(column.to_pylist() for column in batch.columns))
