"""Cells: add, list, answer, change, undo. Whoever changes a cell must have seen its present version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from marrowscope.cells import BY_CODE
from marrowscope.serve.problems import Problem, conflict, invalid, not_found
from marrowscope.serve.store.database import now
from marrowscope.serve.store.history import CELL_ACTIONS, Person, log
from marrowscope.serve.store.tables import FAILED, PENDING, READY, Case, Cell, Event

Sort = Literal["uncertainty", "number", "class"]


@dataclass(frozen=True)
class Upload:
    """One picture that was checked and kept; sizes in pixels."""

    sha256: str
    bytes: int
    width: int
    height: int
    file_name: str | None


@dataclass(frozen=True)
class Filter:
    """Which cells; None where it does not matter.

    Attributes:
        code: Class that counts: the given one, or else the model's.
        changed_since: Those that changed after this version of the case.
    """

    code: str | None = None
    status: str | None = None
    ood: bool | None = None
    reviewed: bool | None = None
    excluded: bool | None = None
    changed_since: int | None = None


@dataclass(frozen=True)
class Change:
    """What to set on one cell.

    Attributes:
        version: The cell's version that the person has seen.
        accept: Take the model's class as the label.
        values: ``label`` (a class code, or None to take it back) and ``excluded``, those that are to be set.
    """

    number: int
    version: int
    accept: bool
    values: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the model said of one cell; `reason` where it said nothing."""

    number: int
    probabilities: list[float] | None = None
    conformal_set: list[str] | None = None
    ood_score: float | None = None
    ood: bool | None = None
    accepted: bool | None = None
    reason: str | None = None


def effective() -> ColumnElement[Any]:
    """SQL: the class that a cell counts as."""
    return func.coalesce(Cell.label, Cell.predicted)


# --------------------------------------------------------------------------------------------------------------- adding


def add(session: Session, who: Person, case: Case, uploads: Sequence[Upload], most: int) -> list[tuple[int, bool]]:
    """Add pictures to an open, locked case: (number, whether it is new) of each, in order.

    A picture that the case has already is not added twice.

    Raises:
        Problem: 409 where the case would have more than `most` cells.
    """
    digests = [u.sha256 for u in uploads]
    known = numbers(session, case.id, digests)
    fresh = {d: None for d in digests if d not in known}
    if case.last_number + len(fresh) > most:
        raise conflict(
            f"A case may have {most:,} cells; this one has {case.last_number:,}. Start another case.", code="full"
        )
    if fresh:
        case.version += 1
    out = []
    for u in uploads:
        new = u.sha256 not in known
        if new:
            case.last_number += 1
            known[u.sha256] = case.last_number
            session.add(_fresh(case, case.last_number, u, who))
        out.append((known[u.sha256], new))
    if fresh:
        log(session, who, "upload", case.id, after={"cells": len(fresh), "last": case.last_number})
    return out


def _fresh(case: Case, number: int, upload: Upload, who: Person) -> Cell:
    return Cell(
        case_id=case.id,
        number=number,
        sha256=upload.sha256,
        bytes=upload.bytes,
        width=upload.width,
        height=upload.height,
        file_name=upload.file_name,
        uploaded_by=who.name,
        uploaded_at=now(),
        status=PENDING,
        excluded=False,
        version=1,
        changed=case.version,
    )


def numbers(session: Session, case: str, digests: Iterable[str]) -> dict[str, int]:
    """Which of these pictures a case has: digest to number."""
    out: dict[str, int] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), 500):  # databases limit the number of values in a query
        part = wanted[start : start + 500]
        query = select(Cell.sha256, Cell.number).where(Cell.case_id == case, Cell.sha256.in_(part))
        out.update((d, n) for d, n in session.execute(query))
    return out


# -------------------------------------------------------------------------------------------------------------- finding


def find(session: Session, case: str, number: int) -> Cell:
    """One cell.

    Raises:
        Problem: 404.
    """
    cell = session.get(Cell, (case, number))
    if cell is None:
        raise not_found("cell in this case", "GET /v1/cases/{case}/cells lists them.")
    return cell


def listed(
    session: Session, case: str, wanted: Filter, *, sort: Sort, limit: int, offset: int
) -> tuple[int, list[Cell]]:
    """How many cells fit, and some of them in order."""
    query = _filtered(select(Cell), case, wanted)
    total = session.scalar(_filtered(select(func.count()).select_from(Cell), case, wanted)) or 0
    unsure = (Cell.uncertainty.is_(None), Cell.uncertainty.desc(), Cell.number)
    order = {"number": (Cell.number,), "uncertainty": unsure, "class": (effective(), *unsure)}[sort]
    return total, list(session.scalars(query.order_by(*order).limit(limit).offset(offset)))


def _filtered(query: Select[Any], case: str, wanted: Filter) -> Select[Any]:
    query = query.where(Cell.case_id == case)
    if wanted.code is not None:
        query = query.where(effective() == wanted.code)
    if wanted.status is not None:
        query = query.where(Cell.status == wanted.status)
    if wanted.ood is not None:
        query = query.where(Cell.ood.is_(True) if wanted.ood else Cell.ood.is_not(True))
    if wanted.reviewed is not None:
        query = query.where(Cell.label.is_not(None) if wanted.reviewed else Cell.label.is_(None))
    if wanted.excluded is not None:
        query = query.where(Cell.excluded.is_(wanted.excluded))
    if wanted.changed_since is not None:
        query = query.where(Cell.changed > wanted.changed_since)
    return query


def waiting(session: Session, models: Iterable[str], limit: int) -> list[tuple[Case, Cell]]:
    """Cells without an answer, of cases whose model is one of these (by SHA-256), the oldest first."""
    query = (
        select(Case, Cell)
        .join(Cell, Cell.case_id == Case.id)
        .where(Cell.status == PENDING, Case.model_sha256.in_(list(models)))
        .order_by(Cell.uploaded_at, Cell.case_id, Cell.number)
        .limit(limit)
    )
    return [(case, cell) for case, cell in session.execute(query)]


# ------------------------------------------------------------------------------------------------------------- changing


def answer(session: Session, case: str, answers: Sequence[Answer]) -> None:
    """Write down what the model said; cells that were deleted meanwhile are passed by."""
    found = session.get(Case, case, with_for_update=True)
    if found is None:
        return
    found.version += 1
    for a in answers:
        cell = session.get(Cell, (case, a.number))
        if cell is None or cell.status != PENDING:
            continue
        cell.changed = found.version
        if a.probabilities is None:
            cell.status, cell.reason = FAILED, (a.reason or "no answer")[:300]
            continue
        best = max(range(len(a.probabilities)), key=a.probabilities.__getitem__)
        cell.status = READY
        cell.predicted = found.codes[best]
        cell.confidence = a.probabilities[best]
        cell.uncertainty = 1 - a.probabilities[best]
        cell.probabilities = a.probabilities
        cell.conformal_set = a.conformal_set
        cell.ood_score, cell.ood, cell.accepted = a.ood_score, a.ood, a.accepted


def change(session: Session, who: Person, case: Case, changes: Sequence[Change]) -> list[Cell]:
    """Change cells of an open, locked case, all of them or none.

    Raises:
        Problem: 404; 422; 409 where a cell has changed since, with the present state of those in `detail`.
    """
    cells = [find(session, case.id, c.number) for c in changes]
    stale = [cell for c, cell in zip(changes, cells, strict=True) if c.version != cell.version]
    if len({c.number for c in changes}) != len(changes):
        raise invalid("A cell is named twice; name each once.")
    if stale:
        names = ", ".join(str(c.number) for c in stale[:10])
        raise Stale(f"Somebody else has changed cell {names} since you looked at it.", stale)
    case.version += 1
    for c, cell in zip(changes, cells, strict=True):
        _change(session, who, case, cell, c)
    return cells


class Stale(Problem):
    """409: cells have changed since the client looked at them; `cells` are as they are now."""

    def __init__(self, message: str, cells: Sequence[Cell]) -> None:
        super().__init__(409, "conflict", message)
        self.cells = tuple(cells)


def _change(session: Session, who: Person, case: Case, cell: Cell, wanted: Change) -> None:
    values = dict(wanted.values)
    action = "include"
    if wanted.accept:
        if cell.predicted is None:
            raise conflict(
                f"The model has no answer for cell {cell.number}, so there is nothing to accept. Give it a class.",
                code="pending",
            )
        values["label"], action = cell.predicted, "accept"
    elif "label" in values:
        action = "label" if values["label"] is not None else "unlabel"
    elif values.get("excluded"):
        action = "exclude"
    if values.get("label") is not None and values["label"] not in BY_CODE:
        raise invalid(f"Unknown class {values['label']!r}. Known classes: {' '.join(BY_CODE)}.")
    before = state(cell)
    if "label" in values:
        cell.label = values["label"]
        cell.label_by, cell.label_at = (who.name, now()) if cell.label is not None else (None, None)
    if "excluded" in values:
        cell.excluded = values["excluded"]
    _stamp(session, who, case, cell, action, before)


def _stamp(
    session: Session, who: Person, case: Case, cell: Cell, action: str, before: dict[str, Any], **more: Any
) -> None:
    cell.version += 1
    cell.changed = case.version
    log(
        session, who, action, case.id,
        cell=cell.number, cell_version=cell.version, before=before, after=state(cell), **more,
    )  # fmt: skip


def state(cell: Cell) -> dict[str, Any]:
    """What the log keeps of a cell."""
    return {"label": cell.label, "by": cell.label_by, "at": cell.label_at, "excluded": cell.excluded}


def undo(session: Session, who: Person, case: Case) -> Cell:
    """Take back the last change of `who` in an open, locked case that is not taken back yet.

    Raises:
        Problem: 409 where there is none, or somebody else has changed the cell since.
    """
    undone = select(Event.undoes).where(Event.case_id == case.id, Event.undoes.is_not(None))
    last = session.scalars(
        select(Event)
        .where(Event.case_id == case.id, Event.by == who.name, Event.action.in_(CELL_ACTIONS))
        .where(Event.id.not_in(undone))
        .order_by(Event.id.desc())
        .limit(1)
    ).first()
    if last is None or last.cell is None or last.before is None:
        raise conflict("There is nothing of yours to undo in this case.", code="nothing_to_undo")
    cell = find(session, case.id, last.cell)
    if state(cell) != last.after:
        raise Stale(f"Cell {cell.number} was changed after you; look at it, and set it anew.", [cell])
    before = state(cell)
    cell.label, cell.label_by, cell.label_at = last.before["label"], last.before["by"], last.before["at"]
    cell.excluded = last.before["excluded"]
    case.version += 1
    _stamp(session, who, case, cell, "undo", before, undoes=last.id)
    return cell
