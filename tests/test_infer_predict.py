"""From files to predictions.csv."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from marrowscope import images
from marrowscope.errors import DataError, ImageError
from marrowscope.infer import Classifier, Item, find_images, inputs, predict, predict_files, predict_to_predictions
from marrowscope.schema import Predictions
from tiny_onnx import CODES, card, logits, write_model

RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def model(model_path: Path) -> Classifier:
    return Classifier.load(model_path, threads=1)


def picture(path: Path) -> npt.NDArray[np.uint8]:
    pixels = np.clip(RNG.integers(0, 200, (1, 1, 3)) + RNG.integers(0, 56, (40, 44, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return pixels


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    for i in range(23):
        picture(folder / f"{'ab'[i % 2]}" / f"{i:02}.png")
    return folder


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        return list(csv.reader(f))


def test_rows_and_columns(model: Classifier, cells: Path, tmp_path: Path) -> None:
    summary = predict_files(model, [cells], tmp_path / "out.csv")
    assert (summary.total, summary.ok, summary.failed) == (23, 23, {})
    assert summary.seconds > 0
    header, *rows = table(tmp_path / "out.csv")
    assert header == ["path", "status", "predicted", "confidence", *CODES]
    assert [r[0] for r in rows] == sorted(str(p) for p in cells.rglob("*.png"))
    prepared = np.stack([images.load_prepared(Path(r[0]), card().preprocessing) for r in rows])
    e = np.exp(logits(prepared))
    want = e / e.sum(1, keepdims=True)
    got = np.array([[float(v) for v in r[4:]] for r in rows])
    np.testing.assert_allclose(got, want, atol=2e-6)
    for r, p in zip(rows, want, strict=True):
        assert r[1:3] == ["ok", CODES[p.argmax()]]
        assert float(r[3]) == max(float(v) for v in r[4:])


def test_the_table_can_be_read(model: Classifier, cells: Path, tmp_path: Path) -> None:
    (cells / "bad.jpg").write_text("text")
    predict_files(model, [cells], tmp_path / "out.csv")
    read, direct = Predictions.read(tmp_path / "out.csv"), predict_to_predictions(model, [cells])
    assert (read.paths, read.status, read.codes) == (direct.paths, direct.status, direct.codes)
    np.testing.assert_allclose(read.probs_NC, direct.probs_NC, atol=2e-6)
    assert read.ok.sum() == 23


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (2, 3), (7, 2), (64, 5)])
def test_batches_and_workers_change_nothing(
    model: Classifier, cells: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    (cells / "a" / "00_bad.jpg").touch()
    want = predict_to_predictions(model, [cells])
    out = tmp_path / "out.csv"
    predict_files(model, [cells], out, batch_size=batch_size, workers=workers)
    got = Predictions.read(out)
    assert (got.paths, got.status) == (want.paths, want.status)
    np.testing.assert_allclose(got.probs_NC, want.probs_NC, atol=2e-6)


def test_predictions_agree_with_the_classifier(model: Classifier, cells: Path) -> None:
    direct = predict_to_predictions(model, [cells])
    np.testing.assert_allclose(model.predict_proba(direct.paths), direct.probs_NC, atol=1e-6)


def test_order_is_that_of_the_inputs(model: Classifier, cells: Path) -> None:
    given = [str(cells / "b" / "01.png"), str(cells / "a"), str(cells / "b" / "01.png"), "gone.png"]
    paths = predict_to_predictions(model, given).paths
    assert paths == (given[0], *(str(cells / "a" / f"{i:02}.png") for i in range(0, 23, 2)), given[2], "gone.png")


def test_slow_files_keep_their_place(model: Classifier, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = predict_to_predictions(model, [cells]).paths
    read = images.read_bytes

    def slow(path: Path) -> bytes:
        time.sleep(0.02 if path.name in {"00.png", "06.png"} else 0)
        return read(path)

    monkeypatch.setattr(images, "read_bytes", slow)
    assert predict_to_predictions(model, [cells], batch_size=4, workers=4).paths == want


def test_paths_stay_as_given(model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["./cells/a/00.png", "cells//b", "../" + tmp_path.name + "/cells/a/"]
    paths = predict_to_predictions(model, given).paths
    assert paths[0] == "./cells/a/00.png"
    assert paths[1] == "cells//b/01.png"
    assert paths[-1] == f"../{tmp_path.name}/cells/a/22.png"


def test_progress(model: Classifier, cells: Path, tmp_path: Path) -> None:
    (cells / "a" / "bad.jpg").touch()
    calls: list[tuple[int, int]] = []
    predict_files(model, [cells], tmp_path / "o.csv", batch_size=10, progress=lambda n, bad: calls.append((n, bad)))
    assert calls == [(10, 0), (20, 1), (24, 1)]


# ---------------------------------------------------------------------------------------------------------- bad files


def test_one_bad_among_good(model: Classifier, cells: Path, tmp_path: Path) -> None:
    whole = (cells / "a" / "00.png").read_bytes()
    bad = {
        "0_truncated.png": (whole[:1000], "damaged or truncated"),
        "1_text.jpg": (b"text", "not a known picture format"),
        "2_empty.jpg": (b"", "empty file"),
    }
    for name, (data, _) in bad.items():
        (cells / name).write_bytes(data)
    Image.new("RGB", (1, 1)).save(cells / "3_tiny.png")
    os.mkfifo(cells / "4_pipe.jpg")
    (cells / "5_dangling.jpg").symlink_to("nowhere")
    (cells / "6_loop.jpg").symlink_to("6_loop.jpg")
    (cells / "7_folder.jpg").mkdir()
    picture(cells / "7_folder.jpg" / "good.png")
    summary = predict_files(model, [cells, "gone.jpg"], tmp_path / "out.csv", batch_size=5)
    assert (summary.total, summary.ok) == (23 + 9, 24)
    assert summary.failed == {
        "missing": 2, "damaged or truncated": 1, "not a known picture format": 1, "empty file": 1, "too small": 1,
        "not a regular file": 1, "unreadable": 1,
    }  # fmt: skip
    rows = {Path(r[0]).name: r for r in table(tmp_path / "out.csv")[1:]}
    assert len(rows) == 32
    for name, (_, why) in bad.items():
        assert images.cause(rows[name][1]) == why
        assert rows[name][2:] == [""] * 6
    assert rows["good.png"][1] == "ok"
    assert rows["gone.jpg"][1] == "missing: no such file"


def test_nothing_but_bad_files(model: Classifier, tmp_path: Path) -> None:
    summary = predict_files(model, ["x.jpg", "y"], tmp_path / "out.csv")
    assert (summary.total, summary.ok, summary.failed) == (2, 0, {"missing": 2})
    assert len(table(tmp_path / "out.csv")) == 3


def test_file_that_vanishes_after_listing(model: Classifier, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = inputs._listing

    def list_and_remove(folder: str, take: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        out = listing(folder, take)
        Path(folder, "02.png").unlink(missing_ok=True)
        return out

    monkeypatch.setattr(inputs, "_check", lambda _: None)
    monkeypatch.setattr(inputs, "_listing", list_and_remove)
    got = predict_to_predictions(model, [cells])
    assert len(got.paths) == 23
    assert dict(zip(got.paths, got.status, strict=True))[str(cells / "a" / "02.png")] == "missing: no such file"


def test_folder_that_cannot_be_listed(model: Classifier, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = inputs._listing

    def deny(folder: str, take: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        if folder.endswith("a"):
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder, take)

    monkeypatch.setattr(inputs, "_listing", deny)
    got = predict_to_predictions(model, [cells])
    assert (got.paths[0], got.status[0]) == (str(cells / "a"), "unreadable: Permission denied")
    assert len(got.paths) == 12


def test_a_named_file_is_tried_whatever_its_ending(model: Classifier, cells: Path, tmp_path: Path) -> None:
    (cells / "a" / "00.png").rename(tmp_path / "cell.dat")
    assert predict_to_predictions(model, [tmp_path / "cell.dat"]).status == ("ok",)


@pytest.mark.parametrize(
    "name", ["細胞.png", "клетка.png", "خلية.png", '🩸, "x".png', "a\r\nb\r.png", "\udcff\udcfe.png"]
)
def test_names_in_any_script(model: Classifier, tmp_path: Path, name: str) -> None:
    picture(tmp_path / "in" / "x.png")
    (tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    predict_files(model, [tmp_path / "in"], tmp_path / "out.csv")
    assert [r[0] for r in table(tmp_path / "out.csv")[1:]] == [str(tmp_path / "in" / name)]
    assert Predictions.read(tmp_path / "out.csv").paths == (str(tmp_path / "in" / name),)


# ------------------------------------------------------------------------------------------------------------ folders


def names(*given: str | Path) -> list[str]:
    return [item.name for item in find_images(given)]


def test_empty_folder_and_no_input(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "readme.txt").touch()
    for given in ([tmp_path / "empty"], ["gone.jpg", tmp_path / "empty"]):
        with pytest.raises(DataError, match="empty holds no image"):
            names(*given)
        with pytest.raises(DataError, match="empty holds no image"):
            predict_files(model, given, tmp_path / "out.csv")
    with pytest.raises(DataError, match="No input"):
        predict_files(model, [], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_empty_folder_among_others_is_found_before_work_begins(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(Classifier, "answer_each", None)
    with pytest.raises(DataError, match="empty holds no image"):
        predict_files(model, [cells, tmp_path / "empty"], tmp_path / "out.csv")


def test_endings_and_depth(tmp_path: Path) -> None:
    for name in [
        "b.JPG",
        "a.jpeg",
        "c.txt",
        "d",
        "z/y/x/w.TIFF",
        "z/e.webp",
        "._b.JPG",
        ".git/x.png",
        "__MACOSX/x.png",
        "predictions.csv",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    want = ["a.jpeg", "b.JPG", "z/e.webp", "z/y/x/w.TIFF"]
    assert names(tmp_path) == [str(tmp_path / n) for n in want]


def test_symlink_loops_and_shared_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "a" / "b" / "y.jpg").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    assert names(tmp_path) == [str(tmp_path / "a" / "x.jpg"), str(tmp_path / "a" / "b" / "y.jpg")]
    assert names(tmp_path / "again") == [str(tmp_path / "again" / n) for n in ("x.jpg", "b/y.jpg")]


def test_output_inside_the_input_folder(model: Classifier, cells: Path) -> None:
    for _ in range(2):
        assert predict_files(model, [cells], cells / "predictions.csv").total == 23
    assert sorted(p.name for p in cells.iterdir()) == ["a", "b", "predictions.csv"]


@pytest.mark.slow
def test_a_million_files_need_little_memory(tmp_path: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "from marrowscope.infer import inputs\n"
        "class Entry:\n"
        "    def __init__(self, i): self.name = f'BM_{i:07}_cell.jpg'\n"
        "    def is_dir(self): return False\n"
        "class Listing:\n"
        "    def __enter__(self): return (Entry(i) for i in range(1_000_000))\n"
        "    def __exit__(self, *_): pass\n"
        "inputs.os.scandir = lambda _: Listing()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in inputs.find_images([sys.argv[1]]))\n"
        "print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    count, megabytes = map(int, out.stdout.split())
    assert count == 1_000_000
    assert megabytes < 150


def test_memory_is_bounded(model: Classifier, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = peak = 0
    lock = threading.Lock()
    load, answer = predict._load, predict._answer

    def counted_load(item: Item, m: Classifier) -> object:
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        return load(item, m)

    def counted_answer(m: Classifier, batch: list[tuple[str, images.Pixels | ImageError]]) -> Predictions:
        nonlocal alive
        with lock:
            alive -= len(batch)
        return answer(m, batch)

    monkeypatch.setattr(predict, "_load", counted_load)
    monkeypatch.setattr(predict, "_answer", counted_answer)
    many = [str(cells)] * 20
    assert len(predict_to_predictions(model, many, batch_size=8).paths) == 460
    assert peak <= predict.AHEAD + 3 * 8


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_several_inferences_at_a_time_keep_the_order(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    (cells / "b" / "bad.png").write_text("text")
    predict_files(model, [cells], tmp_path / "one.csv", lanes=1)
    answer, inside, most, lock = predict._answer, 0, 0, threading.Lock()

    def slow_at_first(m: Classifier, batch: list[tuple[str, images.Pixels | ImageError]]) -> Predictions:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.2 if batch[0][0].endswith("00.png") else 0.02)
        with lock:
            inside -= 1
        return answer(m, batch)

    monkeypatch.setattr(predict, "_answer", slow_at_first)
    predict_files(model, [cells], tmp_path / "many.csv", batch_size=2, lanes=lanes)
    assert most == lanes
    assert (tmp_path / "many.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_lanes_leave_no_core_idle(model: Classifier, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "available_cores", lambda: 6)
    assert predict.lanes_of(model) == 6
    assert predict.lanes_of(Classifier.load(model_path, threads=4)) == 1
    assert predict.lanes_of(Classifier.load(model_path, threads=3)) == 2


# ---------------------------------------------------------------------------------------------------------- torch-free


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


BLOCK = (
    "import sys\n"
    "for m in ('torch', 'torchvision', 'timm', 'onnx', 'sklearn', 'scipy', 'pandas'): sys.modules[m] = None\n"
)
PREDICT = (
    "from marrowscope.infer import Classifier, predict_files\n"
    "from pathlib import Path\n"
    "s = predict_files(Classifier.load(sys.argv[1]), [sys.argv[2]], Path(sys.argv[3]))\n"
    "print(s.ok, 'torch' in sys.modules and sys.modules['torch'] is not None)\n"
)


@pytest.mark.parametrize("start", ["import sys\n", BLOCK])
def test_predicting_needs_no_torch(model_path: Path, cells: Path, tmp_path: Path, start: str) -> None:
    assert run(start + PREDICT, str(model_path), str(cells), str(tmp_path / "out.csv")) == "23 False\n"


def test_importing_is_cheap() -> None:
    code = (
        "import sys, marrowscope.infer\n"
        "print([m for m in ('torch', 'onnxruntime', 'scipy', 'pandas') if m in sys.modules])"
    )
    assert run(code) == "[]\n"
