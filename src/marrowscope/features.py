"""Features of a run's cells and the analysis that needs them: run folder -> analysis.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from marrowscope.analysis import analyse_csv
from marrowscope.datasets import CellImages, batches
from marrowscope.errors import FileFormatError
from marrowscope.files import sha256_file
from marrowscope.models import CellClassifier, load_run_model
from marrowscope.schema import OK, Analysis, Evaluation, Part, Predictions, RunInfo, SplitRow

Features = npt.NDArray[np.float32]


def penultimate(model: CellClassifier, images_BCHW: torch.Tensor) -> torch.Tensor:
    """What a network's last layer decides on, (B, D): pooled features behind its last normalisation."""
    backbone: Any = model.backbone
    normalised = (images_BCHW.to(model.mean.dtype) - model.mean) / model.std
    out: torch.Tensor = backbone.forward_head(backbone.forward_features(normalised), pre_logits=True)
    return out


def run_features(
    run: Path,
    rows: Sequence[SplitRow],
    *,
    data: Path,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Features]:
    """Features of some cells from a run's best model, float32, by path.

    Args:
        run: Run folder.
        rows: The cells; labels are not looked at.
        data: Folder or archive of images.
        batch_size: Pictures at a time.
        progress: Called with (done, total).

    Raises:
        ModelError: The run has no model yet.
        DataError: A picture can't be read.
    """
    model, card = load_run_model(run)
    images = CellImages(data, rows, card.codes, card.preprocessing)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    places = np.arange(len(images))
    parts: list[Features] = []
    with torch.inference_mode():
        for batch in batches(images, [places[i : i + batch_size] for i in range(0, len(places), batch_size)]):
            parts.append(penultimate(model, batch.images.to(device)).float().cpu().numpy())
            if progress is not None:
                progress(sum(map(len, parts)), len(images))
    return {row.path: vector for row, vector in zip(rows, np.concatenate(parts), strict=True)}


def analyse_run(
    run: Path,
    part: Part = "test",
    *,
    data: Path | None = None,
    with_map: bool = True,
    seed: int = 0,
    output: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Analysis, Path]:
    """Analyse the answers of a run that was evaluated on a part of its split.

    Writes ``analysis.json`` into the run folder (``analysis-val.json`` for another part).

    Args:
        run: Run folder with the predictions of `score.evaluate_run`.
        part: Part of the run's split.
        data: Folder or archive of images; without it, the one that the run was trained on.
        with_map: Whether to lay out the features of the cells, for which the model looks at each again.
        seed: Of the bootstrap and the map.
        output: Another place for the analysis.
        progress: Called with (done, total) pictures, for the features and then for their measures.

    Returns:
        The analysis and where it was written.

    Raises:
        FileFormatError: The part was not evaluated, or its predictions are not those that were.
        ModelError, DataError: As `run_features`; the pictures can't be read.
        OutputError: The analysis can't be written.
    """
    run = Path(run)
    suffix = "" if part == "test" else f"-{part}"
    table, judged = run / f"predictions{suffix}.csv", run / f"evaluation{suffix}.json"
    again = f"Run `marrowscope evaluate {run}{'' if part == 'test' else f' --part {part}'}` first."
    if not table.is_file() or not judged.is_file():
        raise FileFormatError(f"{run} has no {(table if not table.is_file() else judged).name}. {again}")
    if Evaluation.read(judged).predictions_sha256 != sha256_file(table):
        raise FileFormatError(f"{table} is not the table that {judged.name} was made from. {again}")
    folder = Path(RunInfo.read(run / "run.json").data) if data is None else Path(data)
    features = None
    if with_map:
        predictions = Predictions.read(table)
        assert predictions.truth is not None  # it was judged
        rows = [
            SplitRow(path, truth, part)
            for path, status, truth in zip(predictions.paths, predictions.status, predictions.truth, strict=True)
            if status == OK
        ]
        features = run_features(run, rows, data=folder, progress=progress) if rows else None
    result = analyse_csv(table, part=part, data=folder, features=features, seed=seed, progress=progress)
    where = output or run / f"analysis{suffix}.json"
    result.write(where)
    return result, where
