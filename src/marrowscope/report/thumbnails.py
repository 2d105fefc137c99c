"""Small JPEGs of the test cells, as large as a budget of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from marrowscope.errors import ImageError
from marrowscope.images import Pixels, decode, prepare, read_bytes
from marrowscope.schema import Preprocessing

BUDGET = 12_500_000
"""Characters of base64 for all pictures together; leaves 2.5 MB of 15 for all the rest of the page."""

LEVELS = ((96, 82), (84, 80), (72, 80), (64, 80), (64, 68), (48, 68))
"""Side in pixels and JPEG quality, best first; the last is used whatever it costs."""

PROBE = 64
"""Pictures that are tried to choose the level."""


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of the cells in a report.

    Attributes:
        side: Pixels a side.
        images: JPEG in base64 by path.
        missing: Why there is no picture, by path.
    """

    side: int = LEVELS[0][0]
    images: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def encode(pixels_HWC: Pixels, side: int, quality: int) -> str:
    """Cut the central square, shrink it, and give it as base64 of a JPEG."""
    small = prepare(pixels_HWC, Preprocessing(size=side, interpolation="lanczos"))
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def make_thumbnails(paths: Sequence[str], data: Path | None, *, budget: int = BUDGET) -> Thumbnails:
    """Make a thumbnail of every path below the folder `data`; what can't be shown is kept with its reason."""
    if data is None:
        return Thumbnails(missing=dict.fromkeys(paths, "data folder not known"))
    if not data.is_dir():
        return Thumbnails(missing=dict.fromkeys(paths, "data folder not found"))
    first = _first_level(paths, data, budget)
    for level in range(first, len(LEVELS)):
        made = _encode_all(paths, data, *LEVELS[level], budget if level + 1 < len(LEVELS) else None)
        if made is not None:
            return made
    raise AssertionError("the last level has no budget")


def _first_level(paths: Sequence[str], data: Path, budget: int) -> int:
    """The best level that a sample of the pictures promises to fit."""
    sample = []
    for path in paths[:: max(1, len(paths) // PROBE)]:
        try:
            sample.append(_load(data, path))
        except ImageError:
            continue
    for level, (side, quality) in enumerate(LEVELS):
        size = sum(len(encode(p, side, quality)) for p in sample)
        if size * len(paths) <= budget * 0.97 * max(1, len(sample)):
            return level
    return len(LEVELS) - 1


def _encode_all(paths: Sequence[str], data: Path, side: int, quality: int, budget: int | None) -> Thumbnails | None:
    """All thumbnails at one level; None as soon as they pass the budget."""
    images: dict[str, str] = {}
    missing: dict[str, str] = {}
    used = 0
    for path in paths:
        try:
            images[path] = encode(_load(data, path), side, quality)
        except ImageError as e:
            missing[path] = str(e)
            continue
        used += len(images[path])
        if budget is not None and used > budget:
            return None
    return Thumbnails(side, images, missing)


def _load(data: Path, path: str) -> Pixels:
    """Decode one picture of the data folder, and of nowhere else: a table may come from a stranger."""
    inside = PurePosixPath(path)
    if inside.is_absolute():
        try:
            inside = inside.relative_to(data.absolute().as_posix())
        except ValueError:
            raise ImageError("lies outside the data folder") from None
    if ".." in inside.parts:
        raise ImageError("lies outside the data folder")
    file = data / inside
    try:
        found = file.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        found = False
    if not found:
        raise ImageError("file not found")
    return decode(read_bytes(file))
