"""Read what a report needs from a run folder; nothing else in `report` reads a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marrowscope.cells import BY_CODE, clinical_order
from marrowscope.errors import FileFormatError
from marrowscope.files import sha256_file
from marrowscope.schema import Card, Evaluation, Predictions, RunInfo, Split, read_metrics


@dataclass(frozen=True)
class RunFiles:
    """The files of one run folder, as far as they exist.

    Attributes:
        name: Name of the folder, without its place on the disk.
        truth: Class code of each row of `predictions`.
        codes: The classes of the evaluation, in clinical order.
        metrics: One dict an epoch; empty where there is no metrics.csv.
        config: Text of config.toml.
    """

    name: str
    evaluation: Evaluation
    predictions: Predictions
    truth: tuple[str, ...]
    codes: tuple[str, ...]
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


def read_run(run: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        FileFormatError: evaluation.json or predictions.csv is missing, a file is not what its schema says, or the
            predictions are not those that were evaluated.
    """
    if not run.is_dir():
        raise FileFormatError(f"{run} is not a run folder. Give the folder that `marrowscope train` wrote.")
    evaluation_file = run / "evaluation.json"
    if not evaluation_file.is_file():
        raise FileFormatError(f"{run} has no evaluation.json. Run `marrowscope evaluate {run}` first.")
    evaluation = Evaluation.read(evaluation_file)
    _check_shape(evaluation, evaluation_file)
    predictions = _read_predictions(run, evaluation)
    assert predictions.truth is not None

    metrics, card, info, split = (run / n for n in ("metrics.csv", "card.json", "run.json", "split.csv"))
    return RunFiles(
        name=run.resolve().name,
        evaluation=evaluation,
        predictions=predictions,
        truth=predictions.truth,
        codes=display_order(evaluation.codes),
        metrics=tuple(read_metrics(metrics)) if metrics.is_file() else (),
        card=Card.read(card) if card.is_file() else None,
        info=RunInfo.read(info) if info.is_file() else None,
        split=Split.read(split) if split.is_file() else None,
        config=_read_config(run / "config.toml"),
    )


def _check_shape(evaluation: Evaluation, path: Path) -> None:
    size = len(evaluation.codes)
    square = len(evaluation.confusion) == size and all(len(row) == size for row in evaluation.confusion)
    if not square or tuple(c.code for c in evaluation.per_class) != evaluation.codes:
        raise FileFormatError(
            f"{path}: confusion and per_class must have one row for each of the {size} codes, in their order. "
            "Run `marrowscope evaluate` again."
        )


def _read_predictions(run: Path, evaluation: Evaluation) -> Predictions:
    path = run / "predictions.csv"
    if not path.is_file():
        raise FileFormatError(f"{run} has no predictions.csv. Run `marrowscope evaluate {run}` again.")
    if sha256_file(path) != evaluation.predictions_sha256:
        raise FileFormatError(
            f"{path} is not the table that evaluation.json was made from (another SHA-256). "
            f"Run `marrowscope evaluate {run}` again."
        )
    predictions = Predictions.read(path)
    if predictions.truth is None:
        raise FileFormatError(f"{path} has no column 'truth', so nothing can be said about right and wrong.")
    return predictions


def _read_config(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except OSError as e:
        raise FileFormatError(f"Can't read {path}: {e.strerror or e}.") from e
