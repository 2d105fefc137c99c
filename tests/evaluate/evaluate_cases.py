"""Predictions for the tests of evaluation, drawn by seed, and comparisons of evaluations."""

import math

import numpy as np

from marrowscope.schema import Evaluation, Figure, Predictions

CODES = ("BLA", "EOS", "LYT", "MON", "NGS")


def predictions(seed: int = 0, n: int = 400, skill: float = 2.0, codes: tuple[str, ...] = CODES) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(codes), size=n, p=np.linspace(1, 2, len(codes)) / np.linspace(1, 2, len(codes)).sum())
    logits = rng.normal(size=(n, len(codes)))
    logits[np.arange(n), truth] += skill
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    names = tuple(f"{seed}/cell_{i:05}.jpg" for i in range(n))
    return Predictions(names, ("ok",) * n, codes, probs, tuple(codes[i] for i in truth))


def rows(p: Predictions, order: np.ndarray) -> Predictions:
    assert p.truth is not None
    return Predictions(
        tuple(p.paths[i] for i in order),
        tuple(p.status[i] for i in order),
        p.codes,
        p.probs_NC[order],
        tuple(p.truth[i] for i in order),
    )


def same(a: Figure, b: Figure) -> None:
    assert (a.n, a.method) == (b.n, b.method)
    for x, y in ((a.value, b.value), (a.low, b.low), (a.high, b.high)):
        assert x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12))


def same_figures(a: Evaluation, b: Evaluation) -> None:
    assert a.figures.keys() == b.figures.keys()
    for name in a.figures:
        same(a.figures[name], b.figures[name])
    by_code = {c.code: c for c in b.per_class}
    for c in a.per_class:
        d = by_code[c.code]
        assert (c.support, c.predicted) == (d.support, d.predicted)
        for part in ("precision", "recall", "f1"):
            same(getattr(c, part), getattr(d, part))
