"""Contact sheets, the histogram, and what training sees."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from marrowscope.config import Recipe
from marrowscope.data.index import build_index
from marrowscope.data.provenance import SYNTHETIC_MARK
from marrowscope.data.split import make_split
from marrowscope.errors import DataError, FileFormatError, OutputError
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, write_index
from marrowscope.show import SYNTHETIC, show_augmented, show_index
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
            assert sheet.size == (3 * 36 + 4, 28 + 4 * 36 + 4)
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
