"""Adjusted counts of a case: what its differential would be without the confusions that the model is known to make.

They rest on the model's answers for all cells that it has learnt the like of, whatever people have named them since:
the confusions on the card were seen on all validation cells, and people look at the least certain cells first, so what
they leave is no fair sample. Cells that a person took out are left out here too.

Working them out takes some seconds for thousands of cells, so they are kept: they change when cells come, go or are
excluded, and not with a label.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from marrowscope.differential import Differential, NamedFigure, count
from marrowscope.errors import DataError
from marrowscope.schema import OK, Card, Predictions
from marrowscope.serve.counting import CaseDifferential
from marrowscope.serve.problems import busy
from marrowscope.serve.store.tables import READY, Case, Cell

_KEPT = 256
_WAIT_SECONDS = 30.0

Key = tuple[str, str, str]
"""Case, definition of the M:E ratio, SHA-256 of the numbers of the cells."""


@dataclass(frozen=True)
class Wanted:
    """What adjusted counts are to be made of.

    Attributes:
        codes: Of the model, C of them.
        probs_NC: The model's answers; none where the counts of these cells are `known` already.
    """

    key: Key
    codes: tuple[str, ...]
    probs_NC: npt.NDArray[np.float64]
    known: Differential | None


class Adjuster:
    """Makes adjusted counts, one at a time, and keeps the latest."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Differential] = OrderedDict()
        self._lock = threading.Lock()
        self._turn = threading.BoundedSemaphore(1)

    def look(self, session: Session, case: Case, ratio: str) -> Wanted:
        """What is needed for the adjusted counts of a case at this moment; `add` makes them, after the transaction."""
        within = _within(case)
        numbers = np.array(session.scalars(select(Cell.number).where(*within).order_by(Cell.number)).all(), dtype="<i8")
        key = (case.id, ratio, hashlib.sha256(numbers.tobytes()).hexdigest())
        known = self._find(key)
        rows = []
        if known is None:
            rows = list(session.scalars(select(Cell.probabilities).where(*within).order_by(Cell.number)))
        probs_NC = np.array(rows, dtype=np.float64).reshape(len(rows), len(case.codes))
        return Wanted(key, tuple(case.codes), probs_NC, known)

    def add(self, summary: CaseDifferential, wanted: Wanted, card: Card | None) -> CaseDifferential:
        """The differential with adjusted counts beside the raw ones, or with the reason why there are none.

        Args:
            card: Of the case's model; None where it is not loaded.

        Raises:
            Problem: 503, too many are being made.
        """
        if summary.differential.counted == 0:
            return _without(summary, "No nucleated cell is counted yet.")
        if summary.reviewed_nucleated >= summary.differential.counted:
            return _without(summary, "People have looked at every counted cell: there is nothing to adjust.")
        if card is None:
            return _without(summary, "The case's model is not loaded, so its confusions are not known.")
        if not card.confusion:
            return _without(summary, "The model's card does not tell its confusions on validation cells.")
        try:
            made = self._made(wanted, card)
        except DataError as e:
            return _without(summary, str(e))
        note = (
            f"Adjusted and corrected counts rest on the model's answers for {_cells(made)} cells, whatever people have "
            "named them."
        )
        return summary.model_copy(
            update={"differential": _joined(summary.differential, made), "notes": (*summary.notes, note)}
        )

    def _made(self, wanted: Wanted, card: Card) -> Differential:
        if wanted.known is not None:
            return wanted.known
        if not self._turn.acquire(timeout=_WAIT_SECONDS):
            raise busy(5, "Adjusted counts of other cases are being made. Try again in a moment.")
        try:
            found = self._find(wanted.key)  # somebody else may have asked for the same while we waited
            return found or self._keep(wanted.key, _count(wanted.probs_NC, wanted.codes, card, wanted.key[1]))
        finally:
            self._turn.release()

    def _find(self, key: Key) -> Differential | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _keep(self, key: Key, made: Differential) -> Differential:
        with self._lock:
            self._known[key] = made
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return made


def _within(case: Case) -> tuple[ColumnElement[bool], ...]:
    """SQL: cells that adjusted counts rest on."""
    return (Cell.case_id == case.id, Cell.status == READY, Cell.excluded.is_(False), Cell.ood.is_not(True))


def _count(probs_NC: npt.NDArray[np.float64], codes: tuple[str, ...], card: Card, ratio: str) -> Differential:
    n = len(probs_NC)
    total = np.maximum(probs_NC.sum(axis=1, keepdims=True), 1e-12)  # they are kept to six digits
    predictions = Predictions(paths=("",) * n, status=(OK,) * n, codes=codes, probs_NC=probs_NC / total)
    return count(predictions, ratio=ratio, review=False, card=card)


def _cells(made: Differential) -> int:
    return 0 if made.adjustment is None else made.adjustment.cells


def _without(summary: CaseDifferential, reason: str) -> CaseDifferential:
    return summary.model_copy(update={"unadjusted": reason})


def _joined(raw: Differential, made: Differential) -> Differential:
    """The raw differential with the adjusted figures of the other one."""
    by_code = {r.code: r for r in made.rows}
    rows = tuple(
        r.model_copy(update={"adjusted": by_code[r.code].adjusted, "corrected": by_code[r.code].corrected})
        if r.code in by_code
        else r
        for r in raw.rows
    )

    def figure(one: NamedFigure, other: NamedFigure) -> NamedFigure:
        return one.model_copy(update={"adjusted": other.adjusted, "corrected": other.corrected})

    return raw.model_copy(
        update={
            "rows": rows,
            "adjustment": made.adjustment,
            "myeloid_erythroid": figure(raw.myeloid_erythroid, made.myeloid_erythroid),
            "blast_percent": figure(raw.blast_percent, made.blast_percent),
        }
    )
