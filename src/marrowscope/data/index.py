"""The index: one row a picture, with its class, its size, its hash and whether it can be decoded."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from marrowscope.cells import BY_CODE
from marrowscope.data._journal import Journal
from marrowscope.data._threads import Progress, in_threads
from marrowscope.data.classmap import DROP, ClassMap
from marrowscope.data.sources import Source, label_of, open_source
from marrowscope.errors import DataError, ImageError
from marrowscope.images import FORMATS, decode
from marrowscope.schema import OK, IndexRow


def build_index(
    data: Path,
    *,
    classes: ClassMap | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    journal: Path | None = None,
) -> list[IndexRow]:
    """Index a collection: a folder tree of any depth, a .zip or .tar of one, or Parquet files.

    The folder nearest to a picture that has a class code (or an entry in the class map) labels it. Every picture is
    read and decoded in full, so that a truncated one is found here; it gets a row whose status says why it can't be
    used. Files are pictures by their suffix (`images.SUFFIXES`); hidden files and those that operating systems leave
    behind are passed over, and so are all others, but these are told to `note`.

    Args:
        data: As for `sources.open_source`.
        classes: How other names of classes map to codes; rows that it labels say so in `original`.
        jobs: Threads; all processors by default.
        progress: Called with (files done, files in all) from the calling thread.
        note: Called with a sentence on what was passed over.
        journal: File that takes every row as soon as it is known. Rows that it holds of unchanged files are not made
            again, so that work which was stopped goes on there. Delete it when the index is written.

    Returns:
        Rows in path order, whatever `jobs` is.

    Raises:
        DataError: `data` can't be read, holds no picture, or holds a picture of an unknown class.
        OutputError: The journal can't be written.
    """
    source = open_source(Path(data))
    if not source.names:
        raise DataError(_nothing(source))
    labels = _labels(source, classes, note)
    if note is not None and source.ignored:
        note(_passed_over(source))
    names = sorted(labels)
    kept = Journal(journal) if journal is not None else None

    def work(chunk: Sequence[str]) -> list[tuple[str, IndexRow]]:
        return [_row(source, name, *labels[name], kept) for name in chunk]

    rows: list[IndexRow] = []
    with contextlib.ExitStack() as stack:
        if kept is not None:
            stack.enter_context(kept)
        for done in in_threads(work, names, jobs):
            rows += [row for _, row in done]
            if kept is not None:
                kept.add(done)
            if progress is not None:
                progress(len(rows), len(names))
    return rows


def _labels(source: Source, classes: ClassMap | None, note: Callable[[str], None] | None) -> dict[str, tuple[str, str]]:
    """Of each picture: class code, and the entry of the class map that gave it (empty where none did)."""
    labels: dict[str, tuple[str, str]] = {}
    unknown: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for name in source.names:
        own = source.label(name)
        mapped = classes.find(name if own is None else own) if classes is not None else None
        code = label_of(name) if own is None else (own if own in BY_CODE else None)
        if mapped is not None:
            code = mapped[0]
        if code == DROP:
            dropped[mapped[1] if mapped else ""] += 1
        elif code is None:
            unknown[name.rpartition("/")[0] if own is None else own] += 1
        else:
            labels[name] = (code, mapped[1] if mapped else "")
    if unknown:
        raise DataError(_unknown_classes(source, unknown))
    if not labels:
        raise DataError(f"The class map drops every picture of {source.where} ({_n(dropped.total(), 'picture')}).")
    if note is not None and dropped:
        what = ", ".join(f"{pattern} {n}" for pattern, n in sorted(dropped.items()))
        note(f"Dropped by the class map: {_n(dropped.total(), 'picture')} ({what}).")
    return labels


def _row(source: Source, name: str, label: str, original: str, kept: Journal | None) -> tuple[str, IndexRow]:
    """The stamp and the row of one picture."""
    stamp = "" if kept is None else source.stamp(name)
    known = kept.find(name, stamp) if kept is not None and stamp else None
    if known is not None:  # its class may have another name by now
        return stamp, known._replace(label=label, original=original)
    try:
        data = source.read(name)
    except ImageError as e:
        return stamp, IndexRow(name, label, 0, 0, source.size(name), "", str(e), original=original)
    digest = hashlib.sha256(data).hexdigest()
    status = OK
    try:
        decode(data)
    except ImageError as e:
        status = str(e)
    return stamp, IndexRow(name, label, *_header_size(data), len(data), digest, status, original=original)


def _header_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as stored, (0, 0) where the header can't be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # whatever a damaged header makes Pillow raise; `decode` has given the reason
        return 0, 0


# -------------------------------------------------------------------------------------------------------- messages


def _n(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _some(names: Iterable[str], total: int) -> str:
    """The first five names, and how many more there are."""
    first = [repr(n) for _, n in zip(range(5), names, strict=False)]
    return ", ".join(first) + (f" and {total - 5} more" if total > 5 else "")


def _passed_over(source: Source) -> str:
    kinds = ", ".join(f"{suffix or 'no suffix'} {n}" for suffix, n in source.ignored.most_common(5))
    return f"Passed over, for their names are not those of pictures: {_n(source.ignored.total(), 'file')} ({kinds})."


def _nothing(source: Source) -> str:
    other = f" It holds {_n(source.ignored.total(), 'other file')}." if source.ignored else " It is empty."
    return (
        f"No picture found in {source.where!r}.{other} Give the folder that holds one folder per class, "
        "such as BLA/0001-1000/BLA_00001.jpg."
    )


def _unknown_classes(source: Source, unknown: Counter[str]) -> str:
    names = sorted(unknown)
    images = _n(unknown.total(), "picture")
    allowed = " ".join(sorted(BY_CODE))
    if source.label(source.names[0]) is not None:
        return (
            f"Unknown class label in {source.where}: {_some(names, len(names))} ({images}). "
            f"Known are {allowed}. Give a class map that names a code for each."
        )
    inside = [part for part in Path(source.where).resolve().parts[-2:] if part in BY_CODE]
    if inside and len(unknown) == len({n.rpartition("/")[0] for n in source.names}):
        return (
            f"{source.where} lies within the class folder {inside[-1]!r} and holds no class folders of its own. "
            "Give the folder above the class folders."
        )
    if names == [""]:
        return (
            f"No class folder in {source.where}: {images} directly in it. Move each into a folder named by its "
            f"class code ({allowed}), or give a class map."
        )
    named = _some((f or "." for f in names), len(names))
    return (
        f"Unknown class folder in {source.where}: {named} ({images}). A picture's class is the nearest folder "
        f"above it that is named by a class code: {allowed}. Rename the folder, move it out of the data, or give a "
        "class map that names a code for it."
    )
