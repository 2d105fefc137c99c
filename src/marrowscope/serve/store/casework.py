"""Cases: make, find, list, sign out, reopen, delete."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from marrowscope import __version__
from marrowscope.serve.problems import Problem, conflict, not_found
from marrowscope.serve.store.database import now
from marrowscope.serve.store.history import Person, log
from marrowscope.serve.store.tables import OPEN, PENDING, SIGNED, Case, Cell, Signature

PROGRAM_VERSION = f"marrowscope {__version__}"


def create(session: Session, who: Person, *, name: str, model: str, sha256: str, codes: Sequence[str]) -> Case:
    """Make an empty case for a model."""
    case = Case(
        id=str(uuid.uuid4()),
        name=name,
        created_at=now(),
        created_by=who.name,
        state=OPEN,
        version=1,
        revision=1,
        last_number=0,
        model_name=model,
        model_sha256=sha256,
        codes=list(codes),
        program=PROGRAM_VERSION,
    )
    session.add(case)
    log(session, who, "create", case.id, after={"model_sha256": sha256})
    return case


def find(session: Session, case: str, *, lock: bool = False) -> Case:
    """The case of this id; with `lock` nobody else changes it before the transaction ends.

    Raises:
        Problem: 404, there is none.
    """
    found = session.get(Case, case, with_for_update=True if lock else None)
    if found is None:
        raise not_found("case", "GET /v1/cases lists them; perhaps somebody deleted it.")
    return found


def find_open(session: Session, case: str) -> Case:
    """The same, locked, for changing it.

    Raises:
        Problem: 404; 409 where the case is signed.
    """
    return check_open(find(session, case, lock=True))


def check_open(case: Case) -> Case:
    """Return the case.

    Raises:
        Problem: 409, it is signed.
    """
    if case.state == SIGNED:
        raise conflict(
            "The case is signed out and can't be changed. An administrator can reopen it, with a reason.",
            {"state": SIGNED},
            code="signed",
        )
    return case


def listed(session: Session, *, state: str | None, limit: int, offset: int) -> tuple[int, list[Case]]:
    """How many cases there are, and some of them, the newest first."""
    query = select(Case)
    if state is not None:
        query = query.where(Case.state == state)
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    query = query.order_by(Case.created_at.desc(), Case.id).limit(limit).offset(offset)
    return total, list(session.scalars(query))


def progress(session: Session, cases: Sequence[str]) -> dict[str, dict[str, int]]:
    """Numbers of cells by case: ``cells``, ``pending``, ``reviewed``, ``excluded``."""
    out = {c: {"cells": 0, "pending": 0, "reviewed": 0, "excluded": 0} for c in cases}
    query = (
        select(Cell.case_id, Cell.status, Cell.label.is_not(None), Cell.excluded, func.count())
        .where(Cell.case_id.in_(cases))
        .group_by(Cell.case_id, Cell.status, Cell.label.is_not(None), Cell.excluded)
    )
    for case, status, reviewed, excluded, n in session.execute(query):
        counts = out[case]
        counts["cells"] += n
        counts["pending"] += n * (status == PENDING)
        counts["reviewed"] += n * (bool(reviewed) and not excluded)
        counts["excluded"] += n * bool(excluded)
    return out


def sign(
    session: Session, who: Person, case: Case, *, version: int, comment: str, summary: dict[str, Any]
) -> Signature:
    """Sign a case out: from now on it is locked.

    Args:
        case: Locked and open.
        version: The version that the signer has seen.
        summary: The differential that is signed (`counting.CaseDifferential`).

    Raises:
        Problem: 409 where the case has changed since, has no cell, or the model has not answered for all of them.
    """
    if not case.version == version == summary["case_version"]:
        raise conflict(
            f"The case has changed since you looked at it (version {version}, now {case.version}). "
            "Look at the differential again, then sign.",
            {"version": case.version},
        )
    counts = progress(session, [case.id])[case.id]
    if counts["cells"] == 0:
        raise conflict("The case has no cells; there is nothing to sign.", counts, code="empty")
    if counts["pending"]:
        raise conflict(
            f"The model has not answered for {counts['pending']} cells yet. Wait until it has, then sign.",
            counts,
            code="pending",
        )
    signature = Signature(
        case_id=case.id,
        revision=case.revision,
        at=now(),
        by=who.name,
        comment=comment,
        case_version=case.version,
        model_name=case.model_name,
        model_sha256=case.model_sha256,
        program=PROGRAM_VERSION,
        summary=summary,
    )
    session.add(signature)
    case.state = SIGNED
    case.version += 1
    log(session, who, "sign", case.id, after={"revision": case.revision, "version": case.version})
    return signature


def signatures(session: Session, case: str) -> list[Signature]:
    """All signatures of a case, the first revision first."""
    return list(session.scalars(select(Signature).where(Signature.case_id == case).order_by(Signature.revision)))


def reopen(session: Session, who: Person, case: str, reason: str) -> Case:
    """Open a signed case again as its next revision; what was signed stays.

    Raises:
        Problem: 404; 409 where it is open.
    """
    found = find(session, case, lock=True)
    if found.state == OPEN:
        raise conflict("The case is open already.", {"state": OPEN})
    found.state = OPEN
    found.revision += 1
    found.version += 1
    log(session, who, "reopen", case, after={"revision": found.revision, "reason": reason})
    return found


def delete(session: Session, who: Person, case: str) -> None:
    """Delete a case with its cells and signatures; the log keeps that it was there.

    Raises:
        Problem: 404; 403 where it is signed or somebody else's and `who` is no administrator.
    """
    found = find(session, case, lock=True)
    if not who.may("admin") and (found.state == SIGNED or found.created_by != who.name):
        raise Problem(
            403, "forbidden", "Only an administrator can delete a case that is signed or that somebody else made."
        )
    log(session, who, "delete", case, before={"state": found.state, "cells": found.last_number})
    session.flush()
    session.delete(found)
