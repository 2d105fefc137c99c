"""Figures of robustness and of novelty, from answers and scores alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from marrowscope.evaluate.robustness import CONDITIONS, robustness_figures
from marrowscope.evaluate.strangers import Strangers, false_positive_rates, novelty_figures
from marrowscope.schema import CardNovelty, Novelty, Robustness

N = 300


def _right(seed: int = 0) -> tuple[np.ndarray, dict[tuple[str, int], np.ndarray]]:
    """Right answers that become fewer with the strength, by a planted rate."""
    rng = np.random.default_rng(seed)
    clean = rng.random(N) < 0.9
    return clean, {(k, s): clean & (rng.random(N) < 1 - 0.1 * s) for k, s in CONDITIONS}


def _judge(clean: np.ndarray, right: dict[tuple[str, int], np.ndarray], group: np.ndarray | None = None) -> Robustness:
    groups = np.arange(len(clean)) if group is None else group
    return robustness_figures(clean, right, groups, model="m", seed=0, draws=400)  # type: ignore[arg-type]


def test_means_and_drops_by_hand() -> None:
    clean, right = _right()
    r = _judge(clean, right)
    assert [k.kind for k in r.kinds] == ["stain", "brightness", "blur", "jpeg", "scale", "rotation"]
    assert r.clean.value == pytest.approx(clean.mean())
    assert r.accuracy.value == pytest.approx(np.mean([h.mean() for h in right.values()]))
    assert r.relative_drop.value == pytest.approx(1 - r.accuracy.value / clean.mean())  # type: ignore[operator]
    assert r.relative_drop.value == pytest.approx(0.3, abs=0.03), "what was planted"
    for kind in r.kinds:
        assert kind.accuracy.value == pytest.approx(np.mean([p.accuracy.value for p in kind.points]))  # type: ignore[arg-type]
        for p in kind.points:
            hits = right[kind.kind, p.strength]
            assert p.accuracy.value == pytest.approx(hits.mean())
            assert p.accuracy.method == "Wilson"
            assert p.change.value == pytest.approx(hits.mean() - clean.mean())
            assert p.relative_drop.low < p.relative_drop.value < p.relative_drop.high  # type: ignore[operator]
    assert [p.amount for p in r.kinds[3].points] == [25, 18, 15, 10, 7]
    assert Robustness.model_validate_json(r.model_dump_json()) == r
    stored = (r.accuracy.value, r.accuracy.low, r.accuracy.high, r.relative_drop.low)
    assert stored == pytest.approx(STORED, abs=1e-6)


STORED = (0.597667, 0.574547, 0.626683, 0.295178)


def test_the_interval_of_the_mean_is_that_of_cells_and_not_of_answers() -> None:
    """30 answers for a cell are no 30 cells: against the normal interval of the cells' means."""
    clean, right = _right(1)
    r = _judge(clean, right)
    means = np.mean([right[c] for c in CONDITIONS], axis=0)
    width = 2 * 1.96 * means.std() / np.sqrt(N)
    assert r.accuracy.high - r.accuracy.low == pytest.approx(width, rel=0.15)  # type: ignore[operator]


def test_duplicated_cells_of_one_group_change_nothing() -> None:
    clean, right = _right(2)
    once = _judge(clean, right)
    twice = _judge(np.tile(clean, 2), {c: np.tile(h, 2) for c, h in right.items()}, np.tile(np.arange(N), 2))
    for a, b in ((once.accuracy, twice.accuracy), (once.relative_drop, twice.relative_drop)):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_all_wrong_has_no_relative_drop() -> None:
    nothing = np.zeros(5, bool)
    r = _judge(nothing, dict.fromkeys(CONDITIONS, nothing))
    assert r.relative_drop.value is None
    assert r.accuracy.value == 0


# ------------------------------------------------------------------------------------------------------------ novelty


@pytest.mark.parametrize("levels", [None, 7])
def test_the_false_positive_rate_is_that_of_scikit_learns_curve(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    known, strange = rng.normal(0, 1, 400), rng.normal(1, 1, 250)
    if levels:
        known, strange = np.round(known * 2) / 2, np.round(strange * 2) / 2
    # There, the known are the positive class, and a low score speaks for them.
    fpr, tpr, _ = roc_curve(np.r_[np.ones(400), np.zeros(250)], -np.r_[known, strange], drop_intermediate=False)
    theirs = fpr[np.flatnonzero(tpr >= 0.95 - 1e-12)[0]]
    assert false_positive_rates(known, strange, np.ones((1, 650)))[0] == pytest.approx(theirs)
    # A weight of 2 is a cell twice.
    weights = rng.integers(0, 3, (1, 650)).astype(float)
    repeated = [np.repeat(x, w.astype(int)) for x, w in ((known, weights[0, :400]), (strange, weights[0, 400:]))]
    ours = false_positive_rates(*repeated, np.ones((1, sum(map(len, repeated)))))
    assert false_positive_rates(known, strange, weights) == pytest.approx(ours)


def _strangers(groups: int = 200, source: bool = False) -> tuple[dict[str, np.ndarray], Strangers]:
    rng = np.random.default_rng(1)
    known = {"energy": rng.normal(0, 1, 300), "mahalanobis": rng.normal(0, 1, 300)}
    scores = {"energy": rng.normal(0.2, 1, 200), "mahalanobis": rng.normal(2, 1, 200)}
    names = [f"g{i % groups}" for i in range(200)]
    return known, Strangers("odd", "drawn", names, scores, source_M=np.arange(200) if source else None)


def _novelty(known: dict[str, np.ndarray], *strangers: Strangers) -> Novelty:
    card = CardNovelty(method="mahalanobis", threshold=1.645, kept=0.95, fitted_on=100)
    return novelty_figures(
        known, np.arange(300), strangers, card, chosen_by={"tiles": {"energy": 0.6}}, left_out={"x": "y"}, draws=300
    )


def test_novelty_by_kind_and_method() -> None:
    known, strangers = _strangers()
    found = _novelty(known, strangers)
    (kind,) = found.kinds
    for method, score in kind.scores.items():
        both = np.r_[known[method], strangers.scores[method]]
        assert score.auroc.value == pytest.approx(roc_auc_score([0] * 300 + [1] * 200, both))
        for f in (score.auroc, score.fpr_at_95):
            assert f.low < f.value < f.high  # type: ignore[operator]
            assert f.n == 200
    assert kind.flagged.value == pytest.approx((strangers.scores["mahalanobis"] > 1.645).mean())
    assert found.flagged.value == pytest.approx((known["mahalanobis"] > 1.645).mean())
    assert Novelty.model_validate_json(found.model_dump_json()) == found
    auroc = kind.scores["mahalanobis"].auroc
    assert (auroc.value, auroc.low, auroc.high) == pytest.approx(STORED_AUROC, abs=1e-6)


STORED_AUROC = (0.924933, 0.901101, 0.947157)


def test_pieces_of_few_photographs_leave_more_doubt() -> None:
    known, alone = _strangers()
    _, grouped = _strangers(groups=5)
    rng = np.random.default_rng(2)
    shifted = (
        alone.scores["mahalanobis"]
        + np.repeat(rng.normal(0, 1, 5), 40)[np.argsort(np.arange(200) % 5, kind="stable").argsort()]
    )
    widths = []
    for s in (alone, grouped):
        changed = Strangers(s.name, s.description, s.groups, {**s.scores, "mahalanobis": shifted})
        f = _novelty(known, changed).kinds[0].scores["mahalanobis"].auroc
        widths.append(f.high - f.low)  # type: ignore[operator]
    assert widths[1] > 1.5 * widths[0]
    assert "5 groups" in _novelty(known, grouped).kinds[0].scores["energy"].auroc.method


def test_perfect_separation_is_not_certainty_and_the_order_does_not_matter() -> None:
    known = {"mahalanobis": np.linspace(0, 1, 300)}
    far = Strangers("far", "drawn", [str(i) for i in range(50)], {"mahalanobis": np.linspace(5, 6, 50)})
    score = _novelty(known, far).kinds[0].scores["mahalanobis"]
    assert (score.auroc.value, score.fpr_at_95.value) == (1, 0)
    assert score.auroc.low < 0.95  # type: ignore[operator]
    assert score.fpr_at_95.high > 0.05  # type: ignore[operator]
    known2, s = _strangers(source=True)
    order = np.random.default_rng(3).permutation(200)
    turned = Strangers(
        s.name,
        s.description,
        [s.groups[i] for i in order],
        {m: v[order] for m, v in s.scores.items()},
        source_M=s.source_M[order],
    )  # type: ignore[index]
    a, b = (_novelty(known2, x).kinds[0].scores["mahalanobis"] for x in (s, turned))
    assert (a.auroc.value, a.auroc.low) == pytest.approx((b.auroc.value, b.auroc.low))


def test_order_of_cells_and_known_copies_change_no_figure_of_strangers() -> None:
    known, s = _strangers(groups=40)
    plain = _novelty(known, s).kinds[0]
    order = np.random.default_rng(4).permutation(200)
    turned = Strangers(s.name, s.description, [s.groups[i] for i in order], {m: v[order] for m, v in s.scores.items()})
    copied = Strangers(s.name, s.description, [*s.groups, *s.groups], {m: np.tile(v, 2) for m, v in s.scores.items()})
    for other in (turned, copied):
        found = _novelty(known, other).kinds[0]
        assert found.flagged.value == pytest.approx(plain.flagged.value)
        for method, score in plain.scores.items():
            for name in ("auroc", "fpr_at_95"):
                a, b = getattr(score, name), getattr(found.scores[method], name)
                assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), abs=1e-9)
    fpr = plain.scores["mahalanobis"].fpr_at_95
    assert (fpr.value, fpr.low, fpr.high) == pytest.approx(STORED_FPR, abs=1e-6)


STORED_FPR = (0.3, 0.235, 0.45025)


def test_order_of_cells_changes_no_figure_of_robustness() -> None:
    clean, right = _right(3)
    order = np.random.default_rng(5).permutation(N)
    plain = _judge(clean, right)
    turned = _judge(clean[order], {c: h[order] for c, h in right.items()}, np.arange(N)[order])
    for a, b in zip([plain, *plain.kinds], [turned, *turned.kinds], strict=True):
        for name in ("accuracy", "relative_drop"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x.value, x.low, x.high) == pytest.approx((y.value, y.low, y.high), abs=1e-9)
