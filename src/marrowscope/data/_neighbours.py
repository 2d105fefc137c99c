"""Near duplicates: candidates by descriptor, then a check of the pixels at three sizes.

A candidate pair is compared under all eight turns and mirrors and all shifts up to a quarter of the side, by the
correlation of band-passed grey values where the two overlap. The band leaves out what all cells have in common (a dark
disc on a bright ground). A wide band finds the transform and the shift, a fine one tells copies from likenesses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from marrowscope.data._threads import Progress, in_threads

Floats = npt.NDArray[np.float32]

NEIGHBOURS = 4
"""Candidates that are looked at for each picture."""
DIMENSIONS = 128
"""Length of descriptors after whitening."""

TRANSFORMS = (
    "none", "transposed", "turned 90", "turned 90, transposed", "turned 180", "turned 180, transposed", "turned 270",
    "turned 270, transposed",
)  # fmt: skip
"""Names of the eight, in the order of `dihedral`."""


class Match(NamedTuple):
    """How well picture b fits picture a: ``b[y + dy, x + dx]`` is ``transform(a)[y, x]``."""

    score: float
    transform: int
    dy: int
    dx: int


def whiten(vectors_NC: Floats) -> Floats:
    """Weigh the descriptors so that what varies much among all pictures does not drown the rest: (N, <= DIMENSIONS)."""
    centred = vectors_NC - vectors_NC.mean(0)
    values, axes = np.linalg.eigh((centred.T @ centred / max(1, len(centred) - 1)).astype(np.float64))
    values, axes = np.maximum(values[::-1][:DIMENSIONS], 0), axes[:, ::-1][:, :DIMENSIONS]
    # Half of the mean variance added keeps directions without signal from being blown up to noise.
    scale = np.sqrt(values + 0.5 * values.sum() / vectors_NC.shape[1] + 1e-12)
    out: Floats = centred @ (axes / scale).astype(np.float32)
    return out


def nearest(
    points_NC: Floats,
    k: int = NEIGHBOURS,
    rows: int = 256,
    columns: int = 16384,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.intp]:
    """Unordered pairs (M, 2), i < j, of points one of which is among the k nearest of the other; exact, by blocks.

    A block of `rows` x `columns` products stays in the processor's cache. The work grows with the square of the number
    of points: 171,374 points take some minutes of one core.

    Args:
        points_NC: N points.
        k: Neighbours of each point.
        rows: Points at a time whose neighbours are looked for.
        columns: Points at a time among which they are looked for.
        jobs: Threads; all processors by default.
        progress: Called with (points done, N).
    """
    n = len(points_NC)
    k = min(k, n - 1)
    if k < 1:
        return np.empty((0, 2), dtype=np.intp)
    half_norm = (points_NC * points_NC).sum(1) / 2

    def work(starts: Sequence[int]) -> npt.NDArray[np.intp]:
        return np.concatenate([_block_pairs(points_NC, half_norm, k, r0, min(rows, n - r0), columns) for r0 in starts])

    found = []
    for pairs in in_threads(work, range(0, n, rows), jobs, chunk=1):
        found.append(pairs)
        if progress is not None:
            progress(min(len(found) * rows, n), n)
    return np.unique(np.concatenate(found), axis=0)


def _block_pairs(
    points_NC: Floats, half_norm: Floats, k: int, r0: int, rows: int, columns: int
) -> npt.NDArray[np.intp]:
    """Pairs of the points from `r0` on, `rows` of them, with their `k` nearest."""
    block = points_NC[r0 : r0 + rows]
    best = np.full((rows, k), -np.inf, dtype=np.float32)
    which = np.zeros((rows, k), dtype=np.intp)
    for c0 in range(0, len(points_NC), columns):
        near = block @ points_NC[c0 : c0 + columns].T
        near -= half_norm[c0 : c0 + columns]
        inside = np.arange(max(r0, c0), min(r0 + rows, c0 + near.shape[1]))
        near[inside - r0, inside - c0] = -np.inf  # a point is not its own neighbour
        best, which = _merge(best, which, near, c0)
    i = np.repeat(np.arange(r0, r0 + rows), k)
    j = which.ravel()
    return np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1)[np.isfinite(best.ravel())]


def _merge(best: Floats, which: npt.NDArray[np.intp], near: Floats, c0: int) -> tuple[Floats, npt.NDArray[np.intp]]:
    """The k best of those known and those of one more block of columns."""
    k = best.shape[1]
    if near.shape[1] > k:
        if np.isneginf(best[:, -1]).any():
            top = np.argpartition(near, -k, axis=1)[:, -k:]
            values = np.take_along_axis(near, top, axis=1)
        else:
            # Few of a later block are better than what is known.
            r, c = np.nonzero(near > best[:, -1:])
            count = np.bincount(r, minlength=len(best))
            width = int(count.max(initial=0))
            place = np.arange(len(r)) - np.repeat(np.cumsum(count) - count, count)
            values = np.full((len(best), width), -np.inf, dtype=np.float32)
            top = np.zeros((len(best), width), dtype=np.intp)
            values[r, place], top[r, place] = near[r, c], c
    else:
        values, top = near, np.broadcast_to(np.arange(near.shape[1]), near.shape)
    values = np.concatenate([best, values], axis=1)
    top = np.concatenate([which, top + c0], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(top, order, axis=1)


# ----------------------------------------------------------------------------------------------------- pixel check


Band = tuple[float, float]
WIDE: Band = (0.7 / 64, 3.0 / 64)
FINE: Band = (0.4 / 64, 1.0 / 64)
"""Standard deviations, in sides, of the two Gaussians whose difference a band keeps."""


@functools.cache
def _response(side: int, band: Band) -> Floats:
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    f2 = (fy * fy + fx * fx) * side * side
    low, high = (np.exp(-2 * np.pi**2 * s**2 * f2) for s in band)
    return (low - high).astype(np.float32)


@functools.cache
def _window(side: int) -> Floats:
    h = np.sqrt(np.hanning(side + 2)[1:-1])
    return np.outer(h, h).astype(np.float32)


Pixel = TypeVar("Pixel", np.uint8, np.float32)


def dihedral(image_HW: npt.NDArray[Pixel]) -> npt.NDArray[Pixel]:
    """All turns and mirrors of a square: (8, H, W)."""
    turned = [np.rot90(image_HW, k) for k in range(4)]
    return np.stack([x for t in turned for x in (t, t.T)])


def band_passed(images: npt.NDArray[np.uint8], band: Band) -> Floats:
    """Grey squares (N, S, S) -> (N, S, S)."""
    side = images.shape[-1]
    x = images.astype(np.float32)
    x -= x.mean((1, 2), keepdims=True)
    out = np.fft.irfft2(np.fft.rfft2(x) * _response(side, band), s=(side, side))
    return out.astype(np.float32)


def match(image_HW: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], limit: float = 0.25) -> list[Match]:
    """How well each of N squares of the same size fits one, over all transforms and shifts up to `limit` sides."""
    side = image_HW.shape[0]
    both = band_passed(np.concatenate([image_HW[None], others]), WIDE)
    a, b = dihedral(both[0]), both[1:]
    window = _window(side)
    spectra = np.conj(np.fft.rfft2(a * window))[None] * np.fft.rfft2(b * window)[:, None]
    fit = np.fft.irfft2(spectra, s=(side, side))
    reach = int(limit * side)
    near = np.r_[0 : reach + 1, side - reach : side]
    fit = fit[:, :, near][:, :, :, near].reshape(len(b), -1)
    out = []
    for j, best in enumerate(fit.argmax(1)):
        transform, y, x = np.unravel_index(best, (len(a), len(near), len(near)))
        dy, dx = (int(near[v]) - (side if near[v] > reach else 0) for v in (y, x))
        out.append(_finest(a[transform], b[j], int(transform), dy, dx, 1))
    return out


def refine(image_HW: npt.NDArray[np.uint8], other_HW: npt.NDArray[np.uint8], rough: Match, scale: int) -> Match:
    """Repeat a match at a size `scale` times as large, near the shift that is known, in the fine band."""
    a = band_passed(dihedral(image_HW)[rough.transform][None], FINE)[0]
    b = band_passed(other_HW[None], FINE)[0]
    return _finest(a, b, rough.transform, rough.dy * scale, rough.dx * scale, scale)


def _finest(a: Floats, b: Floats, transform: int, dy: int, dx: int, reach: int) -> Match:
    steps = range(-reach, reach + 1)
    return max(Match(_overlap_score(a, b, dy + y, dx + x), transform, dy + y, dx + x) for y in steps for x in steps)


def _overlap_score(a: Floats, b: Floats, dy: int, dx: int) -> float:
    """Correlation where the two overlap, less a margin that the band pass has mixed with the outside."""
    side = len(a)
    margin = max(1, side * 3 // 64)
    y0, y1 = max(margin, margin - dy), min(side - margin, side - margin - dy)
    x0, x1 = max(margin, margin - dx), min(side - margin, side - margin - dx)
    if y1 - y0 < side // 3 or x1 - x0 < side // 3:
        return 0.0
    p = a[y0:y1, x0:x1].ravel()
    q = b[y0 + dy : y1 + dy, x0 + dx : x1 + dx].ravel()
    # Sums of products: this is called nine times for each of hundreds of thousands of pairs.
    n, p_sum, q_sum = len(p), float(p.sum()), float(q.sum())
    p_var, q_var = float(p @ p) - p_sum * p_sum / n, float(q @ q) - q_sum * q_sum / n
    return (float(p @ q) - p_sum * q_sum / n) / math.sqrt(max(p_var, 0.0) * max(q_var, 0.0) + 1e-6)


def connected(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Group name, the smallest member, of everything that stands in a pair."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while (above := parent.setdefault(x, x)) != x:
            parent[x] = x = parent[above]
        return x

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {x: root(x) for x in list(parent)}
