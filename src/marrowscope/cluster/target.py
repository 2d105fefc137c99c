"""The folder of results: what job it belongs to, which parts are done, and whether every image has its one row."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from marrowscope import __version__, images
from marrowscope.cluster.listing import LISTING, Listing, part_size, publish
from marrowscope.cluster.packages import arrow
from marrowscope.cluster.stores import Folder, errors, first_line
from marrowscope.errors import OutputError
from marrowscope.infer.predictor import batches
from marrowscope.schema import OK, Document

MANIFEST = "_manifest.json"
"""What a target's folder holds besides the parts and the listing."""

_READERS = 16


class Manifest(Document):
    """Whose results a folder holds. Written before the first part, and again when every image has its row.

    Attributes:
        format: Of the folder.
        program: Version that made the rows.
        predictor: Identity of the models and all options that change rows.
        models: SHA-256 of each model's file.
        images: In the listing.
        part_images: In each part but perhaps the last.
        parts: How many.
        listing_sha256: Over all names in their order.
        finished: Whether all is there and was checked.
        ok: Images with an answer, when finished.
        failed: Images without, by cause, when finished.
    """

    kind: ClassVar[str] = "manifest of a cluster's results"

    format: Literal["marrowscope cluster 1"] = "marrowscope cluster 1"
    program: str = f"marrowscope {__version__}"
    predictor: str
    models: tuple[str, ...]
    images: int
    part_images: int
    parts: int
    listing_sha256: str
    finished: bool = False
    ok: int = 0
    failed: dict[str, int] = Field(default_factory=dict)

    def part_name(self, part: int) -> str:
        """File name of a part: the same for the same images, model and options, whoever makes it and how often."""
        content = f"{self.program} {self.predictor} {self.listing_sha256} {self.part_images} {part}"
        return f"part-{part:06}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.parquet"

    def part_names(self) -> dict[int, str]:
        """Names of all parts."""
        return {part: self.part_name(part) for part in range(self.parts)}

    def rows_of(self, part: int) -> int:
        """Images in a part."""
        return min(self.part_images, self.images - part * self.part_images)

    def put(self, target: Folder) -> None:
        """Write into a target.

        Raises:
            OutputError: It can't be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / MANIFEST
            self.write(file)
            target.put(file, MANIFEST)


def open_target(
    target: Folder, listing: Listing, predictor: str, models: Iterable[str], *, part_images: int | None, resume: bool
) -> tuple[Manifest, set[int]]:
    """Start a target, or go on with one.

    Args:
        target: The folder.
        listing: What is to be predicted.
        predictor: Identity of the models and options.
        models: SHA-256 of each model's file.
        part_images: Images in a part; None for `part_size`, or with `resume` for what the target has.
        resume: Keep the parts that are there.

    Returns:
        The manifest, and the parts that are done.

    Raises:
        OutputError: The folder holds other files, or results and `resume` is not given, or results of another model,
            version or listing; or it can't be written.
    """
    there = target.names() - {LISTING}  # written before the manifest: alone, it is of a job that came no further
    if MANIFEST in there:
        if not resume:
            raise OutputError(
                f"{target.name} holds the results of a job already. Go on with it with --resume, or choose another "
                "folder."
            )
        found = Manifest.parse(target.text(MANIFEST), f"{target.name}/{MANIFEST}")
        _refuse_another(target, found, listing, predictor)
        return found, {part for part, name in found.part_names().items() if name in there}
    visible = sorted(name for name in there if not name.startswith("."))
    if visible:
        raise OutputError(
            f"{target.name} holds other files ({', '.join(visible[:3])}). Choose a new folder for the results."
        )
    size = part_images or part_size(listing.images)
    publish(listing, target, size)
    manifest = Manifest(
        predictor=predictor,
        models=tuple(models),
        images=listing.images,
        part_images=size,
        parts=-(-listing.images // size),
        listing_sha256=listing.sha256,
    )
    manifest.put(target)
    return manifest, set()


def _refuse_another(target: Folder, found: Manifest, listing: Listing, predictor: str) -> None:
    program = f"marrowscope {__version__}"
    if found.program != program:
        what = f"made by {found.program}, and this is {program}"
    elif found.predictor != predictor:
        what = "of another model or other options"
    elif found.listing_sha256 != listing.sha256:
        what = f"of other images ({found.images:,}; the sources now stand for {listing.images:,}, or others)"
    else:
        return
    raise OutputError(
        f"Can't go on with {target.name}: its results are {what}. Give the same ones, or choose another folder."
    )


def check(target: Folder, manifest: Manifest) -> Counter[str]:
    """Compare all parts with the listing, image by image.

    Returns:
        Rows by status: `schema.OK`, or the cause of the failure.

    Raises:
        OutputError: A part is missing, damaged or one too many, or an image has not exactly one row.
    """
    names = manifest.part_names()
    strange = {n for n in target.names() if n.startswith("part-")} ^ set(names.values())
    if strange:
        raise OutputError(
            f"{target.name} has not the {manifest.parts:,} parts that it should have; {len(strange)} are missing or "
            f"too many, the first is {min(strange)}. Remove those that are too many, and go on with --resume."
        )
    try:
        listing = target.parquet(LISTING)
        groups, rows = listing.metadata.num_row_groups, listing.metadata.num_rows
    except errors() as e:
        raise OutputError(f"Can't read {target.name}/{LISTING}: {first_line(e)}. Choose another folder.") from None
    if (groups, rows) != (manifest.parts, manifest.images):
        raise OutputError(f"{target.name}/{LISTING} is not the one that {MANIFEST} tells of. Choose another folder.")
    counts: Counter[str] = Counter()
    first: Any = None
    with ThreadPoolExecutor(_READERS, thread_name_prefix="check") as pool:
        expected = (listing.read_row_group(part, columns=["path"]).column(0) for part in names)
        # In slices, so that not all of the listing waits in memory.
        for some in batches(zip(names.values(), expected, strict=True), 4 * _READERS):
            for columns, causes in pool.map(lambda pair: _check_part(target, *pair), some):
                first = first or columns
                if columns != first:
                    raise OutputError(f"The parts of {target.name} have different columns. Choose another folder.")
                counts.update(causes)
    assert counts.total() == manifest.images
    return counts


def _check_part(target: Folder, name: str, expected: Any) -> tuple[list[str], Counter[str]]:
    try:
        file = target.parquet(name)
        table = file.read(columns=["path", "status"])
    except errors() as e:
        raise OutputError(
            f"Can't read {target.name}/{name}: {first_line(e)}. If it is damaged, remove it and go on with --resume."
        ) from None
    if table.column("path").combine_chunks() != expected.combine_chunks():
        raise OutputError(
            f"{target.name}/{name} has not one row for each of its images. Remove it and go on with --resume."
        )
    statuses = arrow("compute").value_counts(table.column("status")).to_pylist()
    counts: Counter[str] = Counter()
    for row in statuses:
        counts[images.cause(row["values"])] += row["counts"]
    return file.schema_arrow.names, counts


def summary_of(counts: Counter[str]) -> tuple[int, dict[str, int]]:
    """Images with an answer, and those without by cause, most frequent first."""
    failed = Counter(counts)
    ok = failed.pop(OK, 0)
    return ok, dict(failed.most_common())
