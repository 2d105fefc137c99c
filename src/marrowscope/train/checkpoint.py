"""Checkpoints that can't be half written, and hold no pickle.

A run's state is `last/state.json` and the two safetensors files that it names. The JSON is renamed into place after
its tensors are on the disk, so that at every moment one whole state exists; tensors of older states are then removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from marrowscope.errors import FileFormatError, TrainingError
from marrowscope.files import atomic_path, make_folder, sha256_file
from marrowscope.schema import Document


class Progress(Document):
    """Where a run stands (last/state.json).

    Attributes:
        recipe_sha256: Of the resolved recipe; a run goes on only with the same.
        split_sha256: Of split.csv.
        step: Optimiser steps done.
        epoch: The epoch under way (or about to begin), 0 the first.
        step_in_epoch: Steps of it that are done.
        sums: Running sums of the epoch under way.
        history: Rows of metrics.csv.
        best_score: Best value of the monitored score, higher being better.
        best_epoch: Its epoch; -1 before the first.
        finished: Whether nothing is left to do.
        weights: File name of the weights, beside this file.
        optimizer: File name of the optimiser's tensors (and the averaged weights).
        sha256: Of these two files.
    """

    kind: ClassVar[str] = "training state"
    format: Literal["marrowscope state 1"] = "marrowscope state 1"
    recipe_sha256: str
    split_sha256: str
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = Field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "seen": 0.0, "seconds": 0.0})
    history: tuple[dict[str, float], ...] = ()
    best_score: float | None = None
    best_epoch: int = -1
    finished: bool = False
    weights: str = ""
    optimizer: str = ""
    sha256: dict[str, str] = Field(default_factory=dict)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OutputError: It can't be written; a file that was there stays.
    """
    # Contiguous copies: a channels_last tensor is stored in its logical order.
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    data = save(plain, metadata=dict(metadata or {}))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments and step counts by parameter number."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": torch.as_tensor(value)
        for i, moments in state.items()
        for name, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_state(
    folder: Path, progress: Progress, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Progress:
    """Make this the run's last state.

    Raises:
        OutputError: It can't be written; the state before stays valid.
    """
    make_folder(folder)
    names = {k: f"{k}-{progress.epoch:04d}-{progress.step:08d}.safetensors" for k in ("weights", "optimizer")}
    save_tensors(folder / names["weights"], weights)
    save_tensors(folder / names["optimizer"], optimizer)
    done = progress.model_copy(
        update={**names, "sha256": {name: sha256_file(folder / name) for name in names.values()}},
    )
    done.write(folder / "state.json")
    for old in folder.glob("*.safetensors"):
        if old.name not in names.values():
            old.unlink(missing_ok=True)
    return done


def load_state(folder: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
    """Read a run's last state: where it stands, weights, optimiser; None where there is none yet.

    Raises:
        TrainingError: The state is damaged.
    """
    path = folder / "state.json"
    if not path.exists():
        return None
    try:
        progress = Progress.read(path)
        for name, digest in progress.sha256.items():
            if sha256_file(folder / name) != digest:
                raise TrainingError(f"{folder / name} is damaged: its SHA-256 is not the one in state.json.")
        return progress, load_file(folder / progress.weights), load_file(folder / progress.optimizer)
    except (FileFormatError, SafetensorError, OSError, json.JSONDecodeError) as e:
        raise TrainingError(f"The state in {folder} can't be read: {e}. Start again in another folder.") from e
