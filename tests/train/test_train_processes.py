"""Two processes started by torchrun learn what one learns, and outlive the loss of one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from marrowscope.config import Recipe, recipe_toml
from marrowscope.datasets import CellImages
from marrowscope.models import load_run_model
from marrowscope.outputs import cell_outputs
from marrowscope.schema import Split, read_metrics
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state

LOSES_A_WORKER = """
import os, signal, sys
import marrowscope.train.loop as loop
from marrowscope.cli import main

original = loop.train_step

def train_step(learner, batch, whole, step):
    if step == 15 and learner.fabric.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(learner, batch, whole, step)

loop.train_step = train_step
sys.argv = ["marrowscope", *sys.argv[1:]]
main()
"""


def _torchrun(*args: object) -> subprocess.CompletedProcess[str]:
    # A rendezvous of its own on a free port, so that two test runs on one machine don't meet.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# Starting two processes with torch takes seconds each time; so one story is told, not three.
def test_two_processes_end_with_the_weights_of_one(
    tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    # A transformer has no batch statistics. 24 pictures in steps of 4: 24 steps in four epochs; every picture is
    # turned, flipped and mixed with one that might have been the other process's, and classes are weighted.
    recipe = tiny_recipe(
        model__name="test_vit",
        loss__class_weights="balanced",
        loss__label_smoothing=0.1,
        engine__ema=0.9,
        engine__checkpoint_minutes=1e-9,
        schedule__epochs=4,
        optimizer__learning_rate=1e-4,
    )
    assert recipe.augment.mixup
    assert recipe.augment.cutmix
    train(recipe, data=cells, out=tmp_path / "one", quiet=True)
    (tmp_path / "r.toml").write_text(recipe_toml(recipe))
    script = tmp_path / "loses_a_worker.py"
    script.write_text(LOSES_A_WORKER)
    args = ("train", tmp_path / "r.toml", "--data", cells, "--out", tmp_path / "two")
    stopped = _torchrun("-m", "marrowscope.cli", *args, "--limit-time", "0.001s")
    assert "stopped by the time limit" in stopped.stdout, stopped.stderr
    lost = _torchrun(script, *args, "--resume")
    assert lost.returncode != 0
    assert "exitcode: -9" in lost.stderr.replace(" ", "").replace("exitcode:", "exitcode: "), lost.stderr
    between = load_state(tmp_path / "two" / "last")
    assert between is not None
    assert 1 <= between[0].step <= 15
    done = _torchrun("-m", "marrowscope.cli", *args, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1, "each process printed its own"

    one, two = (load_state(tmp_path / name / "last") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one[0].step == two[0].step == 24
    worst = max(float((one[1][k] - two[1][k]).abs().max()) for k in one[1])
    assert worst < 1e-5
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 4
    for a, b in zip(*rows, strict=True):
        # Three validation pictures for two processes: one padded up would count twice, and show.
        assert a["val_accuracy"] == b["val_accuracy"]
        for name in ("val_loss", "train_loss", "train_accuracy"):
            assert a[name] == pytest.approx(b[name], abs=1e-5), "of all processes' pictures, each once"
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == len(rows[1])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_two_processes_validate_the_network_that_is_kept(
    tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path, ema: float
) -> None:
    # On a CPU each process has batch statistics of its own; the first one's are saved.
    recipe = tiny_recipe(model__name="test_resnet", schedule__epochs=2, engine__ema=ema)
    (tmp_path / "r.toml").write_text(recipe_toml(recipe))
    out = tmp_path / "run"
    done = _torchrun("-m", "marrowscope.cli", "train", tmp_path / "r.toml", "--data", cells, "--out", out)
    assert done.returncode == 0, done.stderr
    model, card = load_run_model(out)
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    images = CellImages(cells, Split.read(out / "split.csv").part("val"), card.codes, card.preprocessing)
    logits = torch.from_numpy(cell_outputs(model, images).logits_NC)
    loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(images.labels)))
    best = max(read_metrics(out / "metrics.csv"), key=lambda row: row["val_accuracy"])
    assert best["val_loss"] == pytest.approx(loss, abs=1e-5)
