"""The differential as a document."""

from __future__ import annotations

from typing import ClassVar, Literal

from marrowscope.schema import NOT_A_MEDICAL_DEVICE, Document, Figure, Frozen

Reason = Literal["out of distribution", "not accepted", "low confidence"]
"""Why a cell is left for review: a strange picture, below the model's threshold, below the user's."""


class CountRow(Frozen):
    """One class of the differential.

    Attributes:
        count: Cells.
        percent: Share of the nucleated cells, 0..100, the intervals of all rows being right together with 95 %.
        adjusted: The same corrected for known confusions; None where that was not asked for.
        corrected: The same by correcting the probabilities for another mix of classes; None likewise.
    """

    code: str
    name: str
    lineage: str
    count: int
    percent: Figure
    adjusted: Figure | None = None
    corrected: Figure | None = None


class NamedFigure(Frozen):
    """A figure and the definition that it follows; adjusted and corrected as in `CountRow`."""

    definition: str
    text: str
    figure: Figure
    adjusted: Figure | None = None
    corrected: Figure | None = None


class ReviewCell(Frozen):
    """A cell that the model would not answer for."""

    path: str
    predicted: str
    confidence: float
    reason: Reason


class Adjustment(Frozen):
    """How the counts beside the raw one were made.

    Attributes:
        model: Name of the model whose validation cells tell its confusions.
        cells: Cells that they rest on: all with an answer, those below a threshold of confidence too, because the
            confusions were seen on all cells.
        validation: Validation cells.
        adjusted: Method of `CountRow.adjusted`.
        corrected: Method of `CountRow.corrected`.
    """

    model: str
    cells: int
    validation: int
    adjusted: str
    corrected: str


class Differential(Document):
    """A differential count (differential.json).

    Attributes:
        files: Rows of the predictions.
        counted: Nucleated cells with an answer: the denominator of every percentage.
        rows: In clinical order, one per nucleated class that the model knows.
        left_out: Cells that are not in the denominator, by class code.
        review: Cells that the model would not answer for, which are counted nowhere.
        failed: Files that could not be used, by cause.
        adjustment: How the adjusted counts were made; None where they were not.
        warnings: What the reader must know.
    """

    kind: ClassVar[str] = "differential"
    format: Literal["marrowscope differential 1"] = "marrowscope differential 1"
    files: int
    counted: int
    rows: tuple[CountRow, ...]
    left_out: dict[str, int]
    review: tuple[ReviewCell, ...]
    failed: dict[str, int]
    myeloid_erythroid: NamedFigure
    blast_percent: NamedFigure
    adjustment: Adjustment | None
    warnings: tuple[str, ...]
    intended_use: str = NOT_A_MEDICAL_DEVICE

    def reasons(self) -> dict[Reason, int]:
        """Cells left for review, by reason."""
        out: dict[Reason, int] = {}
        for cell in self.review:
            out[cell.reason] = out.get(cell.reason, 0) + 1
        return out
