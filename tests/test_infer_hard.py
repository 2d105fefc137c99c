"""All kinds of files that go wrong, in one batch: each has its row, the good ones an answer, the summary the causes."""

from __future__ import annotations

import csv
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

from marrowscope import images
from marrowscope.cli import app
from marrowscope.infer import Classifier, predict_files
from tiny_onnx import write_model


def pixels() -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:48, :48]
    return np.stack([x * 5, y * 4, 255 - x * 2 - y * 2], -1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    f = io.BytesIO()
    image.save(f, form, **options)  # type: ignore[arg-type]
    return f.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that claims 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(np.ascontiguousarray(np.rot90(pixels()))), "JPEG", quality=95, exif=exif)


def good() -> dict[str, bytes]:
    """Unusual files of the same picture."""
    plain = Image.fromarray(pixels())
    return {
        "plain.jpg": encoded(plain, "JPEG", quality=95),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG", quality=95),
        "rgba.png": encoded(plain.convert("RGBA"), "PNG"),
        "turned.jpg": turned(),
        "細胞 клетка خلية 🩸.png": encoded(plain, "PNG"),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    """Files that have no answer, and the cause that the summary counts."""
    plain, wide = Image.fromarray(pixels()), (pixels()[..., 0].astype(np.uint16) * 257)
    whole = encoded(plain, "JPEG", quality=95)
    return {
        "corrupt.jpg": (whole[:400] + bytes(200) + whole[600:700], "damaged or truncated"),
        "cut.jpg": (whole[:900], "damaged or truncated"),
        "bomb.png": (bomb(), "too many pixels"),
        "animated.webp": (
            encoded(plain, "WEBP", save_all=True, append_images=[plain.rotate(90)], duration=99, lossless=True),
            "animated or multi-page",
        ),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"not a picture", "not a known picture format"),
        "float.tif": (encoded(Image.fromarray(wide.astype(np.float32)), "TIFF"), "pixel type"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    (out / "deep").mkdir(parents=True)
    for name, data in good().items():
        (out / name).write_bytes(data)
    for name, (data, _) in bad().items():
        (out / name).write_bytes(data)
    grey = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
    (out / "grey16.png").write_bytes(encoded(grey, "PNG"))
    (out / "deep" / "loop").symlink_to(out)
    (out / "self.jpg").symlink_to("self.jpg")
    (out / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(out / "pipe.jpg")
    return out


def rows(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return {Path(r[0]).name: r for r in list(csv.reader(f))[1:]}


def test_each_has_its_row_and_its_cause(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier.load(write_model(tmp_path / "tiny.onnx"))
    read = images.read_bytes

    def denied(path: Path) -> bytes:  # the tests may run as root, who may read everything
        if path.name == "rgba.png":
            raise images.ImageError("unreadable: Permission denied")
        return read(path)

    monkeypatch.setattr(images, "read_bytes", denied)
    summary = predict_files(model, [folder], tmp_path / "out.csv")
    found = rows(tmp_path / "out.csv")
    want = Counter(cause for _, cause in bad().values()) + Counter(
        {"missing": 1, "unreadable": 2, "not a regular file": 1}
    )
    assert len(found) == summary.total == len(good()) + 1 + len(bad()) + 3
    assert summary.failed == dict(want)
    assert summary.ok == len(good())  # one of them was denied, and the grey one is good
    for name, (_, cause) in bad().items():
        assert images.cause(found[name][1]) == cause
        assert set(found[name][2:]) == {""}
    assert found["grey16.png"][1] == "ok"


def test_unusual_files_have_the_answer_of_the_plain_one(folder: Path, tmp_path: Path) -> None:
    model = Classifier.load(write_model(tmp_path / "tiny.onnx"))
    predict_files(model, [folder], tmp_path / "out.csv")
    found = rows(tmp_path / "out.csv")
    want = model.predict_proba(pixels())[0]
    for name in good():
        np.testing.assert_allclose([float(v) for v in found[name][4:]], want, atol=0.04, err_msg=name)


def test_the_command_counts_them_and_says_so(folder: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.onnx")
    done = CliRunner().invoke(
        app, ["predict", str(tmp_path / "tiny.onnx"), str(folder), "-o", str(tmp_path / "out.csv")]
    )
    assert done.exit_code == 3
    for cause in (
        "2 failed: damaged or truncated",
        "1 failed: too many pixels",
        "1 failed: animated or multi-page",
        "1 failed: empty file",
        "1 failed: not a known picture format",
        "1 failed: pixel type",
        "1 failed: not a regular file",
    ):
        assert cause in done.stderr
    assert "6 of 16 files answered" in done.stdout
    good_only = CliRunner().invoke(
        app, ["predict", str(tmp_path / "tiny.onnx"), str(folder / "plain.jpg"), "-o", str(tmp_path / "good.csv")]
    )
    assert good_only.exit_code == 0


# ---------------------------------------------------------------------------------------------------------- soon there


def processor_seconds(*arguments: str) -> float:
    """Of one process, the least of three: what a quiet core would need, whatever else the machine does."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "marrowscope.cli", *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_the_first_answer_and_the_help_come_soon(folder: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.onnx")
    output = str(tmp_path / "o.csv")
    assert processor_seconds("predict", str(tmp_path / "tiny.onnx"), str(folder / "plain.jpg"), "-o", output) < 1.5
    assert processor_seconds("predict", "--help") < 0.3
