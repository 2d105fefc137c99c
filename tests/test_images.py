"""Whatever bytes come in: checked pixels or an ImageError, and never anything else."""

from __future__ import annotations

import io
import os
import resource
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.schema import Preprocessing
from picture_files import RNG, encode, noise, pixels_or_image_error, png, smooth


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as e:
        images.decode(data)
    text = str(e.value)
    assert len(text) < 200
    assert text.isprintable()
    return text


# ------------------------------------------------------------------------------------------------- good, if unusual


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_comes_back(form: str) -> None:
    pixels = noise()
    np.testing.assert_array_equal(images.decode(encode(pixels, form)), pixels)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_rgb_comes_close(form: str) -> None:
    pixels = smooth()
    out = images.decode(encode(pixels, form, quality=95))
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - pixels).mean() < 4


def test_grey_is_repeated() -> None:
    grey = noise(channels=1)
    out = images.decode(encode(grey, "PNG"))
    np.testing.assert_array_equal(out, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(form: str) -> None:
    grey = np.linspace(0, 65535, 40 * 50).round().astype(np.uint16).reshape(40, 50)
    out = images.decode(encode(grey, form))
    np.testing.assert_array_equal(out[:, :, 0], np.rint(grey / 257.0).astype(np.uint8))
    assert (out[0, 0, 0], out[-1, -1, 0]) == (0, 255)


def test_16_bit_grey_big_endian_tiff() -> None:
    grey = np.linspace(0, 65535, 40 * 50).round().astype(">u2").reshape(40, 50)
    raw = grey.tobytes()
    tags = [(256, 3, 1, 50), (257, 3, 1, 40), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122),
            (277, 3, 1, 1), (278, 3, 1, 40), (279, 4, 1, len(raw))]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", t, k, n) + (struct.pack(">HH", v, 0) if k == 3 else struct.pack(">I", v))
        for t, k, n, v in tags
    )
    head = b"MM\x00*" + struct.pack(">I", 8) + struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    assert len(head) == 122
    out = images.decode(head + raw)
    np.testing.assert_array_equal(out[:, :, 1], np.rint(grey / 257.0).astype(np.uint8))


def test_16_bit_rgb_png_is_scaled() -> None:
    values = RNG.integers(0, 65536, (40, 50, 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    out = images.decode(png(50, 40, 16, 2, raw))
    assert np.abs(out.astype(int) - values / 257.0).max() <= 1  # Pillow drops the low byte


def test_transparency_is_white() -> None:
    rgba = np.zeros((40, 50, 4), np.uint8)
    rgba[:, 25:, :3], rgba[:, 25:, 3] = (200, 10, 20), 255
    rgba[:, 20:25, 3] = 51  # black at 20 %
    out = images.decode(encode(rgba, "PNG"))
    assert (out[:, :20] == 255).all()
    assert (out[:, 20:25] == 204).all()
    assert (out[:, 25:] == (200, 10, 20)).all()


def test_palette_with_transparency_is_white() -> None:
    palette = Image.new("P", (50, 40), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (25, 0, 50, 40))
    out = images.decode(encode(palette, "PNG", transparency=0))
    assert (out[:, :25] == 255).all()
    assert (out[:, 25:] == (0, 0, 255)).all()


def test_grey_with_alpha_and_bilevel() -> None:
    grey_alpha = np.dstack([np.full((40, 50), 90, np.uint8), np.full((40, 50), 0, np.uint8)])
    assert (images.decode(encode(Image.fromarray(grey_alpha, "LA"), "PNG")) == 255).all()
    assert (images.decode(encode(Image.new("1", (50, 40), 1), "PNG")) == 255).all()


def test_cmyk_jpeg() -> None:
    out = images.decode(encode(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), "JPEG"))
    assert out.shape == (40, 50, 3)
    assert np.abs(out.astype(int) - (254, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)),
     (8, lambda a: np.rot90(a, 1))],
)  # fmt: skip
def test_exif_orientation(orientation: int, turn) -> None:  # type: ignore[no-untyped-def]
    pixels = smooth()
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = images.decode(encode(pixels, "JPEG", quality=95))
    np.testing.assert_array_equal(images.decode(encode(pixels, "JPEG", quality=95, exif=exif)), turn(plain))


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    pixels = smooth()
    good = encode(pixels, "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(range(200)))
    assert images.decode(good).shape == pixels.shape


def test_mpo_is_its_first_picture() -> None:
    first, second = Image.fromarray(smooth()), Image.new("RGB", (50, 40))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(images.decode(data).astype(int) - smooth()).mean() < 8


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(form: str, share: float) -> None:
    data = encode(noise(80, 80), form)
    assert images.cause(refused(data[: int(len(data) * share)])) in {
        "damaged or truncated",
        "not a known picture format",
    }


@pytest.mark.parametrize(
    "data",
    [
        b"just text, named x.jpg",
        b"\0" * 1000,
        b"\xff\xd8\xff",
        b"%PDF-1.4\n",
        b"GIF89a",
        b"<svg/>",
        b"8BPS" + b"\0" * 99,
    ],
)
def test_no_picture(data: bytes) -> None:
    assert images.cause(refused(data)) in {"not a known picture format", "damaged or truncated"}


@pytest.mark.parametrize("form", ["GIF", "ICO", "PPM", "EPS", "TGA"])
def test_formats_not_allowed(form: str) -> None:
    assert "JPEG, PNG, TIFF, BMP, WEBP" in refused(encode(noise(32, 32), form))


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (200, 15)])
def test_too_small(size: tuple[int, int]) -> None:
    text = refused(encode(Image.new("RGB", size), "PNG"))
    assert text == f"too small: {size[0]} x {size[1]} px; at least 16 px a side"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF"])
def test_animated_or_multi_page(form: str) -> None:
    frames = [Image.fromarray(noise()) for _ in range(3)]
    text = refused(encode(frames[0], form, save_all=True, append_images=frames[1:]))
    assert images.cause(text) == ("not a known picture format" if form == "GIF" else "animated or multi-page")


def test_animated_gif_named_jpg(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise()) for _ in range(3)]
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    with pytest.raises(ImageError, match="not a known picture format"):
        images.load_prepared(path, Preprocessing(size=32))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixel_types_that_have_no_scale(mode: str) -> None:
    assert images.cause(refused(encode(Image.new(mode, (50, 40)), "TIFF"))) == "pixel type"


def test_lab() -> None:
    lab = ImageCms.applyTransform(
        Image.fromarray(smooth()),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert lab is not None
    assert refused(encode(lab, "TIFF")).startswith("pixel type: LAB")


def bomb(width: int, height: int) -> bytes:
    """A whole, valid black PNG: a few hundred kB that unpack to width * height bits."""
    raw = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    body = b"".join(raw.compress(row * 1000) for _ in range(height // 1000)) + raw.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_huge_picture_is_refused_before_decoding() -> None:
    data = bomb(30_000, 30_000)
    assert len(data) < 1_000_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert images.cause(refused(data)) == "too many pixels"
    assert time.perf_counter() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (12_000, 12_000), (5_001, 5_000), (2**31 - 1, 2**31 - 1)]
)
def test_header_that_claims_too_much(width: int, height: int) -> None:
    assert images.cause(refused(png(width, height, 8, 2, b"\0" * 100))) == "too many pixels"


def test_huge_webp_canvas_takes_no_memory() -> None:
    # An extended header that claims 16,384 x 16,384 px before a small picture.
    small = encode(Image.new("RGB", (32, 32)), "WEBP")[12:]
    side = struct.pack("<I", 16_383)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + side
    body = b"WEBP" + extended + small
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_text_chunk_bomb() -> None:
    huge = b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000)
    data = png(50, 40, 8, 0, b"\0" * (51 * 40), (b"zTXt", huge))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels_or_image_error(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


# ------------------------------------------------------------------------------------------------------------ files


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as e:
        images.read_bytes(path)
    return str(e.value)


def test_read_bytes_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "large.jpg").write_bytes(b"x" * 1001)
    assert reason(tmp_path / "empty.jpg") == "empty file"
    assert reason(tmp_path / "folder.jpg") == "not a regular file"
    assert reason(tmp_path / "loop.jpg").startswith("unreadable: ")
    assert reason(tmp_path / "dangling.jpg") == "missing: no such file"
    assert reason(tmp_path / "gone.jpg") == "missing: no such file"
    assert reason(tmp_path / "large.jpg" / "x.jpg") == "missing: no such file"
    assert reason(tmp_path / "nul\0.jpg").startswith("unreadable: ")
    assert reason(tmp_path / ("x" * 300)).startswith("unreadable: ")
    assert reason(Path("/dev/zero")) == "not a regular file"
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert reason(tmp_path / "large.jpg") == "file too large: 1,001 bytes; allowed are 1,000"


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    assert reason(tmp_path / "x.jpg") == "not a regular file"


def test_file_that_becomes_a_pipe_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    (tmp_path / "y.jpg").write_bytes(b"x")
    regular = (tmp_path / "y.jpg").stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: regular)
    assert reason(tmp_path / "x.jpg") == "not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    assert reason(path) == "unreadable: Permission denied"


def test_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.jpg").write_bytes(b"x")
    monkeypatch.setattr(images.os, "open", deny)
    assert reason(tmp_path / "x.jpg") == "unreadable: Permission denied"


@pytest.mark.parametrize("name", ["細胞.png", "клетка.png", "خلية.png", "🩸.png", "a b\n.png", "\udcff\udcfe.png"])
def test_names_in_any_script(tmp_path: Path, name: str) -> None:
    pixels = noise(32, 32)
    path = tmp_path / name
    path.write_bytes(encode(pixels, "PNG"))
    np.testing.assert_array_equal(images.load_prepared(path, Preprocessing(size=32)), pixels)


# --------------------------------------------------------------------------------------------------------- prepare


def test_prepare_keeps_a_picture_of_the_right_size() -> None:
    pixels = noise(32, 32)
    assert images.prepare(pixels, Preprocessing(size=32)) is pixels


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_prepare_cuts_the_central_square(interpolation: str) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 10:50] = 200
    spec = Preprocessing.model_validate({"size": 20, "interpolation": interpolation})
    for picture in (pixels, pixels.transpose(1, 0, 2)):
        inside = images.prepare(picture, spec)[3:-3, 3:-3]  # at its edge the filter also sees what lies outside
        assert (inside == 200).all()


def test_prepare_crop() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[25:75, 25:75] = 90
    out = images.prepare(pixels, Preprocessing(size=25, crop=0.5))
    assert out.shape == (25, 25, 3)
    assert (out[3:-3, 3:-3] == 90).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_a_square_is_resized_by_its_matrix_as_by_prepare(interpolation: str) -> None:
    spec = Preprocessing(size=25, interpolation=interpolation)  # type: ignore[arg-type]
    pixels = np.random.default_rng(5).integers(70, 186, (40, 40, 3), dtype=np.uint8)  # nothing leaves 0..255
    matrix = images.resize_matrix(40, spec)
    assert (matrix.shape, matrix.dtype) == ((25, 40), np.float32)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    exact = np.einsum("ih,hwc,jw->ijc", matrix, pixels.astype(np.float32), matrix)
    assert np.abs(exact - images.prepare(pixels, spec)).max() < 1.2  # Pillow rounds to bytes after each of two passes


def test_prepare_commutes_with_flips_and_turns() -> None:
    pixels, spec = smooth(50, 50), Preprocessing(size=33)
    for turn in (np.fliplr, np.flipud, np.rot90):
        a = images.prepare(np.ascontiguousarray(turn(pixels)), spec)
        assert np.abs(a.astype(int) - turn(images.prepare(pixels, spec))).max() <= 1


# ---------------------------------------------------------------------------------------------------------- to_input

SPECS = [
    Preprocessing(size=16),
    Preprocessing(size=40, interpolation="bilinear"),
    Preprocessing(size=24, crop=0.7, interpolation="lanczos"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.size}")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_to_input_is_decode_and_prepare(form: str, spec: Preprocessing) -> None:
    files = [encode(smooth(), form), encode(noise(40, 40), form)]
    if form in {"PNG", "TIFF"}:
        files += [encode(RNG.integers(0, 65536, (30, 30)).astype(np.uint16), form), encode(noise(30, 44, 4), form)]
    if form == "JPEG":
        files.append(encode(Image.fromarray(smooth()).convert("CMYK"), form))
        exif = Image.Exif()
        exif[0x0112] = 6
        files.append(encode(smooth(), form, exif=exif))
    for data in files:
        np.testing.assert_array_equal(images.to_input(data, spec), images.prepare(images.decode(data), spec))


@pytest.mark.parametrize(
    ("height", "width", "spec", "scale"),
    [
        (128, 128, Preprocessing(size=64, reduced_decode=True), 2),
        (128, 200, Preprocessing(size=16, reduced_decode=True), 8),
        (127, 200, Preprocessing(size=64, reduced_decode=True), 1),
        (128, 128, Preprocessing(size=64, crop=0.9, reduced_decode=True), 1),
        (400, 300, Preprocessing(size=60, crop=0.8, reduced_decode=True), 4),
    ],
)
def test_a_large_jpeg_is_decoded_smaller(height: int, width: int, spec: Preprocessing, scale: int) -> None:
    data = encode(smooth(height, width), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (-(-width // scale), -(-height // scale)))
        want = images.prepare(np.asarray(image), spec)
        assert image.size == (-(-width // scale), -(-height // scale))
    got = images.to_input(data, spec)
    np.testing.assert_array_equal(got, want)
    exact = images.to_input(data, spec.model_copy(update={"reduced_decode": False}))
    assert (got.tobytes() == exact.tobytes()) == (scale == 1)
    assert np.abs(got.astype(int) - exact).max() <= 12


def test_reduced_decoding_is_for_jpegs_and_turns_them_upright() -> None:
    spec, whole = Preprocessing(size=16, reduced_decode=True), Preprocessing(size=16)
    png_file = encode(smooth(128, 128), "PNG")
    np.testing.assert_array_equal(images.to_input(png_file, spec), images.to_input(png_file, whole))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = images.to_input(encode(smooth(128, 128), "JPEG", exif=exif), spec)
    straight = images.to_input(encode(smooth(128, 128), "JPEG"), spec)
    np.testing.assert_array_equal(turned, np.rot90(straight, -1))
    grey, cmyk = Image.fromarray(smooth(128, 128)).convert("L"), Image.fromarray(smooth(128, 128)).convert("CMYK")
    for image in (grey, cmyk):
        data = encode(image, "JPEG")
        assert np.abs(images.to_input(data, spec).astype(int) - images.to_input(data, whole)).max() <= 8


def test_what_is_new_leaves_cards_and_recipes_as_they_were() -> None:
    assert "reduced_decode" not in Preprocessing(size=16).model_dump_json()
    once = Preprocessing(size=16, reduced_decode=True)
    assert Preprocessing.model_validate_json(once.model_dump_json()) == once


def test_check_pixels() -> None:
    grey = noise(20, 30, 1)
    assert images.check_pixels(grey).shape == (20, 30, 3)
    assert images.check_pixels(noise(20, 30)[:, ::-1]).flags.c_contiguous
    for bad, match in [
        (noise().astype(np.float32), "pixel type: an array of float32"),
        (noise(20, 30, 4), "array shape"),
        (noise(10, 30), "too small: 30 x 10 px"),
        (np.zeros((5001, 5000), np.uint8), "too many pixels"),
        (np.zeros(20, np.uint8), "array shape"),
    ]:
        with pytest.raises(ImageError, match=match):
            images.check_pixels(bad)


def test_from_pil_is_as_decode(tmp_path: Path) -> None:
    pixels = noise()
    np.testing.assert_array_equal(images.from_pil(Image.fromarray(pixels)), pixels)
    with pytest.raises(ImageError, match="too small"):
        images.from_pil(Image.new("RGB", (1, 1)))
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(noise(80, 80), "JPEG")[:2000])
    with Image.open(path) as image, pytest.raises(ImageError, match="damaged or truncated"):
        images.from_pil(image)


# --------------------------------------------------------------------------------------------------------- warnings


def test_warning_filters_stay_as_they_were_whatever_the_threads_do() -> None:
    before = list(warnings.filters)
    data = encode(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    work = [threading.Thread(target=lambda: [images.decode(data) for _ in range(20)]) for _ in range(8)]
    for t in work:
        t.start()
    for t in work:
        t.join()
    assert list(warnings.filters) == before
