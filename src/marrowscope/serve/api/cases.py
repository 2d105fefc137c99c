"""Cases: make, list, look at, count, sign out, reopen, delete; and the log."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from marrowscope.differential import RATIOS
from marrowscope.serve.api.common import MOST_NUMBER, Admin, CaseId, Has, Reader, Reviewer, errors
from marrowscope.serve.api.shapes import CaseIn, CaseOut, Cases, EventOut, Events, ReopenIn, SignatureOut, SignIn
from marrowscope.serve.counting import DEFAULT_RATIO, CaseDifferential
from marrowscope.serve.problems import invalid
from marrowscope.serve.service import Service
from marrowscope.serve.store import casework, history
from marrowscope.serve.store.tables import Case, Event, Signature

router = APIRouter(tags=["cases"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=MOST_NUMBER)]
After = Annotated[int, Query(ge=0, le=MOST_NUMBER, description="events behind the one of this id")]
Ratio = Annotated[
    str, Query(description=f"definition of the myeloid-to-erythroid ratio: {', '.join(RATIOS)}", max_length=40)
]

Adjusted = Annotated[
    bool,
    Query(description="with counts adjusted for the model's known confusions; they take seconds for many cells"),
]


@router.post("/v1/cases", status_code=201, responses=errors(404))
def create(who: Reviewer, service: Has, body: CaseIn) -> CaseOut:
    """Start a case for one smear."""
    model = service.model(body.model)
    with service.database.write() as db:
        case = casework.create(
            db, who, name=body.name, model=model.name, sha256=model.sha256, codes=model.classifier.codes
        )
        return case_out(service, case, {}, [])


@router.get("/v1/cases", responses=errors())
def listed(
    who: Reader,
    service: Has,
    state: Literal["open", "signed"] | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Cases:
    """Cases, the newest first."""
    with service.database.read() as db:
        total, cases = casework.listed(db, state=state, limit=limit, offset=offset)
        counts = casework.progress(db, [c.id for c in cases])
    return Cases(total=total, cases=[case_out(service, c, counts[c.id], []) for c in cases])


@router.get("/v1/cases/{case}", responses=errors(404))
def one(who: Reader, service: Has, case: CaseId) -> CaseOut:
    """One case, with its signatures."""
    with service.database.read() as db:
        found = casework.find(db, case)
        counts = casework.progress(db, [case])[case]
        return case_out(service, found, counts, casework.signatures(db, case))


@router.delete("/v1/cases/{case}", status_code=204, responses=errors(404))
def delete(who: Reviewer, service: Has, case: CaseId) -> None:
    """Delete a case with its pictures, labels and signatures, for good; the log keeps that it was there.

    Signed cases, and those of others, only by an administrator.
    """
    with service.database.write() as db:
        casework.delete(db, who, case)
    service.blobs.drop(case)


@router.get("/v1/cases/{case}/differential", responses=errors(404))
def count(
    who: Reader, service: Has, case: CaseId, ratio: Ratio = DEFAULT_RATIO, adjusted: Adjusted = True
) -> CaseDifferential:
    """The differential at this moment: people's labels, and the model's where nobody has looked."""
    if ratio not in RATIOS:
        raise invalid(f"Unknown ratio {ratio!r}; allowed: {', '.join(RATIOS)}.")
    return service.differential(case, ratio, adjusted=adjusted)


@router.post("/v1/cases/{case}/sign", responses=errors(404, 409))
def sign(who: Reviewer, service: Has, case: CaseId, body: SignIn) -> CaseOut:
    """Sign the case out: it is locked, with the differential and the versions of model and program.

    409 where the case has changed since the version that you looked at, or cells still wait for the model.
    """
    summary = service.differential(case).model_dump(mode="json")
    with service.database.write() as db:
        found = casework.find_open(db, case)
        casework.sign(db, who, found, version=body.version, comment=body.comment, summary=summary)
        db.flush()
        counts = casework.progress(db, [case])[case]
        return case_out(service, found, counts, casework.signatures(db, case))


@router.post("/v1/cases/{case}/reopen", responses=errors(404, 409))
def reopen(who: Admin, service: Has, case: CaseId, body: ReopenIn) -> CaseOut:
    """Open a signed case as its next revision; what was signed stays in `signatures`."""
    with service.database.write() as db:
        found = casework.reopen(db, who, case, body.reason)
        db.flush()
        counts = casework.progress(db, [case])[case]
        return case_out(service, found, counts, casework.signatures(db, case))


@router.get("/v1/cases/{case}/history", responses=errors(404))
def case_history(
    who: Reader,
    service: Has,
    case: CaseId,
    cell: Annotated[int | None, Query(ge=1, le=MOST_NUMBER)] = None,
    after: After = 0,
    limit: Limit = 200,
) -> Events:
    """All changes of a case or of one of its cells: who, when, from what, to what."""
    with service.database.read() as db:
        casework.find(db, case)
        return _events(history.events(db, case=case, cell=cell, after=after, limit=limit), limit)


@router.get("/v1/audit", responses=errors(), tags=["system"])
def audit(who: Admin, service: Has, after: After = 0, limit: Limit = 200) -> Events:
    """The log of every change, of deleted cases too."""
    with service.database.read() as db:
        return _events(history.events(db, case=None, cell=None, after=after, limit=limit), limit)


def _events(found: list[Event], limit: int) -> Events:
    out = [EventOut.model_validate(e, from_attributes=True) for e in found]
    return Events(events=out, next=out[-1].id if len(out) == limit else None)


def case_out(service: Service, case: Case, counts: dict[str, int], signatures: list[Signature]) -> CaseOut:
    """A case as it goes over the wire."""
    empty = {"cells": 0, "pending": 0, "reviewed": 0, "excluded": 0}
    return CaseOut(
        id=case.id,
        name=case.name,
        state="signed" if case.state == "signed" else "open",
        version=case.version,
        revision=case.revision,
        created_at=case.created_at,
        created_by=case.created_by,
        model_name=case.model_name,
        model_sha256=case.model_sha256,
        model_loaded=case.model_sha256 in service.models,
        codes=list(case.codes),
        program=case.program,
        **{**empty, **counts},
        signatures=[
            SignatureOut(
                revision=s.revision,
                at=s.at,
                by=s.by,
                comment=s.comment,
                case_version=s.case_version,
                model_name=s.model_name,
                model_sha256=s.model_sha256,
                program=s.program,
                summary=s.summary,
            )
            for s in signatures
        ],
    )
