"""Tolerant scoring and what errors cost."""

from pathlib import Path

import numpy as np
import pytest
from evaluate_cases import CODES, predictions
from sklearn import metrics as sk

from marrowscope.cells import BY_CODE, CLASSES
from marrowscope.errors import FileFormatError
from marrowscope.evaluate import costs, evaluate_predictions, tolerant
from marrowscope.schema import Predictions

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
