"""Probable label errors, from what a model says of pictures that it has not seen.

Confident learning (Northcutt, Jiang, Chuang 2021, J Artif Intell Res 70, 1373-1411, doi:10.1613/jair.1.12125), as the
library cleanlab has it: a class counts as confidently predicted where its probability reaches the mean that pictures
labelled so get; from the counts of confident predictions by label comes the noise rate of each pair of classes, and
that many pictures of a pair, those with the largest margin, are probable errors. The library is the method's
authors' own, it is kept up, it needs no torch, and from 2.9 on its licence (Apache 2.0) goes with ours; it is an extra
because the plain install needs neither it nor the scikit-learn and pandas that it brings.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from marrowscope.errors import DataError, MissingExtraError
from marrowscope.schema import OK, IndexRow, Predictions


class LabelError(NamedTuple):
    """A picture whose label is probably wrong; `margin` is the suggested class's probability less the label's."""

    path: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    margin: float


def probable_errors(probs_NC: npt.NDArray[np.float64], labels_N: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The class that each picture should probably have, -1 where the label may stand.

    It is cleanlab's default method, pruning by noise rate.

    Args:
        probs_NC: Probabilities of C classes, rows sum to 1.
        labels_N: Labels, 0..C-1. A class without a picture is never suggested.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    try:
        find: Any = importlib.import_module("cleanlab.filter").find_label_issues
    except ImportError:
        raise MissingExtraError("cleanlab", "audit", "Finding probable label errors") from None
    present = np.unique(labels_N)
    out = np.full(len(labels_N), -1, dtype=np.intp)
    if len(present) < 2:
        return out
    probs = probs_NC[:, present]
    probs = probs / np.maximum(probs.sum(1, keepdims=True), 1e-12)
    # One process: the work takes less than a second, and forking from a program with threads is asking for trouble.
    wrong = np.asarray(find(np.searchsorted(present, labels_N), probs, n_jobs=1), dtype=bool)
    out[wrong] = present[probs[wrong].argmax(1)]
    return out


def join_folds(tables: Mapping[Path, Predictions]) -> Predictions:
    """One table out of those of the folds of a cross-validation, at least one.

    Args:
        tables: Predictions of each fold, by the file that they come from, for messages.

    Raises:
        DataError: They are not of the same classes.
    """
    (first, one), *others = tables.items()
    for path, other in others:
        if other.codes != one.codes:
            raise DataError(
                f"{path} is of the classes {' '.join(other.codes)}, and {first} of {' '.join(one.codes)}. Give the "
                "tables of the folds of one cross-validation."
            )
    return Predictions(
        paths=tuple(p for t in tables.values() for p in t.paths),
        status=tuple(s for t in tables.values() for s in t.status),
        codes=one.codes,
        probs_NC=np.concatenate([t.probs_NC for t in tables.values()]),
    )


def find_label_errors(index: Sequence[IndexRow], predictions: Predictions) -> list[LabelError]:
    """Pictures whose label is probably wrong, the surest first.

    Args:
        index: Gives the labels.
        predictions: Of a model, each for a picture that it was not trained on: those of the folds of a
            cross-validation, put together. Pictures of the index that are not in them are passed over, and so are
            those whose class the model doesn't know.

    Raises:
        DataError: None of the predictions is of a picture of the index, or a picture stands in them twice.
        MissingExtraError: cleanlab is not installed.
    """
    labels = {r.path: r.label for r in index if r.status == OK}
    column = {c: i for i, c in enumerate(predictions.codes)}
    if len(set(predictions.paths)) != len(predictions.paths):
        raise DataError("The predictions name pictures twice; give one prediction for each picture.")
    known = [
        i
        for i, (path, ok) in enumerate(zip(predictions.paths, predictions.ok, strict=True))
        if ok and labels.get(path) in column
    ]
    if not known:
        first = next(iter(predictions.paths), "none")
        raise DataError(
            f"No prediction is of a picture of the index; paths must be as there. The first prediction is of {first!r}."
        )
    probs = predictions.probs_NC[known]
    given = np.array([column[labels[predictions.paths[i]]] for i in known], dtype=np.intp)
    out = []
    for at, suggested in enumerate(probable_errors(probs, given)):
        if suggested >= 0:
            path = predictions.paths[known[at]]
            a, b = float(probs[at, given[at]]), float(probs[at, suggested])
            code = predictions.codes[int(suggested)]
            out.append(LabelError(path, labels[path], code, round(a, 4), round(b, 4), round(b - a, 4)))
    return sorted(out, key=lambda e: (-e.margin, e.path))
