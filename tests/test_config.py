from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from marrowscope.config import load_recipe, parse_recipe, recipe_toml
from marrowscope.errors import RecipeError
from tiny import tiny_values

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_survives_writing(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    copy = tmp_path / "copy.toml"
    copy.write_text(recipe_toml(recipe))
    assert load_recipe(copy) == recipe


def test_a_teacher_is_written_and_read(tmp_path: Path) -> None:
    recipe = parse_recipe(tiny_values(distil={"teacher": "runs/a", "view": "plain"}), "r")
    assert recipe.distil.teacher == ("runs/a",)
    copy = tmp_path / "copy.toml"
    copy.write_text(recipe_toml(recipe))
    assert load_recipe(copy) == recipe
    assert load_recipe(copy, ['distil.teacher=["a", "b"]']).distil.teacher == ("a", "b")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_has_a_header_with_command_cost_and_score(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header).lower()
    for word in ("command:", "cost:", "score:"):
        assert word in text, f"{path.name} does not state its {word[:-1]}"


def test_all_mistakes_are_reported_at_once() -> None:
    values = tiny_values(
        optimiser={"learning_rate": 1},
        model__nam="x",
        schedule__epochs=0,
        engine__precision="fp8",
        loss__focal_gamma=-1,
    )
    with pytest.raises(RecipeError) as e:
        parse_recipe(values, "r.toml")
    text = str(e.value)
    assert "5 mistake(s)" in text
    assert "unknown key 'optimiser'" in text
    assert "unknown key 'nam' in [model]; known keys: name, weights" in text
    assert "schedule.epochs" in text
    assert "'bf16'" in text
    assert "loss.focal_gamma" in text


BALANCING: dict[str, Any] = {
    "data__sampling": "balanced",
    "loss__class_weights": "balanced",
    "loss__focal_gamma": 2.0,
    "loss__logit_adjustment": 1.0,
}


@pytest.mark.parametrize("pair", list(itertools.combinations(BALANCING, 2)), ids=lambda p: " and ".join(p))
def test_classes_are_not_balanced_twice(pair: tuple[str, str]) -> None:
    names = [key.replace("__", ".") for key in pair]
    message = rf"balanced twice, by {names[0]} = .* and by {names[1]} = .*; keep one of them$"
    with pytest.raises(RecipeError, match=message):
        parse_recipe(tiny_values(**{key: BALANCING[key] for key in pair}), "r.toml")
    for key in pair:
        parse_recipe(tiny_values(**{key: BALANCING[key]}), "r.toml")


# SHA-256 of recipes as the first versions wrote them: a run is resumed only where its recipe still has the same.
FIRST = "45a4886fb8bd5a1753531ad3f5544da8b6f64f7be9ca19842f076be9eba04772"
SECOND = "1a75f4728404eef2b187cdb9b066bbb631a4b58a79cc7e55ba352c354b0f28f7"


def test_recipes_keep_the_hash_that_their_runs_were_begun_with() -> None:
    def digest(**changes: Any) -> str:
        return hashlib.sha256(parse_recipe(tiny_values(**changes), "t").model_dump_json().encode()).hexdigest()

    assert digest() == FIRST
    old: dict[str, Any] = {
        "merge": {"LYT": "BLA"},
        "model__patch_drop": 0.5,
        "augment__blur": 1.0,
        "augment__jpeg": 50,
        "data__cache_folder": "x",
        "loss__focal_gamma": 2.0,
    }
    assert digest(**old) == SECOND
    # What came later is not written where it stands at its default, and changes the hash where it does not.
    later: dict[str, Any] = {
        "loss__logit_adjustment": 0.0,
        "schedule__head_epochs": 0,
        "engine__compile": False,
        "engine__attention": "auto",
        "distil": {},
    }
    assert digest(**later) == FIRST
    new: dict[str, Any] = {
        "loss__logit_adjustment": 1.0,
        "schedule__head_epochs": 1,
        "engine__compile": True,
        "engine__attention": "plain",
        "distil": {"teacher": "x"},
    }
    assert len({FIRST, *(digest(**{k: v}) for k, v in new.items())}) == 1 + len(new)


def test_members_that_take_pictures_of_their_own_are_written_and_read(tmp_path: Path) -> None:
    own = [{"size": 32}, {"size": 24, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25]}]
    recipe = parse_recipe(tiny_values(model__name="a + b", model__images=own), "t")
    assert recipe.model.members == ("a", "b")
    path = tmp_path / "joined.toml"
    path.write_text(recipe_toml(recipe))
    assert load_recipe(path) == recipe
    assert load_recipe(path).model.images[1].std == (0.5, 0.5, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__images": [{"size": 32}, {"size": 32}]}, "2 images for 1 network"),
        ({"model__images": [{"size": 48}]}, "can't be made of the pictures of .image."),
        ({"model__images": [{"size": 32, "crop": 0.5}]}, "can't be made of the pictures of .image."),
        ({"classes": "marrow-9"}, "Unknown class set"),
        ({"merge": {"NGB": "NGS"}}, "'NGB', which is not in BLA,LYT,NGS"),
        ({"merge": {"BLA": "LYT", "LYT": "NGS"}}, "merge a class once"),
        ({"drop": ["BLA"], "merge": {"LYT": "NGS"}}, "leave 1 class"),
        ({"schedule__warmup_epochs": 2}, "warmup_epochs .2.* must be below epochs"),
        ({"schedule__head_epochs": 2}, "head_epochs .2. must be below epochs"),
        ({"distil": {"weight": 0.5}}, "distil: there is no teacher"),
        ({"distil": {"teacher": ["a", "a"]}}, "distil: each teacher is the path of another run folder"),
        ({"distil": {"teacher": "a", "temprature": 2}}, r"unknown key 'temprature' in \[distil\]; known keys: teacher"),
        ({"image__std": [0.1, 0.0, 0.1]}, "std must be above 0"),
        ({"name": "A B"}, "name"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_a_value_that_is_not_allowed_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(tiny_values(**changes), "r.toml")


def _written(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(recipe_toml(parse_recipe(tiny_values(), "tiny")))
    return path


def test_set_changes_values_of_any_type(tmp_path: Path) -> None:
    recipe = load_recipe(
        _written(tmp_path), ["schedule.epochs=7", "model.weights=a/b.pth", "augment.flip=false", "data.cap = 5"]
    )
    assert recipe.schedule.epochs == 7
    assert recipe.model.weights == "a/b.pth"
    assert recipe.augment.flip is False
    assert recipe.data.cap == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [("schedule.epochs", "key=value"), ("name.x=1", "is a value, not a table"), ("schedule.epoch=3", "unknown key")],
)
def test_a_wrong_set_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(_written(tmp_path), [text])


def test_a_recipe_that_is_missing_or_no_toml_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("epochs: 3")
    with pytest.raises(RecipeError, match="not a TOML file"):
        load_recipe(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not a TOML file"):
        load_recipe(bad)
