"""What a laboratory's words mean here: the myeloid-to-erythroid ratio, the blast percentage, enough cells."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from marrowscope.cells import BY_CODE

CELLS_WANTED, CELLS_LEAST = 500, 300
"""Nucleated cells to count where a percentage decides, and the least otherwise (Lee et al. 2008, ICSH guideline for
marrow specimens, Int J Lab Hematol 30, 349-364)."""


class Ratio(NamedTuple):
    """A definition of the myeloid-to-erythroid ratio: which classes stand on its two sides, in words and codes."""

    text: str
    myeloid: frozenset[str]
    erythroid: frozenset[str]


def _of(*lineages: str) -> frozenset[str]:
    return frozenset(c.code for c in BY_CODE.values() if c.lineage in lineages)


_GRANULOCYTIC = _of("neutrophil", "eosinophil", "basophil")
_ERYTHROID = _of("erythroid")

RATIOS: MappingProxyType[str, Ratio] = MappingProxyType(
    {
        "granulocytic-monocytic": Ratio(
            "granulocytes and monocytes with all precursors, blasts included, to erythroblasts",
            _GRANULOCYTIC | _of("monocyte", "blast"),
            _ERYTHROID,
        ),
        "granulocytic": Ratio(
            "granulocytes with all precursors from the promyelocyte on, to erythroblasts", _GRANULOCYTIC, _ERYTHROID
        ),
        # Lee et al. 2008, Int J Lab Hematol 30, 473-479: blood that dilutes the aspirate brings none of these.
        "dividing": Ratio(
            "cells able to divide: blasts, promyelocytes and myelocytes, to erythroblasts",
            frozenset({"BLA", "PMO", "MYB"}),
            _ERYTHROID,
        ),
    }
)
"""Definitions of the myeloid-to-erythroid ratio; the first one is the default."""

BLASTS: MappingProxyType[str, frozenset[str]] = MappingProxyType(
    {"blasts": frozenset({"BLA"}), "blasts-and-faggot-cells": frozenset({"BLA", "FGC"})}
)
"""What a blast percentage counts; faggot cells are the abnormal promyelocytes of promyelocytic leukaemia."""
