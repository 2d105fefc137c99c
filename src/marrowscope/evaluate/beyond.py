"""Figures beyond the confusion matrix's own: ranking, tolerance of neighbours, and what errors cost."""

from __future__ import annotations

from functools import partial

import numpy as np

from marrowscope.errors import DataError
from marrowscope.evaluate import costs, metrics
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import NO_IMAGES, Bootstrap, figure, proportion
from marrowscope.evaluate.headline import TOO_FEW
from marrowscope.evaluate.intervals import wilson_interval
from marrowscope.evaluate.metrics import Bools, Floats
from marrowscope.evaluate.ranking import one_vs_rest
from marrowscope.evaluate.tolerant import PUBLISHED, tolerance_matrix
from marrowscope.schema import ClassFigures, Figure


def separated_bounds(case: Case, c: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals of AUROC and average precision where the class stands apart from all others, both being 1.

    AUROC: pairs of an image of the class with one of another that share no image are independent, and all of them are
    in the right order; Wilson's interval of that. Average precision is at least recall times precision at any one
    threshold; at the one between the two it is reckoned with the lower Wilson end of the recall and the upper one of
    the share of others above it.
    """
    is_class = case.truth_N == c
    own, others = (len(np.unique(case.group_N[m])) for m in (is_class, ~is_class))
    pairs = min(own, others)
    recall, false = wilson_interval(own, own)[0], wilson_interval(0, others)[1]
    found = recall * own
    return (wilson_interval(pairs, pairs)[0], 1.0), (recall * found / (found + false * others), 1.0)


def _separated_end(case: Case, c: int, which: int) -> tuple[float, float]:
    return separated_bounds(case, c)[which]


def _mean_ends(figures: list[Figure]) -> tuple[float, float]:
    ends = [(0.0 if f.low is None else f.low, 1.0 if f.high is None else f.high) for f in figures]
    low, high = np.mean(ends, axis=0)
    return float(low), float(high)


def ranking_figures(
    case: Case, per_class: tuple[ClassFigures, ...], keep: Bools, bootstrap: Bootstrap
) -> tuple[tuple[ClassFigures, ...], dict[str, Figure]]:
    """AUROC and average precision per class and their macro means; a class needs images, and others beside it."""
    n, names = len(case), ("auroc", "average_precision")
    kept_n = int(sum(c.support for c, k in zip(per_class, keep, strict=True) if k))
    overall = {f"macro_{name}": figure(np.nan, None, 0, TOO_FEW if n else NO_IMAGES) for name in names}
    if not n:
        nothing = {name: figure(np.nan, None, 0, NO_IMAGES) for name in names}
        return tuple(c.model_copy(update=nothing) for c in per_class), overall

    def statistics(weights: Floats) -> dict[str, Floats]:
        return dict(zip(names, one_vs_rest(case.truth_N, case.probs_NC, weights), strict=True))

    values = {name: v[0] for name, v in statistics(np.ones((1, n))).items()}
    draws = bootstrap.run(case, statistics)
    figures: dict[str, list[Figure]] = {name: [] for name in names}
    for c in range(len(case.codes)):
        for i, name in enumerate(names):
            bounds = partial(_separated_end, case, c, i)
            figures[name].append(bootstrap.figure(float(values[name][c]), draws[name][:, c], n, case, bounds))
    for name in names:
        taken = keep & ~np.isnan(values[name])
        if taken.any():
            drawn = metrics.mean_where(np.nan_to_num(draws[name]), taken & ~np.isnan(draws[name]))
            bounds = partial(_mean_ends, [f for f, t in zip(figures[name], taken, strict=True) if t])
            value = float(values[name][taken].mean())
            overall[f"macro_{name}"] = bootstrap.figure(value, drawn, kept_n, case, bounds)
    out = [c.model_copy(update={name: figures[name][i] for name in names}) for i, c in enumerate(per_class)]
    return tuple(out), overall


def tolerant_figures(
    case: Case, per_class: tuple[ClassFigures, ...]
) -> tuple[tuple[ClassFigures, ...], dict[str, Figure]]:
    """Precision and recall per class, and accuracy, with neighbours counted as right; and what was published."""
    passes_N = tolerance_matrix(case.codes)[case.truth_N, case.predicted_N]
    out = []
    for i, c in enumerate(per_class):
        called, own = case.predicted_N == i, case.truth_N == i
        update = {
            "tolerant_precision": proportion(passes_N[called], case.group_N[called]),
            "tolerant_recall": proportion(passes_N[own], case.group_N[own]),
            "published": PUBLISHED.get(c.code),
        }
        out.append(c.model_copy(update=update))
    return tuple(out), {"tolerant_accuracy": proportion(passes_N, case.group_N)}


def cost_figures(case: Case, costs_CC: Floats | None, bootstrap: Bootstrap) -> dict[str, Figure]:
    """What errors cost.

    ``cost_error``: mean cost of an answer. ``line_accuracy``: share of answers of the right cell line (what is not
    counted being one line). ``maturation_error``: mean steps of maturation off, among the answers of the right line
    where truth and answer have a stage. Nothing where no costs are given; no line and no stage where the codes are not
    those of the collection.
    """
    if costs_CC is None:
        return {}
    cost_N = costs.costs_of(case.truth_N, case.predicted_N, costs_CC)
    out = {"cost_error": bootstrap.mean(cost_N, case, float(costs_CC.max()))}
    try:
        same, steps = costs.same_line(case.codes), costs.maturation_steps(case.codes)
    except DataError:
        return out
    out["line_accuracy"] = proportion(same[case.truth_N, case.predicted_N], case.group_N)
    steps_N = steps[case.truth_N, case.predicted_N]
    known = ~np.isnan(steps_N)
    out["maturation_error"] = bootstrap.mean(steps_N[known], case.only(known), float(np.nan_to_num(steps).max()))
    return out
