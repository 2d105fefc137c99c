"""What the drawn cells look like: the morphological parameters of each class, in one table.

The values follow the descriptions of textbooks of haematology, rounded, and were set by eye; they are no
measurements. Sizes are those of cells spread on a smear. See e.g. Bain, *Blood Cells: A Practical Guide* and Löffler,
Rastetter and Haferlach, *Atlas of Clinical Hematology*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


class Spread(NamedTuple):
    """A value that differs from cell to cell: mean and standard deviation of a normal distribution."""

    mean: float
    sd: float = 0.0


_NONE = Spread(0.0)
_ONE = Spread(1.0)
_UNBENT = Spread(0.0, 0.05)
_OVAL = Spread(1.12, 0.08)
_CENTRAL = Spread(0.4, 0.25)
_SMOOTH = Spread(0.22, 0.10)
_ROUND = Spread(1.08, 0.05)


@dataclass(frozen=True)
class Morphology:
    """How the cells of a class look. A drawn value is kept within the range given here.

    Attributes:
        diameter_um: Diameter of the cell, um, 6 to 23 (the field is 25 um wide).
        nc_ratio: Area of the nucleus over area of the whole cell, 0.15 to 0.9.
        elongation: Length over width of the cell, 1 to 1.8.
        roughness_um: Standard deviation of the outline about its ellipse, um, 0 to 2.
        eccentricity: Distance of the nucleus from the centre over the room there is, 0 (central) to 1 (at the edge).
        nucleus_elongation: Length over width of the nucleus before it bends, 1 to 1.8.
        indentation: Bend of the nucleus, 0 (round, oval) over 0.25 (kidney) and 0.6 (band) to 1 (nearly a ring).
        lobes: Number of lobes, 1 to 5.
        constriction: Thinning between lobes, 0 (none) to 0.9 (joined by filaments).
        chromatin_density: Optical density of the nucleus (green light), 0.8 to 3.6.
        chromatin_contrast: Clumps against clear parts of the chromatin, 0 (smooth) to 1.
        chromatin_grain_um: Width of the clumps, um, 0.2 to 2.
        cartwheel: Clumps set in spokes, 0 to 1.
        nucleoli: Number, 0 to 4.
        basophilia: Optical density of the cytoplasm's RNA (red light), 0 to 1.6; 1 is the blue of a plasma cell.
        acidophilia: Optical density of eosin in the cytoplasm (green light), 0 to 1.
        haemoglobin: In the cytoplasm, 0 to 1; 0.5 is a red cell.
        fine_granules: Fine lilac granularity of the cytoplasm, 0 to 1.
        azurophil_granules: Coarse purple granules per 100 um² of cytoplasm, 0 to 400.
        eosinophil_granules: Coarse orange-red granules per 100 um² of cytoplasm, 0 to 600.
        halo: Pale zone beside the nucleus, 0 to 1.
        vacuoles: Number, 0 to 10.
        damage: Smudging, crushing or blur, 0 (none) to 1 (past recognition).
        before: Class that the youngest cells of this one look like; None where there is none.
        after: Class that the oldest cells of this one look like; None where there is none. Cells are drawn somewhere
            on the way to these two, so that their averages lie a little off the means given here.
    """

    diameter_um: Spread
    nc_ratio: Spread
    chromatin_density: Spread
    chromatin_contrast: Spread
    chromatin_grain_um: Spread
    basophilia: Spread
    elongation: Spread = _ROUND
    roughness_um: Spread = _SMOOTH
    eccentricity: Spread = _CENTRAL
    nucleus_elongation: Spread = _OVAL
    indentation: Spread = _UNBENT
    lobes: Spread = _ONE
    constriction: Spread = _NONE
    cartwheel: Spread = _NONE
    nucleoli: Spread = _NONE
    acidophilia: Spread = _NONE
    haemoglobin: Spread = _NONE
    fine_granules: Spread = _NONE
    azurophil_granules: Spread = _NONE
    eosinophil_granules: Spread = _NONE
    halo: Spread = _NONE
    vacuoles: Spread = _NONE
    damage: Spread = _NONE
    before: str | None = None
    after: str | None = None


LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "diameter_um": (6, 23),
        "nc_ratio": (0.15, 0.9),
        "elongation": (1, 1.8),
        "roughness_um": (0, 2),
        "eccentricity": (0, 1),
        "nucleus_elongation": (1, 1.8),
        "indentation": (0, 1),
        "lobes": (1, 5),
        "constriction": (0, 0.9),
        "chromatin_density": (0.8, 3.6),
        "chromatin_contrast": (0, 1),
        "chromatin_grain_um": (0.2, 2),
        "cartwheel": (0, 1),
        "nucleoli": (0, 4),
        "basophilia": (0, 1.6),
        "acidophilia": (0, 1),
        "haemoglobin": (0, 1),
        "fine_granules": (0, 1),
        "azurophil_granules": (0, 400),
        "eosinophil_granules": (0, 600),
        "halo": (0, 1),
        "vacuoles": (0, 10),
        "damage": (0, 1),
    }
)
"""Lowest and highest value of each parameter."""

S = Spread
MORPHOLOGY: Mapping[str, Morphology] = MappingProxyType(
    {
        # What is drawn as an artefact is chosen among smudges, crushed cells, heaps and precipitate; these are the
        # values of a smudge.
        "ART": Morphology(
            S(16, 2.5), S(0.75, 0.1), S(1.7, 0.35), S(0.4, 0.15), S(0.6, 0.2), S(0.3, 0.2),
            elongation=S(1.35, 0.2), roughness_um=S(1.1, 0.4), damage=S(0.9, 0.1),
        ),
        "BLA": Morphology(
            S(16.5, 1.8), S(0.76, 0.05), S(1.75, 0.2), S(0.22, 0.07), S(0.35, 0.08), S(0.75, 0.2),
            roughness_um=S(0.35, 0.15), indentation=S(0.05, 0.06), nucleoli=S(2.0, 1.0), before="LYT", after="PMO",
        ),
        "EBO": Morphology(
            S(12.0, 1.5), S(0.40, 0.07), S(2.9, 0.3), S(0.35, 0.12), S(0.9, 0.2), S(0.42, 0.15),
            eccentricity=S(0.3, 0.2), nucleus_elongation=S(1.04, 0.03), haemoglobin=S(0.25, 0.12),
            indentation=S(0.0, 0.0), before="PEB",
        ),
        "EOS": Morphology(
            S(14.5, 1.5), S(0.38, 0.06), S(1.95, 0.25), S(0.32, 0.1), S(0.7, 0.15), S(0.12, 0.08),
            eccentricity=S(0.5, 0.25), indentation=S(0.5, 0.15), lobes=S(2.1, 0.35), constriction=S(0.65, 0.2),
            acidophilia=S(0.28, 0.08), eosinophil_granules=S(420, 80), before="MYB", after="NGS",
        ),
        "LYT": Morphology(
            S(11.5, 1.2), S(0.74, 0.07), S(2.15, 0.25), S(0.28, 0.1), S(0.9, 0.2), S(0.40, 0.15),
            nucleus_elongation=S(1.08, 0.05), indentation=S(0.03, 0.05), before="BLA", after="EBO",
        ),
        "MMZ": Morphology(
            S(15.5, 1.4), S(0.46, 0.06), S(1.8, 0.2), S(0.34, 0.09), S(0.7, 0.15), S(0.16, 0.07),
            eccentricity=S(0.5, 0.25), nucleus_elongation=S(1.3, 0.12), indentation=S(0.28, 0.07),
            acidophilia=S(0.16, 0.05), fine_granules=S(0.5, 0.15), azurophil_granules=S(25, 20),
            before="MYB", after="NGB",
        ),
        "MON": Morphology(
            S(17.0, 1.7), S(0.52, 0.07), S(1.6, 0.2), S(0.36, 0.09), S(0.5, 0.1), S(0.38, 0.1),
            roughness_um=S(0.45, 0.15), nucleus_elongation=S(1.25, 0.12), indentation=S(0.33, 0.15),
            constriction=S(0.15, 0.12), lobes=S(2.0, 0.5), fine_granules=S(0.25, 0.12), vacuoles=S(3, 2),
            before="BLA", after="MMZ",
        ),
        "MYB": Morphology(
            S(16.5, 1.6), S(0.50, 0.06), S(1.75, 0.2), S(0.32, 0.09), S(0.6, 0.15), S(0.24, 0.09),
            eccentricity=S(0.65, 0.2), nucleus_elongation=S(1.25, 0.1), indentation=S(0.07, 0.06),
            acidophilia=S(0.14, 0.05), fine_granules=S(0.45, 0.15), azurophil_granules=S(80, 40), halo=S(0.2, 0.15),
            before="PMO", after="MMZ",
        ),
        "NGB": Morphology(
            S(14.5, 1.2), S(0.36, 0.05), S(1.95, 0.2), S(0.36, 0.09), S(0.75, 0.15), S(0.08, 0.04),
            indentation=S(0.60, 0.10), constriction=S(0.12, 0.1), lobes=S(2.2, 0.4), eccentricity=S(0.3, 0.2),
            acidophilia=S(0.2, 0.05), fine_granules=S(0.5, 0.15), before="MMZ", after="NGS",
        ),
        "NGS": Morphology(
            S(14.0, 1.2), S(0.33, 0.05), S(2.15, 0.2), S(0.36, 0.09), S(0.8, 0.15), S(0.06, 0.03),
            indentation=S(0.75, 0.10), constriction=S(0.72, 0.09), lobes=S(3.4, 0.7), eccentricity=S(0.25, 0.2),
            acidophilia=S(0.2, 0.05), fine_granules=S(0.5, 0.15), before="NGB",
        ),
        # A cell of any class is drawn, and damaged by `damage`; the other values only say what is usual.
        "NIF": Morphology(
            S(14.5, 2.5), S(0.6, 0.15), S(2.0, 0.4), S(0.25, 0.1), S(0.6, 0.2), S(0.4, 0.2), damage=S(0.6, 0.22),
        ),
        "PEB": Morphology(
            S(19.5, 1.5), S(0.74, 0.05), S(1.95, 0.2), S(0.26, 0.08), S(0.4, 0.1), S(1.25, 0.15),
            eccentricity=S(0.3, 0.2), nucleus_elongation=S(1.06, 0.04), indentation=S(0.0, 0.0), nucleoli=S(1.5, 0.8),
            halo=S(0.25, 0.15), before="BLA", after="EBO",
        ),
        "PLM": Morphology(
            S(16.0, 2.0), S(0.36, 0.06), S(2.2, 0.25), S(0.42, 0.1), S(1.0, 0.2), S(1.05, 0.2),
            elongation=S(1.25, 0.1), eccentricity=S(0.85, 0.12), nucleus_elongation=S(1.08, 0.05),
            indentation=S(0.0, 0.0), cartwheel=S(0.7, 0.2), halo=S(0.75, 0.15), vacuoles=S(0.7, 0.8),
            before="EBO", after="LYT",
        ),
        "PMO": Morphology(
            S(19.0, 1.8), S(0.57, 0.06), S(1.7, 0.2), S(0.24, 0.08), S(0.4, 0.1), S(0.60, 0.15),
            eccentricity=S(0.6, 0.2), nucleus_elongation=S(1.15, 0.08), indentation=S(0.05, 0.05), nucleoli=S(1.8, 0.8),
            azurophil_granules=S(230, 60), halo=S(0.5, 0.2), before="BLA", after="MYB",
        ),
    }
)  # fmt: skip
"""The parameters of each class of class set marrow-14."""
