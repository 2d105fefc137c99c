"""A signed or open case as a file to keep: what was counted, by whom, with which model and program.

Names of files go in only where asked for, and then those of the files that the asker uploaded himself (an
administrator: all). Metadata of pictures never does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from marrowscope.differential import Differential, ReviewCell, fhir, page
from marrowscope.files import csv_line
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, Document, Frozen
from marrowscope.serve.counting import CaseDifferential, differential
from marrowscope.serve.store.casework import PROGRAM_VERSION, signatures
from marrowscope.serve.store.history import Person
from marrowscope.serve.store.tables import SIGNED, Case, Cell


class ExportedCell(Frozen):
    """One cell; `code` is the class that counts."""

    number: int
    sha256: str
    code: str | None
    predicted: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    conformal_set: tuple[str, ...] | None
    ood: bool | None
    accepted: bool | None
    label: str | None
    label_by: str | None
    label_at: str | None
    excluded: bool
    status: str
    file_name: str | None = None


class ExportedSignature(Frozen):
    """Who signed the case out, and when."""

    revision: int
    at: str
    by: str
    comment: str
    program: str


class CaseExport(Document):
    """A case (case.json).

    Attributes:
        summary: The differential: as signed where the case is signed.
        signed: The signature that holds; None while the case is open.
    """

    kind: ClassVar[str] = "exported case"
    format: Literal["marrowscope case 1"] = "marrowscope case 1"
    id: str
    name: str
    state: str
    revision: int
    created_at: str
    created_by: str
    model_name: str
    model_sha256: str
    program: str = Field(description="that wrote the export")
    codes: tuple[str, ...]
    signed: ExportedSignature | None
    summary: CaseDifferential
    cells: tuple[ExportedCell, ...]
    intended_use: str = NOT_A_MEDICAL_DEVICE


def collect(session: Session, case: Case, who: Person, *, names: bool) -> CaseExport:
    """Everything of a case, at one moment."""
    held = signatures(session, case.id)[-1] if case.state == SIGNED else None
    cells = session.scalars(select(Cell).where(Cell.case_id == case.id).order_by(Cell.number))
    return CaseExport(
        id=case.id,
        name=case.name,
        state=case.state,
        revision=case.revision,
        created_at=case.created_at,
        created_by=case.created_by,
        model_name=case.model_name,
        model_sha256=case.model_sha256,
        program=PROGRAM_VERSION,
        codes=tuple(case.codes),
        signed=None
        if held is None
        else ExportedSignature(
            revision=held.revision, at=held.at, by=held.by, comment=held.comment, program=held.program
        ),
        summary=differential(session, case) if held is None else CaseDifferential.model_validate(held.summary),
        cells=tuple(_cell(c, case.codes, who, names) for c in cells),
    )


def _cell(cell: Cell, codes: list[str], who: Person, names: bool) -> ExportedCell:
    shown = names and (cell.uploaded_by == who.name or who.may("admin"))
    return ExportedCell(
        number=cell.number,
        sha256=cell.sha256,
        code=cell.label or cell.predicted,
        predicted=cell.predicted,
        confidence=cell.confidence,
        probabilities=None if cell.probabilities is None else dict(zip(codes, cell.probabilities, strict=True)),
        conformal_set=None if cell.conformal_set is None else tuple(cell.conformal_set),
        ood=cell.ood,
        accepted=cell.accepted,
        label=cell.label,
        label_by=cell.label_by,
        label_at=cell.label_at,
        excluded=cell.excluded,
        status=cell.status,
        file_name=cell.file_name if shown else None,
    )


class Writer(NamedTuple):
    """How a case becomes a file."""

    media_type: str
    suffix: str
    write: Callable[[CaseExport], bytes]


def to_csv(case: CaseExport) -> bytes:
    """One row a cell."""
    named = any(c.file_name for c in case.cells)
    columns = (
        "number sha256 class predicted confidence label label_by label_at excluded ood accepted conformal_set status"
    ).split()
    lines = [csv_line([*columns, *case.codes, *(["file_name"] if named else [])])]
    for c in case.cells:
        sets = None if c.conformal_set is None else " ".join(c.conformal_set)
        values: list[Any] = [
            c.number, c.sha256, c.code, c.predicted, c.confidence, c.label, c.label_by, c.label_at, c.excluded,
            c.ood, c.accepted, sets, c.status,
        ]  # fmt: skip
        values += [None if c.probabilities is None else c.probabilities[code] for code in case.codes]
        lines.append(csv_line([_text(v) for v in [*values, *([c.file_name] if named else [])]]))
    return "".join(lines).encode()


def _text(value: object) -> str:
    """One cell of a table; spreadsheets would run what begins like a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def to_json(case: CaseExport) -> bytes:
    """The whole document."""
    return (case.model_dump_json(indent=2) + "\n").encode()


def to_html(case: CaseExport) -> bytes:
    """One page to read and print."""
    state = "draft, not signed" if case.signed is None else "signed"
    return page.to_html(_stated(case), f"{case.name} ({state})", looked=_looked(case)).encode()


def to_fhir(case: CaseExport) -> bytes:
    """HL7 FHIR: a DiagnosticReport, ``final`` and with its signer where the case is signed."""
    report = fhir.to_fhir(_stated(case))
    report["identifier"] = [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{case.id}"}]
    for observation in report["contained"]:
        observation["method"]["text"] += f". {_looked(case)}"
    if case.signed is not None:
        report |= {"status": "final", "issued": case.signed.at, "resultsInterpreter": [{"display": case.signed.by}]}
        for observation in report["contained"]:
            observation["status"] = "final"
    return (json.dumps(report, indent=2) + "\n").encode()


def _looked(case: CaseExport) -> str:
    s = case.summary
    return f"People looked at {s.reviewed_nucleated} of the {s.differential.counted} cells."


def _stated(case: CaseExport) -> Differential:
    """The differential, with all cells of the case: those that wait for a person, and those without an answer.

    Who signed it, what was left out and what its reader must know stand among its warnings.
    """
    s = case.summary
    held = case.signed
    said = "Not signed." if held is None else f"Signed by {held.by} at {held.at}, revision {held.revision}."
    if held is not None and held.comment:
        said += f" Comment: {held.comment}"
    excluded = f"{s.excluded} cells were taken out by a person."
    model = f"Model {case.model_name}, SHA-256 {case.model_sha256}; {case.program}."
    no_answer = s.pending + s.failed
    return s.differential.model_copy(
        update={
            "files": s.cells,
            "review": tuple(_waiting(case)),
            "failed": {"no answer of the model": no_answer} if no_answer else {},
            "warnings": (said, excluded, model, *s.notes, *s.differential.warnings),
        }
    )


def _waiting(case: CaseExport) -> Iterable[ReviewCell]:
    """Cells unlike those that the model has learnt, which are not counted until somebody labels them."""
    for c in case.cells:
        if c.ood and c.label is None and not c.excluded and c.predicted is not None and c.confidence is not None:
            yield ReviewCell(
                path=f"cell {c.number}", predicted=c.predicted, confidence=c.confidence, reason="out of distribution"
            )
