"""The judged images as arrays, in an order that does not depend on the order of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marrowscope.errors import FileFormatError
from marrowscope.evaluate.intervals import number_groups
from marrowscope.evaluate.metrics import Bools, Floats, Integers, confusion_matrix
from marrowscope.schema import OK, Predictions


@dataclass(frozen=True)
class Case:
    """N images with an answer and a truth.

    Attributes:
        codes: The C class codes, in the order of all class axes.
        truth_N: Class numbers, int64.
        predicted_N: Class numbers, int64.
        probs_NC: float64, rows sum to 1.
        group_N: Numbers 0..G-1 of what belongs together, int64; N different ones where nothing does.
    """

    codes: tuple[str, ...]
    truth_N: Integers
    predicted_N: Integers
    probs_NC: Floats
    group_N: Integers

    def __len__(self) -> int:
        return len(self.truth_N)

    @property
    def grouped(self) -> bool:
        """Whether any two images belong together."""
        return len(self) > 0 and int(self.group_N.max()) + 1 < len(self)

    @property
    def counts_CC(self) -> Integers:
        """Confusion matrix (C, C), row = truth."""
        return confusion_matrix(self.truth_N, self.predicted_N, len(self.codes))

    @property
    def right_N(self) -> Bools:
        """Whether each answer is right."""
        return np.asarray(self.truth_N == self.predicted_N)

    def only(self, keep_N: Bools) -> Case:
        """The images where `keep_N` is True, groups numbered anew."""
        group_N = np.unique(self.group_N[keep_N], return_inverse=True)[1].astype(np.int64)
        return Case(self.codes, self.truth_N[keep_N], self.predicted_N[keep_N], self.probs_NC[keep_N], group_N)


def make_case(predictions: Predictions, groups: Sequence[str] | None, where: str) -> Case:
    """Take the images that have an answer, sorted by path (so the bootstrap's draws don't depend on the file's order).

    Args:
        predictions: With truth.
        groups: Name of the group of each row of `predictions` (slide, patient, hash); None: each row is its own.
        where: Names the origin in errors.

    Raises:
        FileFormatError: No truth column, an empty truth, or truths that the columns don't know.
        ValueError: `groups` has another length.
    """
    if groups is not None and len(groups) != len(predictions.paths):
        raise ValueError(f"groups names {len(groups)} rows, and there are {len(predictions.paths)} predictions.")
    if predictions.truth is None:
        raise FileFormatError(
            f"{where} has no column 'truth', so it can't be judged. Add one that holds the true class code of each row."
        )
    if len(set(predictions.codes)) != len(predictions.codes):
        raise FileFormatError(f"{where} has two columns of one class code; name each class once.")
    if len(predictions.codes) < 2:
        raise FileFormatError(f"{where} has {len(predictions.codes)} class columns; at least two are needed.")
    truths, paths = predictions.truth, predictions.paths
    rows = [i for i, status in enumerate(predictions.status) if status == OK]
    number = {code: i for i, code in enumerate(predictions.codes)}
    unknown = sorted({truths[i] for i in rows} - number.keys())
    if unknown:
        affected = sum(truths[i] not in number for i in rows)
        names = ", ".join(repr(u) if u else "an empty cell" for u in unknown)
        raise FileFormatError(
            f"{where}: {affected} of {len(rows)} rows have a truth that is not among the predicted classes: {names}. "
            f"The columns know {' '.join(predictions.codes)}; leave those rows out, or mend the truth column."
        )
    rows.sort(
        key=lambda i: (paths[i], truths[i], groups[i] if groups is not None else "", predictions.probs_NC[i].tolist())
    )
    truth_N = np.array([number[truths[i]] for i in rows], dtype=np.int64)
    probs_NC = predictions.probs_NC[rows].reshape(len(rows), len(predictions.codes))
    group_N = np.arange(len(rows)) if groups is None else number_groups([groups[i] for i in rows])
    return Case(predictions.codes, truth_N, probs_NC.argmax(1).astype(np.int64), probs_NC, group_N)
