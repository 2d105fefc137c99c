"""What the pages say is true: their code runs, their links lead somewhere, their figures of files exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from marrowscope.data.index import build_index
from marrowscope.data.phantom import write_phantoms
from marrowscope.modelcards import bundled_models, card_markdown
from marrowscope.schema import write_index
from tiny import TINY_CODES, tiny_values

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
GENERATED = {DOCS / "reference" / f"{name}.md" for name in ("cli", "python", "models", "map")}
PAGES = sorted(
    p
    for p in (*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"))
    if p not in GENERATED and "_build" not in p.parts and p.name != "CHANGELOG.md"
)

RUN = {"sh", "python"}
READ = {"toml"}
SHOWN = {"text", "csv", "json", "html", "ini", "yaml", "dockerfile", "nginx", "{toctree}", "{eval-rst}", "{math}"}
_FENCE = re.compile(
    r"(?:<!-- (?P<note>not run|given): (?P<reason>[^\n]+?) -->\n)?"
    r"(?P<fence>`{3,})(?P<kind>[^\n`]*)\n(?P<code>.*?)\n(?P=fence)",
    re.DOTALL,
)
SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: Its language.
        note: ``not run`` or ``given``, from the comment before it, or empty.
        reason: Why it is not run, or what it is given.
    """

    kind: str
    code: str
    note: str
    reason: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for m in _FENCE.finditer(text):
        line = text.count("\n", 0, m.start("fence")) + 1
        kind = m["kind"].split()[0] if m["kind"].split() else ""
        found.append(Block(kind, m["code"], m["note"] or "", m["reason"] or "", line))
    return found


def _name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_each_block_says_what_it_is(page: Path) -> None:
    unknown = [f"line {b.line}: {b.kind!r}" for b in blocks(page) if b.kind not in RUN | READ | SHOWN]
    assert not unknown, f"blocks of a kind that nobody checks: {unknown}"
    assert all(len(b.reason) > 10 for b in blocks(page) if b.note == "not run"), "say why a block is not run"


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.kind in READ for b in blocks(p))], ids=_name)
def test_toml_blocks_are_toml(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "toml":
            assert tomllib.loads(block.code)


def _given(what: str, folder: Path) -> None:
    """Make what a page takes for granted."""
    if what == "index.csv of phantoms":
        write_phantoms(folder / "cells", per_class=10, seed=0, jobs=1)
        write_index(folder / "index.csv", build_index(folder / "cells"))
        return
    if what.startswith("phantoms in "):
        write_phantoms(folder / what.removeprefix("phantoms in "), per_class=3, seed=0, jobs=1)
        return
    if what == "a small run":
        from marrowscope.config import parse_recipe
        from marrowscope.train import train

        write_phantoms(folder / "cells", per_class=20, seed=0, codes=TINY_CODES, jobs=1)
        train(parse_recipe(tiny_values(), "tiny"), data=folder / "cells", out=folder / "run", quiet=True)
        return
    pytest.fail(f"Nobody knows how to make {what!r}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.kind in RUN and b.note != "not run" for b in blocks(p))], ids=_name
)
def test_the_code_runs(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the pages train networks too")
    for name in ("recipes", "scripts", "benchmarks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
    for block in blocks(page):
        if block.kind not in RUN or block.note == "not run":
            continue
        if block.note == "given":
            _given(block.reason, tmp_path)
        command = (
            [sys.executable, "-c", block.code]
            if block.kind == "python"
            else ["bash", "-euo", "pipefail", "-c", block.code]
        )
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{_name(page)}, line {block.line}:\n{block.code}\n{done.stdout}\n{done.stderr}"


_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)|<img[^>]+src=\"(?P<image>[^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(_FENCE, "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(_FENCE, "", page.read_text(encoding="utf-8"))
    broken = []
    for match in _LINK.finditer(text):
        target = match["target"] or match["image"]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        there = file.exists() or file in GENERATED
        if not there or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{_name(page)}: {broken}"


def test_no_page_shows_a_machine_s_own_paths() -> None:
    for page in PAGES:
        found = re.findall(r"(?:/home/|/root/|/Users/|/work/)\S*", page.read_text(encoding="utf-8"))
        assert not found, f"{_name(page)}: {found}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    run = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "marrowscope predict" in page
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)\"", page)
    assert not loaded, f"the site asks the network for {loaded}"


_PROGRAMS = re.compile(r"^(?:[A-Z_]+=\S+ )?(?:marrowscope|pip|python|make|torchrun|ray|curl|docker|git) ", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_command_hides_in_a_block_that_nobody_runs(page: Path) -> None:
    hidden = [f"line {b.line}" for b in blocks(page) if b.kind == "text" and _PROGRAMS.search(b.code)]
    assert not hidden, f"give these as sh, and where they can't run say why: {hidden}"


def test_every_page_is_in_the_table_of_contents() -> None:
    entries = {
        line.strip() for b in blocks(DOCS / "index.md") if b.kind == "{toctree}" for line in b.code.splitlines() if line
    }
    pages = {
        str(p.relative_to(DOCS).with_suffix("")) for p in (*DOCS.rglob("*.md"), *GENERATED) if "_build" not in p.parts
    }
    assert pages - {"index"} <= entries


def test_the_figures_of_the_readme_are_measured_ones() -> None:
    """Each stands on a page of results, or on the card of a model that comes with the package."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    ours = [line for line in readme.splitlines() if line.startswith("| ") and "recipe]" in line]
    assert len(ours) >= 2
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8").replace("*", "") for name in ("results", "experiments")]
    cards = [card_markdown(model.card) for model in bundled_models()]
    for line in ours:
        for figure in re.findall(r"0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", line):
            assert any(figure in text for text in (*pages, *cards)), f"{figure} of the README stands nowhere else"
