"""Answers of a trained run on a part of its split: run folder -> predictions and their evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from marrowscope.data.sources import open_source
from marrowscope.data.split import check_split
from marrowscope.datasets import CellImages, batches
from marrowscope.errors import SplitError
from marrowscope.evaluate import evaluate_csv
from marrowscope.infer.classifier import softmax
from marrowscope.models import load_run_model
from marrowscope.schema import OK, Card, Evaluation, Part, Predictions, RunInfo, Split


def predict_part(
    run: Path,
    part: Part = "test",
    *,
    data: Path | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Let a run's best model answer for one part of its split, in float32, with the truth beside it.

    Args:
        run: Run folder.
        part: Part of the run's split.
        data: Folder of images; without it, the one that the run was trained on.
        batch_size: Pictures at a time.
        progress: Called with (done, total).

    Raises:
        ModelError: The run has no model yet.
        SplitError: The part is empty, or its files are not under `data`.
        DataError: A picture of the part can't be read any more.
    """
    model, card = load_run_model(run)
    split = Split.read(run / "split.csv")
    root = _data_folder(run, data)
    rows = split.part(part)
    if not rows:
        raise SplitError(f"{run / 'split.csv'} has no image in the part {part!r}.")
    check_split(split, root)
    images = CellImages(root, rows, card.codes, card.preprocessing)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    places = np.arange(len(images))
    logits = []
    with torch.inference_mode():
        for batch in batches(images, [places[i : i + batch_size] for i in range(0, len(places), batch_size)]):
            logits.append(model(batch.images.to(device)).float().cpu().numpy())
            if progress is not None:
                progress(sum(map(len, logits)), len(images))
    return Predictions(
        paths=tuple(r.path for r in rows),
        status=(OK,) * len(rows),
        codes=card.codes,
        probs_NC=softmax(np.concatenate(logits)),
        truth=tuple(r.label for r in rows),
    )


def _data_folder(run: Path, data: Path | None) -> Path:
    """The folder of images that is given, or the one that the run was trained on."""
    return Path(RunInfo.read(run / "run.json").data) if data is None else Path(data)


def evaluate_run(
    run: Path,
    part: Part = "test",
    *,
    data: Path | None = None,
    output: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, Path]:
    """Predict one part of a run's split and judge the answers.

    Writes ``predictions.csv`` and ``evaluation.json`` into the run folder (``predictions-val.csv`` and
    ``evaluation-val.json`` for another part), and the headline figures of the test part into ``card.json``.

    Args:
        run: Run folder.
        part: Part of the run's split.
        data: Folder of images; without it, the one that the run was trained on.
        output: Another place for the evaluation.
        progress: Called with (done, total).

    Returns:
        The evaluation and where it was written.

    Raises:
        ModelError, SplitError, DataError: As `predict_part`.
        OutputError: The run folder can't be written.
    """
    predictions = predict_part(run, part, data=data, progress=progress)
    # Scalings and thresholds are fitted on the validation part, never on what is judged.
    validation = None if part == "val" else predict_part(run, "val", data=data)
    source = open_source(_data_folder(run, data))
    groups = [hashlib.sha256(source.read(path)).hexdigest() for path in predictions.paths]
    suffix = "" if part == "test" else f"-{part}"
    table = run / f"predictions{suffix}.csv"
    predictions.write(table)
    card = Card.read(run / "card.json")
    evaluation = evaluate_csv(table, part=part, class_set=card.class_set, groups=groups, validation=validation)
    where = output or run / f"evaluation{suffix}.json"
    evaluation.write(where)
    if part == "test":
        headline = {k: evaluation.figures[k] for k in ("accuracy", "balanced_accuracy", "macro_f1")}
        card.model_copy(update={"test": headline}).write(run / "card.json")
    return evaluation, where
