"""The figures of one confusion matrix with their intervals: overall and per class."""

from __future__ import annotations

from functools import partial

import numpy as np

from marrowscope.evaluate import metrics
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import NO_IMAGES, Bootstrap, figure, proportion
from marrowscope.evaluate.intervals import confusion_draws
from marrowscope.evaluate.metrics import Bools, Counts, Floats, Integers
from marrowscope.schema import ClassFigures, Figure

TOO_FEW = "none (no class has enough images)"


def matrix_scores(counts_CC: Counts, keep: Bools) -> dict[str, Floats]:
    """The figures that a confusion matrix (..., C, C) gives and that are no proportion, by name, each (...)."""
    precision, recall = metrics.precision_scores(counts_CC), metrics.recall_scores(counts_CC)
    f1 = metrics.f1_scores(counts_CC)
    return {
        "balanced_accuracy": metrics.balanced_accuracy_score(counts_CC),
        "macro_precision": metrics.macro_score(precision, counts_CC, keep),
        "macro_recall": metrics.macro_score(recall, counts_CC, keep),
        "macro_f1": metrics.macro_score(f1, counts_CC, keep),
        "weighted_precision": metrics.weighted_score(precision, counts_CC),
        "weighted_recall": metrics.weighted_score(recall, counts_CC),
        "weighted_f1": metrics.weighted_score(f1, counts_CC),
        "cohen_kappa": metrics.cohen_kappa_score(counts_CC),
        "matthews": metrics.matthews_score(counts_CC),
    }


def f1_figure(case: Case, c: int) -> Figure:
    """F1 of one class with an interval that has a width at 0 and 1 too.

    F1 = 2J / (1 + J) rises with J = TP / (TP + FP + FN), which is a proportion: of the images that are of the class or
    called so, the share that is both. Wilson's interval of J gives that of F1.
    """
    either = (case.truth_N == c) | (case.predicted_N == c)
    jaccard = proportion(case.right_N[either], case.group_N[either])
    if jaccard.value is None or jaccard.low is None or jaccard.high is None:
        return jaccard
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return figure(value, (low, high), jaccard.n, jaccard.method.replace("Wilson", "Wilson of TP/(TP+FP+FN)"))


def class_figures(case: Case) -> tuple[ClassFigures, ...]:
    """Precision, recall and F1 of each class against the rest."""
    out = []
    for c, code in enumerate(case.codes):
        is_c, called_c = case.truth_N == c, case.predicted_N == c
        out.append(
            ClassFigures(
                code=code,
                support=int(is_c.sum()),
                predicted=int(called_c.sum()),
                precision=proportion(case.right_N[called_c], case.group_N[called_c]),
                recall=proportion(case.right_N[is_c], case.group_N[is_c]),
                f1=f1_figure(case, c),
            )
        )
    return tuple(out)


def wilson_bounds(
    name: str, per_class: tuple[ClassFigures, ...], keep: Bools, accuracy: Figure, counts_CC: Integers
) -> tuple[float, float]:
    """A wide stand-in for a bootstrap interval of no width: the same mean, taken of the classes' own Wilson ends.

    For kappa and Matthews, which have no parts, it is kappa's formula at the ends of the accuracy's interval.
    """
    assert accuracy.low is not None
    assert accuracy.high is not None
    if name in {"cohen_kappa", "matthews"}:
        n = counts_CC.sum()
        chance = float((counts_CC.sum(0) / n) @ (counts_CC.sum(1) / n))
        return (accuracy.low - chance) / (1 - chance), (accuracy.high - chance) / (1 - chance)
    kind, _, part = name.partition("_")
    figures = [getattr(c, part if part in {"precision", "f1"} else "recall") for c in per_class]
    support = np.array([c.support for c in per_class], dtype=np.float64)
    weight = {"macro": np.where(keep, 1.0, 0.0), "weighted": support, "balanced": np.where(support > 0, 1.0, 0.0)}[kind]
    low = np.array([0.0 if f.low is None else f.low for f in figures])
    high = np.array([1.0 if f.high is None else f.high for f in figures])
    return float(low @ weight / weight.sum()), float(high @ weight / weight.sum())


def overall_figures(
    case: Case, per_class: tuple[ClassFigures, ...], keep: Bools, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """The headline figures by name, as `schema.Evaluation` lists them."""
    n, counts_CC = len(case), case.counts_CC
    cell_N = case.truth_N * len(case.codes) + case.predicted_N
    losses_N = metrics.log_losses(case.truth_N, case.probs_NC)
    out = {
        "accuracy": proportion(case.right_N, case.group_N),
        "balanced_accuracy": figure(np.nan, None, 0, NO_IMAGES),
        "top2_accuracy": proportion(metrics.top_k_hits(case.truth_N, case.probs_NC, 2), case.group_N),
    }
    values = {name: float(v) for name, v in matrix_scores(counts_CC, keep).items()}
    kept_n = int(counts_CC.sum(1)[keep].sum())
    draws = bootstrap.run(case, lambda w: matrix_scores(confusion_draws(w, cell_N, len(case.codes)), keep)) if n else {}
    for name, value in values.items():
        rests_on = kept_n if name.startswith("macro_") else n
        if not rests_on:
            out[name] = figure(np.nan, None, 0, NO_IMAGES if not n else TOO_FEW)
            continue
        bounds = partial(wilson_bounds, name, per_class, keep, out["accuracy"], counts_CC)
        out[name] = bootstrap.figure(value, draws[name], rests_on, case, bounds)
    out["log_loss"] = bootstrap.mean(losses_N, case, metrics.WORST_LOG_LOSS)
    return out
