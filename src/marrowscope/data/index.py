"""The index: one row a picture, with its class, its size, its hash and whether it can be decoded."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from marrowscope.cells import BY_CODE
from marrowscope.data.sources import Source, label_of, open_source
from marrowscope.errors import DataError, ImageError
from marrowscope.images import FORMATS, decode
from marrowscope.schema import OK, IndexRow

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_CHUNK = 32


def build_index(
    data: Path,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[IndexRow]:
    """Index a collection: any depth of folders, where the folder nearest to a picture that has a class code labels it.

    Every picture is read and decoded in full, so that a truncated one is found here; it gets a row whose status says
    why it can't be used. Files are pictures by their suffix (`images.SUFFIXES`); hidden files and those that operating
    systems leave behind are passed over, and so are all others, but these are told to `note`.

    Args:
        data: Folder that holds the class folders.
        jobs: Threads; all processors by default.
        progress: Called with (files done, files in all) from the calling thread.
        note: Called with a sentence on what was passed over.

    Returns:
        Rows in path order, whatever `jobs` is.

    Raises:
        DataError: `data` is no folder, holds no picture, or holds a picture in a folder that is no class.
    """
    source = open_source(Path(data))
    if not source.names:
        raise DataError(_nothing(source))
    labels = _labels(source)
    if note is not None and source.ignored:
        note(_passed_over(source))
    chunks = [source.names[i : i + _CHUNK] for i in range(0, len(source.names), _CHUNK)]

    def work(chunk: list[str]) -> list[IndexRow]:
        return [_row(source, name, labels[name]) for name in chunk]

    rows: list[IndexRow] = []
    # Pillow's decoders release the interpreter lock, so threads keep all processors busy and need no second process.
    # Filters of warnings are common to all threads; set once here, no thread can bring them back too early.
    with warnings.catch_warnings(), ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")
        try:
            for done in pool.map(work, chunks):
                rows += done
                if progress is not None:
                    progress(len(rows), len(source.names))
        except BaseException:  # Ctrl-C, or an error of ours: don't read the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return rows


def _labels(source: Source) -> dict[str, str]:
    labels: dict[str, str] = {}
    unknown: Counter[str] = Counter()
    for name in source.names:
        label = label_of(name)
        if label is None:
            unknown[name.rpartition("/")[0]] += 1
        else:
            labels[name] = label
    if unknown:
        raise DataError(_unknown_folders(source, unknown))
    return labels


def _row(source: Source, name: str, label: str) -> IndexRow:
    try:
        data = source.read(name)
    except ImageError as e:
        return IndexRow(name, label, 0, 0, source.size(name), "", str(e))
    digest = hashlib.sha256(data).hexdigest()
    status = OK
    try:
        decode(data)
    except ImageError as e:
        status = str(e)
    return IndexRow(name, label, *_header_size(data), len(data), digest, status)


def _header_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as stored, (0, 0) where the header can't be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # whatever a damaged header makes Pillow raise; `decode` has given the reason
        return 0, 0


# -------------------------------------------------------------------------------------------------------- messages


def _some(names: Iterable[str], total: int) -> str:
    """The first five names, and how many more there are."""
    first = [repr(n) for _, n in zip(range(5), names, strict=False)]
    return ", ".join(first) + (f" and {total - 5} more" if total > 5 else "")


def _passed_over(source: Source) -> str:
    kinds = ", ".join(f"{suffix or 'no suffix'} {n}" for suffix, n in source.ignored.most_common(5))
    return f"{source.ignored.total()} files that are no pictures by their name were passed over ({kinds})."


def _nothing(source: Source) -> str:
    other = f" It holds {source.ignored.total()} other files." if source.ignored else " It is empty."
    return (
        f"No picture found in {source.where}.{other} Give the folder that holds one folder per class, "
        "such as BLA/0001-1000/BLA_00001.jpg."
    )


def _unknown_folders(source: Source, unknown: Counter[str]) -> str:
    folders = sorted(unknown)
    images = unknown.total()
    allowed = " ".join(sorted(BY_CODE))
    inside = [part for part in Path(source.where).resolve().parts if part in BY_CODE]
    if inside and len(unknown) == len({n.rpartition("/")[0] for n in source.names}):
        return (
            f"{source.where} lies within the class folder {inside[-1]!r} and holds no class folders of its own. "
            "Give the folder above the class folders."
        )
    if folders == [""]:
        return (
            f"{images} pictures lie directly in {source.where}, in no class folder. Move each into a folder named by "
            f"its class code: {allowed}."
        )
    named = _some((f or "." for f in folders), len(folders))
    return (
        f"Unknown class folder in {source.where}: {named} ({images} pictures). A picture's class is the nearest folder "
        f"above it that is named by a class code: {allowed}. Rename the folder, or move it out of the data."
    )
