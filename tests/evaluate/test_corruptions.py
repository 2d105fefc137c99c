"""What is done to pictures before robustness is measured, against other libraries and by what must not matter."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.color import hed_from_rgb  # type: ignore[import-untyped]
from skimage.metrics import structural_similarity  # type: ignore[import-untyped]

from marrowscope.data.phantom import draw
from marrowscope.evaluate.corruptions import AMOUNTS, KINDS, STRENGTHS, Kind, corrupt, direction_of, stain_shift
from marrowscope.images import Pixels


@pytest.fixture(scope="module")
def cell() -> Pixels:
    return draw("NGS", seed=4).image


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_is_further_from_the_picture(cell: Pixels, kind: Kind) -> None:
    before = cell.copy()
    for direction in (1, -1):
        changed = [corrupt(cell, kind, s, direction) for s in STRENGTHS]
        assert all(c.shape == cell.shape and c.dtype == np.uint8 for c in changed)
        alike = [structural_similarity(cell, c, channel_axis=2) for c in changed]
        assert alike[0] < 0.999
        if kind != "rotation":  # half a turn is no more than a quarter
            assert sorted(alike, reverse=True) == alike
    assert np.array_equal(cell, before)
    assert np.array_equal(corrupt(cell, kind, 3), corrupt(cell, kind, 3))


def test_a_half_and_a_quarter_turn_are_exact(cell: Pixels) -> None:
    assert np.array_equal(corrupt(cell, "rotation", 5), np.rot90(cell, 2))
    assert np.array_equal(corrupt(cell, "rotation", 4), np.rot90(cell, -1))
    assert np.array_equal(corrupt(cell, "rotation", 4, -1), np.rot90(cell, 1))


def test_turning_is_that_of_scipy(cell: Pixels) -> None:
    ours = corrupt(cell, "rotation", 2).astype(float)
    theirs = ndimage.rotate(cell.astype(float), -30, reshape=False, order=1, mode="grid-mirror")
    assert np.abs(ours - theirs).max() <= 1.0


def test_blur_and_jpeg_are_those_of_other_libraries(cell: Pixels) -> None:
    theirs = ndimage.gaussian_filter(cell.astype(float), (3, 3, 0), mode="nearest")
    assert np.abs(corrupt(cell, "blur", 3).astype(float) - theirs).mean() < 1.0
    small = np.asarray(Image.fromarray(cell).resize((125, 125)))
    theirs = ndimage.gaussian_filter(small.astype(float), (1.5, 1.5, 0), mode="nearest")
    assert np.abs(corrupt(small, "blur", 3).astype(float) - theirs).mean() < 1.0
    buffer = io.BytesIO()
    Image.fromarray(cell).save(buffer, "JPEG", quality=25)
    assert np.array_equal(corrupt(cell, "jpeg", 1), np.asarray(Image.open(buffer)))


def test_scale_there_and_back(cell: Pixels) -> None:
    back = corrupt(corrupt(cell, "scale", 5, -1), "scale", 5, 1)
    assert np.abs(back.astype(float) - cell).mean() < 6
    height, width = cell.shape[:2]
    inner = Image.fromarray(cell).transform(
        (width, height),
        Image.Transform.EXTENT,
        (width / 2 - width / 3, height / 2 - height / 3, width / 2 + width / 3, height / 2 + height / 3),
        resample=Image.Resampling.BILINEAR,
    )
    assert np.abs(corrupt(cell, "scale", 4).astype(int) - np.asarray(inner)).max() <= 1


def test_stain_moves_along_the_stains_alone(cell: Pixels) -> None:
    """The planted change is found again by another program's separation of stains."""
    assert np.array_equal(stain_shift(cell, (1.0, 1.0)), cell)
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.1, 0.5, (40, 40, 2))
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    picture = np.clip(np.rint(256 * np.exp(-amounts @ vectors) - 1), 0, 255).astype(np.uint8)
    changed = stain_shift(picture, (1.2, 0.8))
    # scikit-image separates in its own unit and with vectors that are not of length 1: only ratios are compared.
    unmix = np.linalg.inv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
    assert np.allclose(unmix, hed_from_rgb, atol=0.02)
    before, after = (-np.log((p.astype(float) + 1) / 256) @ hed_from_rgb for p in (picture, changed))
    ratio = after.mean((0, 1)) / before.mean((0, 1))
    assert ratio[:2] == pytest.approx((1.2, 0.8), abs=0.02)


def test_brightness_keeps_ratios_until_white() -> None:
    grey = np.full((20, 20, 3), 100, np.uint8)
    up, down = corrupt(grey, "brightness", 5), corrupt(grey, "brightness", 5, -1)
    assert int(up[0, 0, 0]) == round(100 * np.exp(0.7))
    assert int(down[0, 0, 0]) == round(100 * np.exp(-0.7))
    assert corrupt(np.full((20, 20, 3), 200, np.uint8), "brightness", 5).max() == 255


def test_directions_are_even_and_do_not_depend_on_strength() -> None:
    names = [f"BLA/BLA_{i:05}.jpg" for i in range(2000)]
    for kind in KINDS:
        up = sum(direction_of(n, kind) == 1 for n in names)
        assert 900 < up < 1100
    assert [direction_of(n, "scale") for n in names] != [direction_of(n, "scale", seed=1) for n in names]


def test_stored_pixels() -> None:
    """A change means that figures of robustness that stand somewhere are of other pictures."""
    gradient = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    picture = np.stack([gradient, 255 - gradient, np.full_like(gradient, 120)], axis=2)
    # Blur, JPEG and turning are Pillow's own, and differ between its versions by rounding.
    found = {k: zlib.crc32(corrupt(picture, k, 3).tobytes()) for k in ("stain", "brightness")}
    assert found == STORED
    assert AMOUNTS["jpeg"] == (25, 18, 15, 10, 7)


STORED = {"stain": 828117927, "brightness": 494184688}


@pytest.mark.parametrize(
    ("kind", "strength", "direction"), [("fog", 1, 1), ("blur", 0, 1), ("blur", 6, 1), ("jpeg", 1, 0)]
)
def test_what_there_is_not(cell: Pixels, kind: Kind, strength: int, direction: int) -> None:
    with pytest.raises(ValueError, match="kind must be one of stain, brightness, blur, jpeg, scale, rotation"):
        corrupt(cell, kind, strength, direction)
