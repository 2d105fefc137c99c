"""Shared data: a few phantoms, a tiny recipe, and a tiny run made from them once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from marrowscope.config import Recipe, parse_recipe
from marrowscope.data.phantom import write_phantoms
from tiny import TINY_CODES, tiny_values

# The networks of the tests are so small that a second thread costs more than it brings. Set before torch is loaded,
# and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantoms of each of three classes, a folder a class."""
    out = tmp_path_factory.mktemp("phantoms") / "cells"
    write_phantoms(out, per_class=10, seed=1, codes=TINY_CODES, jobs=1)
    return out


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """Make a tiny recipe, with changes."""
    return lambda **changes: parse_recipe(tiny_values(**changes), "tiny")


@pytest.fixture(scope="session")
def tiny_run(cells: Path, tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on `cells`; tests must not change it."""
    pytest.importorskip("torch")
    from marrowscope.train import train

    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_recipe(), data=cells, out=out, quiet=True)
    return out


@pytest.fixture(scope="session")
def real_cells() -> Path:
    """The folder of real cells that MARROWSCOPE_DATA names."""
    value = os.environ.get("MARROWSCOPE_DATA", "")
    if not value:
        pytest.skip("MARROWSCOPE_DATA is not set: no real cells at hand")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"MARROWSCOPE_DATA names {value}, which is no folder")
    return path
