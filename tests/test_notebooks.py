"""The notebooks run from top to bottom on phantoms, and the pages of the documentation show them as they are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from marrowscope.explain.drawing import RIGHT, WRONG
from marrowscope.infer import read_card
from marrowscope.schema import OK, Analysis, Evaluation, Explanations, Predictions, Split, read_index, read_metrics

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("torch", reason="the notebooks train networks")

REPOSITORY = Path(__file__).parent.parent
METHODS = {"resnet50-14c": "gradcam", "vit-imageclass-14c": "rollout"}
NAMES = tuple(METHODS)
CHANCE = 1 / 14
each_notebook = pytest.mark.parametrize("name", NAMES)


def stored(name: str) -> Any:
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [c.source for c in notebook.cells if c.cell_type == "code"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both notebooks have run, one after the other."""
    folder = tmp_path_factory.mktemp("notebooks")
    script = [sys.executable, str(REPOSITORY / "scripts" / "notebooks.py"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return folder / "notebooks"


# ------------------------------------------------------------------------------------------------------- as they lie


@each_notebook
def test_it_is_stored_without_outputs(name: str) -> None:
    notebook = stored(name)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert len(cells) > 10
    assert all(not c.outputs and c.execution_count is None for c in cells)


@each_notebook
def test_its_first_cell_chooses_the_data(name: str) -> None:
    first = code_of(stored(name))[0]
    assert 'CHOICE = os.environ.get("MARROWSCOPE_NOTEBOOK", "phantoms")' in first
    tables = [n for n in ast.walk(ast.parse(first)) if isinstance(n, ast.Dict)]
    assert [[k.value for k in t.keys if isinstance(k, ast.Constant)] for t in tables] == [
        ["phantoms", "cells", "collection"]
    ]


@each_notebook
def test_it_has_no_logic_of_its_own(name: str) -> None:
    """Nothing is defined or computed; what is imported of marrowscope is public."""
    tree = ast.parse("\n".join(code_of(stored(name))))
    own = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.BinOp)
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            assert isinstance(node.op, ast.Div), f"line {node.lineno} computes"  # paths
        else:
            assert not isinstance(node, own), f"{type(node).__name__} in line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            names = [*str(node.module).split("."), *(a.name for a in node.names)]
            assert names[0] in {"pathlib", "IPython", "marrowscope"}
            assert not any(n.startswith("_") for n in names)


def test_both_tell_the_same_story() -> None:
    """The cells differ where the networks do, and nowhere else."""
    one, other = (stored(name).cells for name in NAMES)
    assert len(one) == len(other)
    same = sum(a.source == b.source for a, b in zip(one, other, strict=True))
    assert same >= len(one) - 7


# -------------------------------------------------------------------------------------------------------- as they run


@pytest.mark.slow
@each_notebook
def test_it_runs_and_shows_what_the_study_shows(name: str, place: Path) -> None:
    cells = [c for c in nbformat.read(place / f"{name}.ipynb", as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    kinds = [kind for c in cells for o in c.outputs if "data" in o for kind in o.data]
    assert kinds.count("image/png") >= 7, "histogram, sheet, augmentation, answers, three grids of heat maps"
    assert kinds.count("image/svg+xml") == 4, "two curves, recall and precision, confusion matrix"
    assert kinds.count("text/markdown") == 2, "figures overall and per class"


@pytest.mark.slow
@each_notebook
def test_what_it_leaves_behind_is_whole(name: str, place: Path) -> None:
    work = place / "work" / "phantoms" / name
    run = work / "run"
    rows = read_index(work / "index.csv")
    assert len(rows) == 14 * 80
    assert all(r.status == OK for r in rows)
    split = Split.read(work / "split.csv")
    assert {part: set(counts.values()) for part, counts in split.counts().items()} == {
        "train": {48}, "val": {12}, "test": {20},
    }  # fmt: skip
    assert split.rows == Split.read(run / "split.csv").rows
    losses = [m["train_loss"] for m in read_metrics(run / "metrics.csv")]
    assert losses[-1] < losses[0]
    evaluation = Evaluation.read(run / "evaluation.json")
    accuracy = evaluation.figures["accuracy"]
    assert evaluation.n == len(Predictions.read(run / "predictions.csv").paths) == 14 * 20
    assert accuracy.low is not None
    assert accuracy.low > 2 * CHANCE, "a network that learnt nothing"
    assert Analysis.read(run / "analysis.json").n == evaluation.n
    maps = Explanations.read(run / "explanations" / "explanations.json")
    assert [m.name for m in maps.methods] == [METHODS[name]]
    assert len(maps.pictures) == 14 * 2
    assert (run / "report.html").stat().st_size > 100_000
    assert read_card(str(work / "model.onnx")).test["accuracy"].value == accuracy.value


@pytest.mark.slow
@each_notebook
def test_the_hundred_answers_are_green_and_red(name: str, place: Path) -> None:
    """As many frames of each colour as the predictions have right and wrong answers among the cells shown."""
    work = place / "work" / "phantoms" / name
    with Image.open(work / "answers.png") as sheet:
        pixels = sheet.convert("RGB")
    # The letter's box at the foot of each of ten by ten tiles (5 px frame, 96 px picture, 18 px caption, 4 px gap).
    found = [pixels.getpixel((4 + 1 + x * 110, 28 + 106 + 2 + y * 128)) for y in range(10) for x in range(10)]
    green, red = (sum(p == tuple(bytes.fromhex(c[1:])) for p in found) for c in (RIGHT, WRONG))
    assert green + red == 100
    p = Predictions.read(work / "run" / "predictions.csv")
    assert p.truth is not None
    right = sum(p.codes[int(q.argmax())] == t for q, t in zip(p.probs_NC, p.truth, strict=True))
    assert abs(green / 100 - right / len(p.paths)) < 0.15, "a fair sample"


@pytest.mark.slow
def test_the_second_compares_both_and_the_first_says_what_is_missing(place: Path) -> None:
    def printed(name: str) -> str:
        cells = nbformat.read(place / f"{name}.ipynb", as_version=4).cells
        (cell,) = (c for c in cells if "compare_csvs(" in c.source)
        return "".join(o.text for o in cell.outputs if o.output_type == "stream")

    assert "Can't read the table of predictions" in printed(NAMES[0])
    said = printed(NAMES[1])
    for name in NAMES:
        accuracy = Evaluation.read(place / "work" / "phantoms" / name / "run" / "evaluation.json").figures["accuracy"]
        assert f"work/phantoms/{name}/run/predictions.csv: accuracy {accuracy}" in said
    assert "p = " in said


# ---------------------------------------------------------------------------------------------------- as they are shown


@each_notebook
def test_the_documentation_shows_the_notebook_as_it_is(name: str) -> None:
    """`python scripts/notebooks.py FOLDER --pages` writes the pages anew."""
    page = (REPOSITORY / "docs" / "notebooks" / f"{name}.md").read_text()
    shown = page.split("```python\n")[1:]
    assert [block.split("\n```\n")[0] for block in shown] == code_of(stored(name))
    pictures = sorted((REPOSITORY / "docs" / "images" / "notebooks").glob(f"{name}-*"))
    assert len(pictures) >= 11
    assert all(f"images/notebooks/{p.name})" in page for p in pictures)
    assert sum(p.stat().st_size for p in pictures) < 1_500_000


def test_the_script_refuses_pages_of_real_cells(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "scripts" / "notebooks.py"), str(tmp_path), "--pages"]
    done = subprocess.run(script, capture_output=True, text=True, env={"MARROWSCOPE_NOTEBOOK": "cells"})
    assert done.returncode == 2
    assert "no picture in the repository may show a real cell" in done.stderr
