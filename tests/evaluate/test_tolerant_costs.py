"""Tolerant scoring and what errors cost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluate_cases import CODES, predictions, rows
from sklearn import metrics as sk

from marrowscope.cells import BY_CODE, CLASSES
from marrowscope.errors import FileFormatError
from marrowscope.evaluate import costs, evaluate_predictions, tolerant
from marrowscope.schema import Evaluation, Predictions

STAGES = ("BLA", "LYT", "MYB", "NGB", "NGS", "PMO")
ALL = tuple(c.code for c in CLASSES)


def test_the_relation_is_symmetric_and_of_known_classes() -> None:
    m = tolerant.tolerance_matrix(ALL)
    assert (m == m.T).all()
    assert m.diagonal().all()
    assert m.sum() == len(ALL) + 2 * len(tolerant.NEIGHBOURS)
    assert {c for pair in tolerant.NEIGHBOURS for c in pair} <= set(BY_CODE)
    assert not m[ALL.index("BLA"), ALL.index("MYB")]
    assert tolerant.neighbour_pairs(STAGES) == (("BLA", "PMO"), ("PMO", "MYB"), ("NGB", "NGS"))


def test_published_figures_differ_between_strict_and_tolerant_exactly_where_a_class_has_neighbours() -> None:
    assert set(tolerant.PUBLISHED) == set(ALL)
    has = {c for pair in tolerant.NEIGHBOURS for c in pair}
    for code, f in tolerant.PUBLISHED.items():
        differs = (f.tolerant_precision, f.tolerant_recall) != (f.precision, f.recall)
        assert differs == (code in has), code
        assert f.tolerant_precision >= f.precision
        assert f.tolerant_recall >= f.recall
    assert sum(f.n for f in tolerant.PUBLISHED.values()) == 171_374


def test_tolerant_figures_by_hand() -> None:
    p = predictions(31, codes=STAGES, skill=1.0)
    assert p.truth is not None
    e = evaluate_predictions(p)
    passes = {(a, b) for a, b in tolerant.NEIGHBOURS} | {(b, a) for a, b in tolerant.NEIGHBOURS}
    pairs = [(t, STAGES[i]) for t, i in zip(p.truth, p.probs_NC.argmax(1), strict=True)]
    right = [t == s or (t, s) in passes for t, s in pairs]
    assert e.figures["tolerant_accuracy"].value == pytest.approx(np.mean(right))
    for c in e.per_class:
        own = [r for r, (t, _) in zip(right, pairs, strict=True) if t == c.code]
        called = [r for r, (_, s) in zip(right, pairs, strict=True) if s == c.code]
        assert c.tolerant_recall is not None
        assert c.tolerant_precision is not None
        assert c.tolerant_recall.value == pytest.approx(np.mean(own))
        assert c.tolerant_precision.value == pytest.approx(np.mean(called))
        assert c.tolerant_recall.value >= c.recall.value  # type: ignore[operator]
        assert c.published == tolerant.PUBLISHED[c.code]
    lyt = e.per_class[1]
    assert lyt.tolerant_recall == lyt.recall  # its neighbours are not among these classes
    assert e.neighbours == (("BLA", "PMO"), ("PMO", "MYB"), ("NGB", "NGS"))
    assert e.published is not None
    assert "10.1182/blood.2020010568" in e.published


def test_default_costs_say_what_the_issue_asks() -> None:
    m = costs.default_costs(ALL)
    assert (m.diagonal() == 0).all()
    off = m[~np.eye(len(ALL), dtype=bool)]
    assert off.min() > 0
    assert off.max() <= 1

    def cost(truth: str, predicted: str) -> float:
        return float(m[ALL.index(truth), ALL.index(predicted)])

    assert cost("BLA", "LYT") > cost("NGB", "NGS")
    assert cost("BLA", "LYT") > cost("LYT", "BLA") > cost("MON", "LYT")
    assert cost("NGB", "NGS") < cost("MMZ", "NGS") < cost("PMO", "NGS") < cost("NGS", "EOS")
    assert cost("EOS", "ABE") == pytest.approx(0.1)
    assert cost("NIF", "ART") < cost("LYT", "NIF") < cost("NIF", "LYT")


def test_cost_figures_by_hand() -> None:
    p = predictions(32, codes=STAGES, skill=1.0)
    assert p.truth is not None
    e = evaluate_predictions(p)
    said = [STAGES[i] for i in p.probs_NC.argmax(1)]
    expected = np.mean([costs.default_cost(t, s) for t, s in zip(p.truth, said, strict=True)])
    f = e.figures["cost_error"]
    assert f.value == pytest.approx(expected)
    assert f.low < expected < f.high  # type: ignore[operator]
    assert e.costs_source == costs.DEFAULT_SOURCE
    assert np.array_equal(e.costs, costs.default_costs(STAGES))
    stage = {"BLA": 0, "PMO": 1, "MYB": 2, "NGB": 4, "NGS": 5}
    steps = [
        0 if t == s == "LYT" else abs(stage[t] - stage[s])
        for t, s in zip(p.truth, said, strict=True)
        if (t == "LYT") == (s == "LYT")
    ]
    assert e.figures["maturation_error"].value == pytest.approx(np.mean(steps))
    assert e.figures["maturation_error"].n == len(steps)
    assert e.figures["line_accuracy"].value == pytest.approx(len(steps) / 400)


def test_a_cost_of_1_for_every_error_is_the_error_rate(tmp_path: Path) -> None:
    p = predictions(33)
    assert p.truth is not None
    path = tmp_path / "costs.csv"
    costs.write_costs(path, CODES[::-1], 1.0 - np.eye(5))
    e = evaluate_predictions(p, costs=path)
    said = [CODES[i] for i in p.probs_NC.argmax(1)]
    assert e.figures["cost_error"].value == pytest.approx(sk.zero_one_loss(p.truth, said))
    assert e.costs_source == "costs.csv"


def test_costs_round_trip_and_take_the_order_of_the_codes(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    m = costs.default_costs(ALL)
    costs.write_costs(path, ALL, m)
    assert np.array_equal(costs.read_costs(path, ALL), m)
    assert np.array_equal(costs.read_costs(path, STAGES), costs.default_costs(STAGES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of costs"),
        ("truth,BLA\nBLA,0,1\n", "not a table of costs"),
        ("truth,BLA,LYT\nBLA,0,1\n", "no LYT in its rows"),
        ("truth,BLA\nBLA,0\nLYT,1\n", "no LYT in its columns"),
        ("truth,BLA,LYT\nBLA,0,x\nLYT,1,0\n", "not a number"),
        ("truth,BLA,LYT\nBLA,0,nan\nLYT,1,0\n", "0 or more"),
        ("truth,BLA,LYT\nBLA,0,-1\nLYT,1,0\n", "0 or more"),
        ("truth,BLA,LYT\nBLA,0.5,1\nLYT,1,0\n", "right answer costs 0"),
        ("truth,BLA,LYT\nBLA,0,1\nLYT,1,0\nBLA,0,1\n", "names a class twice"),
    ],
)
def test_costs_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        costs.read_costs(path, ("BLA", "LYT"))
    with pytest.raises(FileFormatError, match="Can't read"):
        costs.read_costs(tmp_path / "nowhere.csv", ("BLA", "LYT"))


def test_classes_that_are_not_of_the_collection_have_no_costs_and_nothing_published() -> None:
    p = predictions(34, n=100)
    assert p.truth is not None
    other = dict(zip(CODES, ("AAA", "BBB", "CCC", "DDD", "EEE"), strict=True))
    q = Predictions(p.paths, p.status, tuple(other.values()), p.probs_NC, tuple(other[t] for t in p.truth))
    e = evaluate_predictions(q, macro_minimum=5)
    assert e.costs == ()
    assert e.costs_source is None
    assert "cost_error" not in e.figures
    assert e.published is None
    assert e.neighbours == ()
    assert e.figures["tolerant_accuracy"].value == e.figures["accuracy"].value
    assert e.figures["accuracy"] == evaluate_predictions(p, macro_minimum=5).figures["accuracy"]


def _stages(seed: int) -> tuple[Predictions, list[str]]:
    """Answers with neighbours among their classes, and the names given."""
    p = predictions(seed, codes=STAGES, skill=1.0)
    return p, [STAGES[i] for i in p.probs_NC.argmax(1)]


def _weighed(e: Evaluation) -> dict[str, float | None]:
    """All figures of tolerance and of costs, by names that don't depend on the order of classes."""
    names = ("tolerant_accuracy", "cost_error", "line_accuracy", "maturation_error")
    out = {f"{n} {end}": getattr(e.figures[n], end) for n in names for end in ("value", "low", "high")}
    for c in e.per_class:
        for part in ("tolerant_precision", "tolerant_recall"):
            out |= {f"{c.code} {part} {end}": getattr(getattr(c, part), end) for end in ("value", "low", "high")}
    return out


def test_tolerant_figures_and_costs_are_those_of_scikit_learn() -> None:
    """A pass that is granted is written into the prediction, or into the truth, and then judged strictly."""
    p, said = _stages(36)
    assert p.truth is not None
    e = evaluate_predictions(p, draws=50)
    both = {*tolerant.NEIGHBOURS, *((b, a) for a, b in tolerant.NEIGHBOURS)}
    passed = [t == s or (t, s) in both for t, s in zip(p.truth, said, strict=True)]
    forgiven = [t if ok else s for t, s, ok in zip(p.truth, said, passed, strict=True)]
    accepted = [s if ok else t for t, s, ok in zip(p.truth, said, passed, strict=True)]
    assert e.figures["tolerant_accuracy"].value == pytest.approx(sk.accuracy_score(p.truth, forgiven), rel=1e-12)
    recall = sk.recall_score(p.truth, forgiven, labels=STAGES, average=None)
    precision = sk.precision_score(accepted, said, labels=STAGES, average=None)
    assert [c.tolerant_recall.value for c in e.per_class] == pytest.approx(recall.tolist(), rel=1e-12)  # type: ignore[union-attr]
    assert [c.tolerant_precision.value for c in e.per_class] == pytest.approx(precision.tolist(), rel=1e-12)  # type: ignore[union-attr]
    counts = sk.confusion_matrix(p.truth, said, labels=STAGES)
    mean = (counts * costs.default_costs(STAGES)).sum() / counts.sum()
    assert e.figures["cost_error"].value == pytest.approx(mean, rel=1e-12)
    lines = [[costs.line(BY_CODE[c]) for c in names] for names in (p.truth, said)]
    assert e.figures["line_accuracy"].value == pytest.approx(sk.accuracy_score(*lines), rel=1e-12)
    in_line = [(t, s) for t, s in zip(p.truth, said, strict=True) if (t == "LYT") == (s == "LYT")]
    stages = [[BY_CODE[c].maturation for c in names] for names in zip(*in_line, strict=True)]
    assert e.figures["maturation_error"].value == pytest.approx(sk.mean_absolute_error(*stages), rel=1e-12)


def test_order_of_rows_and_classes_and_known_copies_matter_to_no_tolerance_and_no_cost() -> None:
    p, _ = _stages(37)
    plain = _weighed(evaluate_predictions(p, draws=100))
    assert plain["tolerant_accuracy value"] > evaluate_predictions(p, draws=2).figures["accuracy"].value  # type: ignore[operator]
    rng = np.random.default_rng(0)
    order = [4, 1, 5, 0, 3, 2]
    turned = replace(p, codes=tuple(STAGES[i] for i in order), probs_NC=p.probs_NC[:, order])
    for other in (rows(p, rng.permutation(400)), turned):
        assert _weighed(evaluate_predictions(other, draws=100)) == pytest.approx(plain, abs=1e-9)
    twice = rows(p, np.concatenate([np.arange(400)] * 2))
    copies = _weighed(evaluate_predictions(twice, groups=twice.paths, draws=100))
    assert copies == pytest.approx(plain, abs=2e-3)


def test_stored_values_of_tolerance_and_costs() -> None:
    found = _weighed(evaluate_predictions(_stages(38)[0], draws=200, seed=1))
    for name, stored in STORED.items():
        assert tuple(found[f"{name} {end}"] for end in ("value", "low", "high")) == pytest.approx(stored, abs=2e-6), (
            name
        )


STORED = {
    "tolerant_accuracy": (0.585, 0.536129, 0.632254),
    "cost_error": (0.223, 0.199125, 0.250275),
    "line_accuracy": (0.8525, 0.8144, 0.883894),
    "maturation_error": (1.134897, 0.982258, 1.278739),
    "BLA tolerant_recall": (0.705882, 0.570009, 0.812913),
    "PMO tolerant_precision": (0.691176, 0.573632, 0.788276),
}
