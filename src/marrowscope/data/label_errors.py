"""Probable label errors, from what a model says of pictures that it has not seen.

Confident learning (Northcutt, Jiang, Chuang 2021, J Artif Intell Res 70, 1373-1411, doi:10.1613/jair.1.12125): a class
counts as confidently predicted where its probability reaches the mean that pictures labelled so get. A picture whose
likeliest confident class is not its label is a probable error. Thresholds of their own make classes comparable on which
the model is more and less sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from marrowscope.errors import DataError
from marrowscope.schema import OK, IndexRow, Predictions


class LabelError(NamedTuple):
    """A picture whose label is probably wrong; `margin` is the suggested class's probability less the label's."""

    path: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    margin: float


def confident_disagreement(
    probs_NC: npt.NDArray[np.float64],
    labels_N: npt.NDArray[np.intp],
) -> npt.NDArray[np.intp]:
    """The class that each picture should probably have, -1 where the label may stand.

    Args:
        probs_NC: Probabilities of C classes, rows sum to 1.
        labels_N: Labels, 0..C-1. A class without a picture is never suggested.
    """
    n, classes = probs_NC.shape
    counts = np.bincount(labels_N, minlength=classes)
    own = probs_NC[np.arange(n), labels_N]
    sums = np.bincount(labels_N, weights=own, minlength=classes)
    threshold = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probs_NC >= threshold - 1e-6, probs_NC, -1.0)
    best = confident.argmax(1)
    wrong = (confident.max(1) >= 0) & (best != labels_N) & (probs_NC.argmax(1) != labels_N)
    return np.where(wrong, best, -1)


def find_label_errors(index: Sequence[IndexRow], predictions: Predictions) -> list[LabelError]:
    """Pictures whose label is probably wrong, the surest first.

    Args:
        index: Gives the labels.
        predictions: Of a model, each for a picture that it was not trained on: those of the folds of a
            cross-validation, put together. Pictures of the index that are not in them are passed over, and so are
            those whose class the model doesn't know.

    Raises:
        DataError: None of the predictions is of a picture of the index, or a picture stands in them twice.
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
    for at, suggested in enumerate(confident_disagreement(probs, given)):
        if suggested >= 0:
            path = predictions.paths[known[at]]
            a, b = float(probs[at, given[at]]), float(probs[at, suggested])
            code = predictions.codes[int(suggested)]
            out.append(LabelError(path, labels[path], code, round(a, 4), round(b, 4), round(b - a, 4)))
    return sorted(out, key=lambda e: (-e.margin, e.path))
