"""What must not matter to any figure of an evaluation, and a second library for the main ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from evaluate_cases import CODES, predictions, rows
from torchmetrics.functional import classification as tm

from marrowscope.evaluate import evaluate_predictions
from marrowscope.schema import Evaluation, Figure


@cache
def judged() -> Evaluation:
    return evaluate_predictions(predictions(20), validation=predictions(21), draws=200)


def _all_figures(e: Evaluation) -> dict[str, Figure]:
    """Every figure of an evaluation by a name that does not depend on the order of classes."""
    out = dict(e.figures)
    for c in e.per_class:
        parts = ("precision", "recall", "f1", "tolerant_precision", "tolerant_recall", "auroc", "average_precision")
        out |= {f"{c.code} {part}": getattr(c, part) for part in parts}
    for s in e.calibration:
        out |= {f"{s.scaling} {name}": f for name, f in s.figures.items()}
        out |= {f"{s.scaling} {code}": f for code, f in s.per_class.items()}
    for s in e.conformal:
        out |= {f"{s.method} {s.alpha} {name}": getattr(s, name) for name in ("coverage", "size", "single", "empty")}
        out |= {f"{s.method} {s.alpha} {code} {n}": f for code, d in s.per_class.items() for n, f in d.items()}
    for o in e.operating_points:
        out |= {f"{o.target} {o.chosen_on} {name}": getattr(o, name) for name in ("coverage", "accuracy")}
    return out


def _close(a: Evaluation, b: Evaluation, tolerance: float = 1e-6) -> None:
    x, y = _all_figures(a), _all_figures(b)
    assert x.keys() == y.keys()
    for name, f in x.items():
        g = y[name]
        for u, v in ((f.value, g.value), (f.low, g.low), (f.high, g.high)):
            assert (u is None) == (v is None), name
            assert u is None or u == pytest.approx(v, abs=tolerance), name


def test_order_of_rows_matters_to_no_figure() -> None:
    rng = np.random.default_rng(0)
    shuffled = [rows(predictions(s), rng.permutation(400)) for s in (20, 21)]
    assert evaluate_predictions(shuffled[0], validation=shuffled[1], draws=200) == judged()


def test_order_of_classes_matters_to_no_figure() -> None:
    order = [3, 0, 4, 1, 2]
    turned = [
        replace(p, codes=tuple(CODES[i] for i in order), probs_NC=p.probs_NC[:, order])
        for p in (predictions(20), predictions(21))
    ]
    # Newton's method stops a rounding error apart.
    _close(evaluate_predictions(turned[0], validation=turned[1], draws=200), judged(), 1e-6)


def test_duplicated_rows_matter_to_no_figure_where_they_are_known_to_be_copies() -> None:
    p = predictions(20)
    twice = rows(p, np.concatenate([np.arange(400)] * 2))
    e = evaluate_predictions(twice, groups=twice.paths, validation=predictions(21), draws=200)
    x, y = _all_figures(judged()), _all_figures(e)
    for name, f in x.items():
        g = y[name]
        assert g.n == 2 * f.n, name
        assert g.value == pytest.approx(f.value, abs=1e-9), name
        if "expected" not in name and "classwise" not in name and f.value not in {0.0, 1.0}:
            assert (g.low, g.high) == pytest.approx((f.low, f.high), abs=2e-3), name


def test_torchmetrics_finds_the_same() -> None:
    p = predictions(20)
    assert p.truth is not None
    probs, truth = torch.from_numpy(p.probs_NC), torch.tensor([CODES.index(t) for t in p.truth])
    e, n = judged(), len(CODES)
    theirs = {
        "accuracy": tm.multiclass_accuracy(probs, truth, n, average="micro"),
        "balanced_accuracy": tm.multiclass_accuracy(probs, truth, n, average="macro"),
        "top2_accuracy": tm.multiclass_accuracy(probs, truth, n, average="micro", top_k=2),
        "macro_f1": tm.multiclass_f1_score(probs, truth, n, average="macro"),
        "weighted_precision": tm.multiclass_precision(probs, truth, n, average="weighted"),
        "cohen_kappa": tm.multiclass_cohen_kappa(probs, truth, n),
        "matthews": tm.multiclass_matthews_corrcoef(probs, truth, n),
        "macro_auroc": tm.multiclass_auroc(probs, truth, n, average="macro"),
        "macro_average_precision": tm.multiclass_average_precision(probs, truth, n, average="macro"),
    }
    for name, value in theirs.items():
        assert e.figures[name].value == pytest.approx(float(value), abs=1e-5), name
