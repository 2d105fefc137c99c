"""Heat on pictures: overlays, and grids in which right and wrong can be told without seeing colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from marrowscope.explain.heat import Heat, shown
from marrowscope.files import atomic_path
from marrowscope.images import Pixels

# Viridis of Smith and van der Walt (2015, CC0): even steps of lightness, the same for the colour-blind, and far from
# the violet of the stain.
_VIRIDIS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
     (170, 220, 50), (253, 231, 37)], dtype=np.float64,
)  # fmt: skip

RIGHT, WRONG, UNKNOWN = "#009e73", "#d55e00", "#6b7280"
"""Frames: green and vermilion of Okabe and Ito's palette, and grey where no truth is known. A letter says the same."""

_INK, _PAPER = "#1b1f24", "#ffffff"
_GAP, _FRAME, _LINE = 6, 4, 17
_MOST = 0.75  # share of the heat's colour at its peak


@dataclass(frozen=True)
class Tile:
    """One picture of a grid.

    Attributes:
        picture_HWC: uint8 (size, size, 3).
        heat_HW: float32 (size, size).
        right: Whether it was named right; None where no truth is known.
        text: What stands below it.
    """

    picture_HWC: Pixels
    heat_HW: Heat
    right: bool | None
    text: str


def colours(heat_HW: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Heat 0..1 to RGB 0..255, (H, W, 3)."""
    place = np.clip(heat_HW, 0, 1) * (len(_VIRIDIS) - 1)
    steps = np.arange(len(_VIRIDIS))
    return np.stack([np.interp(place, steps, _VIRIDIS[:, c]) for c in range(3)], axis=-1)


def overlay(picture_HWC: Pixels, heat_HW: Heat) -> Pixels:
    """The picture under its heat, scaled to a peak of 1: the hotter, the more colour; cold places stay as they are.

    A flat map leaves the picture as it is.
    """
    scaled = shown(heat_HW)
    share = (_MOST * np.sqrt(scaled))[:, :, None]
    mixed = (1 - share) * picture_HWC + share * colours(scaled)
    return np.round(mixed).clip(0, 255).astype(np.uint8)


def pair(tile: Tile, side: int = 224) -> Image.Image:
    """Cell and overlay side by side in a frame, with the text below."""
    return grid([tile], columns=1, title="", side=side)


def grid(tiles: Sequence[Tile], *, columns: int, title: str, side: int = 160) -> Image.Image:
    """Cells beside their overlays, row by row, each in its frame.

    Args:
        tiles: What to show, at least one.
        columns: Tiles in a row.
        title: Above all; may be empty.
        side: Of a picture, pixels.
    """
    columns = min(columns, len(tiles))
    wide, tall = 2 * side + 2 * _FRAME + _GAP, side + 2 * _FRAME + _LINE + _GAP
    head = 26 if title else 0
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * wide + _GAP, head + rows * tall + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, 5), title, _INK, font=ImageFont.load_default(15))
    for i, tile in enumerate(tiles):
        x, y = _GAP + i % columns * wide, head + _GAP + i // columns * tall
        _draw_tile(sheet, draw, tile, (x, y), side)
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, place: tuple[int, int], side: int) -> None:
    x, y = place
    colour, mark = {True: (RIGHT, "R"), False: (WRONG, "W"), None: (UNKNOWN, "")}[tile.right]
    right, bottom = x + 2 * side + 2 * _FRAME - 1, y + side + 2 * _FRAME - 1
    draw.rectangle((x, y, right, bottom), fill=colour)
    for j, pixels in enumerate((tile.picture_HWC, overlay(tile.picture_HWC, tile.heat_HW))):
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(image, (x + _FRAME + j * side, y + _FRAME))
    font = ImageFont.load_default(12)
    left = x
    if mark:
        draw.rectangle((x, bottom + 1, x + 15, bottom + _LINE), fill=colour)
        draw.text((x + 4, bottom + 2), mark, _PAPER, font=font)
        left = x + 20
    draw.text((left, bottom + 2), _fitting(tile.text, right - left, font), _INK, font=font)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of the text as has space."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
