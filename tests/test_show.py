"""Contact sheets, the histogram, and what training sees."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from marrowscope.config import Recipe
from marrowscope.data.index import build_index
from marrowscope.data.provenance import SYNTHETIC_MARK
from marrowscope.data.split import make_split
from marrowscope.errors import DataError, FileFormatError, OutputError
from marrowscope.evaluate import evaluate_csv
from marrowscope.explain.drawing import RIGHT, WRONG
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, OK, Predictions, write_index
from marrowscope.show import SYNTHETIC, class_table, figures_table, show_answers, show_augmented, show_index
from tiny import TINY_CODES

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def index(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "index.csv"
    write_index(path, build_index(cells, jobs=1))
    return path


def test_the_module_loads_no_torch() -> None:
    code = "import sys, marrowscope.show; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_class_has_a_sheet_and_a_bar(cells: Path, index: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    page = show_index(
        index, cells, tmp_path / "out", per_class=9, side=40, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in page.parent.iterdir()) == sorted(
        ["index.html", "histogram.png", *(f"{c}.png" for c in TINY_CODES)]
    )
    for code in TINY_CODES:
        with Image.open(page.parent / f"{code}.png") as sheet:
            assert sheet.size == (8 * 44 + 4, 28 + 2 * 44 + 4)
    text = page.read_text()
    assert NOT_A_MEDICAL_DEVICE in text
    assert SYNTHETIC in text
    # In clinical order.
    assert text.index("<h2>BLA ") < text.index("<h2>NGS ") < text.index("<h2>LYT ")
    assert "blast: 9 of 10 (synthetic)</h2>" in text
    assert "30 pictures of 3 classes." in text
    assert len(re.findall(r"<li>BLA/", text)) == 9
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text), "the page must need no other file"
    for data in re.findall(r"base64,([^\"]+)", text):
        assert base64.b64decode(data).startswith(b"\xff\xd8")


def test_the_same_pictures_are_shown_again(cells: Path, index: Path, tmp_path: Path) -> None:
    a, b, c = (
        show_index(index, cells, tmp_path / str(i), per_class=3, side=32, seed=s).read_bytes()
        for i, s in enumerate((0, 0, 1))
    )
    assert a == b
    assert a != c


def test_names_are_escaped_and_lost_pictures_are_told(cells: Path, tmp_path: Path) -> None:
    data = tmp_path / "<i>data"
    (data / "BLA").mkdir(parents=True)
    pictures = sorted((cells / "BLA").iterdir())
    names = ["<b>&amp;.jpg", "gone.jpg", "b\udcff.jpg"]
    for source, name in zip(pictures, names, strict=False):
        shutil.copy2(source, data / "BLA" / name)
    (data / "BLA" / "broken.jpg").write_bytes(b"no picture")
    index = tmp_path / "index.csv"
    write_index(index, build_index(data, jobs=1))
    (data / "BLA" / "gone.jpg").unlink()
    text = show_index(index, data, tmp_path / "out", side=32).read_text()
    assert "<i>data" not in text
    assert "&lt;i&gt;data" in text
    assert "BLA/&lt;b&gt;&amp;amp;.jpg" in text
    assert "1 more can&#x27;t be used" in text or "1 more can't be used" in text
    assert "BLA/gone.jpg: missing: no such file" in text
    assert "BLA/b�.jpg" in text
    assert SYNTHETIC not in text
    assert "synthetic" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"per_class": 0}, "per_class is 0; allowed: 1 to 400"), ({"side": 9999}, "side is 9999; allowed: 32 to 512")],
)
def test_bad_options_are_named(cells: Path, index: Path, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        show_index(index, cells, tmp_path / "out", **options)


def test_bad_input_is_an_error(cells: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="Can't read the index"):
        show_index(tmp_path / "none.csv", cells, tmp_path / "out")
    with pytest.raises(DataError, match="Can't open the data"):
        show_index(index, tmp_path / "none", tmp_path / "out")
    write_index(tmp_path / "empty.csv", [])
    with pytest.raises(DataError, match="no picture that can be used"):
        show_index(tmp_path / "empty.csv", cells, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose a folder"):
        show_index(index, cells, tmp_path / "file")


def test_training_is_shown_as_it_sees_its_pictures(
    cells: Path, index: Path, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    make_split(build_index(cells, jobs=1), codes=TINY_CODES, class_set="x").write(tmp_path / "split.csv")
    recipe = tiny_recipe(augment__blur=1.0)
    for table in (tmp_path / "split.csv", index):
        page = show_augmented(recipe, cells, table, tmp_path / "out", pictures=4, draws=2)
        text = page.read_text()
        assert NOT_A_MEDICAL_DEVICE in text
        assert SYNTHETIC in text
        assert {c for c in TINY_CODES if f"<li>{c}: {c}/" in text} == set(TINY_CODES)
        assert "<tr><td>blur</td>" in text
        assert "<tr><td>jpeg</td>" not in text
        with Image.open(page.parent / "augmented.png") as sheet:
            assert sheet.height == 28 + 4 * 36 + 4
            ink = (np.asarray(sheet.convert("L"))[:28] < 128).any(0)
            assert ink[3 * 36 + 4 :].any()
            assert not ink[-4:].any(), "the title is longer than the rows, and is not cut off"
    first = (tmp_path / "out" / "augmented.png").read_bytes()
    show_augmented(recipe, cells, index, tmp_path / "out", pictures=4, draws=2)
    assert (tmp_path / "out" / "augmented.png").read_bytes() == first
    off = {k: v for k, v in tiny_recipe().augment.model_dump().items() if not v}
    plain = recipe.model_copy(update={"augment": type(recipe.augment)(**off)})
    assert "All augmentation is off." in show_augmented(plain, cells, index, tmp_path / "off", pictures=2).read_text()


def test_bad_input_for_what_training_sees_is_an_error(
    cells: Path, index: Path, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    with pytest.raises(DataError, match="draws is 99; allowed: 1 to 16"):
        show_augmented(tiny_recipe(), cells, index, tmp_path / "out", draws=99)
    with pytest.raises(DataError, match="pictures is 1; allowed: 2 to 64"):
        show_augmented(tiny_recipe(), cells, index, tmp_path / "out", pictures=1)
    with pytest.raises(FileFormatError, match=r"Give a split\.csv or an index\.csv"):
        show_augmented(tiny_recipe(), cells, tmp_path / "none.csv", tmp_path / "out")
    empty = tmp_path / "cells"
    empty.mkdir()
    (empty / SYNTHETIC_MARK).write_text("")
    with pytest.raises(DataError, match="missing: no such file"):
        show_augmented(tiny_recipe(), empty, index, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- answers


def _answers(cells: Path, path: Path, wrong: int = 7, truth: bool = True, extra: Sequence[str] = ()) -> list[bool]:
    """A table of predictions of all phantoms and of `extra`, `wrong` of them wrong; whether each is right, as shown."""
    by_class = {code: sorted(f"{code}/{p.name}" for p in (cells / code).iterdir()) for code in TINY_CODES}
    names = [*(name for code in ("BLA", "NGS", "LYT") for name in by_class[code]), *extra]  # in clinical order
    labels = [name[:3] for name in names]
    right = [i % 4 != 1 or i // 4 >= wrong for i in range(len(names))]
    columns = sorted(TINY_CODES)
    said = [columns.index(t) if r else (columns.index(t) + 1) % 3 for t, r in zip(labels, right, strict=True)]
    # The table has another order than the sheet.
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    Predictions(
        paths=(*(names[i] for i in order), "BLA/broken.jpg"),
        status=(*[OK] * len(names), "not an image"),
        codes=tuple(columns),
        probs_NC=np.concatenate([np.eye(3)[[said[i] for i in order]], np.full((1, 3), np.nan)]),
        truth=(*(labels[i] for i in order), "BLA") if truth else None,
    ).write(path)
    return right


def _frames(sheet: Path, n: int, side: int) -> list[str]:
    """The colours of the frames, row by row; the letter's box below each has the same."""
    with Image.open(sheet) as image:
        pixels = image.convert("RGB")
    out = []
    for i in range(n):
        x, y = 4 + i % 10 * (side + 14), 28 + i // 10 * (side + 32)
        corners = [pixels.getpixel((x + dx, y + dy)) for dx in (0, side + 9) for dy in (0, side + 9)]
        (colour,) = {*corners, pixels.getpixel((x + 1, y + side + 11))}
        assert isinstance(colour, tuple)
        out.append(bytes(colour).hex())
    return out


def test_right_answers_are_green_and_wrong_ones_red(cells: Path, tmp_path: Path) -> None:
    right = _answers(cells, tmp_path / "p.csv")
    sheet = show_answers(tmp_path / "p.csv", cells, tmp_path / "out" / "answers.png", side=64)
    assert sheet == tmp_path / "out" / "answers.png"
    with Image.open(sheet) as image:
        assert image.size == (10 * 78 + 4, 28 + 3 * 96 + 4)
    assert _frames(sheet, 30, 64) == [(RIGHT if r else WRONG)[1:] for r in right]
    assert right.count(False) == 7


def test_the_sheet_can_be_read_without_colours(cells: Path, tmp_path: Path) -> None:
    """The letters differ in their shape, not only in the colour of the box around them."""
    right = _answers(cells, tmp_path / "p.csv")
    with Image.open(show_answers(tmp_path / "p.csv", cells, tmp_path / "a.png", side=64)) as image:
        grey = np.asarray(image.convert("RGB")).astype(int)
    letters = {}
    for i in (right.index(True), right.index(False)):
        x, y = 4 + i % 10 * 78, 28 + i // 10 * 96 + 74
        box = grey[y : y + 18, x : x + 16]
        letters[right[i]] = np.abs(box - 255).sum(2) < 200
    assert letters[True].any()
    assert letters[False].any()
    assert (letters[True] != letters[False]).mean() > 0.1


def test_chance_chooses_the_answers_whatever_they_are(cells: Path, tmp_path: Path) -> None:
    _answers(cells, tmp_path / "p.csv")
    _answers(cells, tmp_path / "q.csv", wrong=0)

    def shown(table: str, seed: int) -> bytes:
        return show_answers(tmp_path / table, cells, tmp_path / "a.png", n=10, side=64, seed=seed).read_bytes()

    assert shown("p.csv", 0) == shown("p.csv", 0) != shown("p.csv", 1)

    def pictures(table: str) -> npt.NDArray[np.uint8]:
        with Image.open(show_answers(tmp_path / table, cells, tmp_path / "a.png", n=10, side=64)) as image:
            pixels = np.asarray(image)
        return np.stack([pixels[33 : 33 + 64, 9 + i * 78 : 9 + i * 78 + 64] for i in range(10)])

    assert np.array_equal(pictures("p.csv"), pictures("q.csv")), "the same cells, whatever was answered"


def test_lost_pictures_are_crossed_out(cells: Path, tmp_path: Path) -> None:
    _answers(cells, tmp_path / "p.csv", extra=("LYT/gone.jpg",))
    sheet = show_answers(tmp_path / "p.csv", cells, tmp_path / "a.png", side=64)
    with Image.open(sheet) as image:
        assert image.height == 28 + 4 * 96 + 4
        tile = np.asarray(image)[28 + 3 * 96 :, :78]
    assert (tile == (208, 212, 217)).all(2).sum() > 1000, "the paper of a crossed-out tile"


def test_answers_that_can_not_be_shown_are_an_error(cells: Path, tmp_path: Path) -> None:
    _answers(cells, tmp_path / "p.csv", truth=False)
    with pytest.raises(FileFormatError, match="no column 'truth'"):
        show_answers(tmp_path / "p.csv", cells, tmp_path / "a.png")
    _answers(cells, tmp_path / "p.csv")
    with pytest.raises(DataError, match="n is 0; allowed: 1 to 1000"):
        show_answers(tmp_path / "p.csv", cells, tmp_path / "a.png", n=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="None of 30 cells"):
        show_answers(tmp_path / "p.csv", tmp_path / "empty", tmp_path / "a.png")
    nothing = Predictions(("a.jpg",), ("broken",), TINY_CODES, np.full((1, 3), np.nan), ("BLA",))
    nothing.write(tmp_path / "n.csv")
    with pytest.raises(DataError, match="no file with an answer"):
        show_answers(tmp_path / "n.csv", cells, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_figures_stand_in_tables(cells: Path, tmp_path: Path) -> None:
    right = _answers(cells, tmp_path / "p.csv")
    evaluation = evaluate_csv(tmp_path / "p.csv")
    accuracy = evaluation.figures["accuracy"]
    assert accuracy.value == sum(right) / 30
    overall = figures_table(evaluation).splitlines()
    assert f"| accuracy | {accuracy} | 30 |" in overall
    assert len(overall) == 2 + len(evaluation.figures)
    chosen = figures_table(evaluation, ["macro_f1", "top2_accuracy"]).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in chosen] == ["macro F1", "top-2 accuracy"]
    with pytest.raises(DataError, match="No figure 'luck'; there are accuracy, "):
        figures_table(evaluation, ["luck"])
    by_class = class_table(evaluation).splitlines()[2:]
    assert [line[2:5] for line in by_class] == ["BLA", "NGS", "LYT"]
    for line in by_class:
        (c,) = (c for c in evaluation.per_class if c.code == line[2:5])
        assert [cell.strip() for cell in line.split("|")[2:-1]] == ["10", str(c.precision), str(c.recall), str(c.f1)]
