"""Cells, artefacts and what lies around them, as layers of stain drawn from morphological parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from marrowscope.data import _drawing as d
from marrowscope.data._morphology import LIMITS, MORPHOLOGY, Spread

CELL_CODES = tuple(sorted(MORPHOLOGY.keys() - {"ART", "NIF"}))
"""The classes that are whole cells."""

# How far a cell is drawn towards its neighbour in maturation, in spreads; 0.5 is halfway.
_MATURITY_SD = 0.27

Traits = dict[str, float]
"""One cell's value of each parameter of Morphology."""


@dataclass
class Layer:
    """Stain (4, 250, 250) on the slide, how much it hides of what lies below, and its two masks as 0 to 1."""

    planes: d.Field
    cover: d.Field
    nucleus: d.Field


def sampled_value(name: str, spread: Spread, rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(spread.mean, spread.sd), *LIMITS[name]))


def sampled(code: str, rng: np.random.Generator) -> Traits:
    """Draw one cell's parameters, part of the way towards the class before or after it in maturation."""
    own = MORPHOLOGY[code]
    maturity = float(rng.normal(0, _MATURITY_SD))
    towards = own.after if maturity > 0 else own.before
    other, share = (MORPHOLOGY[towards], min(abs(maturity), 0.9)) if towards else (own, 0.0)
    traits: Traits = {}
    for name in LIMITS:
        a, b = getattr(own, name), getattr(other, name)
        mixed = Spread((1 - share) * a.mean + share * b.mean, (1 - share) * a.sd + share * b.sd)
        traits[name] = sampled_value(name, mixed, rng)
    return traits


def cell(traits: Traits, rng: np.random.Generator) -> Layer:
    """Draw a whole cell near the middle of the field."""
    radius = traits["diameter_um"] / d.UM_PER_PX / 2
    stretch = math.sqrt(traits["elongation"])
    x, y = rng.normal(0, 4, 2)
    angle = rng.uniform(0, np.pi)
    outline = d.ellipse(x, y, radius * stretch, radius / stretch, angle)
    rough = traits["roughness_um"] / d.UM_PER_PX
    outline += rough * d.noise(rng, 60, 125) + 0.3 * rough * d.noise(rng, 18, 125)
    way = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.7:  # the nucleus shifts along the long axis of a long cell
        way = angle + np.pi * rng.integers(2)
    along = math.hypot(math.cos(way - angle) / stretch, math.sin(way - angle) * stretch)
    body = _nucleus(traits, outline, radius / along, (float(x), float(y)), float(way), rng)
    cover, nucleus = d.coverage(outline), d.coverage(body)
    planes = np.zeros((4, d.SIZE_PX, d.SIZE_PX), dtype=np.float32)
    _stain_cytoplasm(planes, traits, outline, body, float(way), rng)
    _stain_nucleus(planes, traits, body, nucleus, rng)
    # Some azurophil granules lie above the nucleus.
    above = round(traits["azurophil_granules"] * float(nucleus.sum()) * d.UM_PER_PX**2 / 400)
    planes[d.DNA] += 0.7 * nucleus * d.dots(rng, nucleus, above, 1.7)
    return Layer(planes, cover, np.minimum(nucleus, cover))


def _nucleus(
    traits: Traits, outline: d.Field, radius: float, centre: tuple[float, float], way: float, rng: np.random.Generator
) -> d.Field:
    """Signed distance of a nucleus that fills the wanted share of the cell's area, shifted ``way`` and within it.

    ``radius``, px, is the cell's from its centre that way.
    """
    knots = rng.normal(0, 0.45, (2, 5))
    wiggle = np.stack([np.interp(np.arange(17), np.arange(0, 17, 4), k) for k in knots], axis=1)
    shape = (traits["nucleus_elongation"], traits["indentation"], traits["lobes"], traits["constriction"])
    points, radii = d.lobed_line(*shape, wiggle)
    # A bent nucleus turns its hollow to the middle of the cell, a round one lies anyhow.
    turn = way + np.pi / 2 + rng.normal(0, 0.5) + (0 if traits["indentation"] > 0.15 else rng.uniform(0, 2 * np.pi))
    (x, y), c, s = points.T, math.cos(turn), math.sin(turn)
    points = np.stack([x * c - y * s, x * s + y * c], axis=1)
    reach = float((np.linalg.norm(points, axis=1) + radii).max())
    direction = np.array([math.cos(way), math.sin(way)])

    def body(scale: float, step: int) -> d.Field:
        shift = max(0.0, radius - 4 - scale * reach) * traits["eccentricity"]
        return d.chain(points * scale + centre + shift * direction, radii * scale, step)

    # The area of overlapping discs, cut off by the cell's border, has no formula: measure it on a coarse grid.
    coarse = outline[::3, ::3]
    wanted = traits["nc_ratio"] * float((coarse > 0).sum())
    scale = radius * math.sqrt(traits["nc_ratio"]) / reach
    for _ in range(5):
        area = float((np.minimum(body(scale, 3), coarse - 2.5) > 0).sum())
        scale *= math.sqrt(np.clip(wanted / max(area, 1.0), 0.5, 2))
    edge = 0.8 * d.noise(rng, 24, 125) + 0.06 * scale * d.noise(rng, 50, 125)
    shape_in_cell: d.Field = np.minimum(body(scale, 1) + edge, outline - 2.5).astype(np.float32)
    return shape_in_cell


def _stain_cytoplasm(
    planes: d.Field, traits: Traits, outline: d.Field, body: d.Field, way: float, rng: np.random.Generator
) -> None:
    """Lay RNA, eosin, haemoglobin and granules into the cell around its nucleus."""
    cytoplasm = d.coverage(np.minimum(outline, -body + 1.5))
    area_um2 = float(cytoplasm.sum()) * d.UM_PER_PX**2
    rim = np.clip(1.15 - _depth(outline) / 60, 0.75, 1.15)
    cloud = 1 + 0.13 * d.noise(rng, 12) + 0.08 * d.noise(rng, 30)
    pale = np.zeros_like(cytoplasm)
    if traits["halo"] > 0.02:  # the Golgi zone, on the nucleus's inner side
        back = np.array([math.cos(way), math.sin(way)])
        inner = np.clip(0.5 - 0.012 * (d.GRID_X * back[0] + d.GRID_Y * back[1]), 0.25, 1)
        near = np.exp(-((np.minimum(body, 0) / 16) ** 2)) * inner
        pale = traits["halo"] * d.resized(near.astype(np.float32))
    holes = d.dots(rng, cytoplasm, round(traits["vacuoles"]), 5.5, 0.3) if traits["vacuoles"] >= 0.5 else 0.0
    open_ = cytoplasm * np.clip(1 - np.minimum(holes, 1) * 0.8, 0, 1)
    planes[d.RNA] += open_ * traits["basophilia"] * cloud * rim * (1 - 0.85 * pale)
    planes[d.EOSIN] += open_ * (traits["acidophilia"] * cloud + 0.10 * pale + 0.03)
    planes[d.HAEMOGLOBIN] += open_ * traits["haemoglobin"]
    if traits["fine_granules"] > 0.02:
        fine = np.clip(d.noise(rng, 2.5), 0, None) * traits["fine_granules"] * open_
        planes[d.DNA] += 0.35 * fine
        planes[d.EOSIN] += 0.12 * fine
    number = round(traits["azurophil_granules"] * area_um2 / 100)
    planes[d.DNA] += 0.85 * open_ * d.dots(rng, cytoplasm * (1 - 0.5 * pale), number, 1.7)
    number = round(traits["eosinophil_granules"] * area_um2 / 100)
    grains = open_ * d.dots(rng, cytoplasm, number, 2.3)
    planes[d.EOSIN] += 0.42 * grains
    planes[d.HAEMOGLOBIN] += 0.30 * grains


def _depth(distance: d.Field) -> d.Field:
    """Depth below the outline, px, 0 outside, (250, 250)."""
    return d.resized(np.maximum(distance, 0))


def _stain_nucleus(planes: d.Field, traits: Traits, body: d.Field, nucleus: d.Field, rng: np.random.Generator) -> None:
    """Lay chromatin and nucleoli into the nucleus, and take the cytoplasm's stain away from it."""
    grain = traits["chromatin_grain_um"] / d.UM_PER_PX
    clumps = 0.8 * d.noise(rng, 2.2 * grain) + 0.3 * d.noise(rng, max(grain, 4.0))
    if traits["cartwheel"] > 0.05:
        weight = np.maximum(body, 0)
        total = float(weight.sum()) + 1e-6
        dx, dy = d.GRID_X - (d.GRID_X * weight).sum() / total, d.GRID_Y - (d.GRID_Y * weight).sum() / total
        spokes = np.cos(7 * np.arctan2(dy, dx) + rng.uniform(0, 6.3)) * np.clip(np.hypot(dx, dy) / 14, 0, 1)
        clumps = (1 - traits["cartwheel"]) * clumps + traits["cartwheel"] * 1.3 * d.resized(spokes.astype(np.float32))
    texture = 1 + traits["chromatin_contrast"] * np.tanh(clumps) * 0.75
    membrane = 1 + 0.15 * np.exp(-((_depth(body) / 5) ** 2))
    nucleoli = d.dots(rng, nucleus * (_depth(body) > 10), round(traits["nucleoli"]), 9.0, 0.2)
    nucleoli = np.minimum(nucleoli, 1)
    chromatin = traits["chromatin_density"] * texture * membrane * (1 - 0.45 * nucleoli)
    planes *= 1 - 0.9 * nucleus
    planes[d.DNA] += nucleus * chromatin
    # Dense chromatin turns from purple to blue-black.
    planes[d.RNA] += nucleus * (0.2 * np.maximum(chromatin - 1.7, 0) + 0.25 * nucleoli)


def damaged(layer: Layer, damage: float, rng: np.random.Generator) -> Layer:
    """Smear, tear and homogenise a cell; 0 leaves it nearly as it was, 1 leaves nothing to tell it by."""
    push = 28 * damage
    yy, xx = np.mgrid[0 : d.SIZE_PX, 0 : d.SIZE_PX]
    way = rng.uniform(0, 2 * np.pi)
    along = np.abs(d.noise(rng, 60)) * push
    x = xx + along * math.cos(way) + push * 0.3 * d.noise(rng, 40)
    y = yy + along * math.sin(way) + push * 0.3 * d.noise(rng, 40)
    row, column = (np.clip(np.rint(v), 0, d.SIZE_PX - 1).astype(np.intp) for v in (y, x))
    planes, cover, nucleus = layer.planes[:, row, column], layer.cover[row, column], layer.nucleus[row, column]
    torn = np.clip(0.5 + 2 * (d.noise(rng, 22) + 2.1 - 1.6 * damage), 0, 1) if rng.random() < 0.3 else 1.0
    dull = rng.random() * damage
    for k in (d.DNA, d.RNA):
        planes[k] = ((1 - dull) * planes[k] + dull * d.blurred(planes[k], 22)) * torn
    planes[d.DNA] *= rng.uniform(0.75, 1.35)
    cover = np.minimum(cover * torn, 1).astype(np.float32)
    return Layer(planes.astype(np.float32), cover, (nucleus * torn).astype(np.float32))


def artefact(rng: np.random.Generator) -> Layer:
    """Draw a smudge, a crushed cell, a heap of cells, precipitated stain, or a cell damaged past recognition."""
    kind = rng.choice(5, p=[0.32, 0.18, 0.18, 0.17, 0.15])
    own = {name: sampled_value(name, getattr(MORPHOLOGY["ART"], name), rng) for name in LIMITS}
    if kind == 0:
        return _smudge(own, rng, holes=1.0)
    if kind == 1:
        crushed = own | {"diameter_um": own["diameter_um"] * 0.75, "chromatin_density": own["chromatin_density"] * 1.5}
        return _smudge(crushed, rng, holes=0.0)
    if kind == 2:
        below, above = (cell(sampled(CELL_CODES[k], rng), rng) for k in rng.integers(len(CELL_CODES), size=2))
        dx, dy = (int(v) for v in rng.integers(-45, 46, 2))
        for part in ("planes", "cover", "nucleus"):
            setattr(above, part, np.roll(getattr(above, part), (dy, dx), axis=(-2, -1)))
        planes = below.planes + 0.8 * above.planes
        heap = Layer(planes, np.maximum(below.cover, above.cover), np.maximum(below.nucleus, above.nucleus))
        return damaged(heap, own["damage"] * 0.6, rng)
    if kind == 3:
        return _precipitate(rng)
    return damaged(cell(sampled(CELL_CODES[rng.integers(len(CELL_CODES))], rng), rng), own["damage"], rng)


def _smudge(traits: Traits, rng: np.random.Generator, holes: float) -> Layer:
    """Draw a bare nucleus, spread out with frayed borders (``holes`` 1) or crushed dark and angular (0)."""
    radius, stretch = traits["diameter_um"] / d.UM_PER_PX / 2, math.sqrt(traits["elongation"])
    x, y = rng.normal(0, 10, 2)
    body = d.ellipse(x, y, radius * stretch, radius / stretch, rng.uniform(0, np.pi))
    rough = 10 * traits["roughness_um"]
    body += rough * (1.1 * d.noise(rng, 60, 125) + 0.5 * d.noise(rng, 16, 125) + 0.25 * d.noise(rng, 6, 125))
    cover = d.coverage(body, 5.0)
    threads = np.clip(0.75 + 0.45 * d.noise(rng, 12) + 0.3 * d.noise(rng, 5), 0.1, 1.4) if holes else 1.0
    planes = np.zeros((4, d.SIZE_PX, d.SIZE_PX), dtype=np.float32)
    _stain_nucleus(planes, traits | {"nucleoli": 0.0}, body.astype(np.float32), cover, rng)
    planes *= threads
    planes[d.EOSIN] += 0.25 * cover
    return Layer(planes.astype(np.float32), cover, cover)


def _precipitate(rng: np.random.Generator) -> Layer:
    """Draw stain that fell out as grains, with or without a pale ghost of a cell below."""
    cloud = np.clip(d.noise(rng, 70) + 0.3, 0, None) * np.exp(-d.resized((d.GRID_X**2 + d.GRID_Y**2) / 90.0**2))
    grains = d.dots(rng, cloud, int(rng.integers(150, 700)), float(rng.uniform(1.5, 3.5)), 0.5)
    planes = np.zeros((4, d.SIZE_PX, d.SIZE_PX), dtype=np.float32)
    ghost = d.coverage(d.ellipse(*rng.normal(0, 15, 2), *rng.uniform(40, 80, 2)) + 4 * d.noise(rng, 30, 125), 12.0)
    planes[d.DNA] = 1.8 * grains
    planes[d.EOSIN] = 0.3 * ghost * rng.random()
    planes[d.RNA] = 0.5 * grains + 0.3 * ghost * rng.random()
    return Layer(planes, np.maximum(ghost, np.minimum(grains, 1)), np.zeros_like(ghost))


def surroundings(rng: np.random.Generator, layer: Layer) -> d.Field:
    """Draw plasma, platelets, red cells and, at the border, parts of other cells, (4, 250, 250)."""
    planes = np.zeros((4, d.SIZE_PX, d.SIZE_PX), dtype=np.float32)
    film = np.clip(0.5 + 0.5 * d.noise(rng, 90), 0, None)
    planes[d.EOSIN] = film * rng.uniform(0, 0.14)
    planes[d.RNA] = film * rng.uniform(0, 0.12)
    clear = np.clip(d.noise(rng, 80) + 0.3, 0, 1)
    planes[d.DNA] = 0.6 * d.dots(rng, clear, int(rng.exponential(60)), 1.4, 0.3)
    room = math.sqrt(float(layer.cover.sum()) / np.pi)  # radius of the cell, px
    stain = rng.uniform(0.12, 0.5)
    for _ in range(int(rng.integers(2, 9))):
        away, angle = rng.uniform(room + 26, 165), rng.uniform(0, 2 * np.pi)
        a = 37 * math.exp(rng.normal(0, 0.09))
        disc = d.ellipse(away * math.cos(angle), away * math.sin(angle), a, a * rng.uniform(0.8, 1), angle)
        cell = d.coverage(disc)
        pallor = 1 - rng.uniform(0.2, 0.6) * np.exp(-(((_depth(disc) - a) / (0.5 * a)) ** 2))
        planes[d.HAEMOGLOBIN] = np.maximum(planes[d.HAEMOGLOBIN], stain * cell * pallor)
        planes[d.EOSIN] = np.maximum(planes[d.EOSIN], 0.10 * cell)
    for _ in range(int(rng.integers(0, 4))):
        _neighbour(planes, room, rng)
    return planes


def _neighbour(planes: d.Field, room: float, rng: np.random.Generator) -> None:
    """Lay the near side of another nucleated cell at the border of the field."""
    radius = rng.uniform(50, 85)
    away, angle = room + radius * rng.uniform(0.95, 1.3), rng.uniform(0, 2 * np.pi)
    x, y = away * math.cos(angle), away * math.sin(angle)
    cell = d.ellipse(x, y, radius, radius * rng.uniform(0.85, 1)) + 2 * d.noise(rng, 40, 125)
    turn = rng.uniform(0, np.pi)
    body = d.ellipse(x, y, radius * rng.uniform(0.5, 0.85), radius * rng.uniform(0.5, 0.85), turn)
    body = np.minimum(body + 2 * d.noise(rng, 30, 125), cell - 3).astype(np.float32)
    cover, nucleus = d.coverage(cell.astype(np.float32)), d.coverage(body)
    planes *= 1 - 0.95 * cover
    planes[d.RNA] += cover * rng.uniform(0.1, 0.9)
    planes[d.EOSIN] += cover * rng.uniform(0.0, 0.3)
    density = {"chromatin_density": rng.uniform(1.6, 2.6), "chromatin_contrast": 0.3, "chromatin_grain_um": 0.6}
    _stain_nucleus(planes, density | {"cartwheel": 0.0, "nucleoli": 0.0}, body, nucleus, rng)
