"""The myelogram: what a smear's predictions say about the marrow, counted as a laboratory counts.

All percentages are of the nucleated marrow cells (`cells.CellClass.nucleated`); what is left out is stated. Besides
the raw count there is an adjusted one, which corrects for the confusions that the model is known to make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from marrowscope.cells import BY_CODE, cell_class, clinical_order
from marrowscope.errors import DataError
from marrowscope.evaluate.intervals import LEVEL, percentile_interval, wilson_interval
from marrowscope.images import cause
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, OK, Document, Figure, Frozen, Predictions

Floats = npt.NDArray[np.float64]

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


class CountRow(Frozen):
    """One class of the differential.

    Attributes:
        count: Cells.
        percent: Share of the nucleated cells, 0..100, the intervals of all rows being right together with 95 %.
        adjusted: The same corrected for known confusions; None where that was not asked for.
    """

    code: str
    name: str
    lineage: str
    count: int
    percent: Figure
    adjusted: Figure | None = None


class NamedFigure(Frozen):
    """A figure and the definition that it follows."""

    definition: str
    text: str
    figure: Figure


class Differential(Document):
    """A differential count (differential.json).

    Attributes:
        files: Rows of the predictions.
        counted: Nucleated cells with an answer: the denominator of every percentage.
        rows: In clinical order, one per nucleated class that the model knows.
        left_out: Cells that are not in the denominator, by class code.
        unsure: Cells below the least confidence, which are counted nowhere.
        failed: Files that could not be used, by cause.
        review: Paths of the unsure cells.
        adjustment: How the adjusted count was made; None where it was not.
        warnings: What the reader must know.
    """

    kind: ClassVar[str] = "differential"
    format: Literal["marrowscope differential 1"] = "marrowscope differential 1"
    files: int
    counted: int
    rows: tuple[CountRow, ...]
    left_out: dict[str, int]
    unsure: int
    failed: dict[str, int]
    review: tuple[str, ...]
    myeloid_erythroid: NamedFigure
    blast_percent: NamedFigure
    adjustment: str | None
    warnings: tuple[str, ...]
    intended_use: str = NOT_A_MEDICAL_DEVICE


def count(
    predictions: Predictions,
    *,
    ratio: str = "granulocytic-monocytic",
    blasts: str = "blasts",
    least_confidence: float = 0.0,
    confusion: npt.NDArray[np.integer] | None = None,
    seed: int = 0,
) -> Differential:
    """Count the cells of one smear.

    Args:
        predictions: What a model said of its cells.
        ratio: Definition of the myeloid-to-erythroid ratio, one of `RATIOS`.
        blasts: What the blast percentage counts, one of `BLASTS`.
        least_confidence: Cells below it are not counted but listed for review.
        confusion: Counts (C, C) on cells of known class in the order of ``predictions.codes``, row = truth, column =
            prediction; with it, an adjusted count is made.
        seed: For the intervals of the adjusted count.

    Raises:
        DataError: An unknown definition or class code, or a confusion matrix that does not fit.
    """
    if ratio not in RATIOS or blasts not in BLASTS:
        raise DataError(
            f"Unknown definition {ratio if ratio not in RATIOS else blasts!r}. Of the ratio there are "
            f"{', '.join(RATIOS)}; of the blasts {', '.join(BLASTS)}."
        )
    codes = predictions.codes
    kept, review = _kept(predictions, least_confidence)
    best = predictions.probs_NC[kept].argmax(1) if kept.any() else np.empty(0, np.int64)
    counts = dict(zip(codes, np.bincount(best, minlength=len(codes)).tolist(), strict=True))
    nucleated = [c for c in clinical_order(codes) if cell_class(c).nucleated]
    n = sum(counts[c] for c in nucleated)
    adjusted = None if confusion is None else _adjusted_figures(counts, nucleated, confusion, seed)
    return Differential(
        files=len(predictions.paths),
        counted=n,
        rows=tuple(
            CountRow(
                code=c,
                name=cell_class(c).name,
                lineage=cell_class(c).lineage,
                count=counts[c],
                percent=_percent(counts[c], n, len(nucleated)),
                adjusted=None if adjusted is None else adjusted[c],
            )
            for c in nucleated
        ),
        left_out={c: counts[c] for c in clinical_order(codes) if c not in nucleated},
        unsure=len(review),
        failed=dict(Counter(cause(s) for s in predictions.status if s != OK).most_common()),
        review=review,
        myeloid_erythroid=NamedFigure(definition=ratio, text=RATIOS[ratio].text, figure=_ratio(counts, RATIOS[ratio])),
        blast_percent=_blast_percent(counts, n, blasts),
        adjustment=None if confusion is None else _ADJUSTMENT,
        warnings=tuple(_warnings(n, codes, RATIOS[ratio], BLASTS[blasts])),
    )


def _kept(predictions: Predictions, least_confidence: float) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Which rows count, and the paths of those that the model is unsure of."""
    ok = predictions.ok
    confidence = np.where(ok, predictions.probs_NC.max(axis=1, initial=0.0), 0.0)
    sure = confidence >= least_confidence
    review = tuple(p for p, is_ok, is_sure in zip(predictions.paths, ok, sure, strict=True) if is_ok and not is_sure)
    return ok & sure, review


def _warnings(n: int, codes: Iterable[str], ratio: Ratio, blasts: frozenset[str]) -> Iterable[str]:
    if n < CELLS_LEAST:
        yield (
            f"Only {n} nucleated cells: fewer than the {CELLS_LEAST} that a differential needs at the least "
            f"({CELLS_WANTED} where a percentage decides; ICSH)."
        )
    elif n < CELLS_WANTED:
        yield f"{n} nucleated cells: count {CELLS_WANTED} where a percentage decides (ICSH; {CELLS_LEAST} the least)."
    known = set(codes)
    for missing in (clinical_order((ratio.myeloid | ratio.erythroid) - known), clinical_order(blasts - known)):
        if missing:
            what = "blast percentage" if set(missing) <= blasts else "myeloid-to-erythroid ratio"
            yield f"The {what} lacks {' '.join(missing)}, which the model does not know."


def _percent(hits: int, n: int, k: int) -> Figure:
    """Share in percent with its simultaneous interval."""
    method = f"Goodman, simultaneous over {k} classes"
    if n == 0:
        return Figure(value=None, low=None, high=None, n=0, method=method)
    low, high = goodman_interval(hits, n, k)
    return Figure(value=100 * hits / n, low=100 * low, high=100 * high, n=n, method=method)


def goodman_interval(hits: int, n: int, k: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of one of `k` shares of `n` such that all k hold at once (Goodman 1965, Technometrics 7, 247-254)."""
    return wilson_interval(hits, n, 1 - (1 - level) / k)


def _blast_percent(counts: Mapping[str, int], n: int, definition: str) -> NamedFigure:
    wanted = BLASTS[definition]
    known = clinical_order(wanted & counts.keys())
    text = f"{' and '.join(cell_class(c).name + 's' for c in known or clinical_order(wanted))} per 100 nucleated cells"
    if n == 0 or not known:
        figure = Figure(value=None, low=None, high=None, n=n, method="Wilson")
    else:
        hits = sum(counts[c] for c in known)
        low, high = wilson_interval(hits, n)
        figure = Figure(value=100 * hits / n, low=100 * low, high=100 * high, n=n, method="Wilson")
    return NamedFigure(definition=definition, text=text, figure=figure)


def _ratio(counts: Mapping[str, int], ratio: Ratio) -> Figure:
    """Myeloid to erythroid; the interval is Wilson's of the myeloid share of both, as odds."""
    myeloid = sum(counts.get(c, 0) for c in ratio.myeloid)
    erythroid = sum(counts.get(c, 0) for c in ratio.erythroid)
    n, method = myeloid + erythroid, "Wilson of the myeloid share, as odds"
    if n == 0 or not (ratio.erythroid & counts.keys()) or not (ratio.myeloid & counts.keys()):
        return Figure(value=None, low=None, high=None, n=n, method=method)
    low, high = wilson_interval(myeloid, n)
    return Figure(
        value=myeloid / erythroid if erythroid else None,
        low=low / (1 - low),
        high=high / (1 - high) if high < 1 else None,
        n=n,
        method=method,
    )


# ------------------------------------------------------------------------------------------------------ adjusted count

_ADJUSTMENT = "most likely mixture under the confusion matrix; percentile bootstrap of cells and matrix (1000 draws)"


def adjusted_shares(counts_C: npt.ArrayLike, confusion_CC: npt.ArrayLike, iterations: int = 2000) -> Floats:
    """The mixture of true classes under which the counts of predictions are most likely: shares (..., C), sum 1.

    Predictions are multinomial with the shares ``p @ recall``, where recall is the confusion matrix with rows that sum
    to 1. Where the inverse of that lies inside 0..1 this is the adjusted count (Forman 2008, Data Min Knowl Disc 17,
    164-206); elsewhere it stays a mixture, where the inverse gives shares below 0. Found by expectation maximisation.

    Args:
        counts_C: Predictions by class, (..., C), at least one.
        confusion_CC: Counts (..., C, C), row = truth, column = prediction; no row without a cell.
        iterations: Steps.
    """
    counts = np.asarray(counts_C, dtype=np.float64)
    matrix = np.asarray(confusion_CC, dtype=np.float64)
    recall = matrix / matrix.sum(axis=-1, keepdims=True)
    observed = counts / counts.sum(axis=-1, keepdims=True)
    p: Floats = np.full(observed.shape, 1 / observed.shape[-1])
    for _ in range(iterations):
        expected = (p[..., None, :] @ recall)[..., 0, :]
        weight = np.divide(observed, expected, out=np.zeros_like(observed), where=expected > 0)
        p = p * (recall @ weight[..., None])[..., 0]
        p /= p.sum(axis=-1, keepdims=True)
    out: Floats = np.asarray(p)
    return out


def prior_corrected(probs_NC: Floats, prior_C: npt.ArrayLike, iterations: int = 1000) -> Floats:
    """Shares (C,) of the classes from probabilities, by correcting for another mix than in training.

    Expectation maximisation after Saerens, Latinne & Decaestecker (2002), Neural Comput 14, 21-41.

    Args:
        probs_NC: Probabilities of the N cells, calibrated for the training mix.
        prior_C: Shares of the classes in training, all above 0.
        iterations: Steps at the most.
    """
    prior = np.asarray(prior_C, dtype=np.float64)
    p = prior / prior.sum()
    relative = probs_NC / p
    for _ in range(iterations):
        posterior = relative * p
        posterior /= posterior.sum(axis=1, keepdims=True)
        previous, p = p, posterior.mean(axis=0)
        if np.abs(p - previous).max() < 1e-10:
            break
    out: Floats = np.asarray(p)
    return out


def _adjusted_figures(
    counts: Mapping[str, int], nucleated: list[str], confusion: npt.NDArray[np.integer], seed: int, draws: int = 1000
) -> dict[str, Figure]:
    """Adjusted percentages of the nucleated classes with their intervals."""
    codes = list(counts)
    _check_confusion(codes, confusion)
    observed = np.array([counts[c] for c in codes])
    n = int(observed.sum())
    where = [codes.index(c) for c in nucleated]
    if n == 0:
        return {c: Figure(value=None, low=None, high=None, n=0, method=_ADJUSTMENT) for c in nucleated}
    rng = np.random.default_rng(seed)
    size = confusion.sum(axis=1)
    matrices = np.stack([rng.multinomial(k, row / k, size=draws) for k, row in zip(size, confusion, strict=True)], 1)
    mixtures = adjusted_shares(rng.multinomial(n, observed / n, size=draws), matrices, iterations=300)
    value = _of_nucleated(adjusted_shares(observed, confusion), where)
    shares = _of_nucleated(mixtures, where)
    out = {}
    for i, c in enumerate(nucleated):
        low, high = percentile_interval(shares[:, i])
        centre = float(value[i])
        out[c] = (
            Figure(value=None, low=None, high=None, n=n, method=_ADJUSTMENT)
            if np.isnan(centre)
            else Figure(value=centre, low=min(low, centre), high=max(high, centre), n=n, method=_ADJUSTMENT)
        )
    return out


def _of_nucleated(shares: Floats, where: list[int]) -> Floats:
    """Percent of the nucleated classes; nan where a mixture has none of them."""
    part = shares[..., where]
    total = part.sum(axis=-1, keepdims=True)
    out: Floats = np.divide(100 * part, total, out=np.full_like(part, np.nan), where=total > 0)
    return out


def _check_confusion(codes: list[str], confusion: npt.NDArray[np.integer]) -> None:
    if confusion.shape != (len(codes), len(codes)) or (confusion < 0).any():
        raise DataError(
            f"The confusion matrix has shape {confusion.shape}; it must have counts for the model's {len(codes)} "
            f"classes, {' '.join(codes)}. Take it from an evaluation of the same model."
        )
    empty = [c for c, row in zip(codes, confusion, strict=True) if row.sum() == 0]
    if empty:
        raise DataError(
            f"The confusion matrix has no cell of {' '.join(empty)}, so it can't tell how often these are confused. "
            "Take it from an evaluation with cells of every class, or count without adjusting."
        )
