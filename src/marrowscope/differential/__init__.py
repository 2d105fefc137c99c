"""The myelogram: what a smear's predictions say about the marrow, counted as a laboratory counts.

All percentages are of the nucleated marrow cells (`cells.CellClass.nucleated`); what is left out is stated. Besides
the raw count there are two that correct for the confusions that the model is known to make.

definitions  the myeloid-to-erythroid ratio, the blast percentage, enough cells
documents    the differential as a document
counting     from predictions to the differential
adjust       adjusted counts
write        HTML, JSON, CSV and FHIR
"""

from __future__ import annotations

from marrowscope.differential.adjust import adjusted_shares, mixtures, prior_corrected
from marrowscope.differential.counting import count, goodman_interval
from marrowscope.differential.definitions import BLASTS, CELLS_LEAST, CELLS_WANTED, RATIOS, Ratio
from marrowscope.differential.documents import (
    Adjustment,
    CountRow,
    Differential,
    NamedFigure,
    ReviewCell,
)

__all__ = [
    "BLASTS",
    "CELLS_LEAST",
    "CELLS_WANTED",
    "RATIOS",
    "Adjustment",
    "CountRow",
    "Differential",
    "NamedFigure",
    "Ratio",
    "ReviewCell",
    "adjusted_shares",
    "count",
    "goodman_interval",
    "mixtures",
    "prior_corrected",
]
