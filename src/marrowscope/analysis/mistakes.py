"""Which answers to look at first: pure functions on predictions with a truth."""

from __future__ import annotations

import warnings

import numpy as np

from marrowscope.data.label_errors import probable_errors
from marrowscope.errors import MissingExtraError
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import proportion
from marrowscope.evaluate.metrics import Floats
from marrowscope.evaluate.tolerant import tolerance_matrix
from marrowscope.schema import ConfusedPair, DoubtfulCell, LabelCandidate

PAIRS = 10
EXAMPLES = 6
LISTED = 24
"""Confident mistakes, uncertain cells and doubtful labels that are listed."""

NOT_FOR_TRAINING = "None listed: the model was trained on these cells, and so has learned their labels, wrong ones too."


def entropy(probs_NC: Floats) -> Floats:
    """Entropy of each row over that of equal probabilities, (N,), 0..1."""
    logs = np.log(probs_NC, out=np.zeros_like(probs_NC), where=probs_NC > 0)
    out: Floats = -(probs_NC * logs).sum(1) / np.log(probs_NC.shape[1])
    return np.clip(out, 0.0, 1.0)


def confused_pairs(case: Case, paths: tuple[str, ...], most: int = PAIRS) -> tuple[ConfusedPair, ...]:
    """The commonest confusions; ties go to the larger share of the class, then by code.

    Args:
        case: The judged cells.
        paths: Their N names.
        most: Pairs at most.
    """
    counts_CC, passes_CC = case.counts_CC, tolerance_matrix(case.codes)
    wrong = [(t, p) for t, p in np.argwhere(counts_CC > 0).tolist() if t != p]
    support = counts_CC.sum(1)
    wrong.sort(key=lambda c: (-counts_CC[c], -counts_CC[c] / support[c[0]], case.codes[c[0]], case.codes[c[1]]))
    out = []
    for t, p in wrong[:most]:
        own = case.truth_N == t
        taken = own & (case.predicted_N == p)
        examples = sorted(np.flatnonzero(taken).tolist(), key=lambda i: (-case.probs_NC[i, p], paths[i]))
        out.append(
            ConfusedPair(
                truth=case.codes[t],
                predicted=case.codes[p],
                count=int(taken.sum()),
                share=proportion(taken[own], case.group_N[own]),
                neighbours=bool(passes_CC[t, p]),
                examples=tuple(paths[i] for i in examples[:EXAMPLES]),
            )
        )
    return tuple(out)


def confident_mistakes(case: Case, paths: tuple[str, ...], most: int = LISTED) -> tuple[DoubtfulCell, ...]:
    """Wrong answers by falling confidence; arguments as above."""
    confidence_N = case.probs_NC.max(1)
    wrong = sorted(np.flatnonzero(~case.right_N).tolist(), key=lambda i: (-confidence_N[i], paths[i]))
    return _doubtful(case, paths, wrong[:most])


def uncertain_cells(case: Case, paths: tuple[str, ...], most: int = LISTED) -> tuple[DoubtfulCell, ...]:
    """Answers by falling entropy, right or wrong; arguments as above."""
    entropy_N = entropy(case.probs_NC)
    order = sorted(range(len(case)), key=lambda i: (-entropy_N[i], paths[i]))
    return _doubtful(case, paths, order[:most])


def _doubtful(case: Case, paths: tuple[str, ...], rows: list[int]) -> tuple[DoubtfulCell, ...]:
    out = []
    for i in rows:
        p = case.probs_NC[i]
        first, second = (-p).argsort(kind="stable")[:2].tolist()
        out.append(
            DoubtfulCell(
                path=paths[i],
                truth=case.codes[case.truth_N[i]],
                predicted=case.codes[first],
                confidence=round(float(p[first]), 6),
                runner_up=case.codes[second],
                margin=round(float(p[first] - p[second]), 6),
                entropy=round(float(entropy(p[None])[0]), 6),
            )
        )
    return tuple(out)


def label_candidates(
    case: Case, paths: tuple[str, ...], part: str | None, most: int = LISTED
) -> tuple[tuple[LabelCandidate, ...], str]:
    """Cells whose label is doubtful by confident learning (`data.label_errors`), the surest first, and the basis.

    Args:
        case: The judged cells.
        paths: Their N names.
        part: The part of a split they are; cells that the model was trained on have no candidates.
        most: Cells at most.

    Returns:
        The candidates; and what they rest on, or why there are none.
    """
    if part == "train":
        return (), NOT_FOR_TRAINING
    if not len(case):
        return (), "There is no cell with an answer."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes of a cell or two are passed over, with a warning for each
            suggested_N = probable_errors(case.probs_NC, case.truth_N.astype(np.intp))
    except MissingExtraError as e:
        return (), str(e)
    found = []
    for i in np.flatnonzero(suggested_N >= 0).tolist():
        label, other = int(case.truth_N[i]), int(suggested_N[i])
        a, b = float(case.probs_NC[i, label]), float(case.probs_NC[i, other])
        found.append((a - b, paths[i], label, other, a, b))
    found.sort()
    candidates = tuple(
        LabelCandidate(
            path=path,
            label=case.codes[label],
            suggested=case.codes[other],
            label_probability=round(a, 6),
            suggested_probability=round(b, 6),
            margin=round(b - a, 6),
        )
        for _, path, label, other, a, b in found[:most]
    )
    source = f"the {part} part, which the model was not trained on" if part else "the table, if none of them trained it"
    basis = (
        f"Confident learning (Northcutt et al. 2021) on the {len(case):,} cells of {source}: {len(found):,} "
        f"candidates, the {len(candidates):,} surest listed. One model and these cells alone: many are the model's "
        "errors; which are the label's only an expert can say. Predictions of all cells, from a cross-validation, find "
        "more."
    )
    return candidates, basis
