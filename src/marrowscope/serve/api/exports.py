"""Cases as files."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from marrowscope.serve.api.common import CaseId, Has, Reader, errors
from marrowscope.serve.exporting import Writer, to_csv, to_fhir, to_html, to_json
from marrowscope.serve.exporting_pdf import to_pdf
from marrowscope.serve.store import casework
from marrowscope.serve.store.history import log

router = APIRouter(tags=["export"])

Format = Literal["csv", "json", "fhir", "html", "pdf"]
WRITERS: dict[str, Writer] = {
    "csv": Writer("text/csv; charset=utf-8", "csv", to_csv),
    "json": Writer("application/json", "json", to_json),
    "fhir": Writer("application/fhir+json", "fhir.json", to_fhir),
    "html": Writer("text/html; charset=utf-8", "html", to_html),
    "pdf": Writer("application/pdf", "pdf", to_pdf),
}


@router.get(
    "/v1/cases/{case}/export/{kind}",
    response_class=Response,
    responses={
        **errors(404),
        200: {
            "description": "The case as a file; of what kind says the path.",
            "content": {w.media_type.partition(";")[0]: {} for w in WRITERS.values()},
        },
    },
)
def export(
    who: Reader,
    service: Has,
    case: CaseId,
    kind: Format,
    names: Annotated[
        bool, Query(description="with the names of the files that you uploaded (an administrator: all)")
    ] = False,
) -> Response:
    """The case as a file: csv has a row a cell, the others the differential with what belongs to it."""
    writer = WRITERS[kind]
    with service.database.write() as db:
        found = casework.find(db, case)
        log(db, who, "export", case, after={"kind": kind, "names": names})
    content = service.collected(case, who, names=names)
    name = f"case-{found.id[:8]}-r{found.revision}.{writer.suffix}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(writer.write(content), media_type=writer.media_type, headers=headers)
