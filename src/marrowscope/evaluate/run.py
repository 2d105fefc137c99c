"""From predictions with a truth to an evaluation: the stage `marrowscope evaluate`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from marrowscope import __version__
from marrowscope.cells import BY_CODE
from marrowscope.errors import FileFormatError
from marrowscope.evaluate.beyond import cost_figures, ranking_figures, tolerant_figures
from marrowscope.evaluate.case import Case, make_case
from marrowscope.evaluate.costs import DEFAULT_SOURCE, default_costs, read_costs
from marrowscope.evaluate.figures import Bootstrap
from marrowscope.evaluate.headline import class_figures, overall_figures
from marrowscope.evaluate.metrics import Bools, Floats
from marrowscope.evaluate.tolerant import PUBLISHED, PUBLISHED_SOURCE, neighbour_pairs
from marrowscope.evaluate.trust import calibrations, conformal_sets, operating_points, risk_points, selective_figures
from marrowscope.files import UNDECODABLE, UTF8, sha256_file
from marrowscope.schema import OK, CardScaling, ClassFigures, Evaluation, Figure, Predictions
from marrowscope.schema.predictions import csv_rows

DRAWS = 2000
MACRO_MINIMUM = 20


def evaluate_predictions(
    predictions: Predictions,
    *,
    source: str = "",
    source_sha256: str = "",
    part: str | None = None,
    class_set: str | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    macro_minimum: int = MACRO_MINIMUM,
    costs: Path | None = None,
    validation: Predictions | None = None,
    scaling: CardScaling | None = None,
) -> Evaluation:
    """Judge predictions by their truth.

    Args:
        predictions: With truth. Rows without an answer are counted by reason, and count in no figure.
        source: Name of the file they came from, kept in the result.
        source_sha256: Its SHA-256, kept in the result.
        part: Which part of a split they are, kept in the result.
        class_set: Name of the class set, kept in the result.
        groups: For each row what it belongs to (patient, slide, duplicates), for the intervals; None: to itself.
        seed: Of the bootstrap. The result does not depend on the order of rows, and is the same for the same seed.
        draws: Of the bootstrap.
        macro_minimum: Macro figures leave out classes of fewer images, and the result names them.
        costs: A CSV of what errors cost (`costs.read_costs`); None: the default along lineage and maturation, where
            the codes are those of the collection.
        validation: Predictions of the same model, with truth, for images that it was neither trained nor is judged
            on: scalings, thresholds and conformal sets are fitted there. None: these are left out.
        scaling: The calibration that the probabilities of both tables have already, by the model's card; the figures of
            calibration then show the network without it, too. None: they are as the network gave them.

    Raises:
        FileFormatError: No truth, or truths that the class columns don't know; costs that are not a table of them; a
            validation table of other classes, or with images that are judged.
        ValueError: `groups` has another length than the predictions; draws below 1; macro_minimum below 0.
    """
    _check_counts(draws, macro_minimum)
    case = make_case(predictions, groups, source or "The table of predictions")
    held = None if validation is None else _held_out(validation, predictions)
    keep = np.asarray(case.counts_CC.sum(1) >= max(1, macro_minimum))
    bootstrap = Bootstrap(draws, seed)
    costs_CC, costs_source = _costs(case.codes, costs)
    per_class, figures = _figures(case, keep, costs_CC, bootstrap)
    return Evaluation(
        program=f"marrowscope {__version__}",
        predictions=source,
        predictions_sha256=source_sha256,
        part=part,
        class_set=class_set,
        codes=case.codes,
        n=len(case),
        failed=dict(sorted(Counter(s for s in predictions.status if s != OK).items())),
        macro_minimum=macro_minimum,
        macro_left_out=tuple(c for c, k in zip(case.codes, keep, strict=True) if not k),
        never_predicted=_never_predicted(case),
        figures=figures,
        per_class=per_class,
        confusion=tuple(tuple(int(v) for v in row) for row in case.counts_CC),
        neighbours=neighbour_pairs(case.codes),
        published=PUBLISHED_SOURCE if set(case.codes) & PUBLISHED.keys() else None,
        costs=() if costs_CC is None else tuple(map(tuple, costs_CC.tolist())),
        costs_source=costs_source,
        calibration=calibrations(case, held, bootstrap, scaling),
        risk_coverage=risk_points(case),
        operating_points=operating_points(case, held, figures),
        conformal=conformal_sets(case, held, bootstrap),
    )


def _check_counts(draws: int, macro_minimum: int) -> None:
    if draws < 1 or macro_minimum < 0:
        raise ValueError(
            f"draws must be at least 1 and macro_minimum at least 0; they are {draws} and {macro_minimum}."
        )


def _never_predicted(case: Case) -> tuple[str, ...]:
    """Classes that have images and are no image's answer."""
    support, called = case.counts_CC.sum(1), case.counts_CC.sum(0)
    return tuple(c for c, s, p in zip(case.codes, support, called, strict=True) if s > 0 and p == 0)


def _figures(
    case: Case, keep: Bools, costs_CC: Floats | None, bootstrap: Bootstrap
) -> tuple[tuple[ClassFigures, ...], dict[str, Figure]]:
    """All figures, per class and overall."""
    per_class = class_figures(case)
    figures = overall_figures(case, per_class, keep, bootstrap)
    per_class, ranking = ranking_figures(case, per_class, keep, bootstrap)
    per_class, tolerant = tolerant_figures(case, per_class)
    costs = cost_figures(case, costs_CC, bootstrap)
    return per_class, figures | ranking | tolerant | costs | selective_figures(case, bootstrap)


def _held_out(validation: Predictions, judged: Predictions) -> Case:
    """The validation images, class columns in the order of those that are judged."""
    if set(validation.codes) != set(judged.codes):
        raise FileFormatError(
            f"The validation table has the class columns {' '.join(validation.codes)}, and the table that is judged "
            f"{' '.join(judged.codes)}; they must come from one model."
        )
    if both := sorted(set(validation.paths) & set(judged.paths)):
        raise FileFormatError(
            f"{len(both)} images are both in the validation table and in the one that is judged, the first is "
            f"{both[0]}. What is fitted on images must be judged on others."
        )
    order = [validation.codes.index(c) for c in judged.codes]
    ordered = replace(validation, codes=judged.codes, probs_NC=validation.probs_NC[:, order])
    return make_case(ordered, None, "The validation table")


def _costs(codes: Sequence[str], path: Path | None) -> tuple[Floats | None, str | None]:
    """Cost matrix and its source; none where no file is given and the codes are not all of the collection."""
    if path is not None:
        return read_costs(path, codes), Path(path).name
    return (default_costs(codes), DEFAULT_SOURCE) if all(c in BY_CODE for c in codes) else (None, None)


def evaluate_csv(
    path: Path,
    *,
    part: str | None = None,
    class_set: str | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    macro_minimum: int = MACRO_MINIMUM,
    costs: Path | None = None,
    validation: Predictions | None = None,
    scaling: CardScaling | None = None,
) -> Evaluation:
    """Judge a predictions.csv that has a column `truth`, of this program or of another; arguments as above.

    Raises:
        FileFormatError: Not a table of predictions, no truth column, truths that the class columns don't know, or a
            column `predicted` that is not the most probable class.
    """
    path = Path(path)
    predictions = Predictions.read(path)
    if path.suffix.lower() not in {".jsonl", ".parquet"}:  # those are this program's own, which can't disagree
        _check_predicted(path, predictions)
    return evaluate_predictions(
        predictions,
        source=path.name,
        source_sha256=sha256_file(path),
        part=part,
        class_set=class_set,
        groups=groups,
        seed=seed,
        draws=draws,
        macro_minimum=macro_minimum,
        costs=costs,
        validation=validation,
        scaling=scaling,
    )


def read_groups(path: Path, column: str) -> list[str]:
    """What each row of a CSV of predictions belongs to (slide, patient, group of duplicates), by one of its columns.

    Raises:
        FileFormatError: Not a CSV, no such column, or a row that has nothing in it.
    """
    rows = csv_rows(Path(path))
    _, header = next(rows, (0, []))
    if column not in header:
        raise FileFormatError(f"{path} has no column {column!r} to group by; it has {', '.join(header)[:200]}.")
    place, out = header.index(column), []
    for line, row in rows:
        name = row[place] if place < len(row) else ""
        if not name:
            raise FileFormatError(
                f"{path}, line {line}: the column {column!r} is empty. Name a group for each row, or group by another "
                "column."
            )
        out.append(name)
    return out


def _check_predicted(path: Path, predictions: Predictions) -> None:
    """Refuse a table whose `predicted` is not its most probable class, since the latter is what is judged."""
    with path.open(newline="", encoding=UTF8, errors=UNDECODABLE) as f:
        said = [row["predicted"] for row in csv.DictReader(f)]
    for path_in_table, status, name, probs in zip(
        predictions.paths, predictions.status, said, predictions.probs_NC, strict=True
    ):
        best = int(probs.argmax())
        # Six printed digits may make two classes equal.
        if status == OK and (
            name not in predictions.codes or probs[predictions.codes.index(name)] < probs[best] - 2e-6
        ):
            raise FileFormatError(
                f"{path}: {path_in_table} is predicted as {name!r}, and its most probable class is "
                f"{predictions.codes[best]}. Answers are judged by their probabilities; make the two agree."
            )
