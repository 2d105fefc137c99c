"""Picture files of every kind, made in memory, and what reading any of them must come to."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.schema import Preprocessing

RNG = np.random.default_rng(0)


def noise(height: int = 40, width: int = 50, channels: int = 3) -> npt.NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def smooth(height: int = 40, width: int = 50) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def encode(image: Image.Image | npt.NDArray[np.generic], form: str, **options: object) -> bytes:
    f = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(f, form, **options)  # type: ignore[arg-type]
    return f.getvalue()


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these raw scan lines, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(k, d) for k, d in extra)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def pixels_or_image_error(data: bytes) -> None:
    """See that these bytes give checked pixels, or an ImageError with a short reason, in every way of reading."""
    spec = Preprocessing(size=16, interpolation="bilinear")
    try:
        out = images.decode(data)
    except ImageError as e:
        text = str(e)
        with pytest.raises(ImageError):
            images.to_input(data, spec)
    else:
        np.testing.assert_array_equal(images.to_input(data, spec), images.prepare(out, spec))
        assert out.dtype == np.uint8
        assert out.ndim == 3
        assert out.shape[2] == 3
        assert min(out.shape[:2]) >= images.MIN_SIDE
        text = ""
    reason = ""
    try:
        assert images.to_input(data, spec.model_copy(update={"reduced_decode": True})).shape == (16, 16, 3)
    except ImageError as e:
        reason = str(e)
    for message in (text, reason):
        assert len(message) < 200
        assert message.isprintable()
