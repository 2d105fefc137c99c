"""What the service says of itself: its map names every module, and the page's words are all there and all used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import marrowscope.serve as serve

FOLDER = Path(serve.__file__).parent
PAGE = FOLDER / "page"
WORDS: dict[str, str] = json.loads((PAGE / "en.json").read_text(encoding="utf-8"))
SOURCES = {
    p.name: re.sub(r"^ *//.*$", "", p.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for p in sorted(PAGE.iterdir())
    if p.suffix in {".js", ".html"}
}


def test_the_map_names_every_module_and_nothing_else() -> None:
    there = {p.name for p in FOLDER.iterdir() if p.is_dir() and not p.name.startswith("_")}
    there |= {p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__"}
    named = re.findall(r"^(\w+)  +\S", serve.__doc__ or "", re.MULTILINE)
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("name", SOURCES)
def test_every_word_that_the_page_asks_for_is_there(name: str) -> None:
    asked = set(re.findall(r"""\bt\("([^"]+)\"""", SOURCES[name])) | set(re.findall(r'data-t="([^"]+)"', SOURCES[name]))
    assert asked <= WORDS.keys()
    for prefix in re.findall(r"\bt\(`([^`$]+)\$\{\w+(?:\.\w+)*\}`", SOURCES[name]):
        assert any(w.startswith(prefix) for w in WORDS), prefix


def test_every_word_is_used() -> None:
    text = "".join(SOURCES.values())
    prefixes = tuple(re.findall(r"`([a-z.]+\.)\$\{", text))
    assert [w for w in WORDS if f'"{w}"' not in text and not w.startswith(prefixes)] == []


def test_no_words_stand_anywhere_else() -> None:
    """The page's own text comes from one file: elements are made with names of words, not with words."""
    for name, source in SOURCES.items():
        if name.endswith(".js"):
            made = re.findall(r'\bmake\("[^"]+", \{[^{}]*\}, "([^"]*)"', source)
            assert all(not re.search(r"[A-Za-z]{2}", m) for m in made), (name, made)
    body = SOURCES["index.html"].partition("<body>")[2]
    shown = [t.strip() for t in re.findall(r">([^<]+)<", body) if t.strip()]
    assert shown == ["This page needs JavaScript."], "which it can't fetch its words without"
