"""Features of a run's cells and the analysis that needs them: run folder -> analysis.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marrowscope.analysis import analyse_csv
from marrowscope.datasets import CellImages
from marrowscope.errors import FileFormatError
from marrowscope.files import sha256_file
from marrowscope.models import load_run_model
from marrowscope.outputs import cell_outputs
from marrowscope.schema import OK, Analysis, Evaluation, Part, Predictions, RunInfo, SplitRow
from marrowscope.score import group_names

Features = npt.NDArray[np.float32]


def run_features(
    run: Path,
    rows: Sequence[SplitRow],
    *,
    data: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Features]:
    """Features of some cells from a run's best model, float32, by path.

    Args:
        run: Run folder.
        rows: The cells; labels are not looked at.
        data: Folder or archive of images.
        progress: Called with (done, total).

    Raises:
        ModelError: The run has no model yet.
        DataError: A picture can't be read.
    """
    model, card = load_run_model(run)
    outputs = cell_outputs(model, CellImages(data, rows, card.codes, card.preprocessing), progress=progress)
    return {row.path: vector for row, vector in zip(rows, outputs.features_ND, strict=True)}


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
    predictions = Predictions.read(table)
    assert predictions.truth is not None  # it was judged
    rows = [SplitRow(path, truth, part) for path, truth in zip(predictions.paths, predictions.truth, strict=True)]
    answered = [row for row, status in zip(rows, predictions.status, strict=True) if status == OK]
    features = run_features(run, answered, data=folder, progress=progress) if with_map and answered else None
    groups = group_names(run, rows, folder, None)
    result = analyse_csv(table, part=part, data=folder, groups=groups, features=features, seed=seed, progress=progress)
    where = output or run / f"analysis{suffix}.json"
    result.write(where)
    return result, where
