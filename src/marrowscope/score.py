"""Answers of a trained run on a part of its split: run folder -> predictions and their evaluation."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from marrowscope.data.sources import open_source
from marrowscope.data.split import check_split
from marrowscope.datasets import CellImages
from marrowscope.errors import DataError, FileFormatError, SplitError
from marrowscope.evaluate import evaluate_csv
from marrowscope.evaluate.thresholds import ScalingMethod
from marrowscope.fit import Fitted, data_folder, fit_card, load_fitted
from marrowscope.holdout import record_use
from marrowscope.outputs import cell_outputs
from marrowscope.schema import OK, Evaluation, IndexRow, Part, Predictions, Split, SplitRow, read_index
from marrowscope.triage import judge

Progress = Callable[[int, int], None]

GROUPS = ("patient", "slide", "group")
"""Columns of an index that say what belongs together, the one that says most first."""

HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1")
"""Figures of the test part that go onto the model card."""


def predict_part(
    run: Path,
    part: Part = "test",
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Let a run's best model answer for one part of its split, in float32, with the truth beside it.

    The answers are what the run's card makes of them (`triage.judge`): calibrated, with conformal sets and flags, once
    the card was fitted (`fit.fit_card`).

    Args:
        run: Run folder.
        part: Part of the run's split.
        data: Folder of images; without it, the one that the run was trained on.
        progress: Called with (done, total).

    Raises:
        ModelError: The run has no model yet, or what its card needs is missing.
        SplitError: The part is empty, or its files are not under `data`.
        DataError: A picture of the part can't be read any more.
    """
    return _answer(run, load_fitted(run), part, data, progress)


def part_images(run: Path, fitted: Fitted, part: Part, data: Path | None) -> CellImages:
    """The prepared cells of one part of a run's split.

    Raises:
        SplitError: The part is empty, or its files are not under `data`.
    """
    split, root = Split.read(run / "split.csv"), data_folder(run, data)
    rows = split.part(part)
    if not rows:
        raise SplitError(f"{run / 'split.csv'} has no image in the part {part!r}.")
    check_split(split, root)
    return CellImages(root, rows, fitted.card.codes, fitted.card.preprocessing)


def _answer(run: Path, fitted: Fitted, part: Part, data: Path | None, progress: Progress | None) -> Predictions:
    images = part_images(run, fitted, part, data)
    outputs = cell_outputs(fitted.model, images, progress=progress)
    answers = judge(fitted.card, outputs.logits_NC, fitted.score(outputs))
    return Predictions(
        paths=tuple(r.path for r in images.rows),
        status=(OK,) * len(images),
        codes=fitted.card.codes,
        probs_NC=answers.probs_NC,
        truth=tuple(r.label for r in images.rows),
        sets_NC=answers.sets_NC,
        ood_score_N=answers.ood_score_N,
        ood_N=answers.ood_N,
        accepted_N=answers.accepted_N,
    )


def evaluate_run(
    run: Path,
    part: Part = "test",
    *,
    data: Path | None = None,
    output: Path | None = None,
    groups: str | None = None,
    costs: Path | None = None,
    scaling: ScalingMethod = "auto",
    refit: bool = False,
    progress: Progress | None = None,
) -> tuple[Evaluation, Path]:
    """Predict one part of a run's split and judge the answers.

    Writes ``predictions.csv`` and ``evaluation.json`` into the run folder (``predictions-val.csv`` and
    ``evaluation-val.json`` for another part), and the headline figures of the test part into ``card.json``. What the
    card lacks of calibration and thresholds is fitted first, on validation (`fit.fit_card`).

    Args:
        run: Run folder.
        part: Part of the run's split.
        data: Folder of images; without it, the one that the run was trained on.
        output: Another place for the evaluation.
        groups: Column of the run's index.csv that says what belongs together (`GROUPS`), for the intervals; None: the
            first of them that says something, beside identical files.
        costs: A CSV of what errors cost (`evaluate.costs.read_costs`).
        scaling: Calibration to fit: ``temperature``, ``vector``, or ``auto`` (`fit.fit_card`).
        refit: Fit calibration and thresholds anew.
        progress: Called with (done, total).

    Returns:
        The evaluation and where it was written.

    Raises:
        ModelError, SplitError, DataError: As `predict_part` and `fit.fit_card`.
        FileFormatError: The index has no such column of groups, or the costs are not a table of them.
        OutputError: The run folder can't be written.
    """
    fitted = fit_card(run, data=data, scaling=scaling, again=refit, progress=progress)
    predictions = _answer(run, fitted, part, data, progress)
    # Scalings and thresholds are fitted on the validation part, never on what is judged.
    validation = None if part == "val" else _answer(run, fitted, "val", data, None)
    named = group_names(run, Split.read(run / "split.csv").part(part), data_folder(run, data), groups)
    suffix = "" if part == "test" else f"-{part}"
    table = run / f"predictions{suffix}.csv"
    predictions.write(table)
    card = fitted.card
    if part == "test":
        record_use(run, table, card.weights_sha256)
    evaluation = evaluate_csv(
        table,
        part=part,
        class_set=card.class_set,
        groups=named,
        costs=costs,
        validation=validation,
        scaling=card.scaling,
    )
    where = output or run / f"evaluation{suffix}.json"
    evaluation = _with_earlier_trials(evaluation, where)
    evaluation.write(where)
    if part == "test":
        headline = {k: evaluation.figures[k] for k in HEADLINE}
        card.model_copy(update={"test": headline}).write(run / "card.json")
    return evaluation, where


def _with_earlier_trials(evaluation: Evaluation, where: Path) -> Evaluation:
    """Keep the trials that an evaluation of these very answers has already (`trials`); they take long."""
    with contextlib.suppress(FileFormatError):  # none yet, or of another version: then there is nothing to keep
        earlier = Evaluation.read(where)
        if earlier.predictions_sha256 == evaluation.predictions_sha256:
            return evaluation.model_copy(update={"novelty": earlier.novelty, "robustness": earlier.robustness})
    return evaluation


def group_names(run: Path, rows: Sequence[SplitRow], data: Path, column: str | None) -> list[str]:
    """What each cell belongs to: a patient, a slide, its near duplicates; or else its bytes, shared by copies.

    Args:
        run: Run folder, with the index.csv of its data where there is one.
        rows: The cells.
        data: Folder of images, for the bytes of those that the index does not know.
        column: One of `GROUPS`; None: the first that has a value for any of the cells.

    Raises:
        FileFormatError: The index has no value in this column.
        DataError: A cell that the index does not know can't be read.
    """
    path = run / "index.csv"
    known = {r.path: r for r in read_index(path)} if path.is_file() else {}
    found = [known.get(r.path) for r in rows]

    def told(name: str) -> bool:
        return any(f is not None and getattr(f, name) for f in found)

    if column is not None and (column not in GROUPS or not told(column)):
        have = ", ".join(c for c in GROUPS if told(c)) or "none of them"
        raise FileFormatError(
            f"{path} has no {column!r} for these cells, so intervals can't rest on it. Columns that can say what "
            f"belongs together: {', '.join(GROUPS)}; it has {have}."
        )
    chosen = column or next((c for c in GROUPS if told(c)), None)
    source = open_source(data)
    names = []
    for row, entry in zip(rows, found, strict=True):
        name = "" if chosen is None or entry is None else getattr(entry, chosen)
        names.append(f"{chosen} {name}" if name else _digest(source.read, row.path, entry))
    return names


def _digest(read: Callable[[str], bytes], path: str, entry: IndexRow | None) -> str:
    """SHA-256 of a file as it is now, which must be the one that was indexed."""
    digest = hashlib.sha256(read(path)).hexdigest()
    if entry is not None and entry.sha256 and entry.sha256 != digest:
        raise DataError(f"{path} is not the file that the run's index.csv describes. Index the data and split again.")
    return digest
