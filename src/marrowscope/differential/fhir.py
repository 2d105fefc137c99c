"""The differential as HL7 FHIR: one DiagnosticReport with its Observations inside, valid as R4, R4B and R5.

Codes are of LOINC where it has a term for just this quantity and no other method: most terms for single marrow cells
are "by Manual count", which this is not. Everything else has the collection's class code and a text. Nothing is said of
a patient, a specimen or a time: the predictions know none, and whoever files the report adds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from marrowscope.cells import cell_class
from marrowscope.differential.documents import CountRow, Differential
from marrowscope.schema import Figure

LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"

CLASSES = "https://doi.org/10.7937/TCIA.AXH3-T579"
"""Code system of the cell classes: the collection that defines them."""

LOINC_TERMS: MappingProxyType[str, tuple[str, str]] = MappingProxyType(
    {
        "panel": ("47286-0", "Differential panel - Bone marrow"),
        "counted": ("38257-2", "Cells Counted Total [#] in Bone marrow"),
        "ratio": ("11138-5", "Myeloid cells/Erythroid cells [# Ratio] in Bone marrow"),
        "EOS": ("11152-6", "Eosinophils/cells in Bone marrow"),
    }
)
"""Terms of LOINC (long common names), for bone marrow and without a method."""

_PERCENT = ("%", "%")
_RATIO = ("ratio", "{ratio}")
_CELLS = ("cells", "{cells}")
_CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
_SECTION = "http://terminology.hl7.org/CodeSystem/v2-0074"
_MISSING = "http://terminology.hl7.org/CodeSystem/data-absent-reason"


def to_fhir(result: Differential) -> dict[str, Any]:
    """The differential as a DiagnosticReport, ready for JSON."""
    observations = list(_observations(result))
    return {
        "resourceType": "DiagnosticReport",
        "contained": observations,
        "status": "preliminary",  # nobody has looked yet
        "category": [{"coding": [{"system": _SECTION, "code": "HM", "display": "Hematology"}]}],
        "code": _concept("Differential count of bone marrow cells, by image classification", "panel"),
        "result": [{"reference": f"#{o['id']}"} for o in observations],
        "conclusion": _conclusion(result),
    }


def _observations(result: Differential) -> Iterator[dict[str, Any]]:
    yield {
        **_base("counted", _concept("Nucleated cells counted", "counted")),
        **_quantity(result.counted, _CELLS),
    }
    yield from (_of_class(row) for row in result.rows)
    blasts = result.blast_percent
    yield _observation(
        "blasts",
        _concept(f"Blast percentage: {blasts.text}"),
        (blasts.figure, blasts.adjusted, blasts.corrected),
        _PERCENT,
        "",
    )
    ratio = result.myeloid_erythroid
    yield _observation(
        "ratio",
        # The ratio of dividing cells is another quantity.
        _concept(f"Myeloid-to-erythroid ratio: {ratio.text}", "" if ratio.definition == "dividing" else "ratio"),
        (ratio.figure, ratio.adjusted, ratio.corrected),
        _RATIO,
        "",
    )


def _of_class(row: CountRow) -> dict[str, Any]:
    concept = _concept(f"{row.name.capitalize()}s per 100 nucleated cells", row.code)
    concept["coding"] = [*concept.get("coding", []), {"system": CLASSES, "code": row.code, "display": row.name}]
    note = f"{row.count} cells"
    return _observation(row.code, concept, (row.percent, row.adjusted, row.corrected), _PERCENT, note)


def _observation(
    name: str, concept: dict[str, Any], figures: Sequence[Figure | None], unit: tuple[str, str], note: str
) -> dict[str, Any]:
    """An observation of a raw figure, with the adjusted and the corrected one as components."""
    raw, adjusted, corrected = figures
    assert raw is not None
    method = f"95 % interval: {_interval(raw)} ({raw.method}; n = {raw.n})"
    out = {
        **_base(name, concept),
        **_quantity(raw.value, unit),
        "note": [{"text": f"{note}; {method}" if note else method}],
    }
    components = [
        {
            "code": {"text": f"{words}; 95 % interval: {_interval(figure)} ({figure.method}; n = {figure.n})"},
            **_quantity(figure.value, unit),
        }
        for words, figure in (
            ("adjusted for the model's known confusions", adjusted),
            ("corrected for the mix of classes", corrected),
        )
        if figure is not None
    ]
    return {**out, "component": components} if components else out


def _base(name: str, concept: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "preliminary",
        "category": [{"coding": [{"system": _CATEGORY, "code": "laboratory"}]}],
        "code": dict(concept),
        "method": {"text": "Classification of single-cell images by a neural network"},
    }


def _concept(text: str, term: str = "") -> dict[str, Any]:
    if term not in LOINC_TERMS:
        return {"text": text}
    code, display = LOINC_TERMS[term]
    return {"coding": [{"system": LOINC, "code": code, "display": display}], "text": text}


def _quantity(value: float | None, unit: tuple[str, str]) -> dict[str, Any]:
    if value is None:
        return {"dataAbsentReason": {"coding": [{"system": _MISSING, "code": "not-applicable"}]}}
    words, code = unit
    return {"valueQuantity": {"value": round(value, 4), "unit": words, "system": UCUM, "code": code}}


def _interval(figure: Figure) -> str:
    ends = ("–" if v is None else f"{v:.4g}" for v in (figure.low, figure.high))
    return " to ".join(ends)


def _conclusion(result: Differential) -> str:
    left = [f"{n} {cell_class(c).name}" for c, n in result.left_out.items() if n]
    review = [f"{n} {reason}" for reason, n in result.reasons().items()]
    failed = sum(result.failed.values())
    parts = [
        result.intended_use,
        f"{result.counted} nucleated cells counted, of {result.files} images.",
        f"Not in the denominator: {', '.join(left) or 'none'}.",
        f"Left for review and not counted: {', '.join(review) or 'none'}.",
        f"{failed} images could not be used." if failed else "",
        *result.warnings,
    ]
    return " ".join(p for p in parts if p)
