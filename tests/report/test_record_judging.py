"""The script that writes all figures and charts of a model into the documentation, on a run of noise."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marrowscope.schema import Evaluation, ExplanationTests

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
PARTS = ("model", "headline", "trust", "novelty", "robustness", "errors", "explanations", "charts")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("record_judging")
    sys.path.remove(str(SCRIPTS))


def _page(docs: Path, *blocks: str) -> Path:
    docs.mkdir()
    page = docs / "judged.md"
    lines = [f"<!-- record: {b} -->\nold text of {b}\n<!-- end of record -->\n" for b in blocks]
    page.write_text("# Title\n\n" + "\nBetween.\n\n".join(lines), encoding="utf-8")
    return page


def test_every_part_is_filled_and_the_rest_is_left_alone(
    script: Any, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(64, analysed=True, synthetic=False)
    page = _page(tmp_path / "docs", *(f"best {p}" for p in PARTS), "other trust")
    old = page.parent / "images" / "best"
    old.mkdir(parents=True)
    (old / "of-an-earlier-model.svg").write_text("", encoding="utf-8")
    script.write({"best": run}, page.parent)
    text = page.read_text(encoding="utf-8")
    assert "old text of best" not in text
    assert "old text of other trust" in text
    assert text.count("Between.") == len(PARTS)
    assert "Not recorded yet" not in text
    e, tests = Evaluation.read(run / "evaluation.json"), ExplanationTests.read(run / "explanation-tests.json")
    for figure in (*e.figures.values(), *(c.recall for c in e.per_class)):
        assert f"| {figure} |" in text
    assert e.novelty is not None
    assert str(e.novelty.kinds[0].scores["energy"].auroc) in text
    assert all(t.title in text for t in tests.methods)
    charts = re.findall(r"^!\[(.+)\]\(images/best/(.+\.svg)\)$", text, re.MULTILINE)
    assert {name for _, name in charts} == {p.name for p in old.iterdir()}
    assert {"confusion.svg", "forest.svg", "risk.svg", "novelty.svg", "map-truth.svg"} <= {name for _, name in charts}
    assert all(len(alternative) > 30 for alternative, _ in charts)
    assert not any("<image" in p.read_text(encoding="utf-8") for p in old.iterdir())
    script.write({"best": run}, page.parent)
    assert page.read_text(encoding="utf-8") == text


def test_what_is_not_there_is_said(script: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(24, further=False)
    page = _page(tmp_path / "docs", "best novelty", "best errors", "best explanations")
    script.write({"best": run}, page.parent)
    text = page.read_text(encoding="utf-8")
    for command in ("evaluate RUN --novelty", "analyse RUN", "explain RUN --test"):
        assert f"Not recorded yet (`marrowscope {command}`)." in text


def test_an_unknown_part_is_refused(script: Any, make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = _page(tmp_path / "docs", "best nothing")
    with pytest.raises(SystemExit, match="'nothing' of a record is unknown; allowed: headline"):
        script.write({"best": tmp_path}, page.parent)


def test_the_pages_of_the_documentation_name_known_parts(script: Any) -> None:
    found = [m for page in script.DOCS.glob("*.md") for m in script.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert {part for _, _, part, _ in found} == set(PARTS)
    assert {name for _, name, _, _ in found} >= {"best", "resnet50"}
