"""Errors weighted by what they cost, along lineage and maturation, or by a matrix of the user's.

The default matrix is a choice, not a measurement. It says, from 0 (right) to 1 (worst), the first rule that fits:

    neighbours  0.1 for what tolerant scoring takes for each other: a band called segmented, a blast a promyelocyte
    malignant   1.0 for a blast or another class that makes a diagnosis (faggot cell, hairy cell, immature lymphocyte)
                that is called anything else: it is missed; 0.8 for the reverse, a false alarm; 0.5 among these classes
    rest        0.3 for a cell that is called something that is not counted (other, smudge, not identifiable,
                artefact): it drops out of the differential; 0.4 for the reverse; 0.1 among these classes
    stage       0.1 a step of maturation within a line
    line        0.5 for another line: a monocyte called lymphocyte

Where a lab sees it otherwise it gives its own matrix as a CSV: `read_costs`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marrowscope.cells import CellClass, cell_class
from marrowscope.errors import FileFormatError
from marrowscope.evaluate.metrics import Bools, Floats, Integers
from marrowscope.evaluate.tolerant import NEIGHBOURS
from marrowscope.files import UTF8, atomic_open

DEFAULT_SOURCE = "marrowscope's default: distance along lineage and maturation"
NEIGHBOUR, STEP, LINE = 0.1, 0.1, 0.5
LOST, GAINED, AMONG_REST = 0.3, 0.4, 0.1
MISSED, FALSE_ALARM, AMONG_MALIGNANT = 1.0, 0.8, 0.5

MALIGNANT = frozenset({"BLA", "FGC", "HAC", "LYI"})
"""Classes whose presence or number makes a diagnosis."""


def line(cell: CellClass) -> str:
    """The line of a class, the blast counting as the beginning of neutrophil maturation, as `cells` has it."""
    return "neutrophil" if cell.lineage == "blast" else cell.lineage if cell.nucleated else "not counted"


def default_cost(truth: str, predicted: str) -> float:
    """Cost of calling one class another, 0..1; see the head of this module."""
    t, p = cell_class(truth), cell_class(predicted)
    if truth == predicted:
        return 0.0
    if (truth, predicted) in NEIGHBOURS or (predicted, truth) in NEIGHBOURS:
        return NEIGHBOUR
    if truth in MALIGNANT or predicted in MALIGNANT:
        return FALSE_ALARM if truth not in MALIGNANT else MISSED if predicted not in MALIGNANT else AMONG_MALIGNANT
    if not (t.nucleated and p.nucleated):
        return LOST if t.nucleated else GAINED if p.nucleated else AMONG_REST
    if line(t) != line(p):
        return LINE
    # Two classes of one line and stage, or of a line without stages (an abnormal eosinophil), differ by one step.
    stages = 1 if t.maturation is None or p.maturation is None else max(1, abs(t.maturation - p.maturation))
    return round(STEP * stages, 6)


def default_costs(codes: Sequence[str]) -> Floats:
    """Cost matrix (C, C), row = truth, column = prediction; the diagonal is 0."""
    return np.array([[default_cost(t, p) for p in codes] for t in codes], dtype=np.float64)


def write_costs(path: Path, codes: Sequence[str], costs_CC: Floats) -> None:
    """Write a cost matrix as CSV: ``truth`` and a column per predicted class; a row per true class."""
    with atomic_open(path) as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["truth", *codes])
        out.writerows([code, *(f"{v:.10g}" for v in row)] for code, row in zip(codes, costs_CC, strict=True))


def read_costs(path: Path, codes: Sequence[str]) -> Floats:
    """Read a cost matrix (C, C) in the order of the codes; other classes in the file are left aside.

    Raises:
        FileFormatError: Not such a table, a class is missing or stands twice, a cost is no number from 0 upward, or a
            right answer costs something.
    """
    try:
        with Path(path).open(newline="", encoding=UTF8) as f:
            header, *rows = list(csv.reader(f, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise FileFormatError(f"Can't read the table of costs {path}: {getattr(e, 'strerror', None) or e}.") from e
    rows = [row for row in rows if row]
    names = [row[0] for row in rows]
    if header[:1] != ["truth"] or any(len(row) != len(header) for row in rows):
        raise FileFormatError(
            f"{path} is not a table of costs: its first line must be truth,<one column per class code>, and each "
            "further line a true class and as many costs."
        )
    for where, listed in (("columns", header[1:]), ("rows", names)):
        if len(set(listed)) != len(listed):
            raise FileFormatError(f"{path} names a class twice in its {where}.")
        if missing := [c for c in codes if c not in listed]:
            raise FileFormatError(f"{path} has no {' '.join(missing)} in its {where}; the predictions have them.")
    by_name = dict(zip(names, rows, strict=True))
    try:
        costs_CC = np.array([[float(by_name[t][header.index(p)]) for p in codes] for t in codes], dtype=np.float64)
    except ValueError:
        raise FileFormatError(f"{path}: a cost is not a number.") from None
    if not (np.isfinite(costs_CC).all() and (costs_CC >= 0).all()) or np.diagonal(costs_CC).any():
        raise FileFormatError(f"{path}: costs must be 0 or more, and a right answer costs 0.")
    return costs_CC


def costs_of(truth_N: Integers, predicted_N: Integers, costs_CC: Floats) -> Floats:
    """Cost of each answer, (N,)."""
    return np.asarray(costs_CC[truth_N, predicted_N], dtype=np.float64)


def same_line(codes: Sequence[str]) -> Bools:
    """Bool (C, C): whether two classes are of one line; the classes that are not counted are one together."""
    lines = [line(cell_class(c)) for c in codes]
    return np.array([[a == b for b in lines] for a in lines], dtype=bool)


def maturation_steps(codes: Sequence[str]) -> Floats:
    """Steps of maturation (C, C) between two classes of one line that have stages; nan for all other pairs."""
    cells = [cell_class(c) for c in codes]
    out = np.full((len(cells), len(cells)), np.nan)
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            if line(a) == line(b) and a.maturation is not None and b.maturation is not None:
                out[i, j] = abs(a.maturation - b.maturation)
    return out
