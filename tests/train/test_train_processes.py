"""Two processes started by torchrun learn what one learns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from marrowscope.config import Recipe, recipe_toml
from marrowscope.schema import read_metrics
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state


def _torchrun(*args: object) -> subprocess.CompletedProcess[str]:
    # A rendezvous of its own on a free port, so that two test runs on one machine don't meet.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return subprocess.run(
        [*command, "marrowscope.cli", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_end_with_the_weights_of_one(
    tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    # A transformer has no batch statistics, and without augmentation and dropout the pictures of a step are the same
    # however they are shared out. 24 pictures in steps of 4: 24 steps in four epochs.
    recipe = tiny_recipe(
        model__name="test_vit", augment={}, engine__ema=0.9, schedule__epochs=4, optimizer__learning_rate=1e-4
    )
    train(recipe, data=cells, out=tmp_path / "one", quiet=True)
    (tmp_path / "r.toml").write_text(recipe_toml(recipe))
    args = ("train", tmp_path / "r.toml", "--data", cells, "--out", tmp_path / "two")
    stopped = _torchrun(*args, "--limit-time", "0.001s")
    assert "stopped by the time limit" in stopped.stdout, stopped.stderr
    done = _torchrun(*args, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1, "each process printed its own"

    one, two = (load_state(tmp_path / name / "last") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one[0].step == two[0].step == 24
    worst = max(float((one[1][k] - two[1][k]).abs().max()) for k in one[1])
    assert worst < 1e-5
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    assert [r["val_accuracy"] for r in rows[0]] == [r["val_accuracy"] for r in rows[1]]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == len(rows[1])
