"""Parts of the export: ranges against plain numpy, and the limits of the gate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marrowscope.export.calibrate import BINS, Histogram, coarseness, entropy, min_max, observe, percentile
from marrowscope.export.parity import Parity, Truth, compare_answers, explain

CODES = ("BLA", "LYT", "NGS")


def _histogram(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Histogram:
    counts, edges = np.histogram(values, BINS)
    return Histogram(float(edges[0]), float(edges[-1]), counts.astype(np.float64))


def test_quantiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(1, 2, 200_000)
    histogram = _histogram(values)
    a_bin = histogram.counts.max() / len(values)
    for share in (0.01, 0.3, 0.5, 0.99):
        assert np.mean(values <= histogram.quantile(share)) == pytest.approx(share, abs=1.5 * a_bin)
    low, high = percentile(histogram)
    assert np.mean(values < low) == pytest.approx(0.000005, abs=5e-6)
    assert np.mean(values > high) == pytest.approx(0.000005, abs=5e-6)


def test_a_lone_outlier_is_cut_off_by_all_but_min_max() -> None:
    values = np.append(np.random.default_rng(1).normal(0, 1, 500_000), 60.0)
    histogram = _histogram(values)
    assert min_max(histogram) == pytest.approx((values.min(), 60.0))
    for rule in (percentile, entropy):
        low, high = rule(histogram)
        assert -8 < low < -2
        assert 2 < high < 20
        assert coarseness(histogram, (low, high)) < coarseness(histogram, min_max(histogram)) / 2


def test_without_outliers_all_rules_take_nearly_everything() -> None:
    histogram = _histogram(np.random.default_rng(2).uniform(-1, 3, 500_000))
    for rule in (min_max, percentile, entropy):
        assert rule(histogram) == pytest.approx((-1, 3), abs=0.15)


def test_a_tensor_that_never_changes_has_a_range() -> None:
    counts = np.zeros(BINS)
    counts[0] = 100
    for rule in (min_max, percentile, entropy):
        low, high = rule(Histogram(0.0, 0.0, counts))
        assert (low, high) == (0.0, 0.0)


def test_observed_values_are_those_of_the_network() -> None:
    w = np.array([[1.0, -1.0], [2.0, 0.5], [0.25, 1.0]], np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Relu", ["y"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 4, 2])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto)
    pictures = np.random.default_rng(3).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    found = observe(proto, ["x", "y"], lambda: iter([pictures[:6], pictures[6:]]))
    x = pictures.astype(np.float32)
    for name, values in (("x", x), ("y", x @ w)):
        assert (found[name].low, found[name].high) == pytest.approx((values.min(), values.max()))
        assert found[name].counts.sum() == values.size
        assert found[name].quantile(0.5) == pytest.approx(np.median(values), abs=float(values.std()) / 20)


# ---------------------------------------------------------------------------------------------------------- the gate


def _compared(n: int, changed_wrong: int, changed_right: int = 0) -> tuple[Parity, str]:
    """All n cells are BLA and fp32 is right on all but `changed_right`, which the other file mends."""
    expected = np.tile([0.8, 0.1, 0.1], (n, 1))
    answered = expected.copy()
    expected[n - changed_right :] = [0.1, 0.8, 0.1]
    answered[:changed_wrong] = [0.1, 0.1, 0.8]
    truth = Truth(np.zeros(n, np.int64), np.arange(n), CODES)
    parity = compare_answers("int8", expected, answered, truth)
    return parity, explain(parity, expected, answered, CODES)


def test_the_gate_opens_at_its_limits_and_not_below() -> None:
    parity, _ = _compared(1000, 5, 5)  # 99.0 % the same, accuracy as before
    assert parity.passes
    assert parity.agreement is not None
    assert (parity.agreement.value, parity.agreement.n) == (0.99, 1000)
    assert parity.accuracy_change is not None
    assert parity.accuracy_change.value == 0
    assert not _compared(1000, 6, 5)[0].passes  # 98.9 % the same
    assert _compared(1000, 5)[0].passes  # 0.5 points lost
    assert not _compared(1000, 6)[0].passes  # 0.6 points lost, though 99.4 % are the same
    assert not _compared(50, 1)[0].passes  # a small part can't show 99 % with one change


def test_an_interval_goes_with_the_share_of_same_answers() -> None:
    agreement = _compared(1000, 5)[0].agreement
    assert agreement is not None
    assert agreement.method == "Wilson"
    assert (agreement.low, agreement.high) == pytest.approx((0.98835, 0.99786), abs=1e-4)


def test_the_refusal_names_the_classes_and_the_numbers() -> None:
    text = _compared(100, 3, 2)[1]
    assert "BLA to NGS 3, LYT to BLA 2" in text
    assert "0.950" in text
    assert "100 validation cells" in text


def test_int8_that_is_not_faster_says_so() -> None:
    slow, fast = (Parity(10, True, 0.01, "int8", speed=s, size=0.3) for s in (1.3, 1.31))
    assert (slow.pays, fast.pays, Parity(10, True, 0.0).pays) == (False, True, None)
    assert "int8 does not pay" in slow.lines()[-1]
    assert "does not pay" not in "".join(fast.lines())
