"""The figures of one confusion matrix with their intervals: overall and per class."""

from __future__ import annotations

import numpy as np

from marrowscope.evaluate import metrics
from marrowscope.evaluate.case import Case, figure
from marrowscope.evaluate.intervals import bootstrap_weights, confusion_draws, percentile_interval, proportion_interval
from marrowscope.evaluate.metrics import Bools, Counts, Floats, Integers
from marrowscope.schema import ClassFigures, Figure

NO_IMAGES = "none (no images)"
UNDEFINED = "none (undefined)"
NAN2 = (float("nan"), float("nan"))


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


def proportion(hits_N: Bools, group_N: Integers) -> Figure:
    """The share of hits with Wilson's interval."""
    if not len(hits_N):
        return figure(float("nan"), NAN2, 0, NO_IMAGES)
    low, high, method = proportion_interval(hits_N, group_N)
    return figure(float(np.mean(hits_N)), (low, high), len(hits_N), method)


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


def draw(case: Case, keep: Bools, draws: int, seed: int) -> dict[str, Floats]:
    """The bootstrap draws (draws,) of every figure that is no proportion, by name."""
    cell_N = case.truth_N * len(case.codes) + case.predicted_N
    losses_N = metrics.log_losses(case.truth_N, case.probs_NC)
    parts: dict[str, list[Floats]] = {}
    for weights in bootstrap_weights(case.group_N, draws, seed):
        scores = matrix_scores(confusion_draws(weights, cell_N, len(case.codes)), keep)
        scores["log_loss"] = weights @ losses_N / weights.sum(1)
        for name, values in scores.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


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
    weight = {"macro": (support > 0) & keep, "weighted": support, "balanced": support > 0}[kind]
    low = np.average([0.0 if f.low is None else f.low for f in figures], weights=weight)
    high = np.average([1.0 if f.high is None else f.high for f in figures], weights=weight)
    return float(low), float(high)


def overall_figures(
    case: Case, per_class: tuple[ClassFigures, ...], keep: Bools, draws: int, seed: int
) -> dict[str, Figure]:
    """The headline figures by name, as `schema.Evaluation` lists them."""
    n, counts_CC = len(case), case.counts_CC
    values = {name: float(v) for name, v in matrix_scores(counts_CC, keep).items()}
    values["log_loss"] = float(metrics.log_losses(case.truth_N, case.probs_NC).mean()) if n else float("nan")
    kept_n = int(counts_CC.sum(1)[keep].sum())
    out = {
        "accuracy": proportion(case.right_N, case.group_N),
        "top2_accuracy": proportion(metrics.top_k_hits(case.truth_N, case.probs_NC, 2), case.group_N),
    }
    method = f"bootstrap ({draws} draws{', by group' if case.grouped else ''})"
    drawn = draw(case, keep, draws, seed) if n else {}
    for name, value in values.items():
        rests_on = kept_n if name.startswith("macro_") else n
        if np.isnan(value):
            reason = NO_IMAGES if not n else UNDEFINED if rests_on else "none (no class has enough images)"
            out[name] = figure(value, NAN2, rests_on, reason)
            continue
        low, high = percentile_interval(drawn[name])
        if name != "log_loss" and high - low < 1e-12:
            # All answers are right (or all wrong): resampling them can't show how little is known.
            bounds = wilson_bounds(name, per_class, keep, out["accuracy"], counts_CC)
            out[name] = figure(value, bounds, rests_on, "Wilson of its parts (the bootstrap has no width)")
        else:
            out[name] = figure(value, (low, high), rests_on, method)
    order = ("accuracy", "balanced_accuracy", "top2_accuracy", *(k for k in values if k != "balanced_accuracy"))
    return {name: out[name] for name in order}
