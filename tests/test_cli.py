"""The command line: the whole path on phantoms, exit codes, and bad input to every stage."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marrowscope.config import Recipe, recipe_toml
from marrowscope.schema import OK, Card, Evaluation, Predictions, Split, read_index

Run = subprocess.CompletedProcess[str]


def marrowscope(*args: object, cwd: Path | None = None, preexec: Callable[[], None] | None = None) -> Run:
    return subprocess.run(
        [sys.executable, "-m", "marrowscope.cli", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        preexec_fn=preexec,
        timeout=300,
    )


def refused(done: Run, *parts: str) -> None:
    """Status 2, one message without a traceback that holds all of `parts`."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, (part, done.stderr)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_toml(tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)))
    return path


@pytest.fixture(scope="session")
def model_file(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    done = marrowscope("export", tiny_run, "-o", path)
    assert done.returncode == 0, done.stderr
    return path


# ---------------------------------------------------------------------------------------------------- the whole path


def test_the_whole_path(tmp_path: Path, recipe_file: Path) -> None:
    def step(*args: object) -> str:
        done = marrowscope(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "24 synthetic cells" in step("phantom", "cells", "--per-class", 8, "--classes", "BLA,LYT,NGS")
    assert "24 images of 3 classes" in step("index", "cells", "-o", "index.csv")
    assert "train 18" in step("split", "index.csv", "--classes", "BLA,LYT,NGS", "--ratios", "70/15/15", "-o", "s.csv")
    step("train", recipe_file, "--data", "cells", "--split", "s.csv", "--out", "run", "--set", "seed=5")
    assert "accuracy" in step("evaluate", "run")
    assert "run/report.html" in step("report", "run")
    assert "largest difference" in step("export", "run", "-o", "model.onnx")
    assert "24 of 24 files answered" in step("predict", "model.onnx", "cells", "-o", "predictions.csv")

    evaluation = Evaluation.read(tmp_path / "run" / "evaluation.json")
    assert evaluation.n == len(Split.read(tmp_path / "s.csv").part("test"))
    assert Card.read(tmp_path / "run" / "card.json").seed == 5
    page = (tmp_path / "run" / "report.html").read_text()
    assert "drawn" in page or "synthetic" in page.lower()
    header = (tmp_path / "predictions.csv").read_text().splitlines()[0]
    assert header.startswith("path,status,predicted,confidence,BLA,LYT,NGS")
    # The file that serves and the checkpoint that was judged give the same probabilities.
    judged = Predictions.read(tmp_path / "run" / "predictions.csv")
    served = Predictions.read(tmp_path / "predictions.csv")
    place = {p.removeprefix("cells/"): i for i, p in enumerate(served.paths)}
    same = served.probs_NC[[place[p] for p in judged.paths]]
    assert np.abs(same - judged.probs_NC).max() < 1e-4


def test_predicting_needs_no_torch(model_file: Path, cells: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision', 'lightning_fabric', 'safetensors', 'onnx'):\n"
        "    sys.modules[name] = None\n"  # importing it now raises ImportError
        "sys.argv = ['marrowscope', 'predict', *sys.argv[1:]]\n"
        "from marrowscope.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_file), str(cells), "-o", str(tmp_path / "p.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Predictions.read(tmp_path / "p.csv").ok.all()


def test_training_without_torch_says_what_to_install(recipe_file: Path, cells: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "sys.argv = ['marrowscope', 'train', *sys.argv[1:]]\n"
        "from marrowscope.cli import main\n"
        "main()\n"
    )
    args = [str(recipe_file), "--data", str(cells), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    refused(done, "'torch'", "pip install 'marrowscope[train]'")


def test_help_is_quick_and_complete() -> None:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        done = marrowscope("--help")
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0
    for command in ("phantom", "index", "split", "train", "evaluate", "report", "export", "predict"):
        assert command in done.stdout
    # The best of five, in units of an interpreter that only starts: a busy machine slows both.
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import json, re, inspect"], check=True)
    assert min(times) < max(0.4, 6 * (time.perf_counter() - begin))


def test_version() -> None:
    done = marrowscope("--version")
    assert done.stdout.startswith("marrowscope 0.")


def test_ctrl_c_while_training_leaves_a_run_to_resume(recipe_file: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "marrowscope.cli", "train", str(recipe_file), "--data", str(cells), "--out"]
    with subprocess.Popen([*command, str(out), "--set", "schedule.epochs=10000"], text=True, stderr=-1) as process:
        deadline = time.monotonic() + 120
        while not (out / "metrics.csv").exists():
            assert time.monotonic() < deadline, "no epoch ended"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    done = marrowscope(
        "train", recipe_file, "--data", cells, "--out", out, "--set", "schedule.epochs=10000",
        "--resume", "--limit-time", "1s",
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "go on with --resume" in done.stdout


def test_audit_show_folds_import_compare_and_count(
    tiny_run: Path, tiny_recipe: Callable[..., Recipe], cells: Path, model_file: Path, tmp_path: Path
) -> None:
    def step(*args: object) -> str:
        done = marrowscope(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = tmp_path / "data"
    shutil.copytree(cells, data)
    shutil.copy(data / "BLA" / "BLA_00001.jpg", data / "BLA" / "copy.jpg")
    step("index", data, "-o", "i.csv")
    assert not list(tmp_path.glob(".*")), "the journal was left behind"
    found = step("audit", "i.csv", "--data", data, "-o", "audit")
    assert "1 files that are copies of another" in found
    assert (tmp_path / "audit" / "index.html").is_file()
    groups = {r.path: r.group for r in read_index(tmp_path / "audit" / "index.csv") if r.group}
    assert set(groups) == {"BLA/BLA_00001.jpg", "BLA/copy.jpg"}

    assert "show/index.html" in step("show", "i.csv", "--data", data, "-o", "show")
    (tmp_path / "r.toml").write_text(recipe_toml(tiny_recipe()))
    step("show", "i.csv", "--data", data, "--augmented", "r.toml", "-o", "augmented")
    assert (tmp_path / "augmented" / "augmented.png").is_file()

    step("split", "audit/index.csv", "--classes", "BLA,LYT,NGS", "--folds", "5", "-o", "folds.csv")
    folds = Split.read(tmp_path / "folds.csv")
    assert {r.fold for r in folds.rows} == set(range(5))
    assert len({r.fold for r in folds.rows if r.path in groups}) == 1
    refused(
        marrowscope("split", "i.csv", "--classes", "BLA,LYT,NGS", "--folds", "5", "--shots", "2", cwd=tmp_path),
        "--folds goes with neither",
    )

    for part, numbers in (("train", range(1, 9)), ("test", range(9, 11))):
        names = [f"{c}/{c}_{i:05}.jpg" for c in ("BLA", "LYT", "NGS") for i in numbers]
        (tmp_path / f"{part}.txt").write_text("\n".join(names))
    lists = ("--train", "train.txt", "--test", "test.txt")
    step("import-split", "i.csv", "--classes", "BLA,LYT,NGS", *lists, "-o", "published.csv")
    assert len(Split.read(tmp_path / "published.csv").part("test")) == 6

    run = shutil.copytree(tiny_run, tmp_path / "run")
    step("evaluate", run)
    judged = (run / "predictions.csv").read_text()
    (tmp_path / "other.csv").write_text(judged)
    assert "0.000" in step("compare", run / "predictions.csv", "other.csv", "-o", "comparison.json")
    assert (tmp_path / "comparison.json").is_file()
    refused(marrowscope("compare", run / "predictions.csv", cwd=tmp_path), "two or more")
    # Another program's table is judged as a run is, and its report stands beside it.
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "predictions.csv").write_text(judged)
    step("evaluate", "theirs/predictions.csv")
    step("report", "theirs", "--data", cells)

    step("predict", model_file, cells, "-o", "p.csv", "--views", "8")
    counted = step("count", "p.csv", "-o", "differential.json")
    assert "30 nucleated marrow cells of 30 files" in counted
    assert "fewer than the 300" in counted
    assert "Not a medical device" in counted
    refused(marrowscope("count", "p.csv", "--ratio", "wrong", cwd=tmp_path), "granulocytic")


# --------------------------------------------------------------------------------------------------------- bad input


def test_an_empty_folder(tmp_path: Path, recipe_file: Path, model_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(marrowscope("index", tmp_path / "empty", "-o", tmp_path / "i.csv"), "empty")
    refused(marrowscope("train", recipe_file, "--data", tmp_path / "empty", "--out", tmp_path / "run"), "empty")
    refused(marrowscope("predict", model_file, tmp_path / "empty", "-o", tmp_path / "p.csv"), "empty")
    assert not (tmp_path / "i.csv").exists()
    assert not (tmp_path / "p.csv").exists()


def test_a_folder_with_one_class(cells: Path, tmp_path: Path) -> None:
    shutil.copytree(cells / "BLA", tmp_path / "one" / "BLA")
    done = marrowscope("index", tmp_path / "one", "-o", tmp_path / "i.csv")
    assert done.returncode == 0
    refused(marrowscope("split", tmp_path / "i.csv", "--classes", "BLA,LYT", "-o", tmp_path / "s.csv"), "LYT")
    refused(marrowscope("split", tmp_path / "i.csv", "--classes", "BLA", "-o", tmp_path / "s.csv"), "at least two")


def _broken_pictures(folder: Path, good: Path) -> dict[str, str]:
    """One file of each kind of bad or odd input; the words that its status must hold, or ok."""
    folder.mkdir(parents=True)
    data = good.read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "zero.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "one_pixel.png")
    rgb = Image.open(good).convert("RGB")
    grey = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "grey16.png")
    rgb.convert("RGBA").save(folder / "rgba.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    return {
        "truncated.jpg": "truncated", "text.jpg": "not a known picture format", "zero.jpg": "empty",
        "one_pixel.png": "1 x 1 px", "grey16.png": OK, "rgba.png": OK, "cmyk.jpg": OK, "huge.png": "pixels",
    }  # fmt: skip


def test_bad_pictures_have_their_reason_in_index_and_predictions(cells: Path, model_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    good = data / "BLA" / "BLA_00001.jpg"
    expected = _broken_pictures(data / "BLA" / "odd", good)
    done = marrowscope("index", data, "-o", tmp_path / "i.csv")
    assert done.returncode == 3, done.stderr
    assert "5 of them can't be used" in done.stdout
    status = {r.path: r.status for r in read_index(tmp_path / "i.csv")}
    assert len(status) == 30 + len(expected)
    done = marrowscope("predict", model_file, data, "-o", tmp_path / "p.csv")
    assert done.returncode == 3, done.stderr
    table = Predictions.read(tmp_path / "p.csv")
    answers = dict(zip((Path(p).relative_to(data).as_posix() for p in table.paths), table.status, strict=True))
    assert len(answers) == len(status)
    for name, words in expected.items():
        for found in (status[f"BLA/odd/{name}"], answers[f"BLA/odd/{name}"]):
            assert (found == OK) if words == OK else (words in found), (name, found)
    # A good file beside bad ones keeps its answer.
    assert answers["BLA/BLA_00001.jpg"] == OK
    done = marrowscope("split", tmp_path / "i.csv", "--classes", "BLA,LYT,NGS", "-o", tmp_path / "s.csv")
    assert done.returncode == 0
    assert len(Split.read(tmp_path / "s.csv").rows) == 33
    assert done.stdout.count("left out: 1 (") == 5


def test_all_files_bad_is_status_3_and_every_file_has_its_row(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no")
    done = marrowscope("predict", model_file, tmp_path / "a.jpg", tmp_path / "gone.jpg", "-o", tmp_path / "p.csv")
    assert done.returncode == 3
    table = Predictions.read(tmp_path / "p.csv")
    assert [Path(p).name for p in table.paths] == ["a.jpg", "gone.jpg"]
    assert OK not in table.status


def test_an_unknown_class_folder(cells: Path, tmp_path: Path) -> None:
    shutil.copytree(cells, tmp_path / "data")
    (tmp_path / "data" / "LYT").rename(tmp_path / "data" / "Lymphos")
    refused(marrowscope("index", tmp_path / "data", "-o", tmp_path / "i.csv"), "Lymphos", "LYT")


def test_a_recipe_with_a_typo(recipe_file: Path, cells: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("learning_rate", "lerning_rate"))
    done = marrowscope("train", recipe_file, "--data", cells, "--out", tmp_path / "run")
    refused(done, "lerning_rate", "learning_rate", "2 mistake(s)")


def test_a_split_that_names_missing_files(recipe_file: Path, cells: Path, tmp_path: Path) -> None:
    shutil.copytree(cells, tmp_path / "data")
    marrowscope("index", tmp_path / "data", "-o", tmp_path / "i.csv")
    marrowscope("split", tmp_path / "i.csv", "--classes", "BLA,LYT,NGS", "-o", tmp_path / "s.csv")
    (tmp_path / "data" / "LYT" / "LYT_00003.jpg").unlink()
    args = ("--data", tmp_path / "data", "--split", tmp_path / "s.csv", "--out", tmp_path / "run")
    refused(marrowscope("train", recipe_file, *args), "LYT/LYT_00003.jpg")


def test_a_model_file_of_something_else(cells: Path, tmp_path: Path, tiny_run: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "relu.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    out = tmp_path / "p.csv"
    refused(marrowscope("predict", tmp_path / "relu.onnx", cells, "-o", out), "relu.onnx", "marrowscope export")
    refused(marrowscope("predict", tmp_path / "text.onnx", cells, "-o", out), "text.onnx")
    refused(marrowscope("predict", tmp_path / "none.onnx", cells, "-o", out), "none.onnx")
    refused(marrowscope("predict", "nonesuch", cells, "-o", out), "nonesuch")
    refused(marrowscope("predict", tiny_run, cells, "-o", out), "marrowscope export")
    assert not out.exists()


def _small_files_only() -> None:
    """No file of this process may grow past 1 kB: the write fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_disk(cells: Path, model_file: Path, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("old")
    for args in (
        ("index", cells, "-o", tmp_path / "i.csv"),
        ("predict", model_file, cells, "-o", tmp_path / "p.csv"),
        ("export", tiny_run, "-o", tmp_path / "m.onnx"),
    ):
        refused(marrowscope(*args, preexec=_small_files_only), "Can't write", "free space")
    # What was there stays, and nothing half written is left; rows that were made are kept to go on from.
    assert (tmp_path / "p.csv").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} <= {"p.csv", ".i.csv.journal", "p.csv.partial"}
    done = marrowscope("index", cells, "-o", tmp_path / "i.csv")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} - {"p.csv.partial"} == {"p.csv", "i.csv"}


def test_an_output_folder_that_cant_be_written(
    cells: Path, model_file: Path, recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file"
    refused(marrowscope("index", cells, "-o", below / "i.csv"), "Can't write")
    refused(marrowscope("predict", model_file, cells, "-o", below / "p.csv"), "Can't write")
    refused(marrowscope("train", recipe_file, "--data", cells, "--out", below / "run"), "Can't write")
    refused(marrowscope("phantom", below / "cells", "--per-class", 1), "Can't write")


def test_a_read_only_folder(cells: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere but where the kernel has no files to make
        locked = Path("/sys/kernel")
    refused(marrowscope("index", cells, "-o", locked / "i.csv"), "Can't write", "Choose a folder")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("split", "{i}", "--classes", "marrow-15"), ("marrow-14",)),
        (("split", "{i}", "--classes", "BLA,LYT,NGS", "--ratios", "80/20"), ("--ratios",)),
        (("split", "{i}", "--classes", "BLA,LYT,NGS", "--ratios", "a/b/c"), ("--ratios",)),
        (("split", "{i}", "--classes", "BLA,LYT,NGS", "--cap", "11"), ("10",)),
        (("split", "{i}", "--classes", "BLA,LYT,NGS", "--cap", "0"), ("cap",)),
        (("split", "nothere.csv", "--classes", "marrow-8"), ("nothere.csv",)),
        (("split", __file__, "--classes", "marrow-8"), ("not a", "path,label")),
        (("index", "nothere"), ("nothere",)),
        (("evaluate", "nothere.csv"), ("nothere.csv",)),
        (("report", "nothere"), ("nothere",)),
        (("export", "nothere"), ("nothere",)),
        (("phantom", "x", "--per-class", "0"), ("0",)),
        (("phantom", "x", "--classes", "BAS,LYT"), ("BAS",)),
    ],
    ids=lambda v: " ".join(v)[:60].replace("/", "_") if isinstance(v, tuple) else None,
)
def test_wrong_arguments_are_explained(
    args: tuple[str, ...], words: tuple[str, ...], cells: Path, tmp_path: Path
) -> None:
    index = tmp_path / "i.csv"
    if "{i}" in args:
        marrowscope("index", cells, "-o", index)
    done = marrowscope(*(str(index) if a == "{i}" else a for a in args), cwd=tmp_path)
    refused(done, *words)


@pytest.mark.parametrize("text", ["5", "m", "-3m", "nan", "1d", ""])
def test_a_wrong_time_limit_is_explained(text: str, recipe_file: Path, cells: Path, tmp_path: Path) -> None:
    args = ("train", recipe_file, "--data", cells, "--out", tmp_path / "run", f"--limit-time={text}")
    refused(marrowscope(*args), "--limit-time", "150m")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    script = f"{sys.executable} -m marrowscope.cli --help | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
