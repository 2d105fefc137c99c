"""From what a client sent to pixels, and from pixels to what a browser may see: decoded anew, without metadata."""

from __future__ import annotations

import io
import threading

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.infer.classifier import available_cores

THUMBNAIL_PX, PICTURE_PX, OVERLAY_PX = 96, 1600, 512
_DECODERS = threading.BoundedSemaphore(available_cores() + 1)


def checked(data: bytes, most: int) -> images.Pixels:
    """Decode one upload; few at a time, for a large picture takes much memory.

    Args:
        most: Bytes that a file may have.

    Raises:
        ImageError: Too large, or as `images.decode`.
    """
    if not data:
        raise ImageError("empty file")
    if len(data) > most:
        raise ImageError(f"file too large: {len(data):,} bytes; allowed are {most:,}")
    with _DECODERS:
        return images.decode(data)


def thumbnail(pixels_HWC: images.Pixels) -> bytes:
    """A WebP of at most `THUMBNAIL_PX` a side."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return _encoded(image, "WEBP", quality=82, method=2)


def picture(pixels_HWC: images.Pixels) -> bytes:
    """A PNG of the pixels and of nothing else, at most `PICTURE_PX` a side."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return _encoded(image, "PNG", compress_level=4)


def overlay(map_HW: npt.NDArray[np.floating], crop: float, width: int, height: int) -> bytes:
    """A heat map as a PNG to lay over the picture, stretched to it: what speaks for the class orange, against it blue.

    Args:
        map_HW: Of the central square that the model sees; the largest absolute value is fully coloured, 0 is clear.
        crop: The square's side as a share of the picture's shorter side (`schema.Preprocessing`).
        width, height: Of the picture; only their ratio matters.
    """
    scaled = np.asarray(map_HW, dtype=np.float64) / max(float(np.abs(map_HW).max(initial=0.0)), 1e-12)
    rgba = np.zeros((*scaled.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where(scaled[..., None] > 0, (230, 97, 1), (33, 102, 172))
    rgba[..., 3] = np.round(190 * np.abs(scaled)).astype(np.uint8)
    shrink = min(1.0, OVERLAY_PX / max(width, height))
    wide, tall = max(1, round(width * shrink)), max(1, round(height * shrink))
    side = max(1, round(min(wide, tall) * crop))
    canvas = Image.new("RGBA", (wide, tall), (0, 0, 0, 0))
    square = Image.fromarray(rgba).resize((side, side), Image.Resampling.BILINEAR)
    canvas.paste(square, ((wide - side) // 2, (tall - side) // 2))
    return _encoded(canvas, "PNG", compress_level=4)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
