"""Cells: upload, list, look at, change, undo."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.serve import pictures
from marrowscope.serve.api.common import (
    FILES_BODY,
    MOST_NUMBER,
    CaseId,
    CellNumber,
    Files,
    Has,
    Reader,
    Reviewer,
    Uploaded,
    errors,
)
from marrowscope.serve.api.shapes import (
    CellOut,
    Cells,
    ChangeIn,
    ChangesIn,
    ChangesOut,
    Code,
    DigestsIn,
    DigestsOut,
    NumberedChangeIn,
    SimilarCell,
    SimilarOut,
    UploadResult,
    Uploads,
)
from marrowscope.serve.problems import Problem, invalid, not_found
from marrowscope.serve.service import Service
from marrowscope.serve.store import casework, cellwork
from marrowscope.serve.store.blobs import digest
from marrowscope.serve.store.cellwork import Change, Filter, Stale, Upload
from marrowscope.serve.store.history import Person
from marrowscope.serve.store.tables import Case, Cell

router = APIRouter(tags=["cells"])


# ---------------------------------------------------------------------------------------------------------- uploading


@router.post("/v1/cases/{case}/cells/missing", responses=errors(404))
def missing(who: Reviewer, service: Has, case: CaseId, body: DigestsIn) -> DigestsOut:
    """Which of these pictures the case does not have yet: how an upload that broke off is taken up again."""
    with service.database.read() as db:
        casework.find(db, case)
        known = cellwork.numbers(db, case, body.sha256)
    return DigestsOut(missing=[d for d in dict.fromkeys(body.sha256) if d not in known])


@router.post("/v1/cases/{case}/cells", openapi_extra=FILES_BODY, responses=errors(404, 409, 503))
def upload(who: Reviewer, service: Has, case: CaseId, uploaded: Uploaded) -> Uploads:
    """Add pictures; when this answers, they are on the disk.

    Any number may be sent, some in each request. A picture that the case has already (by its SHA-256) is not added
    again, so a request may be repeated without harm. The model answers for them in the background: ask for cells with
    `changed_since`. Where no picture of the request can be used, the answer is 422.
    """
    with service.database.read() as db:
        casework.check_open(casework.find(db, case))
    results, accepted = _checked(service, uploaded)
    if not accepted:
        raise invalid(
            "None of the pictures can be used; `detail` has the reasons.", [r.model_dump(mode="json") for r in results]
        )
    service.blobs.put(case, [data for _, data in accepted])
    try:
        with service.database.write() as db:
            found = casework.find_open(db, case)
            numbers = cellwork.add(db, who, found, [u for u, _ in accepted], service.settings.limits.cells)
            version = found.version
    except Problem as e:
        if e.status_code == 404:  # deleted meanwhile
            service.blobs.drop(case)
        raise
    service.annotator.wake()
    service.metrics.uploads.inc(sum(new for _, new in numbers))
    placed = iter(numbers)
    for i, r in enumerate(results):
        if r.outcome != "refused":
            number, fresh = next(placed)
            results[i] = r.model_copy(update={"number": number, "outcome": "added" if fresh else "present"})
    return Uploads(results=results, case_version=version)


def _checked(service: Service, uploaded: Files) -> tuple[list[UploadResult], list[tuple[Upload, bytes]]]:
    most = service.settings.limits.file_bytes
    results, accepted = [], []
    for data, name in zip(uploaded.read(most), uploaded.names(), strict=True):
        sha256 = digest(data)
        try:
            height, width = pictures.checked(data, most).shape[:2]
        except ImageError as e:
            service.metrics.refused.labels(images.cause(str(e))).inc()
            results.append(UploadResult(outcome="refused", number=None, sha256=sha256, reason=str(e)))
            continue
        accepted.append((Upload(sha256, len(data), width, height, name), data))
        results.append(UploadResult(outcome="added", number=None, sha256=sha256, reason=None))
    return results, accepted


# ------------------------------------------------------------------------------------------------------------ looking


@router.get("/v1/cases/{case}/cells", responses=errors(404))
def listed(
    who: Reader,
    service: Has,
    case: CaseId,
    code: Annotated[Code | None, Query(alias="class", description="class that counts")] = None,
    status: Literal["pending", "ready", "failed"] | None = None,
    ood: bool | None = None,
    reviewed: bool | None = None,
    excluded: bool | None = None,
    changed_since: Annotated[int | None, Query(ge=0, le=MOST_NUMBER, description="version of the case")] = None,
    sort: Annotated[
        Literal["uncertainty", "number", "class"], Query(description="uncertainty: the least certain first")
    ] = "uncertainty",
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    offset: Annotated[int, Query(ge=0, le=MOST_NUMBER)] = 0,
) -> Cells:
    """Cells that fit, a page at a time."""
    wanted = Filter(code, status, ood, reviewed, excluded, changed_since)
    with service.database.read() as db:
        found = casework.find(db, case)
        total, cells = cellwork.listed(db, case, wanted, sort=sort, limit=limit, offset=offset)
    return Cells(total=total, case_version=found.version, cells=[cell_out(c, who) for c in cells])


@router.get("/v1/cases/{case}/cells/{number}", responses=errors(404))
def one(who: Reader, service: Has, case: CaseId, number: CellNumber) -> CellOut:
    """One cell."""
    with service.database.read() as db:
        casework.find(db, case)
        return cell_out(cellwork.find(db, case, number), who)


def cell_out(cell: Cell, who: Person) -> CellOut:
    """A cell as it goes to this person: the name of its file only to who uploaded it."""
    values = {n: getattr(cell, n) for n in CellOut.model_fields if n not in {"code", "file_name"}}
    return CellOut(
        **values,
        code=cell.label or cell.predicted,
        file_name=cell.file_name if cell.uploaded_by == who.name else None,
    )


# ----------------------------------------------------------------------------------------------------------- changing


@router.patch("/v1/cases/{case}/cells/{number}", responses=errors(404, 409))
def change(who: Reviewer, service: Has, case: CaseId, number: CellNumber, body: ChangeIn) -> ChangesOut:
    """Label a cell, accept the model's class, take the cell out of the count or back in.

    409 where the cell has changed since the version that you have seen; `detail` has it as it is now.
    """
    return _changed(service, who, case, [_change(number, body)])


@router.post("/v1/cases/{case}/changes", responses=errors(404, 409))
def change_many(who: Reviewer, service: Has, case: CaseId, body: ChangesIn) -> ChangesOut:
    """The same for many cells at once: all of them or none."""
    return _changed(service, who, case, [_change(c.number, c) for c in body.changes])


def _change(number: int, body: ChangeIn | NumberedChangeIn) -> Change:
    values: dict[str, Any] = {}
    if "label" in body.model_fields_set:
        values["label"] = body.label
    if body.excluded is not None:
        values["excluded"] = body.excluded
    if body.accept and "label" in values:
        raise invalid("Give accept or label, not both.")
    if not body.accept and not values:
        raise invalid("Nothing to change: give accept, label or excluded.")
    return Change(number, body.version, body.accept, values)


def _changed(service: Service, who: Person, case: str, changes: list[Change]) -> ChangesOut:
    try:
        with service.database.write() as db:
            found = casework.find_open(db, case)
            cells = cellwork.change(db, who, found, changes)
    except Stale as e:
        raise _with_present(e, who) from None
    service.metrics.labels.inc(len(cells))
    return ChangesOut(case_version=found.version, cells=[cell_out(c, who) for c in cells])


def _with_present(error: Stale, who: Person) -> Problem:
    return Problem(409, error.code, error.message, [cell_out(c, who).model_dump(mode="json") for c in error.cells])


@router.post("/v1/cases/{case}/undo", responses=errors(404, 409))
def undo(who: Reviewer, service: Has, case: CaseId) -> ChangesOut:
    """Take back your own last change of a cell in this case; again for the one before.

    409 where there is none, or somebody else has changed that cell since.
    """
    try:
        with service.database.write() as db:
            found = casework.find_open(db, case)
            cell = cellwork.undo(db, who, found)
    except Stale as e:
        raise _with_present(e, who) from None
    service.metrics.labels.inc()
    return ChangesOut(case_version=found.version, cells=[cell_out(cell, who)])


# ----------------------------------------------------------------------------------------------------------- pictures


def _pixels(service: Service, case: Case, cell: Cell) -> images.Pixels:
    data = service.blobs.get(case.id, cell.sha256)
    if data is None:
        raise Problem(404, "not_found", "The picture is not in the store any more.")
    return pictures.checked(data, max(len(data), 1))


def _found(service: Service, case: str, number: int) -> tuple[Case, Cell]:
    with service.database.read() as db:
        return casework.find(db, case), cellwork.find(db, case, number)


# The picture of a number never changes within its case.
_KEPT = {"Cache-Control": "private, max-age=86400, immutable"}


def _image(kind: str) -> dict[int | str, dict[str, object]]:
    return {**errors(404, 409, 503), 200: {"content": {kind: {}}, "description": "A picture without metadata."}}


@router.get("/v1/cases/{case}/cells/{number}/picture", response_class=Response, responses=_image("image/png"))
def picture(who: Reader, service: Has, case: CaseId, number: CellNumber) -> Response:
    """The cell large: decoded and encoded anew, so that no metadata goes with it."""
    found, cell = _found(service, case, number)
    return Response(pictures.picture(_pixels(service, found, cell)), media_type="image/png", headers=_KEPT)


@router.get("/v1/cases/{case}/cells/{number}/thumbnail", response_class=Response, responses=_image("image/webp"))
def thumbnail(who: Reader, service: Has, case: CaseId, number: CellNumber) -> Response:
    """The cell small, for a wall of many."""
    found, cell = _found(service, case, number)
    data = service.blobs.get_view(case, cell.sha256, "thumbnail")
    if data is None:
        data = pictures.thumbnail(_pixels(service, found, cell))
        service.blobs.put_view(case, cell.sha256, "thumbnail", data)
    return Response(data, media_type="image/webp", headers=_KEPT)


@router.get("/v1/cases/{case}/cells/{number}/explanation", response_class=Response, responses=_image("image/png"))
def explanation(
    who: Reader,
    service: Has,
    case: CaseId,
    number: CellNumber,
    code: Annotated[Code | None, Query(alias="class", description="the model's own class otherwise")] = None,
) -> Response:
    """A heat map to lay over the picture: where hiding a part lowers (orange) or raises (blue) the class's probability.

    Made by occlusion, from some 150 runs of the model, and kept. 503 while others are being made.
    """
    found, cell = _found(service, case, number)
    code = code or cell.predicted
    if code is None or code not in found.codes:
        raise invalid(f"The model does not answer for {code or 'this cell'}; it knows {' '.join(found.codes)}.")
    data = service.blobs.get_view(case, cell.sha256, f"occlusion-{code.lower()}")
    if data is None:
        data = service.explainer.overlay(service.model_of(found), _pixels(service, found, cell), code)
        service.blobs.put_view(case, cell.sha256, f"occlusion-{code.lower()}", data)
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


# ------------------------------------------------------------------------------------------------------ similar cells


@router.get("/v1/cases/{case}/cells/{number}/similar", responses=errors(404, 409, 503))
def similar(who: Reader, service: Has, case: CaseId, number: CellNumber) -> SimilarOut:
    """The cells of the model's reference set whose features are most like this cell's.

    404 where the model has no reference set; `/v1/models` says whether it has one.
    """
    found, cell = _found(service, case, number)
    model = service.model_of(found)
    if model.reference is None:
        raise not_found(
            f"reference set of the model {model.name!r}", "Make one with marrowscope serve reference, and start anew."
        )
    near = service.neighbours.of(model.classifier, model.reference, _pixels(service, found, cell))
    return SimilarOut(
        model=model.name,
        cells=[
            SimilarCell(
                place=n.place,
                code=n.code,
                similarity=round(n.similarity, 4),
                thumbnail=f"/v1/models/{model.sha256}/reference/{n.place}",
            )
            for n in near
        ],
    )
