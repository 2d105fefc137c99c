"""What goes wrong with pictures on the way from the smear to the program: six kinds, each at five strengths.

After ImageNet-C (Hendrycks & Dietterich 2019, ICLR), with kinds and strengths that fit microscopy. Every change works
on the decoded picture, before `images.prepare`, and depends on nothing but the picture, kind, strength and direction.

    stain       amounts of the two stains times exp(+s) and exp(-s), as from another dye, pH or staining time
    brightness  light times exp(s), clipped at white, or times exp(-s)
    blur        Gaussian of s pixels: out of focus
    jpeg        saved as JPEG of quality s
    scale       magnified s times, or reduced s times (then mirrored at the rim)
    rotation    turned by s degrees about the centre, mirrored at the rim; a cell has no upper side

Kinds with two directions go one way for half of the pictures and the other way for the rest (`direction_of`).
"""

from __future__ import annotations

import hashlib
import io
import math
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from marrowscope.files import UNDECODABLE, UTF8
from marrowscope.images import Pixels

Kind = Literal["stain", "brightness", "blur", "jpeg", "scale", "rotation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STRENGTHS = (1, 2, 3, 4, 5)

AMOUNTS: MappingProxyType[Kind, tuple[float, ...]] = MappingProxyType(
    {
        "stain": (0.1, 0.2, 0.3, 0.45, 0.6),
        "brightness": (0.1, 0.2, 0.35, 0.5, 0.7),
        "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
        "jpeg": (25.0, 18.0, 15.0, 10.0, 7.0),
        "scale": (1.1, 1.2, 1.35, 1.5, 1.75),
        "rotation": (15.0, 30.0, 60.0, 90.0, 180.0),
    }
)
"""s of the table above, strength 1 to 5. Those of blur and JPEG are ImageNet-C's. Blur is of a picture of 250 px."""

SIDE = 250
"""Side of the collection's pictures, pixels, which the amount of blur is meant for."""

# Rows: optical density of haematoxylin, eosin and the residual (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23),
# each of length 1; the blue and the red stain of May-Gruenwald-Giemsa lie near the first two.
_STAINS: npt.NDArray[np.float64] = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)


def direction_of(name: str, kind: Kind, seed: int = 0) -> int:
    """+1 or -1, each for about half of all names; the same for all strengths of a kind."""
    return 1 if hashlib.sha256(f"{seed} {kind} {name}".encode(UTF8, UNDECODABLE)).digest()[0] % 2 else -1


def corrupt(pixels_HWC: Pixels, kind: Kind, strength: int, direction: int = 1) -> Pixels:
    """Change a decoded picture, uint8 (H, W, 3); the result has the same shape.

    Args:
        pixels_HWC: The picture; left as it is.
        kind: One of `KINDS`.
        strength: 1 (slight) to 5 (severe).
        direction: +1 or -1; no matter for blur and JPEG.

    Raises:
        ValueError: An unknown kind, strength or direction.
    """
    if kind not in AMOUNTS or strength not in STRENGTHS or direction not in {1, -1}:
        raise ValueError(
            f"kind must be one of {', '.join(KINDS)}, strength 1 to 5 and direction 1 or -1; they are {kind!r}, "
            f"{strength} and {direction}."
        )
    amount = AMOUNTS[kind][strength - 1]
    if kind == "stain":
        return stain_shift(pixels_HWC, (math.exp(direction * amount), math.exp(-direction * amount)))
    if kind == "brightness":
        return _rounded(pixels_HWC.astype(np.float64) * math.exp(direction * amount))
    image = Image.fromarray(pixels_HWC)
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(amount * min(image.size) / SIDE))
    elif kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(amount))
        image = Image.open(buffer).convert("RGB")
    elif kind == "scale":
        return _about_centre(pixels_HWC, amount**direction, 0.0)
    else:
        return _about_centre(pixels_HWC, 1.0, direction * amount)
    return np.asarray(image, dtype=np.uint8)


def stain_shift(pixels_HWC: Pixels, factors: tuple[float, float]) -> Pixels:
    """Multiply the amounts of the blue and of the red stain, in optical density -ln((x + 1) / 256); uint8 (H, W, 3)."""
    density = -np.log((pixels_HWC.astype(np.float64) + 1) / 256)
    amounts = density @ np.linalg.inv(_STAINS) * np.array([*factors, 1.0])
    return _rounded(256 * np.exp(-(amounts @ _STAINS)) - 1)


def _about_centre(pixels_HWC: Pixels, zoom: float, degrees: float) -> Pixels:
    """Magnify and turn about the centre, bilinear; what comes in from outside is the mirrored picture."""
    height, width = pixels_HWC.shape[:2]
    # A pad of the whole side on each side holds all that the largest reduction and any angle bring in.
    padded = Image.fromarray(np.pad(pixels_HWC, ((height, height), (width, width), (0, 0)), mode="symmetric"))
    angle = math.radians(degrees)
    # Rounded, so that a quarter turn reads pixels and not what is 1e-16 beside them.
    cos, sin = round(math.cos(angle) / zoom, 12), round(math.sin(angle) / zoom, 12)
    x, y = width / 2, height / 2
    # Output (u, v) is read at centre + matrix @ ((u, v) - centre); the pad moves the place read by (width, height).
    matrix = (cos, sin, width + x - cos * x - sin * y, -sin, cos, height + y + sin * x - cos * y)
    out = padded.transform((width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)
    return np.asarray(out, dtype=np.uint8)


def _rounded(values_HWC: npt.NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values_HWC), 0, 255).astype(np.uint8)
