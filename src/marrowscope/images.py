"""From bytes to a model's input: the only preprocessing there is.

Training, evaluation, export checks and serving all call `to_input`, or `decode` and `prepare`, which do the same;
nothing else turns a file into pixels. Scaling and normalising are the first layers of the network itself.

Every reason for refusing a picture reads ``cause: detail`` (or only ``cause``); `cause` gives the first part, so that
failures can be counted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
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

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def cause(reason: str) -> str:
    """The first part of a reason: what failures are counted by."""
    return reason.partition(":")[0]


def read_bytes(path: Path) -> bytes:
    """Read a file for `decode`.

    Raises:
        ImageError: It is missing, can't be read, is no regular file (a pipe would wait for ever), is empty, or is
            larger than `MAX_BYTES`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before opening, for opening a device may do something
            raise ImageError("not a regular file")
        # The name may have become a pipe in between; opened so, it does not wait for a writer.
        with os.fdopen(os.open(path, _READ), "rb") as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a regular file")
            if status.st_size > MAX_BYTES:
                raise ImageError(f"file too large: {status.st_size:,} bytes; allowed are {MAX_BYTES:,}")
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        missing = e.errno in {errno.ENOENT, errno.ENOTDIR}
        raise ImageError("missing: no such file" if missing else f"unreadable: {e.strerror or e}") from None
    except ValueError as e:  # a null byte in the name
        raise ImageError(f"unreadable: {e}") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    if len(data) > MAX_BYTES:  # it grew while it was read
        raise ImageError(f"file too large: allowed are {MAX_BYTES:,} bytes")
    if not data:
        raise ImageError("empty file")
    return data


def decode(data: bytes) -> Pixels:
    """Decode one picture to RGB, uint8 (H, W, 3), upright as its EXIF says, on white where it is transparent.

    16-bit grey is scaled to 8 bits; grey, palette and CMYK pictures become RGB. Safe to call from many threads.

    Raises:
        ImageError: Not a picture of an allowed format, damaged or truncated, animated, smaller than `MIN_SIDE` or
            larger than `MAX_PIXELS`. The message fits a table cell.
    """
    with _explained(), _no_pillow_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image)
        return _pixels(_to_rgb(image))


def to_input(data: bytes, spec: Preprocessing) -> Pixels:
    """Decode one picture and prepare it for a model: uint8 (size, size, 3).

    The same as `prepare(decode(data), spec)` to the last bit, with a copy less; except that with
    ``spec.reduced_decode`` a JPEG that is at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size,
    which leaves out work and no detail that the input could show.

    Raises:
        ImageError: As `decode`.
    """
    with _explained(), _no_pillow_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image)
        if spec.reduced_decode:
            side = math.ceil(spec.size / spec.crop)
            image.draft(None, (side, side))  # does nothing where it is no JPEG
        return _pixels(_cut(_to_rgb(image), spec))


def from_pil(image: Image.Image) -> Pixels:
    """Turn an open Pillow image into what `decode` makes of its file.

    Raises:
        ImageError: As `decode`.
    """
    with _explained(), _no_pillow_warnings():
        _check_header(image)
        return _pixels(_to_rgb(image))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever Pillow raises into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a known picture format: allowed are {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too many pixels: allowed are {MAX_PIXELS:,}") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    except Exception as e:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        text = "".join(c if c.isprintable() else " " for c in str(e))
        raise ImageError(f"damaged or truncated: {' '.join(text.split())[:80] or type(e).__name__}") from None


class _Quiet:
    """Silences Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` alone is not safe in threads: one that ends last would bring back the filters that
    another had set. So the first thread in sets the filter, and the last one out takes it away.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.saved.__exit__(None, None, None)


_QUIET = _Quiet()


def _no_pillow_warnings() -> _Quiet:
    # Our own limit of pixels is checked before any is decoded, and a damaged EXIF block is no reason to refuse.
    return _QUIET


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"too many pixels: {width} x {height} px; allowed are {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"too small: {width} x {height} px; at least {MIN_SIDE} px a side")
    # A JPEG with further pictures behind it (MPO: a phone's depth map or preview) is its first picture. `n_frames`
    # would walk through the whole of a TIFF file.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError("animated or multi-page: give one picture a file")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright, and in 8 bits a channel."""
    image.load()
    upright = _upright(image)
    mode = upright.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        # Pillow's own conversion of 16-bit grey would clip at 255.
        grey = np.asarray(upright).astype(np.uint32)
        eight = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(np.repeat(eight[:, :, None], 3, axis=2))
    if mode in {"I", "F", "LAB", "HSV"}:
        kind = {"I": "32-bit or signed", "F": "floating-point"}.get(mode, mode)
        raise ImageError(f"pixel type: {kind} values; save the picture as RGB or grey with 8 or 16 bits a channel")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, rgba)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF says; one whose EXIF block can't be read stays as it is."""
    try:
        # `exif_transpose` would copy a picture that stands upright.
        return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        return image


def check_pixels(array: npt.NDArray[np.generic]) -> Pixels:
    """Check an array that stands for a picture: uint8, (H, W, 3) or grey (H, W).

    Raises:
        ImageError: Another type or shape, or too small or large.
    """
    if array.dtype != np.uint8:
        raise ImageError(f"pixel type: an array of {array.dtype}; a picture is uint8 (0 to 255)")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"array shape: {array.shape}; a picture is (height, width, 3)")
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"too small: {width} x {height} px; at least {MIN_SIDE} px a side")
    if height * width > MAX_PIXELS:
        raise ImageError(f"too many pixels: {width} x {height} px; allowed are {MAX_PIXELS:,}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def prepare(pixels_HWC: Pixels, spec: Preprocessing) -> Pixels:
    """Cut the central square and resize it: uint8 (H, W, 3) -> uint8 (size, size, 3).

    The square's side is ``spec.crop`` times the shorter side of the picture.
    """
    if pixels_HWC.shape[:2] == (spec.size, spec.size) and spec.crop == 1:
        return pixels_HWC
    return _pixels(_cut(Image.fromarray(pixels_HWC), spec))


def resize_matrix(size: int, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """float32 (spec.size, size): R, for which R @ X @ R.T is the square X of `size` pixels as `prepare` resizes it.

    For what is made smaller within a network, where nothing is rounded to bytes, nor held within 0..255.
    """
    unit = Image.fromarray(np.eye(size, dtype=np.float32))
    return np.asarray(unit.resize((size, spec.size), _FILTERS[spec.interpolation]), dtype=np.float32)


def _cut(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The central square at the model's size."""
    width, height = image.size
    side = min(height, width) * spec.crop
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if box == (0.0, 0.0, float(spec.size), float(spec.size)):
        return image
    return image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box)


def load_prepared(path: Path, spec: Preprocessing) -> Pixels:
    """Read, decode and prepare one file: uint8 (size, size, 3).

    Raises:
        ImageError: As `read_bytes` and `decode`.
    """
    return to_input(read_bytes(path), spec)
