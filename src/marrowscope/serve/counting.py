"""The differential of a case at this moment: people's labels, and the model's where nobody has looked yet."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from marrowscope.cells import BY_CODE, cell_class, clinical_order
from marrowscope.differential import CELLS_WANTED, Differential, count
from marrowscope.schema import OK, Frozen, Predictions
from marrowscope.serve.store.cellwork import effective
from marrowscope.serve.store.tables import FAILED, PENDING, Case, Cell

DEFAULT_RATIO = "granulocytic-monocytic"


class CaseDifferential(Frozen):
    """The differential, and which cells are in it."""

    case_version: int = Field(description="version of the case that was counted; signing asks for it")
    cells: int = Field(description="all cells of the case")
    pending: int = Field(description="cells that wait for the model: not counted")
    failed: int = Field(description="cells that the model could not answer for and nobody has labelled: not counted")
    excluded: int = Field(description="cells that a person took out: not counted")
    ood_waiting: int = Field(
        description="cells unlike those the model has learnt, that nobody has labelled: not counted until somebody does"
    )
    reviewed: int = Field(description="counted cells that a person has labelled or accepted")
    reviewed_nucleated: int = Field(description="those of them that are in the denominator")
    wanted: int = Field(default=CELLS_WANTED, description="nucleated cells to count where a percentage decides")
    unadjusted: str | None = Field(
        default=None, description="why there are no adjusted counts; null where there are, or were not asked for"
    )
    notes: tuple[str, ...] = Field(description="what the reader must know, beside the differential's own warnings")
    differential: Differential


def differential(session: Session, case: Case, ratio: str = DEFAULT_RATIO) -> CaseDifferential:
    """Count a case.

    Args:
        ratio: One of `marrowscope.differential.RATIOS`.
    """
    left = {"pending": 0, "failed": 0, "excluded": 0, "ood_waiting": 0}
    counts: dict[str, int] = {}
    reviewed: dict[str, int] = {}
    columns = (effective(), Cell.label.is_not(None), Cell.excluded, Cell.status, Cell.ood.is_(True))
    rows = session.execute(select(*columns, func.count()).where(Cell.case_id == case.id).group_by(*columns))
    for code, labelled, excluded, status, ood, n in rows:
        if excluded:
            left["excluded"] += n
        elif labelled:
            counts[code] = counts.get(code, 0) + n
            reviewed[code] = reviewed.get(code, 0) + n
        elif status in {PENDING, FAILED}:
            left["pending" if status == PENDING else "failed"] += n
        elif ood:
            left["ood_waiting"] += n
        else:
            counts[code] = counts.get(code, 0) + n
    foreign = clinical_order(reviewed.keys() - set(case.codes))
    return CaseDifferential(
        case_version=case.version,
        cells=sum(counts.values()) + sum(left.values()),
        **left,
        reviewed=sum(reviewed.values()),
        reviewed_nucleated=sum(n for c, n in reviewed.items() if cell_class(c).nucleated),
        notes=tuple(_notes(counts, reviewed, left, foreign)),
        differential=count(as_predictions(case.codes, counts), ratio=ratio),
    )


def as_predictions(codes: list[str], counts: dict[str, int]) -> Predictions:
    """Cells of known class as `differential.count` takes them; classes that only people know come last."""
    order = [*codes, *(c for c in BY_CODE if c in counts and c not in codes)]
    numbers = [counts.get(c, 0) for c in order]
    n = sum(numbers)
    probs_NC = np.repeat(np.eye(len(order)), numbers, axis=0)
    return Predictions(paths=("",) * n, status=(OK,) * n, codes=tuple(order), probs_NC=probs_NC)


def _notes(counts: dict[str, int], reviewed: dict[str, int], left: dict[str, int], foreign: list[str]) -> list[str]:
    out = []
    named = sum(counts.values())
    by_model = named - sum(reviewed.values())
    if by_model:
        out.append(
            f"{by_model} of {named} named cells, those outside the percentages among them, have the model's class: "
            "nobody has looked at them yet."
        )
    if left["ood_waiting"]:
        out.append(
            f"{left['ood_waiting']} cells are unlike those the model has learnt and are not counted: label or exclude "
            "them."
        )
    if left["failed"]:
        out.append(f"{left['failed']} cells have no answer of the model and are not counted: label or exclude them.")
    if left["pending"]:
        out.append(f"{left['pending']} cells still wait for the model.")
    if foreign:
        out.append(
            f"The model does not know {' '.join(foreign)}; they are counted where a person has named them, and cells "
            "that nobody has looked at can't be counted as such."
        )
    return out
