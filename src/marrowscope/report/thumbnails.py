"""Small JPEGs of the test cells, as large as a budget of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from marrowscope.analysis.pictures import Pictures
from marrowscope.errors import DataError, ImageError, MissingExtraError
from marrowscope.images import Pixels, decode, prepare
from marrowscope.schema import Preprocessing

BUDGET = 12_000_000
"""Characters of base64 for all pictures together; leaves 3 MB of 15 for all the rest of the page."""

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


def make_thumbnails(copies: Mapping[str, int], data: Path | None, *, budget: int = BUDGET) -> Thumbnails:
    """Make a thumbnail of every path; what can't be shown is kept with its reason.

    Args:
        copies: How often the page holds the picture of each path.
        data: Folder, archive or Parquet that the paths are relative to; None where it is not known.
        budget: Characters of base64 of all copies together.
    """
    if data is None:
        return Thumbnails(missing=dict.fromkeys(copies, "data folder not known"))
    if not data.exists():
        return Thumbnails(missing=dict.fromkeys(copies, "data folder not found"))
    try:
        pictures = Pictures(data)
    except (DataError, MissingExtraError) as e:
        return Thumbnails(missing=dict.fromkeys(copies, str(e)))
    first = _first_level(list(copies), sum(copies.values()), pictures, budget)
    for level in range(first, len(LEVELS)):
        made = _encode_all(copies, pictures, *LEVELS[level], budget if level + 1 < len(LEVELS) else None)
        if made is not None:
            return made
    raise AssertionError("the last level has no budget")


def _first_level(paths: Sequence[str], copies: int, pictures: Pictures, budget: int) -> int:
    """The best level that a sample of the pictures promises to fit."""
    sample = []
    for path in paths[:: max(1, len(paths) // PROBE)]:
        try:
            sample.append(decode(pictures.read(path)))
        except ImageError:
            continue
    for level, (side, quality) in enumerate(LEVELS):
        size = sum(len(encode(p, side, quality)) for p in sample)
        if size * copies <= budget * 0.97 * max(1, len(sample)):
            return level
    return len(LEVELS) - 1


def _encode_all(
    copies: Mapping[str, int], pictures: Pictures, side: int, quality: int, budget: int | None
) -> Thumbnails | None:
    """All thumbnails at one level; None as soon as they pass the budget."""
    images: dict[str, str] = {}
    missing: dict[str, str] = {}
    used = 0
    for path, times in copies.items():
        try:
            images[path] = encode(decode(pictures.read(path)), side, quality)
        except ImageError as e:
            missing[path] = str(e)
            continue
        used += times * len(images[path])
        if budget is not None and used > budget:
            return None
    return Thumbnails(side, images, missing)
