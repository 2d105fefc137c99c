"""From the predictions of one smear to its differential."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from marrowscope.cells import cell_class, clinical_order
from marrowscope.differential.adjust import ADJUSTED, CORRECTED, Mixture, check_confusion, mixtures
from marrowscope.differential.definitions import BLASTS, CELLS_LEAST, CELLS_WANTED, RATIOS, Ratio
from marrowscope.differential.documents import Adjustment, CountRow, Differential, NamedFigure, Reason, ReviewCell
from marrowscope.errors import DataError
from marrowscope.evaluate.intervals import LEVEL, wilson_interval
from marrowscope.images import cause
from marrowscope.schema import OK, Card, Figure, Predictions

Bools = npt.NDArray[np.bool_]

REVIEW_MUCH = 0.05
"""Share of the cells that may be left for review without a warning."""


def count(
    predictions: Predictions,
    *,
    ratio: str = "granulocytic-monocytic",
    blasts: str = "blasts",
    least_confidence: float = 0.0,
    review: bool = True,
    card: Card | None = None,
    seed: int = 0,
) -> Differential:
    """Count the cells of one smear.

    Args:
        predictions: What a model said of its cells.
        ratio: Definition of the myeloid-to-erythroid ratio, one of `RATIOS`.
        blasts: What the blast percentage counts, one of `BLASTS`.
        least_confidence: Cells below it are not counted but listed for review.
        review: Leave cells for review that the model did not accept, or flagged as out of distribution; otherwise
            they count like any other.
        card: Of the model; with it, adjusted counts are made from the confusions on its validation cells.
        seed: For the intervals of the adjusted counts.

    Raises:
        DataError: An unknown definition or class code, or a card of other classes or without confusions.
    """
    if ratio not in RATIOS or blasts not in BLASTS:
        raise DataError(
            f"Unknown definition {ratio if ratio not in RATIOS else blasts!r}. Of the ratio there are "
            f"{', '.join(RATIOS)}; of the blasts {', '.join(BLASTS)}."
        )
    codes = predictions.codes
    reasons = _reasons(predictions, least_confidence, review)
    kept = predictions.ok & np.array([r is None for r in reasons], dtype=bool)
    counts = dict(zip(codes, np.bincount(_answers(predictions, kept), minlength=len(codes)).tolist(), strict=True))
    nucleated = [c for c in clinical_order(codes) if cell_class(c).nucleated]
    n = sum(counts[c] for c in nucleated)
    adjusted = None
    if card is not None:
        # Confusions were seen on all validation cells, whatever their confidence; so all of these count here.
        answered = predictions.ok & np.array([r != "out of distribution" for r in reasons], dtype=bool)
        adjusted = _mixtures(predictions, answered, card, seed)
    return Differential(
        files=len(predictions.paths),
        counted=n,
        rows=tuple(_row(c, counts[c], n, nucleated, codes, adjusted) for c in nucleated),
        left_out={c: counts[c] for c in clinical_order(codes) if c not in nucleated},
        review=tuple(_review(predictions, reasons)),
        failed=dict(Counter(cause(s) for s in predictions.status if s != OK).most_common()),
        myeloid_erythroid=_ratio(ratio, counts, codes, adjusted),
        blast_percent=_blast_percent(blasts, counts, n, nucleated, codes, adjusted),
        adjustment=None if card is None or adjusted is None else _adjustment(card, adjusted[0].n),
        warnings=(
            *_warnings(n, codes, RATIOS[ratio], BLASTS[blasts]),
            *_review_warning(n, sum(r is not None for r in reasons), card is not None),
        ),
    )


def _reasons(predictions: Predictions, least_confidence: float, review: bool) -> list[Reason | None]:
    """Why each cell with an answer is left for review; None where it is not."""
    n = len(predictions.paths)
    strange, refused = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    if review:
        strange = strange if predictions.ood_N is None else predictions.ood_N
        refused = refused if predictions.accepted_N is None else ~predictions.accepted_N
    confidence = np.where(predictions.ok, predictions.probs_NC.max(axis=1, initial=0.0), 0.0)
    out: list[Reason | None] = []
    for ok, is_strange, is_refused, p in zip(predictions.ok, strange, refused, confidence, strict=True):
        if not ok:
            out.append(None)
        elif is_strange:
            out.append("out of distribution")
        elif is_refused:
            out.append("not accepted")
        else:
            out.append("low confidence" if p < least_confidence else None)
    return out


def _review(predictions: Predictions, reasons: Sequence[Reason | None]) -> Iterable[ReviewCell]:
    for i, reason in enumerate(reasons):
        if reason is not None:
            best = int(predictions.probs_NC[i].argmax())
            yield ReviewCell(
                path=predictions.paths[i].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                predicted=predictions.codes[best],
                confidence=float(predictions.probs_NC[i, best]),
                reason=reason,
            )


def _answers(predictions: Predictions, kept: Bools) -> npt.NDArray[np.intp]:
    return predictions.probs_NC[kept].argmax(1) if kept.any() else np.empty(0, np.intp)


def _mixtures(predictions: Predictions, answered: Bools, card: Card, seed: int) -> tuple[Mixture, Mixture]:
    if card.codes != predictions.codes:
        raise DataError(
            f"The model {card.name!r} has the classes {' '.join(card.codes)}, and the predictions have "
            f"{' '.join(predictions.codes)}. Give the model that made them."
        )
    if not card.confusion:
        raise DataError(
            f"The card of {card.name!r} does not tell its confusions on validation cells. Evaluate the run and export "
            "it anew, or count without a model."
        )
    confusion = np.array(card.confusion, dtype=np.int64)
    check_confusion(card.codes, confusion)
    return mixtures(predictions.probs_NC[answered], confusion, np.random.default_rng(seed))


def _adjustment(card: Card, cells: int) -> Adjustment:
    validation = sum(map(sum, card.confusion))
    return Adjustment(model=card.name, cells=cells, validation=validation, adjusted=ADJUSTED, corrected=CORRECTED)


def _row(
    code: str,
    hits: int,
    n: int,
    nucleated: Sequence[str],
    codes: Sequence[str],
    adjusted: tuple[Mixture, Mixture] | None,
) -> CountRow:
    places = [codes.index(c) for c in nucleated]
    both = [None, None] if adjusted is None else [m.percent([codes.index(code)], places) for m in adjusted]
    return CountRow(
        code=code,
        name=cell_class(code).name,
        lineage=cell_class(code).lineage,
        count=hits,
        percent=_percent(hits, n, len(nucleated)),
        adjusted=both[0],
        corrected=both[1],
    )


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


def _review_warning(n: int, review: int, adjusted: bool) -> Iterable[str]:
    """Models are unsure of some classes more often than of others (docs/differential.md has what that does)."""
    if review > REVIEW_MUCH * (n + review):
        yield (
            f"{review} cells are left for review and not counted. They are not spread evenly over the classes, so the "
            "percentages will move when somebody has named them."
            + (" The adjusted counts have them in." if adjusted else "")
        )


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


def _blast_percent(
    definition: str,
    counts: Mapping[str, int],
    n: int,
    nucleated: Sequence[str],
    codes: Sequence[str],
    adjusted: tuple[Mixture, Mixture] | None,
) -> NamedFigure:
    wanted = BLASTS[definition]
    known = clinical_order(wanted & counts.keys())
    text = f"{' and '.join(cell_class(c).name + 's' for c in known or clinical_order(wanted))} per 100 nucleated cells"
    figure = Figure(value=None, low=None, high=None, n=n, method="Wilson")
    both: list[Figure | None] = [None, None]
    if known and n > 0:
        hits = sum(counts[c] for c in known)
        low, high = wilson_interval(hits, n)
        figure = Figure(value=100 * hits / n, low=100 * low, high=100 * high, n=n, method="Wilson")
    if known and adjusted is not None:
        part, of = ([codes.index(c) for c in group] for group in (known, nucleated))
        both = [m.percent(part, of) for m in adjusted]
    return NamedFigure(definition=definition, text=text, figure=figure, adjusted=both[0], corrected=both[1])


def _ratio(
    definition: str,
    counts: Mapping[str, int],
    codes: Sequence[str],
    adjusted: tuple[Mixture, Mixture] | None,
) -> NamedFigure:
    ratio = RATIOS[definition]
    myeloid, erythroid = (clinical_order(side & counts.keys()) for side in (ratio.myeloid, ratio.erythroid))
    both: list[Figure | None] = [None, None]
    if adjusted is not None:
        above, below = ([codes.index(c) for c in side] for side in (myeloid, erythroid))
        both = [m.ratio(above, below) for m in adjusted]
    return NamedFigure(
        definition=definition,
        text=ratio.text,
        figure=_odds(sum(counts[c] for c in myeloid), sum(counts[c] for c in erythroid), bool(myeloid and erythroid)),
        adjusted=both[0],
        corrected=both[1],
    )


def _odds(myeloid: int, erythroid: int, known: bool) -> Figure:
    """Myeloid to erythroid; the interval is Wilson's of the myeloid share of both, as odds."""
    n, method = myeloid + erythroid, "Wilson of the myeloid share, as odds"
    if n == 0 or not known:
        return Figure(value=None, low=None, high=None, n=n, method=method)
    low, high = wilson_interval(myeloid, n)
    return Figure(
        value=myeloid / erythroid if erythroid else None,
        low=low / (1 - low),
        high=high / (1 - high) if high < 1 else None,
        n=n,
        method=method,
    )
