"""The output is whole or not there, in every format; what a killed run wrote is gone on from."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from marrowscope import images
from marrowscope.errors import DataError, MissingExtraError, ModelError, OutputError
from marrowscope.infer import Classifier, outputs, predict_files
from marrowscope.infer.outputs import Journal
from marrowscope.schema import Predictions
from marrowscope.triage import Answers
from tiny_onnx import CODES, write_model

HEADER = ["path", "status", "predicted", "confidence", "A", "B"]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def model(model_path: Path) -> Classifier:
    return Classifier.load(model_path)  # a thread a core, and so one inference at a time


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(3)
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "07.png").write_text("text")
    Path(folder, os.fsdecode(b'a, "b"\n\xff.png')).write_bytes((folder / "00.png").read_bytes())
    return folder


def fail_in_batch(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    calls = 0
    run = Classifier.answer_each

    def answer_each(self: Classifier, pictures: Sequence[tuple[images.Pixels, ...]]) -> Answers:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return run(self, pictures)

    monkeypatch.setattr(Classifier, "answer_each", answer_each)


# ------------------------------------------------------------------------------------------------ what can't be written


def test_output_is_a_folder_or_below_a_file(model: Classifier, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for output in (tmp_path / "folder.csv", tmp_path / "file" / "out.csv"):
        with pytest.raises(OutputError, match="Can't write"):
            predict_files(model, [cells], output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.xlsx", "out.csv.partial"])
def test_output_of_unknown_ending(model: Classifier, cells: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"one of \.csv, \.jsonl, \.parquet"):
        predict_files(model, [cells], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder(model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(outputs.os, "open", deny)
    with pytest.raises(OutputError, match="Read-only file system"):
        predict_files(model, [cells], tmp_path / "out.csv")


def test_no_room(model_path: Path, cells: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from marrowscope.errors import OutputError\n"
        "from marrowscope.infer import Classifier, predict_files\n"
        "model = Classifier.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)\n"
        "try: predict_files(model, [sys.argv[2]], Path(sys.argv[3]), batch_size=4)\n"
        "except OutputError as e: print(e)\n"
    )
    (tmp_path / "out.csv").write_text("old")
    for room, left in ((0, ["out.csv"]), (1500, ["out.csv", "out.csv.partial"])):
        arguments = [sys.executable, "-c", code, str(model_path), str(cells), str(tmp_path / "out.csv"), str(room)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.stderr == ""
        assert "File too large. Choose a folder that can be written and has free space." in done.stdout
        assert (tmp_path / "out.csv").read_text() == "old"
        assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_disk_that_fills_up_keeps_the_rows(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"
    write = Journal._write

    def full(self: Journal, rows: Sequence[Sequence[str]]) -> None:
        if self._end > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, rows)

    with monkeypatch.context() as m:
        m.setattr(Journal, "_write", full)
        with pytest.raises(OutputError, match=r"No space left.*out.csv.partial; go on from them with --resume"):
            predict_files(model, [cells], output, batch_size=4)
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv.partial"]
    summary = predict_files(model, [cells], output, batch_size=4, resume=True)
    assert summary.total == 31
    assert 4 <= summary.resumed < 31
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_output_that_cannot_be_finished_leaves_the_old_one(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out.csv").write_text("old")
    with monkeypatch.context() as m:
        m.setattr(outputs.shutil, "copyfileobj", full)
        with pytest.raises(OutputError, match="No space left on device"):
            predict_files(model, [cells], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.csv.partial"]
    summary = predict_files(model, [cells], tmp_path / "out.csv", resume=True)
    assert (summary.total, summary.resumed) == (31, 31)
    assert len(Predictions.read(tmp_path / "out.csv").paths) == 31


def test_failing_at_once_leaves_nothing(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    fail_in_batch(monkeypatch, 1, ModelError("broken"))
    with pytest.raises(ModelError, match="broken"):
        predict_files(model, [cells], tmp_path / "out.csv", batch_size=4)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


# ------------------------------------------------------------------------------------------------------------ formats


def test_jsonl(model: Classifier, cells: Path, tmp_path: Path) -> None:
    predict_files(model, [cells], tmp_path / "out.csv")
    predict_files(model, [cells], tmp_path / "out.jsonl")
    table = Predictions.read(tmp_path / "out.csv")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["path"] for r in rows] == list(table.paths)
    assert [r["status"] for r in rows] == list(table.status)
    assert all(list(r) == table.header() for r in rows)
    for r, probs, ok in zip(rows, table.probs_NC, table.ok, strict=True):
        if ok:
            np.testing.assert_allclose([r[c] for c in CODES], probs, atol=1e-5)
            assert r["confidence"] == max(r[c] for c in CODES) == r[r["predicted"]]
        else:
            assert {r[c] for c in ("predicted", "confidence", *CODES)} == {None}


def test_parquet(model: Classifier, cells: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    predict_files(model, [cells], tmp_path / "out.csv")
    predict_files(model, [cells], tmp_path / "out.parquet")
    want = Predictions.read(tmp_path / "out.csv")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.column_names == want.header()
    assert got["path"].to_pylist() == [p.replace("\udcff", "\\xff") for p in want.paths]
    assert got["status"].to_pylist() == list(want.status)
    for c, probs in zip(CODES, want.probs_NC.T, strict=True):
        column = np.array([np.nan if v is None else v for v in got[c].to_pylist()])
        np.testing.assert_allclose(column, probs, atol=1e-5)


def test_parquet_without_pyarrow(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'marrowscope\[parquet\]'"):
        predict_files(model, [cells], tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("error", [ModelError("broken"), KeyboardInterrupt()])
def test_resume_gives_the_same_output(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    whole, output = tmp_path / "whole" / name, tmp_path / "cut" / name
    predict_files(model, [cells, "gone.jpg"], whole, batch_size=4)
    with monkeypatch.context() as m:
        fail_in_batch(m, 4, error)
        with pytest.raises(type(error)):
            predict_files(model, [cells, "gone.jpg"], output, batch_size=4)
    assert [p.name for p in output.parent.iterdir()] == [f"{name}.partial"]
    calls: list[int] = []
    summary = predict_files(
        model, [cells, "gone.jpg"], output, batch_size=4, resume=True, progress=lambda n, _: calls.append(n)
    )
    assert (summary.total, summary.ok, summary.resumed) == (32, 30, 12)
    assert summary.failed == {"not a known picture format": 1, "missing": 1}
    assert calls[0] == 16
    assert output.read_bytes() == whole.read_bytes()
    assert [p.name for p in output.parent.iterdir()] == [name]


def test_without_resume_a_run_starts_anew(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        fail_in_batch(m, 4, ModelError("broken"))
        with pytest.raises(ModelError):
            predict_files(model, [cells], tmp_path / "out.csv", batch_size=4)
    summary = predict_files(model, [cells], tmp_path / "out.csv")
    assert (summary.total, summary.resumed) == (31, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_resume_with_nothing_to_resume(model: Classifier, cells: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert predict_files(model, [cells], tmp_path / "out.csv", resume=True).resumed == 0


def test_resume_with_other_inputs_or_another_model(
    model: Classifier, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"
    with monkeypatch.context() as m:
        fail_in_batch(m, 4, ModelError("broken"))
        with pytest.raises(ModelError):
            predict_files(model, [cells], output, batch_size=4)
    left = (tmp_path / "out.csv.partial").read_bytes()
    with pytest.raises(DataError, match=r"inputs are not those.* where no file follows"):
        predict_files(model, [cells / "00.png"], output, resume=True)
    with pytest.raises(DataError, match="inputs are not those of the interrupted run"):
        predict_files(model, [cells / "00.png", cells], output, resume=True)
    other = Classifier.load(write_model(tmp_path / "other.onnx", seed=9))
    with pytest.raises(OutputError, match="another model or other options"):
        predict_files(other, [cells], output, resume=True)
    assert (tmp_path / "out.csv.partial").read_bytes() == left
    assert predict_files(model, [cells], output, resume=True).resumed == 12


@pytest.mark.parametrize("seconds", [0.05, 0.4])
def test_killed_runs_lose_and_repeat_nothing(
    model: Classifier, model_path: Path, cells: Path, tmp_path: Path, seconds: float
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from marrowscope import images\n"
        "from marrowscope.infer import Classifier, predict_files\n"
        "read = images.read_bytes\n"
        "def slow(path): time.sleep(0.03); return read(path)\n"
        "images.read_bytes = slow\n"
        "model = Classifier.load(sys.argv[1]); print('go', flush=True)\n"
        "predict_files(model, [sys.argv[2]], Path(sys.argv[3]), batch_size=2, workers=1)\n"
    )
    output = tmp_path / "out.csv"
    arguments = [sys.executable, "-c", code, str(model_path), str(cells), str(output)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    summary = predict_files(model, [cells], output, batch_size=2, resume=True)
    assert summary.total == 31
    assert summary.resumed < 31
    predict_files(model, [cells], tmp_path / "whole.csv", batch_size=2)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(NAMES, max_size=6), st.floats(0, 1))
def test_a_journal_cut_anywhere_keeps_its_whole_rows(tmp_path: Path, names: list[str], cut: float) -> None:
    output = tmp_path / "out.csv"
    rows = [[name, "ok", "A", "1", "1", "0"] for name in names]
    with Journal(output, "x", HEADER, resume=False) as journal:
        journal.append(rows)
        data = journal.path.read_bytes()
    at = int(cut * len(data))
    journal.path.write_bytes(data[:at])
    with Journal(output, "x", HEADER, resume=True) as journal:
        kept = list(journal.rows())
        assert kept == rows[: len(kept)]
        assert len(kept) == len(rows) or at < len(data)
        journal.append(rows[len(kept) :])
        journal.finish()
    with output.open(newline="", encoding="utf-8") as f:
        assert list(csv.reader(f)) == [HEADER, *rows]
    assert not journal.path.exists()


# ------------------------------------------------------------------------------------------------------ two processes


def test_a_second_process_is_turned_away(model: Classifier, cells: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with Journal(output, "x", HEADER, resume=False) as journal:
        journal.append([["a", "ok", "A", "1", "1", "0"]])
        left = journal.path.read_bytes()
        for resume in (False, True):
            with pytest.raises(OutputError, match="Another process is writing"):
                predict_files(model, [cells], output, resume=resume)
        assert journal.path.read_bytes() == left
        journal.finish()
    assert len(output.read_text().splitlines()) == 2


def test_many_at_once_give_one_whole_output(model_path: Path, cells: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from marrowscope.errors import OutputError\n"
        "from marrowscope.infer import Classifier, predict_files\n"
        "model = Classifier.load(sys.argv[1], threads=1)\n"
        "for _ in range(5):\n"
        "    try: print(predict_files(model, [sys.argv[2]], Path(sys.argv[3]), batch_size=4).total)\n"
        "    except OutputError as e: print('Another process' in str(e))\n"
    )
    arguments = [sys.executable, "-c", code, str(model_path), str(cells), str(tmp_path / "out.csv")]
    work = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate() for process in work]
    assert {line for out, _ in said for line in out.split()} <= {b"31", b"True"}
    assert all(err == b"" for _, err in said)
    assert len(Predictions.read(tmp_path / "out.csv").paths) == 31
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
