"""What the audit measures of each picture, kept in a file so that stopped work goes on where it stopped."""

from __future__ import annotations

import functools
import io
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope.errors import OutputError
from marrowscope.images import Pixels, decode

Floats = npt.NDArray[np.float32]

THUMB = 64
"""Side of the grey thumbnail, pixels."""
_RADIUS = 12
"""Spatial frequencies up to this many waves a side describe a picture."""

STATS = ("brightness", "contrast", "sharpness", "stain", "stain_red", "stain_blue")
"""Mean and standard deviation of the grey values (0..255); log10 of the variance of their Laplacian; mean optical
density; shares of the red and of the blue channel in the optical density of what is stained."""

_MAGIC = b"marrowscope features 1\n"


@functools.cache
def _orbits() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Frequencies (row, column) that turns and mirrors of a picture change into one another, two or four together.

    Of a real picture the amplitude at -f is that at f, so half of the plane is enough.
    """
    two, four = [], []
    for u in range(1, _RADIUS + 1):
        for v in range(u + 1):
            if u * u + v * v > _RADIUS * _RADIUS + 1:
                continue
            if v in {0, u}:
                two.append([(u, v), (v, u)] if v == 0 else [(u, v), (-u, v)])
            else:
                four.append([(u, v), (-u, v), (v, u), (-v, u)])
    return np.array(two, dtype=np.intp), np.array(four, dtype=np.intp)


@functools.cache
def window() -> Floats:
    """(THUMB, THUMB) weights that fall to the edges, so that these look like no content."""
    h = np.sqrt(np.hanning(THUMB + 2)[1:-1])
    return np.outer(h, h).astype(np.float32)


def vector_length() -> int:
    """Length of a descriptor."""
    two, four = _orbits()
    return 2 * len(two) + 4 * len(four)


def describe(thumb_HW: npt.NDArray[np.uint8]) -> Floats:
    """Descriptor of a grey thumbnail that right-angle turns and mirrors leave exactly as it is, and small shifts,
    brightness, contrast and compression nearly: square roots of the amplitudes of low spatial frequencies, sorted
    among those that turns and mirrors exchange.
    """
    x = thumb_HW.astype(np.float32)
    w = window()
    x = (x - (x * w).sum() / w.sum()) * w
    x /= np.float32(np.sqrt((x * x).sum()) + 1e-6)
    amplitude = np.abs(np.fft.rfft2(x))
    two, four = _orbits()
    parts = [np.sort(amplitude[o[..., 0], o[..., 1]], axis=1).ravel() for o in (two, four)]
    out: Floats = np.sqrt(np.concatenate(parts)).astype(np.float32)
    return out


def grey_thumb(pixels_HWC: Pixels, side: int) -> npt.NDArray[np.uint8]:
    """(side, side) grey, uint8; a picture that is no square is squeezed."""
    grey = Image.fromarray(pixels_HWC).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BOX), dtype=np.uint8)


def statistics(pixels_HWC: Pixels) -> Floats:
    """The figures named by `STATS`."""
    grey = np.asarray(Image.fromarray(pixels_HWC).convert("L"), dtype=np.int16)
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    density = _DENSITY[pixels_HWC[::2, ::2]]
    total = density.sum(2)
    stained = density[total > 0.45] if (total > 0.45).mean() > 0.01 else density.reshape(-1, 3)
    red, _, blue = stained.mean(0) / max(float(stained.mean(0).sum()), 1e-6)
    sharp = np.log10(laplacian.var(dtype=np.float64) + 1)
    return np.array([grey.mean(), grey.std(), sharp, total.mean() / 3, red, blue], dtype=np.float32)


_DENSITY = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)

RECORD = np.dtype(
    [
        ("sha", "u1", (32,)),
        ("stats", "<f4", (len(STATS),)),
        ("vector", "<f4", (vector_length(),)),
        ("thumb", "u1", (THUMB, THUMB)),
    ]
)


def measure(data: bytes, sha256: str) -> npt.NDArray[Any]:
    """Record of a picture: (1,) of `RECORD`.

    Raises:
        ImageError: It can't be decoded.
    """
    pixels = decode(data)
    record = np.zeros(1, dtype=RECORD)
    record["sha"] = np.frombuffer(bytes.fromhex(sha256), dtype=np.uint8)
    record["stats"] = statistics(pixels)
    record["thumb"] = thumb = grey_thumb(pixels, THUMB)
    record["vector"] = describe(thumb)
    return record


class FeatureStore:
    """Records in a file, one a content; in memory is only where each stands."""

    def __init__(self, path: Path | None) -> None:
        """Open or make a store; without a path it is a temporary file.

        Raises:
            OutputError: The file can't be made or written.
        """
        self.where: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._file: IO[bytes]
        try:
            if path is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("r+b" if path.exists() else "w+b")
            self._load()
        except OSError as e:
            raise OutputError(f"Can't write the audit's working file {path}: {e.strerror or e}.") from None

    def _load(self) -> None:
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        if self._file.read(len(_MAGIC)) != _MAGIC:  # new, or of another version
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_MAGIC)
            self._file.flush()
            return
        whole = (size - len(_MAGIC)) // RECORD.itemsize
        for i in range(whole):
            sha = os.pread(self._file.fileno(), 32, len(_MAGIC) + i * RECORD.itemsize)
            self.where[sha.hex()] = i
        self._count = whole
        # A record that was cut off when the work was stopped is written again.
        self._file.truncate(len(_MAGIC) + whole * RECORD.itemsize)
        self._file.seek(0, io.SEEK_END)

    def add(self, record: npt.NDArray[Any]) -> None:
        """Append one record.

        Raises:
            OutputError: The disk is full.
        """
        with self._lock:
            try:
                self._file.write(record.tobytes())
            except OSError as e:
                raise OutputError(f"Can't write the audit's working file: {e.strerror or e}.") from None
            self.where[record["sha"][0].tobytes().hex()] = self._count
            self._count += 1

    def flush(self) -> None:
        """Hand what was added to the system."""
        with self._lock:
            try:
                self._file.flush()
            except OSError as e:
                raise OutputError(f"Can't write the audit's working file: {e.strerror or e}.") from None

    def get(self, sha: str) -> npt.NDArray[Any]:
        """Record of one content: () of `RECORD`."""
        at = len(_MAGIC) + self.where[sha] * RECORD.itemsize
        data = os.pread(self._file.fileno(), RECORD.itemsize, at)
        out: npt.NDArray[Any] = np.frombuffer(data, dtype=RECORD)[0]
        return out

    def load(self, shas: Sequence[str]) -> tuple[Floats, Floats, npt.NDArray[np.uint8]]:
        """Figures (N, len(STATS)), descriptors (N, D) and half-size thumbnails (N, 32, 32) of N contents."""
        half = THUMB // 2
        stats = np.empty((len(shas), len(STATS)), dtype=np.float32)
        vectors = np.empty((len(shas), vector_length()), dtype=np.float32)
        small = np.empty((len(shas), half, half), dtype=np.uint8)
        for i, sha in enumerate(shas):
            record = self.get(sha)
            stats[i], vectors[i] = record["stats"], record["vector"]
            small[i] = halved(record["thumb"])
        return stats, vectors, small

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def halved(thumb_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Half the size, by means of two times two pixels."""
    h, w = thumb_HW.shape
    sums = thumb_HW.reshape(h // 2, 2, w // 2, 2).sum((1, 3), dtype=np.uint16)
    out: npt.NDArray[np.uint8] = ((sums + 2) // 4).astype(np.uint8)
    return out
