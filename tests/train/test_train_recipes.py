"""The recipes of the original study run, in small: their own settings, small networks, few phantoms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from marrowscope.config import load_recipe
from marrowscope.data.phantom import write_phantoms
from marrowscope.schema import Card, Split, read_metrics
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state

RECIPES = Path(__file__).parent.parent.parent / "recipes"
SMALL = {"seed-resnet50": "test_resnet", "seed-vit": "test_vit"}


@pytest.fixture(scope="module")
def fourteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms of each of the fourteen classes."""
    out = tmp_path_factory.mktemp("fourteen") / "cells"
    write_phantoms(out, per_class=4, seed=2, jobs=1)
    return out


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_of_the_original_study_runs(name: str, fourteen: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / f"{name}.toml",
        [f"model.name={SMALL[name]}", "model.weights=none", "image.size=32", "schedule.epochs=1", "data.cap=3"],
    )
    # What the study said that it did, and (docs/reproduction.md) partly didn't.
    assert recipe.augment.rotation == 10
    assert recipe.augment.flip
    assert recipe.data.sampling == "natural"
    assert recipe.loss.model_dump() == {"label_smoothing": 0.0, "class_weights": "none", "focal_gamma": 0.0}
    whole = load_recipe(RECIPES / f"{name}.toml")
    assert whole.model.weights == "hub"
    assert (whole.data.cap, whole.data.ratios, whole.engine.batch_size) == (2700, (0.8, 0.1, 0.1), 32)
    out = tmp_path / "run"
    train(recipe, data=fourteen, out=out, quiet=True)
    split = Split.read(out / "split.csv")
    assert {c: n for part in split.counts().values() for c, n in part.items() if n}.keys() == set(recipe.codes)
    assert len(split.rows) == 14 * 3
    (row,) = read_metrics(out / "metrics.csv")
    assert row["learning_rate"] == pytest.approx(whole.optimizer.learning_rate)
    assert Card.read(out / "card.json").codes == recipe.codes
    state = load_state(out / "last")
    assert state is not None
    assert all(torch.isfinite(v).all() for v in state[1].values())


def test_the_settings_of_the_original_study() -> None:
    resnet, vit = (load_recipe(RECIPES / f"{name}.toml") for name in SMALL)
    assert (resnet.optimizer.name, resnet.optimizer.learning_rate, resnet.schedule.epochs) == ("adam", 1e-4, 25)
    assert (vit.optimizer.name, vit.optimizer.learning_rate, vit.schedule.epochs) == ("adamw", 2e-5, 5)
    assert vit.model.name == "vit_base_patch16_224.augreg_in21k"


def test_the_tests_that_the_reproduction_page_names_are_there() -> None:
    page = (RECIPES.parent / "docs" / "reproduction.md").read_text()
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    assert len(named) > 10
    sources = "\n".join(p.read_text() for p in (RECIPES.parent / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in sources]
    for path in re.findall(r"`(tests/[a-z0-9_/]+\.py)`", page):
        assert (RECIPES.parent / path).is_file(), path
