"""Shapes, textures and optics that a drawn cell is made of. Only numpy and Pillow.

A picture is 250 x 250 px at 0.1 um/px. Positions are (x, y) in px from its centre, x to the right and y down. Shapes
are signed distances in px, positive inside, kept on a grid of every second pixel (they are smooth, and it is four
times cheaper) until :func:`coverage` brings them to full size. Stain is held as optical density in four planes, see
:data:`STAINS`, and becomes light in :func:`develop` after Beer and Lambert.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Field = npt.NDArray[np.float32]
"""Grey values of a picture, (250, 250), or of its half-size grid, (125, 125)."""

SIZE_PX = 250
UM_PER_PX = 0.1
_HALF = SIZE_PX // 2

_AXIS = (2 * np.arange(_HALF, dtype=np.float32) + 0.5) - (SIZE_PX - 1) / 2
GRID_X, GRID_Y = np.meshgrid(_AXIS.astype(np.float32), _AXIS.astype(np.float32))
"""Position of each point of the half-size grid, px from the centre."""

DNA, RNA, EOSIN, HAEMOGLOBIN = range(4)
"""Planes of a layer of stain: azure-eosin on chromatin, azure on RNA, eosin on protein, haemoglobin's own colour."""

STAINS: Field = np.array(
    [[0.52, 1.00, 0.17], [1.00, 0.85, 0.20], [0.28, 1.00, 0.45], [0.30, 0.48, 0.80]], dtype=np.float32
)
"""Absorption of red, green and blue by one unit of each plane, (4, 3), chosen by eye on May-Grünwald-Giemsa smears."""


def resized(field: Field, size: int = SIZE_PX) -> Field:
    """Return a square field at another size, bicubic."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def blurred(field: Field, scale_px: float) -> Field:
    """Return the field without detail finer than ``scale_px``."""
    small = max(2, round(SIZE_PX / max(scale_px, 1.0)))
    return resized(resized(field, small), field.shape[0])


def noise(rng: np.random.Generator, grain_px: float, size: int = SIZE_PX) -> Field:
    """Return smooth noise of about zero mean and unit spread whose blobs are ``grain_px`` wide at full size."""
    small = int(np.clip(math.ceil(SIZE_PX / grain_px) + 1, 3, size))
    return resized(rng.standard_normal((small, small), dtype=np.float32), size) * np.float32(1.25)


def ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> Field:
    """Signed distance (approximate off the outline) to an ellipse with half axes ``a`` and ``b`` px, half-size grid."""
    c, s = math.cos(angle), math.sin(angle)
    u = ((GRID_X - x) * c + (GRID_Y - y) * s) / a
    v = ((GRID_Y - y) * c - (GRID_X - x) * s) / b
    return ((1 - np.sqrt(u * u + v * v)) * math.sqrt(a * b)).astype(np.float32)


def chain(points: npt.NDArray[np.float64], radii: npt.NDArray[np.float64], step: int = 1) -> Field:
    """Signed distance to discs at points (n, 2) of radii (n,), px, on every ``step``-th point of the half-size grid."""
    x, y = GRID_X[::step, ::step], GRID_Y[::step, ::step]
    best = np.full(x.shape, -1e6, dtype=np.float32)
    for (px, py), radius in zip(points.tolist(), radii.tolist(), strict=True):
        np.maximum(best, radius - np.sqrt((x - px) ** 2 + (y - py) ** 2), out=best)
    return best


def lobed_line(
    elongation: float, indentation: float, lobes: float, constriction: float, wiggle: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the discs of a nucleus of unit half-width: centre line (17, 2) and radii (17,).

    One family runs from the round nucleus over kidney and band to joined lobes: as ``indentation`` grows from 0 to 1
    the line gets longer and bends (to about 250 degrees), and ``constriction`` (0 to 0.9) thins it between ``lobes``.
    ``wiggle``, (17, 2), moves the discs off the line, in half-widths.
    """
    t = np.linspace(-0.5, 0.5, 17)
    length = 2 * (elongation - 1) + 6.0 * indentation
    turn = max(4.4 * indentation, 1e-3)
    radius = length / turn
    points = np.stack([radius * np.sin(turn * t), radius * (1 - np.cos(turn * t))], axis=1) + wiggle * indentation
    joints = 0.5 - 0.5 * np.cos(2 * np.pi * (t + 0.5) * max(round(lobes) - 1, 0))
    radii = 1 - constriction * joints**0.7
    weight = radii**2
    return points - (points * weight[:, None]).sum(0) / weight.sum(), radii


def coverage(distance: Field, edge_px: float = 3.0) -> Field:
    """Return how far each pixel lies inside a half-size signed distance, 0 to 1, (250, 250)."""
    inside: Field = np.clip(resized(distance) / np.float32(edge_px) + np.float32(0.5), 0, 1)
    return inside


def dots(rng: np.random.Generator, where: Field, number: int, radius_px: float, spread: float = 0.25) -> Field:
    """Return ``number`` soft dots of unit height at places drawn in proportion to ``where``, (250, 250)."""
    if number < 1 or not where.any():
        return np.zeros((SIZE_PX, SIZE_PX), dtype=np.float32)
    cumulative = np.cumsum(where.ravel(), dtype=np.float64)
    cells = np.searchsorted(cumulative, rng.random(number) * cumulative[-1])
    y, x = np.divmod(np.minimum(cells, SIZE_PX * SIZE_PX - 1), SIZE_PX)
    radii = radius_px * np.minimum(np.exp(rng.normal(0, spread, number)), 1.5)
    reach = math.ceil(2 * 1.5 * radius_px)
    dy, dx = (d.ravel() for d in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    fy, fx = rng.random((2, number, 1)) - 0.5
    height = np.exp(-((dy - fy) ** 2 + (dx - fx) ** 2) / radii[:, None] ** 2)
    height[height < 0.02] = 0
    yy, xx = y[:, None] + dy, x[:, None] + dx
    inside = (yy >= 0) & (yy < SIZE_PX) & (xx >= 0) & (xx < SIZE_PX)
    flat = np.bincount((yy * SIZE_PX + xx)[inside], weights=height[inside], minlength=SIZE_PX * SIZE_PX)
    return np.minimum(flat, 1.6).reshape(SIZE_PX, SIZE_PX).astype(np.float32)


def develop(planes: Field, rng: np.random.Generator, defocus_px: float) -> npt.NDArray[np.uint8]:
    """Return the picture, (250, 250, 3), of stain planes (4, 250, 250) on a lit slide.

    Staining strength and hue, lamp colour and brightness, shading and sensor noise vary from picture to picture.
    """
    stains = STAINS * np.exp(rng.normal(0, 0.10, (4, 1))) * np.exp(rng.normal(0, 0.05, (4, 3)))
    # Term by term: a matrix product's last bits depend on the processor, and it would start threads.
    terms = stains.astype(np.float32)[:, :, None, None]
    density = sum((terms[k] * planes[k] for k in range(1, 4)), start=terms[0] * planes[0])
    lamp = 236 * rng.uniform(0.72, 1.02) * np.array([0.97, 0.96, 1.02]) * np.exp(rng.normal(0, 0.025, 3))
    shade = 1 + rng.normal(0, 0.03) * GRID_X / SIZE_PX + rng.normal(0, 0.03) * GRID_Y / SIZE_PX
    light = np.exp(-density) * resized(shade.astype(np.float32)) * lamp.astype(np.float32)[:, None, None]
    glare = np.float32(rng.uniform(2, 8))  # stray light: the darkest nucleus is not black
    sharp = Image.fromarray(np.clip(light.transpose(1, 2, 0) + glare, 0, 255).astype(np.uint8), "RGB")
    picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(defocus_px)), dtype=np.float32)
    grain = rng.standard_normal((SIZE_PX, SIZE_PX, 3), dtype=np.float32) * np.float32(rng.uniform(1.0, 3.5))
    return np.clip(picture + grain + np.float32(0.5), 0, 255).astype(np.uint8)
