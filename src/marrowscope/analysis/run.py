"""From predictions with a truth to analysis.json: the stage `marrowscope analyse`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marrowscope import __version__
from marrowscope.analysis import mistakes, studies
from marrowscope.analysis.feature_map import feature_map
from marrowscope.analysis.pictures import Pictures
from marrowscope.analysis.quality import measure_picture, quality_measures
from marrowscope.errors import DataError, ImageError
from marrowscope.evaluate.case import Case, make_case
from marrowscope.evaluate.figures import Bootstrap
from marrowscope.evaluate.metrics import Floats
from marrowscope.files import sha256_file
from marrowscope.images import decode
from marrowscope.schema import OK, Analysis, Predictions, QualityMeasure
from marrowscope.schema.analysis import spelled

DRAWS = 2000
NOT_LOOKED_FOR = "Not looked for: `marrowscope analyse` does."

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What was measured of the pictures of a table of predictions.

    Attributes:
        values: By path, (M,) of `quality.MEASURES`.
        sha256: By path: identical pictures count as one in intervals.
        failed: How many could not be measured, by reason.
    """

    values: dict[str, Floats]
    sha256: dict[str, str]
    failed: dict[str, int]


def measure_pictures(paths: Sequence[str], data: Path, progress: Callable[[int, int], None] | None = None) -> Measured:
    """Measure the pictures that a table names; one that can't be read is counted by its reason.

    Raises:
        DataError: `data` doesn't exist or is of an unknown kind, or holds none of them.
    """
    pictures = Pictures(data)
    values: dict[str, Floats] = {}
    sha256: dict[str, str] = {}
    failed: Counter[str] = Counter()
    for done, path in enumerate(paths, 1):
        try:
            content = pictures.read(path)
            values[path] = measure_picture(decode(content))
            sha256[path] = hashlib.sha256(content).hexdigest()
        except ImageError as e:
            failed[str(e)] += 1
        if progress is not None:
            progress(done, len(paths))
    if paths and not values:
        raise DataError(
            f"None of the {len(paths):,} pictures of the table can be read from {data}, the first is {paths[0]!r} "
            f"({next(iter(failed))}). Give the folder or archive that the paths are relative to."
        )
    return Measured(values, sha256, dict(sorted(failed.items())))


def analyse_predictions(
    predictions: Predictions,
    *,
    source: str = "",
    source_sha256: str = "",
    part: str | None = None,
    groups: Sequence[str] | None = None,
    measured: Measured | None = None,
    features: dict[str, Features] | None = None,
    doubt_labels: bool = True,
    seed: int = 0,
    draws: int = DRAWS,
) -> Analysis:
    """Say where a model errs, and on what.

    Args:
        predictions: With truth; rows without an answer are left out.
        source: Name of the file they came from, kept in the result.
        source_sha256: Its SHA-256, kept in the result.
        part: Which part of a split they are; of the part it was trained on no label is doubted.
        groups: For each row the name of what it belongs to (patient, slide, near duplicates), for the intervals; None:
            copies of one picture belong together, as far as the pictures were measured.
        measured: What `measure_pictures` gave; None: errors are not set against the quality of pictures.
        features: Of each cell by path, as `features.run_features` gives them; None: no map.
        doubt_labels: Whether to look for wrong labels, for which cleanlab is needed.
        seed: Of the bootstrap and the map.
        draws: Of the bootstrap.

    Raises:
        FileFormatError: No truth, or truths that the class columns don't know.
        ValueError: Features are missing for a cell that has an answer.
    """
    if groups is None and measured is not None:
        groups = [measured.sha256.get(p, f"unread {p}") for p in predictions.paths]
    case = make_case(predictions, groups, source or "The table of predictions")
    # The case's cells stand in the order of their paths.
    paths = tuple(sorted(p for p, s in zip(predictions.paths, predictions.status, strict=True) if s == OK))
    names = tuple(map(spelled, paths))
    candidates, basis = mistakes.label_candidates(case, names, part) if doubt_labels else ((), NOT_LOOKED_FOR)
    plane = None
    if features is not None and len(case):
        if missing := [p for p in paths if p not in features]:
            raise ValueError(f"features are missing for {len(missing)} cells, the first is {missing[0]!r}.")
        plane = feature_map(case, names, np.stack([features[p] for p in paths]), seed)
    return Analysis(
        program=f"marrowscope {__version__}",
        predictions=source,
        predictions_sha256=source_sha256,
        part=part,
        n=len(case),
        pairs=mistakes.confused_pairs(case, names),
        confident_mistakes=mistakes.confident_mistakes(case, names),
        uncertain=mistakes.uncertain_cells(case, names),
        label_candidates=candidates,
        label_basis=basis,
        quality=_quality(case, paths, measured, Bootstrap(draws, seed)),
        unmeasured=measured.failed if measured is not None else {},
        feature_map=plane,
        studies=studies.beside(case),
    )


def _quality(
    case: Case, paths: tuple[str, ...], measured: Measured | None, bootstrap: Bootstrap
) -> tuple[QualityMeasure, ...]:
    if measured is None:
        return ()
    kept_N = np.array([p in measured.values for p in paths], dtype=bool)
    if not kept_N.any():
        return ()
    values_NC = np.stack([measured.values[p] for p in paths if p in measured.values])
    return quality_measures(case.only(kept_N), values_NC, bootstrap)


def analyse_csv(
    table: Path,
    *,
    part: str | None = None,
    data: Path | None = None,
    groups: Sequence[str] | None = None,
    features: dict[str, Features] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Analyse a table of predictions that has a column `truth`, of this program or of another.

    Args:
        table: predictions.csv.
        part: As `analyse_predictions`.
        data: Folder, archive or Parquet that the paths are relative to; None: the pictures are not measured.
        groups: As `analyse_predictions`.
        features: Likewise.
        seed: Likewise.
        draws: Likewise.
        progress: Called with (done, total) pictures.

    Raises:
        FileFormatError: Not a table of predictions, or no truth in it.
        DataError: `data` can't be opened, or holds none of the pictures.
    """
    table = Path(table)
    predictions = Predictions.read(table)
    answered = [p for p, s in zip(predictions.paths, predictions.status, strict=True) if s == OK]
    measured = None if data is None or not answered else measure_pictures(answered, data, progress)
    return analyse_predictions(
        predictions,
        source=table.name,
        source_sha256=sha256_file(table),
        part=part,
        groups=groups,
        measured=measured,
        features=features,
        seed=seed,
        draws=draws,
    )
