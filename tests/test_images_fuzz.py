"""Random and damaged bytes: checked pixels or an ImageError, and never anything else."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from picture_files import encode, pixels_or_image_error, smooth

VALID = [
    encode(smooth(), "JPEG"),
    encode(smooth(), "JPEG", progressive=True),
    encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
    encode(smooth(), "PNG"),
    encode(Image.fromarray(smooth()).convert("P"), "PNG", transparency=3),
    encode(np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50), "PNG"),
    encode(smooth(), "TIFF", compression="tiff_lzw"),
    encode(smooth(), "TIFF", compression="jpeg"),
    encode(smooth(), "WEBP"),
    encode(smooth(), "BMP"),
]


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM"]))
def test_random_bytes(data: bytes, start: bytes) -> None:
    pixels_or_image_error(start + data)


@FUZZ
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
)
def test_overwritten_bytes(valid: bytes, patches: list[tuple[float, bytes]]) -> None:
    data = bytearray(valid)
    for place, patch in patches:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    pixels_or_image_error(bytes(data))


@FUZZ
@given(st.sampled_from(VALID), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=20))
def test_removed_and_inserted_bytes(valid: bytes, a: float, b: float, insert: bytes) -> None:
    low, high = sorted((int(a * len(valid)), int(b * len(valid))))
    pixels_or_image_error(valid[:low] + insert + valid[high:])
