"""Searches: every combination, on validation cells alone, and nothing done twice."""

from __future__ import annotations

import csv
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

import marrowscope.train.loop as loop
import marrowscope.train.sweep as sweep_module
from marrowscope.config import Recipe, recipe_toml
from marrowscope.data.index import build_index
from marrowscope.data.split import make_split
from marrowscope.datasets import Batch, Indices
from marrowscope.errors import DivergedError, RecipeError, SplitError, TrainingError
from marrowscope.schema import Split, read_metrics
from marrowscope.score import evaluate_run
from marrowscope.train import train
from marrowscope.train.sweep import lines, parse_grid, sweep

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_recipe: MakeRecipe) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(recipe_toml(tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)))
    return path


@pytest.fixture
def split(cells: Path, tmp_path: Path) -> Path:
    rows = build_index(cells, jobs=1)
    path = tmp_path / "split.csv"
    make_split(rows, codes=("BLA", "LYT", "NGS"), class_set="BLA,LYT,NGS", seed=0).write(path)
    return path


def _table(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open() as f:
        return list(csv.DictReader(f))


def test_every_combination_is_trained_for_every_seed_and_ranked(
    recipe_file: Path, split: Path, cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    grid = ["optimizer.learning_rate=1e-5,1e-3", "model.name=test_resnet,test_vit"]
    result = sweep(recipe_file, grid, data=cells, out=out, split=split, seeds=[0, 1], quiet=True)
    rows = _table(out)
    assert len(rows) == 8
    combinations = {(r["optimizer.learning_rate"], r["model.name"], r["seed"]) for r in rows}
    assert combinations == {(a, b, c) for a in ("1e-05", "0.001") for b in ("test_resnet", "test_vit") for c in "01"}
    for row in rows:
        (metrics,) = read_metrics(out / row["run"] / "metrics.csv")
        assert float(row["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=1e-6)
    assert [s.mean for s in result.summaries] == sorted((s.mean for s in result.summaries), reverse=True)
    for s in result.summaries:
        own = [
            float(r["val_accuracy"])
            for r in rows
            if r["model.name"] == s.values["model.name"]
            and float(r["optimizer.learning_rate"]) == s.values["optimizer.learning_rate"]
        ]
        assert (s.n, s.mean) == (2, pytest.approx(statistics.fmean(own), abs=1e-6))
        assert s.spread == pytest.approx(statistics.stdev(own), abs=1e-6)
    text = "\n".join(lines(result))
    assert 'model.name="test_vit"' in text
    assert "a little too good" in text


def test_no_run_of_a_sweep_can_see_or_be_judged_on_the_test_part(
    recipe_file: Path, split: Path, cells: Path, tmp_path: Path
) -> None:
    # The pictures of the test part are not even there.
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    held = {r.path for r in Split.read(split).part("test")}
    for path in held:
        (data / path).unlink()
    out = tmp_path / "sweep"
    for folds, place in ((None, "runs/as-it-is/seed-3"), (3, "runs/as-it-is/seed-3-fold-1")):
        sweep(recipe_file, [], data=data, out=out, split=split, folds=folds, quiet=True)
        run = out / place
        used = Split.read(run / "split.csv")
        assert used.part("test") == []
        assert not held & {r.path for r in used.rows}
        with pytest.raises(SplitError, match="no image in the part 'test'"):
            evaluate_run(run)
        assert not (run / "test-use.json").exists()
    # The whole split is there to train the chosen recipe on, and the sweep's runs did not teach on its test part.
    assert Split.read(out / "split.csv").rows == Split.read(split).rows
    assert "test part (3 images) is left out" in Split.read(out / "tuning" / "val.csv").info.notes[-1]


def test_folds_validate_each_known_cell_once(recipe_file: Path, split: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep(recipe_file, [], data=cells, out=out, split=split, folds=3, quiet=True)
    validated = [r.path for row in _table(out) for r in Split.read(out / row["run"] / "split.csv").part("val")]
    assert sorted(validated) == sorted(r.path for r in Split.read(split).rows if r.part != "test")


def test_folds_for_teachers_leave_the_val_part_out_too(
    recipe_file: Path, split: Path, cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    sweep(recipe_file, [], data=cells, out=out, split=split, folds=3, train_only=True, quiet=True)
    whole = Split.read(split)
    train_part = sorted(r.path for r in whole.part("train"))
    runs = [Split.read(out / row["run"] / "split.csv") for row in _table(out)]
    assert len(runs) == 3
    assert all(sorted(r.path for r in run.rows) == train_part for run in runs)
    assert sorted(r.path for run in runs for r in run.part("val")) == train_part
    held = len(whole.rows) - len(train_part)
    assert all(f"val and test parts ({held} images) are left out" in run.info.notes[-1] for run in runs)
    assert Split.read(out / "split.csv").rows == whole.rows
    with pytest.raises(SplitError, match="--train-only is for --folds"):
        sweep(recipe_file, [], data=cells, out=tmp_path / "b", split=split, train_only=True, quiet=True)


def test_what_is_done_is_not_done_again_and_a_grid_can_grow(
    recipe_file: Path, split: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "sweep", []

    def counted(recipe: Recipe, **options: object) -> object:
        trained.append(recipe.optimizer.learning_rate)
        return train(recipe, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep_module, "train", counted)
    stopped = sweep(
        recipe_file, ["optimizer.learning_rate=1e-4"], data=cells, out=out, split=split, limit_seconds=0.01, quiet=True
    )
    assert stopped.stopped_by == "stopped by the time limit"
    assert [r["status"] for r in _table(out)] == ["stopped"]
    for grid in ("1e-4", "1e-4", "1e-4,1e-3"):
        done = sweep(recipe_file, [f"optimizer.learning_rate={grid}"], data=cells, out=out, quiet=True)
        assert done.stopped_by is None
    assert trained in ([1e-4, 1e-4, 1e-3], [1e-4, 1e-3]), "the first was finished once, and then only looked at"
    assert [r["status"] for r in _table(out)] == ["finished", "finished"]
    other = tmp_path / "other.csv"
    make_split(build_index(cells, jobs=1), codes=("BLA", "LYT", "NGS"), class_set="BLA,LYT,NGS", seed=9).write(other)
    with pytest.raises(TrainingError, match="not the split that the sweep was begun with"):
        sweep(recipe_file, [], data=cells, out=out, split=other, quiet=True)


def test_a_run_that_diverges_does_not_end_the_sweep(
    recipe_file: Path, split: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.train_step

    def breaks(learner: loop.Learner, batch: Batch, whole: Indices, n: int) -> loop.Step:
        if learner.recipe.optimizer.learning_rate > 0.5:
            raise DivergedError("The loss is nan")
        return step(learner, batch, whole, n)

    monkeypatch.setattr(loop, "train_step", breaks)
    result = sweep(
        recipe_file, ["optimizer.learning_rate=0.9,1e-3"], data=cells, out=tmp_path / "s", split=split, quiet=True
    )
    assert [r["status"] for r in _table(tmp_path / "s")] == ["diverged", "finished"]
    assert [s.values for s in result.summaries] == [{"optimizer.learning_rate": 1e-3}]
    assert any("diverged" in line for line in lines(result))


def test_a_grid_is_read_as_toml() -> None:
    assert parse_grid(["a=1e-4, 2", "b.c=x,y", "d=true,false", 'e="a,b","c"', "f=[0.8,0.2],[0.5,0.5]"]) == {
        "a": [1e-4, 2],
        "b.c": ["x", "y"],
        "d": [True, False],
        "e": ["a,b", "c"],
        "f": [[0.8, 0.2], [0.5, 0.5]],
    }


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["optimizer.learning_rate"], "key=v1,v2"),
        (["optimizer.learning_rate="], "key=v1,v2"),
        (["optimizer.learning_rate=1e-3,0.001"], "each value once"),
        (["model.name=a,"], "each value once"),
        (["seed=0,1"], "--seeds"),
        (["merge.NGB=NGS"], "in common"),
        (["engine.monitor=val_loss"], "in common.*--set"),
        (["schedule.epochs=1", "schedule.epochs=2"], "twice"),
        (["schedule.epoch=1,2"], "unknown key 'epoch'"),
        (["optimizer.learning_rate=1e-3,fast"], "learning_rate"),
    ],
)
def test_a_wrong_grid_is_explained_before_anything_is_trained(
    grid: list[str], message: str, recipe_file: Path, cells: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep(recipe_file, grid, data=cells, out=tmp_path / "sweep", quiet=True)
    assert not (tmp_path / "sweep" / "runs").exists()


def test_a_sweep_under_torchrun_is_refused(
    recipe_file: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="without torchrun"):
        sweep(recipe_file, [], data=cells, out=tmp_path / "sweep", quiet=True)
