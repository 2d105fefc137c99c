"""The 21 cell classes of the collection, and the named sets of them that a task may use.

This is the only module that knows the classes: code, name, lineage, maturation, order on a differential, colour, and
whether a class counts as a nucleated marrow cell. Everything else asks it.

Codes and names follow Matek et al. (2021), Blood 138(20), 1917-1927, doi:10.1182/blood.2020010568. Lineage and
maturation follow the WHO classification; what counts in a differential follows the ICSH guideline on marrow
specimens (Lee et al. 2008, Int J Lab Hematol 30, 349-364): all nucleated haematopoietic cells, but no smudge cells,
nothing that can't be identified and no artefact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from marrowscope.errors import DataError

Lineage = Literal[
    "blast", "neutrophil", "eosinophil", "basophil", "monocyte", "erythroid", "lymphoid", "plasma", "other", "none"
]


@dataclass(frozen=True)
class CellClass:
    """One class of the collection.

    Attributes:
        code: Three capital letters, as in the collection's folder and file names.
        name: Full English name, singular.
        lineage: Cell line; ``blast`` where the line can't be told from the picture, ``none`` for what is no cell.
        maturation: Stage within the line from 0 (blast) upward, comparable within one lineage and from ``blast``
            into ``neutrophil``; None where the class is no stage of a line.
        order: Place on a printed differential, 0 first: precursors before mature cells, line by line.
        colour: ``#rrggbb``, told apart from its neighbours on a chart.
        nucleated: Whether the class counts in the denominator of a differential.
    """

    code: str
    name: str
    lineage: Lineage
    maturation: int | None
    order: int
    colour: str
    nucleated: bool


# In clinical order. "Other cell" is a rest class of unknown content (megakaryocytes, stromal cells and the like, which
# the ICSH leaves out of the denominator), so it is not counted.
_ROWS: tuple[tuple[str, str, Lineage, int | None, str, bool], ...] = (
    ("BLA", "blast", "blast", 0, "#7b2d8b", True),
    ("FGC", "faggot cell", "neutrophil", 1, "#a34fb0", True),
    ("PMO", "promyelocyte", "neutrophil", 1, "#c2407e", True),
    ("MYB", "myelocyte", "neutrophil", 2, "#e0607e", True),
    ("MMZ", "metamyelocyte", "neutrophil", 3, "#f08a6c", True),
    ("NGB", "band neutrophil", "neutrophil", 4, "#f5ad52", True),
    ("NGS", "segmented neutrophil", "neutrophil", 5, "#d99a00", True),
    ("EOS", "eosinophil", "eosinophil", 5, "#e4572e", True),
    ("ABE", "abnormal eosinophil", "eosinophil", None, "#b23a1e", True),
    ("BAS", "basophil", "basophil", 5, "#3d348b", True),
    ("MON", "monocyte", "monocyte", 5, "#2a9d8f", True),
    ("PEB", "proerythroblast", "erythroid", 1, "#8c1c13", True),
    ("EBO", "erythroblast", "erythroid", 2, "#bf4342", True),
    ("LYI", "immature lymphocyte", "lymphoid", 1, "#5fa8d3", True),
    ("LYT", "lymphocyte", "lymphoid", 5, "#1d6fb8", True),
    ("HAC", "hairy cell", "lymphoid", None, "#62b6cb", True),
    ("PLM", "plasma cell", "plasma", 5, "#0b3c7d", True),
    ("OTH", "other cell", "other", None, "#7d8597", False),
    ("KSC", "smudge cell", "none", None, "#a5a58d", False),
    ("NIF", "not identifiable", "none", None, "#9aa0a6", False),
    ("ART", "artefact", "none", None, "#6b705c", False),
)

CLASSES: tuple[CellClass, ...] = tuple(
    CellClass(code, name, lineage, maturation, order, colour, nucleated)
    for order, (code, name, lineage, maturation, colour, nucleated) in enumerate(_ROWS)
)
"""All 21 classes in clinical (display) order."""

BY_CODE: MappingProxyType[str, CellClass] = MappingProxyType({c.code: c for c in CLASSES})
"""The same by code."""


@dataclass(frozen=True)
class ClassSet:
    """The classes that one task tells apart.

    Attributes:
        name: Name of the set, as given to ``--classes``.
        codes: Class codes in the order of a model's outputs and of the probability columns (alphabetical).
        description: One line for help texts.
    """

    name: str
    codes: tuple[str, ...]
    description: str

    def __len__(self) -> int:
        return len(self.codes)


_MARROW_14 = ("ART", "BLA", "EBO", "EOS", "LYT", "MMZ", "MON", "MYB", "NGB", "NGS", "NIF", "PEB", "PLM", "PMO")

CLASS_SETS: MappingProxyType[str, ClassSet] = MappingProxyType(
    {
        s.name: s
        for s in (
            ClassSet("marrow-21", tuple(sorted(BY_CODE)), "all classes of the collection"),
            ClassSet("marrow-14", _MARROW_14, "the classes with at least 2,700 images in the full collection"),
            ClassSet(
                "marrow-8",
                ("ART", "BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"),
                "the eight of marrow-14 that a 5,229-cell excerpt has enough images of",
            ),
        )
    }
)


def cell_class(code: str) -> CellClass:
    """Return the class of this code.

    Raises:
        DataError: The code is not one of the 21.
    """
    try:
        return BY_CODE[code]
    except KeyError:
        raise DataError(f"Unknown class code {code!r}. Known codes: {' '.join(sorted(BY_CODE))}.") from None


def class_set(name: str) -> ClassSet:
    """Return the class set of this name, or the one that a list of codes such as ``"BLA,LYT,NGS"`` makes.

    Raises:
        DataError: No set has this name, a code is unknown or given twice, or fewer than two are given.
    """
    if name in CLASS_SETS:
        return CLASS_SETS[name]
    codes = [c for c in name.replace(",", " ").split() if c]
    if not codes or any(c not in BY_CODE for c in codes):
        unknown = [c for c in codes if c not in BY_CODE] or [name]
        raise DataError(
            f"Unknown class set or class code: {', '.join(map(repr, unknown))}. Class sets: "
            f"{', '.join(CLASS_SETS)}; or a list of codes such as BLA,LYT,NGS out of {' '.join(sorted(BY_CODE))}."
        )
    if len(set(codes)) != len(codes):
        raise DataError(f"Class set {name!r} names a class twice; name each once.")
    if len(codes) < 2:
        raise DataError(f"Class set {name!r} has one class; a classifier needs at least two.")
    return ClassSet(",".join(sorted(codes)), tuple(sorted(codes)), "chosen by the user")


def clinical_order(codes: Iterable[str]) -> list[str]:
    """Sort class codes as a differential lists them."""
    return sorted(codes, key=lambda c: cell_class(c).order)
