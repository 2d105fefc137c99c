"""Whole runs: what the folder holds, stopping, killing, resuming, and that nothing good is overwritten."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import marrowscope.train.loop as loop
import marrowscope.train.run as run_module
from marrowscope.config import Recipe, load_recipe
from marrowscope.data.folds import make_folds
from marrowscope.data.index import build_index
from marrowscope.data.split import make_split
from marrowscope.datasets import Batch, Indices
from marrowscope.errors import DataError, FileFormatError, OutputError, SplitError, TrainingError
from marrowscope.schema import Card, RunInfo, Split, read_metrics, write_index
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state, save_tensors

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_state(run / "last")
    assert state is not None
    progress, weights, optimizer = state
    assert progress.finished
    return {**weights, **optimizer, **{f"best.{k}": v for k, v in load_file(run / "best.safetensors").items()}}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_folder_holds_what_it_should(tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path) -> None:
    assert load_recipe(tiny_run / "config.toml") == tiny_recipe()
    split = Split.read(tiny_run / "split.csv")
    assert {p: sum(c.values()) for p, c in split.counts().items()} == {"train": 24, "val": 3, "test": 3}
    assert [m["epoch"] for m in read_metrics(tiny_run / "metrics.csv")] == [1, 2]
    assert RunInfo.read(tiny_run / "run.json").data == str(cells)
    assert any((tiny_run / "tensorboard").iterdir())
    card = Card.read(tiny_run / "card.json")
    assert card.codes == ("BLA", "LYT", "NGS")
    assert card.training_data.synthetic
    assert card.training_data.counts == split.counts()
    assert not list(tiny_run.rglob("*.pt")) + list(tiny_run.rglob("*.pkl")) + list(tiny_run.rglob("*.part"))
    assert len(list((tiny_run / "last").iterdir())) == 3


def test_the_same_recipe_gives_the_same_weights(
    tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path
) -> None:
    train(tiny_recipe(), data=cells, out=tmp_path / "again", quiet=True)
    assert _same(_weights(tmp_path / "again"), _weights(tiny_run))
    train(tiny_recipe(seed=4), data=cells, out=tmp_path / "other", quiet=True)
    assert not _same(_weights(tmp_path / "other"), _weights(tiny_run))


def test_the_cache_changes_nothing(tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    train(tiny_recipe(data__cache="none"), data=cells, out=tmp_path / "run", quiet=True)
    assert _same(_weights(tmp_path / "run"), _weights(tiny_run))


KILLED = """
import os, signal, sys
from pathlib import Path
import marrowscope.train.loop as loop
from marrowscope.config import load_recipe
from marrowscope.train import train

step_to_die = int(sys.argv[4])
original = loop.train_step

def train_step(learner, batch, whole, step):
    if step == step_to_die:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(learner, batch, whole, step)

loop.train_step = train_step
train(load_recipe(Path(sys.argv[1])), data=Path(sys.argv[2]), out=Path(sys.argv[3]), resume=True, quiet=True)
"""


@pytest.mark.parametrize("checkpoint_minutes", [10.0, 1e-9], ids=["each epoch", "each step"])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, checkpoint_minutes: float, model: str
) -> None:
    recipe = tiny_recipe(
        model__name=model, model__drop_path=0.1, model__dropout=0.1, engine__checkpoint_minutes=checkpoint_minutes
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe, data=cells, out=whole, quiet=True)
    steps = 24 // recipe.engine.batch_size
    # In the middle of the first epoch, then in the middle of the second, by a process that has no time to tidy up.
    for step in (2, steps + 3):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(whole / "config.toml"), str(cells), str(killed), str(step)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    train(recipe, data=cells, out=killed, resume=True, quiet=True)
    assert _same(_weights(whole), _weights(killed))
    rows = [read_metrics(r / "metrics.csv") for r in (whole, killed)]
    unsteady = {"seconds", "images_per_second"}
    assert [{k: v for k, v in r.items() if k not in unsteady} for r in rows[0]] == [
        {k: v for k, v in r.items() if k not in unsteady} for r in rows[1]
    ]


def test_a_time_limit_stops_at_a_checkpoint_and_resuming_ends_alike(
    tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(tiny_recipe(), data=cells, out=out, limit_seconds=0.0, quiet=True)
    assert not result.finished
    assert result.stopped_by == "stopped by the time limit"
    result = train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True)
    assert result.finished
    assert result.best_epoch in {1, 2}
    assert _same(_weights(out), _weights(tiny_run))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_at_a_checkpoint(
    tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.train_step

    def interrupted(learner: loop.Learner, batch: Batch, whole: Indices, step: int) -> loop.Step:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(learner, batch, whole, step)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        result = train(tiny_recipe(), data=cells, out=out, quiet=True)
    assert not result.finished
    state = json.loads((out / "last" / "state.json").read_text())
    assert state["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True)
    assert _same(_weights(out), _weights(tiny_run))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", ["in a step", "while a checkpoint is written"])
def test_ctrl_c_twice_ends_at_once_and_overwrites_nothing(
    tiny_run: Path,
    tiny_recipe: MakeRecipe,
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    step, write = loop.train_step, Path.write_bytes

    def interrupted(learner: loop.Learner, batch: Batch, whole: Indices, n: int) -> loop.Step:
        if n == 8:
            twice()
        return step(learner, batch, whole, n)

    def half(self: Path, data: bytes) -> int:
        if "optimizer-0002" in self.name:
            write(self, data[: len(data) // 2])
            twice()
        return write(self, data)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if where == "in a step":
            patch.setattr(loop, "train_step", interrupted)
        else:
            patch.setattr(Path, "write_bytes", half)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe(), data=cells, out=out, quiet=True)
    state = load_state(out / "last")
    assert state is not None
    assert state[0].step == 6, "the state after the first epoch is whole"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not list(out.rglob("*.part"))
    train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True)
    assert _same(_weights(out), _weights(tiny_run))
    assert len(list((out / "last").iterdir())) == 3, "what the interrupted checkpoint left is gone"


def test_a_disk_that_fills_while_curves_are_written_is_one_clear_error(
    tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.utils.tensorboard as tensorboard

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "SummaryWriter", full)
        with pytest.raises(OutputError, match=r"tensorboard: No space left.*--resume"):
            train(tiny_recipe(), data=cells, out=out, quiet=True)
    train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True)
    assert _same(_weights(out), _weights(tiny_run))


def test_a_loss_that_is_not_finite_overwrites_nothing(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original = loop.soft_cross_entropy
    calls = [0]

    def broken(*args: object) -> torch.Tensor:
        calls[0] += 1
        return original(*args) * (float("nan") if calls[0] > 8 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "soft_cross_entropy", broken)
    with pytest.raises(TrainingError, match=r"The loss is nan at step 8.*learning_rate"):
        train(tiny_recipe(), data=cells, out=out, quiet=True)
    state = load_state(out / "last")
    assert state is not None
    assert state[0].epoch == 1
    assert all(torch.isfinite(v).all() for v in state[1].values() if v.is_floating_point())


def test_a_gradient_that_is_not_finite_is_refused(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.soft_cross_entropy

    def steep(logits: torch.Tensor, *args: object) -> torch.Tensor:
        # A finite loss with an infinite slope: the root at zero.
        return original(logits, *args) + (logits - logits.detach()).abs().sum().sqrt()  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "soft_cross_entropy", steep)
    with pytest.raises(TrainingError, match="gradient is not finite at step 0"):
        train(tiny_recipe(), data=cells, out=tmp_path / "run", quiet=True)


def test_a_full_disk_keeps_the_last_good_state(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    # The time is up during the first step: one step is done, and saved.
    train(tiny_recipe(), data=cells, out=out, limit_seconds=1e-9, quiet=True)
    before = {p.name: p.read_bytes() for p in (out / "last").iterdir()}
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device"):
            train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True)
    assert {p.name: p.read_bytes() for p in (out / "last").iterdir()} == before
    assert train(tiny_recipe(), data=cells, out=out, resume=True, quiet=True).finished


def test_patience_ends_a_run_early(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    # A learning rate this small changes no answer, so no epoch is better than the first.
    recipe = tiny_recipe(optimizer__learning_rate=1e-12, schedule__epochs=9, schedule__patience=2, engine__ema=0.0)
    result = train(recipe, data=cells, out=tmp_path / "run", quiet=True)
    assert result.finished
    assert len(read_metrics(tmp_path / "run" / "metrics.csv")) == 3


def test_a_run_is_not_overwritten_or_resumed_as_another(
    tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(tiny_run, run)
    with pytest.raises(TrainingError, match="holds a run already"):
        train(tiny_recipe(), data=cells, out=run, quiet=True)
    with pytest.raises(TrainingError, match="epochs: 2 there, 5 now"):
        train(tiny_recipe(schedule__epochs=5), data=cells, out=run, resume=True, quiet=True)
    with run_module._lock(run, type("One", (), {"global_rank": 0})()), pytest.raises(TrainingError, match="Another"):  # type: ignore[arg-type]
        train(tiny_recipe(), data=cells, out=run, resume=True, quiet=True)
    damaged = next((run / "last").glob("weights-*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(TrainingError, match="damaged"):
        train(tiny_recipe(), data=cells, out=run, resume=True, quiet=True)


def _split(cells: Path, path: Path, seed: int = 0) -> Path:
    rows = build_index(cells, jobs=1)
    make_split(rows, codes=("BLA", "LYT", "NGS"), class_set="BLA,LYT,NGS", seed=seed).write(path)
    return path


def test_a_given_split_is_used_and_checked(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    split = _split(cells, tmp_path / "split.csv", seed=7)
    recipe = tiny_recipe(schedule__epochs=1)
    train(recipe, data=cells, out=tmp_path / "run", split=split, quiet=True)
    assert Split.read(tmp_path / "run" / "split.csv").rows == Split.read(split).rows
    other = _split(cells, tmp_path / "other.csv", seed=8)
    with pytest.raises(TrainingError, match="not the split"):
        train(recipe, data=cells, out=tmp_path / "run", split=other, resume=True, quiet=True)
    with pytest.raises(SplitError, match="the recipe wants BLA LYT MON"):
        train(tiny_recipe(classes="BLA,LYT,MON"), data=cells, out=tmp_path / "b", split=split, quiet=True)


def test_a_split_that_names_missing_files_is_refused(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    data = tmp_path / "cells"
    shutil.copytree(cells, data)
    split = _split(data, tmp_path / "split.csv")
    gone = Split.read(split).rows[0].path
    (data / gone).unlink()
    with pytest.raises(SplitError, match=gone):
        train(tiny_recipe(), data=data, out=tmp_path / "run", split=split, quiet=True)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_split_that_does_not_fit_its_index_is_refused(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    split = _split(cells, tmp_path / "split.csv")
    rows = build_index(cells, jobs=1)
    write_index(tmp_path / "other.csv", [rows[0]._replace(sha256="0" * 64), *rows[1:]])
    write_index(tmp_path / "index.csv", rows[1:])
    write_index(tmp_path / "right.csv", rows)
    recipe = tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)
    with pytest.raises(SplitError, match=r"split.csv does not fit .*index.csv: 1 files .* not in the index.*--index"):
        train(recipe, data=cells, out=tmp_path / "run", split=split, quiet=True)
    with pytest.raises(SplitError, match=r"other.csv: The index is not the one that the split was drawn from"):
        train(recipe, data=cells, out=tmp_path / "run", split=split, index=tmp_path / "other.csv", quiet=True)
    with pytest.raises(FileFormatError, match=r"Can't read the index"):
        train(recipe, data=cells, out=tmp_path / "run", split=split, index=tmp_path / "none.csv", quiet=True)
    with pytest.raises(SplitError, match="give both, or neither"):
        train(recipe, data=cells, out=tmp_path / "run", index=tmp_path / "index.csv", quiet=True)
    assert not (tmp_path / "run" / "config.toml").exists()
    train(recipe, data=cells, out=tmp_path / "run", split=split, index=tmp_path / "right.csv", quiet=True)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_picture_that_broke_after_the_split_is_named(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, cache: str
) -> None:
    data = tmp_path / "cells"
    shutil.copytree(cells, data)
    split = _split(data, tmp_path / "split.csv")
    broken = Split.read(split).part("train")[0].path
    (data / broken).write_bytes((data / broken).read_bytes()[:3000])
    with pytest.raises(DataError, match=f"1 picture.*\n  {broken}: damaged or truncated"):
        train(tiny_recipe(data__cache=cache), data=data, out=tmp_path / "run", split=split, quiet=True)


def test_an_output_folder_that_cant_be_made_is_an_error(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose a folder that can be written"):
        train(tiny_recipe(), data=cells, out=tmp_path / "file" / "run", quiet=True)


def test_save_tensors_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.ones(3)})

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError):
        save_tensors(path, {"a": torch.zeros(3)})
    assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_metrics_are_plain_csv(tiny_run: Path) -> None:
    with (tiny_run / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert 0 <= float(rows[0]["val_accuracy"]) <= 1
    assert float(rows[1]["step"]) == 12


def test_classes_are_merged_and_dropped_by_the_recipe(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    split = _split(cells, tmp_path / "split.csv")
    recipe = tiny_recipe(merge={"LYT": "BLA"}, schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=tmp_path / "run", split=split, quiet=True)
    card = Card.read(tmp_path / "run" / "card.json")
    assert card.codes == ("BLA", "NGS")
    assert card.class_set == "BLA,LYT,NGS, LYT as BLA"
    before, after = Split.read(split), Split.read(tmp_path / "run" / "split.csv")
    assert [(r.path, r.part) for r in before.rows] == [(r.path, r.part) for r in after.rows]
    assert {r.label for r in after.rows if r.path.startswith("LYT/")} == {"BLA"}
    assert after.counts()["train"] == {"BLA": 16, "NGS": 8}
    train(recipe, data=cells, out=tmp_path / "run", split=split, resume=True, quiet=True)

    recipe = tiny_recipe(drop=["NGS"], schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=tmp_path / "dropped", quiet=True)
    after = Split.read(tmp_path / "dropped" / "split.csv")
    assert {r.label for r in after.rows} == {"BLA", "LYT"}
    assert after.info.left_out == {"class dropped": 10}


def test_a_fold_is_trained(tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path) -> None:
    rows = build_index(cells, jobs=1)
    (folds,) = make_folds(rows, codes=("BLA", "LYT", "NGS"), class_set="BLA,LYT,NGS", k=5)
    folds.write(tmp_path / "folds.csv")
    recipe = tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=tmp_path / "run", split=tmp_path / "folds.csv", fold=2, quiet=True)
    used = Split.read(tmp_path / "run" / "split.csv")
    assert {r.fold for r in used.part("test")} == {2}
    assert {r.fold for r in used.part("val")} == {3}
    with pytest.raises(SplitError, match="no fold 5"):
        train(recipe, data=cells, out=tmp_path / "b", split=tmp_path / "folds.csv", fold=5, quiet=True)
    with pytest.raises(SplitError, match="needs a --split"):
        train(recipe, data=cells, out=tmp_path / "b", fold=1, quiet=True)
