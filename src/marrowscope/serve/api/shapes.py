"""What goes over the wire, beside documents of other modules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from marrowscope.cells import BY_CODE
from marrowscope.schema import NOT_A_MEDICAL_DEVICE
from marrowscope.serve.api.common import MOST_NUMBER
from marrowscope.serve.store.history import Role

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
LongText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000)]
Code = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1, le=MOST_NUMBER)]


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL; no database keeps half of a surrogate pair."""
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("holds a character that can't be kept (NUL or a lone surrogate)")
    return text


class Shape(BaseModel):
    """Base: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [values]})


# -------------------------------------------------------------------------------------------------------------- system


class Health(Shape):
    status: Literal["ok"] = "ok"


class Readiness(Shape):
    ready: bool
    parts: dict[str, bool] = Field(description="what must work, and whether it does")


class CellClassOut(Shape):
    """One of the 21 classes, in clinical order."""

    code: Code
    name: str
    lineage: str
    colour: str = Field(description="#rrggbb")
    order: int = Field(description="place on a differential")
    nucleated: bool = Field(description="whether it counts in the denominator")


class ModelOut(Shape):
    name: str
    sha256: Digest = Field(description="of the ONNX file")
    codes: list[Code] = Field(description="its classes, in the order of the probabilities")
    architecture: str
    input_px: int
    training_data: str
    synthetic: bool = Field(description="trained on drawn cells: its answers say nothing about real ones")
    conformal_alpha: float | None = Field(description="share of conformal sets that may miss the truth; null: no sets")
    detects_ood: bool
    reference_cells: int | None = Field(description="cells of its reference set; null: it has none")
    default: bool = Field(description="new cases take it unless told otherwise")


class Models(Shape):
    models: list[ModelOut]
    classes: list[CellClassOut] = Field(description="all classes that a person may give")
    intended_use: str = NOT_A_MEDICAL_DEVICE


class SessionOut(Shape):
    """Who you are to the service."""

    name: str
    role: Role
    csrf: str | None = Field(description="send it as X-CSRF-Token with every change, if you came by a cookie")
    tokens_needed: bool
    program: str
    limits: dict[str, int] = Field(description="file_bytes, request_bytes, files, cells")


class TokenIn(Shape):
    model_config = example(token="mrw_0123456789abcdef_" + 43 * "x")

    token: Annotated[str, StringConstraints(max_length=200)]


# ------------------------------------------------------------------------------------------------------------- predict


class PredictionOut(Shape):
    """The answer for one picture, in the order of the request."""

    status: str = Field(description="`ok`, or why the picture can't be used")
    predicted: Code | None = None
    confidence: float | None = None
    probabilities: dict[Code, float] | None = Field(default=None, description="calibrated; they sum to 1")
    conformal_set: list[Code] | None = Field(default=None, description="null where the model has no thresholds")
    ood: bool | None = Field(default=None, description="unlike the cells the model has learnt")
    ood_score: float | None = None
    accepted: bool | None = Field(default=None, description="may stand without a second look")


class PredictOut(Shape):
    model_config = example(
        model="marrow8",
        sha256="0" * 64,
        predictions=[
            {
                "status": "ok",
                "predicted": "BLA",
                "confidence": 0.93,
                "probabilities": {"BLA": 0.93, "LYT": 0.07},
                "conformal_set": ["BLA"],
                "ood": False,
                "ood_score": -4.2,
                "accepted": True,
            }
        ],
        intended_use=NOT_A_MEDICAL_DEVICE,
    )

    model: str
    sha256: Digest
    predictions: list[PredictionOut]
    intended_use: str = NOT_A_MEDICAL_DEVICE


# --------------------------------------------------------------------------------------------------------------- cases


class CaseIn(Shape):
    model_config = example(name="Smear 12", model=None)

    name: Text = Field(description="shown to everybody who may use the service: no name of a patient")
    model: Text | None = Field(default=None, description="name or SHA-256 of a loaded model; null: the default one")

    _name = field_validator("name")(_storable)


class SignatureOut(Shape):
    revision: int
    at: str
    by: str
    comment: str
    case_version: int
    model_name: str
    model_sha256: str
    program: str
    summary: dict[str, Any] = Field(description="the differential as signed (CaseDifferential)")


class CaseOut(Shape):
    id: str
    name: str
    state: Literal["open", "signed"]
    version: int = Field(description="goes up with every change in the case")
    revision: int
    created_at: str
    created_by: str
    model_name: str
    model_sha256: str
    model_loaded: bool = Field(description="whether its cells can be answered for now")
    codes: list[Code] = Field(description="the model's classes, in the order of the probabilities")
    program: str
    cells: int
    pending: int
    reviewed: int
    excluded: int
    signatures: list[SignatureOut] = Field(description="only when a single case is asked for")


class Cases(Shape):
    total: int
    cases: list[CaseOut]


class SignIn(Shape):
    model_config = example(version=42, comment="Reviewed 500 cells.")

    version: Version = Field(description="the case_version of the differential that you looked at")
    comment: LongText = ""

    _comment = field_validator("comment")(_storable)


class ReopenIn(Shape):
    model_config = example(reason="Two slides were mixed up.")

    reason: Text

    _reason = field_validator("reason")(_storable)


# --------------------------------------------------------------------------------------------------------------- cells


class CellOut(Shape):
    number: int
    status: Literal["pending", "ready", "failed"] = Field(description="whether the model has answered")
    reason: str | None = Field(description="why it could not")
    code: Code | None = Field(description="class that counts: the label, or else the model's")
    predicted: Code | None
    confidence: float | None
    uncertainty: float | None = Field(description="1 - confidence")
    probabilities: list[float] | None = Field(description="in the order of the case's codes")
    conformal_set: list[Code] | None
    ood: bool | None
    ood_score: float | None
    accepted: bool | None
    label: Code | None = Field(description="class that a person gave; null where nobody has looked")
    label_by: str | None
    label_at: str | None
    excluded: bool
    version: int = Field(description="send it with a change; goes up with every change by a person")
    changed: int = Field(description="version of the case at the last change of this cell")
    width: int
    height: int
    sha256: Digest
    uploaded_at: str
    file_name: str | None = Field(description="only for who uploaded it")


class SimilarCell(Shape):
    """A cell of the model's reference set."""

    place: int
    code: Code
    similarity: float = Field(description="cosine of the angle between the features, -1 to 1")
    thumbnail: str = Field(description="where its picture is")


class SimilarOut(Shape):
    model_config = example(
        model="marrow8",
        cells=[{"place": 17, "code": "BLA", "similarity": 0.91, "thumbnail": f"/v1/models/{'0' * 64}/reference/17"}],
    )

    model: str
    cells: list[SimilarCell] = Field(description="the nearest first")


class Cells(Shape):
    total: int = Field(description="cells that fit the filter")
    case_version: int = Field(description="ask for changed_since this one next time")
    cells: list[CellOut]


class DigestsIn(Shape):
    model_config = example(sha256=["0" * 64])

    sha256: list[Digest] = Field(max_length=5000)


class DigestsOut(Shape):
    missing: list[Digest] = Field(description="those that the case does not have: upload them")


class UploadResult(Shape):
    outcome: Literal["added", "present", "refused"]
    number: int | None = Field(description="the cell's number, where it is in the case now")
    sha256: Digest
    reason: str | None = Field(description="why it was refused")


class Uploads(Shape):
    results: list[UploadResult] = Field(description="one a file, in the order of the request")
    case_version: int


class ChangeIn(Shape):
    """What to set on a cell: at least one of accept, label and excluded."""

    model_config = example(version=1, label="BLA")

    version: Version = Field(description="the cell's version that you have seen")
    accept: bool = Field(default=False, description="take the model's class as the label")
    label: Code | None = Field(default=None, description="class to give; an explicit null takes the label back")
    excluded: bool | None = Field(default=None, description="take the cell out of the count, or back in")

    @field_validator("label")
    @classmethod
    def _known(cls, code: str | None) -> str | None:
        if code is not None and code not in BY_CODE:
            raise ValueError(f"unknown class; known are {' '.join(BY_CODE)}")
        return code


class NumberedChangeIn(ChangeIn):
    model_config = example(number=7, version=1, accept=True)

    number: Version


class ChangesIn(Shape):
    model_config = example(changes=[{"number": 7, "version": 1, "accept": True}])

    changes: list[NumberedChangeIn] = Field(min_length=1, max_length=1000)


class ChangesOut(Shape):
    case_version: int
    cells: list[CellOut]


class EventOut(Shape):
    id: int
    at: str
    by: str
    role: str
    action: str
    case_id: str | None
    cell: int | None
    cell_version: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    undoes: int | None


class Events(Shape):
    events: list[EventOut]
    next: int | None = Field(description="give it as `after` for those that follow; null at the end")
