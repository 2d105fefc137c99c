"""Imports point one way: a module may import modules of its own floor's packages and of the floors below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import marrowscope

PACKAGE = Path(marrowscope.__file__).parent

FLOORS: dict[str, int] = {
    # vocabulary
    "errors": 0, "cells": 0, "files": 0, "schema": 0, "config": 0,
    # pure numpy stages
    "images": 1, "data": 1, "evaluate": 1, "differential": 1, "holdout": 1, "analysis": 1, "triage": 1,
    # torch stages, and inference
    "models": 2, "augment": 2, "datasets": 2, "infer": 2, "occlusion": 2, "outputs": 2,
    "train": 3, "fit": 3, "score": 3, "strangers": 3, "trials": 3, "modelcards": 3, "explain": 3, "features": 3,
    "export": 3, "show": 3,
    "cluster": 3, "report": 4, "doctor": 4, "serve": 4,
    "cli": 5,
}  # fmt: skip

TORCH = {"torch", "timm", "torchvision", "lightning_fabric", "safetensors", "onnx", "onnxscript", "tensorboard"}
MAY_USE_TORCH = {
    "models",
    "augment",
    "datasets",
    "train",
    "score",
    "export",
    "doctor",
    "features",
    "explain",
    "outputs",
    "fit",
}
REPORT_MAY_IMPORT = {"errors", "cells", "files", "schema", "images", "analysis", "report"}
TRAINING_MAY_NOT_IMPORT = {"report", "export", "infer", "cli"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _top(path: Path) -> str:
    """First name below the package: `train` for train/loop.py, `cells` for cells.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Full names of all that a module imports, inside functions too, but not for type checking alone."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "marrowscope":
                found |= {f"marrowscope.{a.name}" for a in node.names}
            else:
                found.add(str(node.module))
    return found


def _own(names: set[str]) -> set[str]:
    parts = [n.split(".") for n in names if n.startswith("marrowscope.")]
    return {p[1] for p in parts} - {"__version__"}


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    top = _top(path)
    if top == "__init__":
        assert not _imports(path) - {"__future__"}, "the package itself must be light"
        return
    assert top in FLOORS, f"{top} has no floor; give it one here"
    own = _own(_imports(path)) - {top}
    above = {o for o in own if FLOORS[o] > FLOORS[top]}
    assert not above, f"{path.name} (floor {FLOORS[top]}) imports {above} from above"
    if top not in MAY_USE_TORCH | {"cli"}:
        heavy = {n.split(".")[0] for n in _imports(path)} & TORCH
        assert not heavy, f"{path.name} imports {heavy}"
    if top == "report":
        assert own <= REPORT_MAY_IMPORT
    if top == "train":
        assert not own & TRAINING_MAY_NOT_IMPORT


def test_no_import_cycles_between_packages() -> None:
    edges = {(_top(p), o) for p in _modules() if _top(p) != "__init__" for o in _own(_imports(p)) - {_top(p)}}
    done: set[str] = set()
    names = {a for a, _ in edges} | {b for _, b in edges}
    while names - done:
        free = {n for n in names - done if all(b in done for a, b in edges if a == n)}
        assert free, f"cycle among {names - done}"
        done |= free


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "infer",
        "images",
        "evaluate",
        "report",
        "data.index",
        "data.split",
        "data.phantom",
        "explain",
        "occlusion",
    ],
)
def test_the_light_modules_load_no_torch(module: str) -> None:
    code = f"import sys, marrowscope.{module}; print(*{TORCH!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def _map() -> dict[str, tuple[int, str]]:
    """Module -> (floor, heavy imports), by the table in CONTRIBUTING.md."""
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("<!-- map:")[2].partition("## ")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")]
    return {cells[1].strip("`"): (int(cells[0]), cells[3]) for cells in rows[1:]}


def test_the_map_of_the_package_names_every_module_and_no_other() -> None:
    there = {_top(path) for path in _modules()} - {"__init__"}
    assert set(_map()) == there == set(FLOORS), "CONTRIBUTING.md, the package, and FLOORS name the same modules"
    assert {name: floor for name, (floor, _) in _map().items()} == FLOORS


def test_the_map_says_which_modules_need_torch() -> None:
    says = {name for name, (_, heavy) in _map().items() if "torch" in heavy}
    assert says >= MAY_USE_TORCH - {"cli"}


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_module_says_what_it_is(path: Path) -> None:
    """The first line of its docstring, which the map in the documentation shows."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert len(text.splitlines()[0]) > 10
