"""Read what a report needs; nothing else in `report` reads a run's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from marrowscope.analysis import analyse_predictions
from marrowscope.cells import BY_CODE, clinical_order
from marrowscope.errors import FileFormatError
from marrowscope.files import sha256_file
from marrowscope.report.explained import Explained, read_explained
from marrowscope.schema import Analysis, Card, Evaluation, Part, Predictions, RunInfo, Split, read_metrics

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The files of one run folder, or one evaluation of a table, as far as they exist.

    Attributes:
        name: Name of the folder or table, without its place on the disk.
        target: What `marrowscope report` is given for it, without its place on the disk.
        is_run: Whether it is a run folder, and no table of another program.
        truth: Class code of each row of `predictions`.
        codes: The classes of the evaluation, in clinical order.
        analysis: Of analysis.json; without that file what predictions alone tell.
        analysed: Whether there is an analysis.json.
        metrics: One dict an epoch; empty where there is no metrics.csv.
        config: Text of config.toml.
    """

    name: str
    target: str
    is_run: bool
    evaluation: Evaluation
    predictions: Predictions
    truth: tuple[str, ...]
    codes: tuple[str, ...]
    analysis: Analysis
    analysed: bool
    explained: Explained | None
    metrics: tuple[dict[str, float], ...]
    card: Card | None
    info: RunInfo | None
    split: Split | None
    config: str | None

    @property
    def synthetic(self) -> bool:
        """Whether any file of the run says that its cells are drawn."""
        return bool((self.info and self.info.synthetic) or (self.card and self.card.training_data.synthetic))


def display_order(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Sort codes as a differential lists them; codes of another program that we don't know come last."""
    known = clinical_order(c for c in codes if c in BY_CODE)
    return (*known, *sorted(c for c in codes if c not in BY_CODE))


def read_target(target: Path, part: Part = "test") -> RunFiles:
    """Read a run folder, or an evaluation of a table of predictions.

    Args:
        target: Run folder; or the evaluation.json that `marrowscope evaluate TABLE` wrote, the table beside it.
        part: Which evaluation of a run folder.

    Raises:
        FileFormatError: There is no evaluation or no table of predictions, a file is not what its schema says, or the
            predictions are not those that were evaluated.
    """
    if target.is_dir():
        return read_run(target, part)
    if not target.is_file():
        raise FileFormatError(
            f"{target} is not a run folder. Give the folder that `marrowscope train` wrote, or the evaluation.json of "
            "a table of predictions."
        )
    if target.suffix.lower() != ".json":
        raise FileFormatError(
            f"{target} is not an evaluation. Run `marrowscope evaluate {target}` and give the JSON file that it writes."
        )
    stem = target.name.removesuffix(".json")
    if (target.parent / "card.json").is_file() and stem.partition("-")[0] == "evaluation":
        again = stem.partition("-")[2]
        return read_run(target.parent, "val" if again == "val" else "train" if again == "train" else "test")
    return _read(target, target.parent / Evaluation.read(target).predictions, _beside(target), run=None)


def read_run(run: Path, part: Part = "test") -> RunFiles:
    """Read a run folder; errors as in `read_target`."""
    suffix = "" if part == "test" else f"-{part}"
    judged = run / f"evaluation{suffix}.json"
    if not judged.is_file():
        option = "" if part == "test" else f" --part {part}"
        raise FileFormatError(f"{run} has no {judged.name}. Run `marrowscope evaluate {run}{option}` first.")
    return _read(judged, run / f"predictions{suffix}.csv", run / f"analysis{suffix}.json", run=run)


def _beside(judged: Path) -> Path:
    """The analysis that goes with an evaluation of a table."""
    stem = judged.name.removesuffix(".json").removesuffix("evaluation").rstrip(".")
    return judged.with_name(f"{stem}.analysis.json" if stem else "analysis.json")


def _read(judged: Path, table: Path, analysed: Path, run: Path | None) -> RunFiles:
    evaluation = Evaluation.read(judged)
    _check_shape(evaluation, judged)
    predictions = _read_predictions(table, evaluation, run or table)
    assert predictions.truth is not None
    return RunFiles(
        name=run.resolve().name if run else table.stem if table.stem != "predictions" else "a table of predictions",
        target=run.resolve().name if run else judged.name,
        is_run=run is not None,
        evaluation=evaluation,
        predictions=predictions,
        truth=predictions.truth,
        codes=display_order(evaluation.codes),
        analysis=_read_analysis(analysed, evaluation, predictions, run or table),
        analysed=analysed.is_file(),
        explained=read_explained(run) if run else None,
        metrics=tuple(_if_there(run, "metrics.csv", read_metrics) or ()),
        card=_if_there(run, "card.json", Card.read),
        info=_if_there(run, "run.json", RunInfo.read),
        split=_if_there(run, "split.csv", Split.read),
        config=_if_there(run, "config.toml", _read_config),
    )


def _if_there(run: Path | None, name: str, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file of the run folder, where there is one."""
    return read(run / name) if run is not None and (run / name).is_file() else None


def _check_shape(evaluation: Evaluation, path: Path) -> None:
    size = len(evaluation.codes)
    square = len(evaluation.confusion) == size and all(len(row) == size for row in evaluation.confusion)
    if not square or tuple(c.code for c in evaluation.per_class) != evaluation.codes:
        raise FileFormatError(
            f"{path}: confusion and per_class must have one row for each of the {size} codes, in their order. "
            "Run `marrowscope evaluate` again."
        )


def _read_predictions(path: Path, evaluation: Evaluation, target: Path) -> Predictions:
    if not path.is_file():
        raise FileFormatError(f"{path.parent} has no {path.name}. Run `marrowscope evaluate {target}` again.")
    if sha256_file(path) != evaluation.predictions_sha256:
        raise FileFormatError(
            f"{path} is not the table that the evaluation was made from (another SHA-256). "
            f"Run `marrowscope evaluate {target}` again."
        )
    predictions = Predictions.read(path)
    if predictions.truth is None:
        raise FileFormatError(f"{path} has no column 'truth', so nothing can be said about right and wrong.")
    return predictions


def _read_analysis(path: Path, evaluation: Evaluation, predictions: Predictions, target: Path) -> Analysis:
    """What analysis.json says; without the file, what the predictions alone tell."""
    if not path.is_file():
        return analyse_predictions(predictions, source=evaluation.predictions, part=evaluation.part, doubt_labels=False)
    analysis = Analysis.read(path)
    if analysis.predictions_sha256 != evaluation.predictions_sha256:
        raise FileFormatError(
            f"{path} is of another table of predictions than the evaluation (another SHA-256). "
            f"Run `marrowscope analyse {target}` again, or remove the file."
        )
    return analysis


def _read_config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise FileFormatError(f"Can't read {path}: {e.strerror or e}.") from e
