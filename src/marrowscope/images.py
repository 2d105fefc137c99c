"""From bytes to a model's input: the only preprocessing there is.

Training, evaluation, export checks and serving all call `decode`, `prepare` and `normalise`; nothing else turns a
file into numbers.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from marrowscope.errors import ImageError
from marrowscope.schema import Preprocessing

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Formats that are decoded; every further one would be further attack surface."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp"})
"""File name endings that an index takes for images (lower case)."""

MAX_PIXELS = 25_000_000
"""A single-cell picture has some 60,000 pixels; a header that claims more than this is refused before decoding."""

MIN_SIDE = 16
"""A side of fewer pixels shows no cell."""

MAX_BYTES = 200_000_000
"""A larger file is refused unread."""

Pixels = npt.NDArray[np.uint8]

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_bytes(path: Path) -> bytes:
    """Read a file for `decode`.

    Raises:
        ImageError: It can't be read, is empty, or is larger than `MAX_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"file of {size:,} bytes is larger than the {MAX_BYTES:,} allowed")
        data = path.read_bytes()
    except OSError as e:
        raise ImageError(f"can't be read: {e.strerror or e}") from None
    except ValueError as e:  # a null byte in the name
        raise ImageError(f"can't be read: {e}") from None
    if not data:
        raise ImageError("empty file")
    return data


def decode(data: bytes) -> Pixels:
    """Decode one picture to RGB, uint8 (H, W, 3), upright as its EXIF says, on white where it is transparent.

    16-bit grey is scaled to 8 bits; grey, palette and CMYK pictures become RGB.

    Raises:
        ImageError: Not a picture of an allowed format, damaged or truncated, animated, smaller than `MIN_SIDE` or
            larger than `MAX_PIXELS`. The message fits a table cell.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below, before any pixel is decoded; damaged EXIF is no reason to refuse.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image)
                return _to_rgb(image)
    except UnidentifiedImageError:
        raise ImageError(f"not a picture of a known format ({', '.join(FORMATS)})") from None
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than the {MAX_PIXELS:,} pixels allowed") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    except Exception as e:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        text = " ".join(str(e).split())[:80] or type(e).__name__
        raise ImageError(f"damaged or truncated: {text}") from None


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} px is more than the {MAX_PIXELS:,} pixels allowed")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{width} x {height} px is smaller than {MIN_SIDE} px a side")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"animated or multi-page ({frames} frames); give one picture a file")


def _to_rgb(image: Image.Image) -> Pixels:
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        grey = np.asarray(upright, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError("32-bit grey values; save the picture with 8 or 16 bits a channel")
        # Pillow's own conversion of 16-bit grey would clip at 255.
        eight = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(eight[:, :, None], 3, axis=2)
    if upright.mode == "F":
        raise ImageError("floating-point pixel values; save the picture with 8 or 16 bits a channel")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, rgba)
    return np.asarray(upright.convert("RGB"), dtype=np.uint8)


def check_pixels(array: npt.NDArray[np.generic]) -> Pixels:
    """Check an array that stands for a picture: uint8, (H, W, 3) or grey (H, W).

    Raises:
        ImageError: Another type or shape, or too small or large.
    """
    if array.dtype != np.uint8:
        raise ImageError(f"array of type {array.dtype}; a picture is uint8 (0 to 255)")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"array of shape {array.shape}; a picture is (height, width, 3)")
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise ImageError(f"{width} x {height} px; allowed are sides from {MIN_SIDE} px and up to {MAX_PIXELS:,} pixels")
    return np.ascontiguousarray(array, dtype=np.uint8)


def prepare(pixels_HWC: Pixels, spec: Preprocessing) -> Pixels:
    """Cut the central square and resize it: uint8 (H, W, 3) -> uint8 (size, size, 3).

    The square's side is ``spec.crop`` times the shorter side of the picture.
    """
    height, width = pixels_HWC.shape[:2]
    side = min(height, width) * spec.crop
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if box == (0, 0, spec.size, spec.size):
        return pixels_HWC
    image = Image.fromarray(pixels_HWC)
    return np.asarray(image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box), dtype=np.uint8)


def load_prepared(path: Path, spec: Preprocessing) -> Pixels:
    """Read, decode and prepare one file: uint8 (size, size, 3).

    Raises:
        ImageError: As `read_bytes` and `decode`.
    """
    return prepare(decode(read_bytes(path)), spec)


def normalise(prepared_NHWC: Pixels, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale to 0..1, subtract the mean, divide by the standard deviation.

    uint8 (N, H, W, 3) -> float32 (N, 3, H, W).
    """
    mean = np.array(spec.mean, dtype=np.float32) * np.float32(255)
    std = np.array(spec.std, dtype=np.float32) * np.float32(255)
    out = (prepared_NHWC.astype(np.float32) - mean) / std
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))
