"""Risk and coverage against scikit-learn's and torchmetrics' curves, whose sweep over thresholds is the same one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_curve
from torchmetrics.functional.classification import binary_precision_recall_curve

from marrowscope.evaluate import selective


def _answers(seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.random(400)
    right = rng.random(400) < 0.6 + 0.4 * confidence
    return (confidence if levels is None else np.ceil(confidence * levels) / levels), right


CASES = pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, None), (2, 12), (3, 50)])


@CASES
def test_the_curve_is_that_of_scikit_learns_roc_curve(seed: int, levels: int | None) -> None:
    """Right answers as the positive class: what is answered are the true and false positives together."""
    confidence, right = _answers(seed, levels)
    false, true, thresholds = roc_curve(right, confidence, drop_intermediate=False)
    hits, misses = (true * right.sum())[1:], (false * (~right).sum())[1:]  # the first threshold answers nothing
    ours = selective.risk_coverage(confidence, right)
    for mine, theirs in zip(ours, (thresholds[1:], (hits + misses) / 400, misses / (hits + misses)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-7)


@CASES
def test_areas_and_coverages_are_those_of_scikit_learns_precision(seed: int, levels: int | None) -> None:
    confidence, right = _answers(seed, levels)
    precision, recall, _ = precision_recall_curve(right, confidence)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]  # without the made-up last point, by rising coverage
    some = precision > 0
    coverage = np.divide(recall * right.sum(), precision * 400, out=np.zeros_like(recall), where=some)
    assert some.all(), "the most confident answers are right in these cases"
    found = selective.selective_statistics(confidence, right)
    area = float(((1 - precision) * np.diff(coverage, prepend=0.0)).sum())
    assert found["aurc_error"][0] == pytest.approx(area, abs=1e-6)
    wrong = 1 - right.mean()
    assert found["excess_aurc_error"][0] == pytest.approx(area - (wrong + (1 - wrong) * np.log1p(-wrong)), abs=1e-6)
    for target in selective.TARGETS:
        reached = coverage[precision >= target - 1e-12]
        assert found[selective.coverage_name(target)][0] == pytest.approx(reached.max(initial=0.0), abs=1e-6)


@CASES
def test_thresholds_are_those_of_torchmetrics(seed: int, levels: int | None) -> None:
    confidence, right = _answers(seed, levels)
    precision, _, thresholds = binary_precision_recall_curve(
        torch.from_numpy(confidence), torch.from_numpy(right).int()
    )
    for target in selective.TARGETS:
        reached = thresholds[precision[:-1] >= target - 1e-6]
        ours = selective.threshold_for(confidence, right, target)
        assert (ours is None) == (not len(reached))
        assert ours is None or ours == pytest.approx(float(reached.min()), abs=1e-6)


def test_names_of_the_answers_do_not_matter() -> None:
    """The curve asks how sure and whether right; a rising change of the confidence moves thresholds alone."""
    confidence, right = _answers(4, None)
    plain, changed = (selective.selective_statistics(c, right) for c in (confidence, np.exp(3 * confidence)))
    for name, value in plain.items():
        assert changed[name] == pytest.approx(value, rel=1e-6), name
    stored = [float(plain[name][0]) for name in ("aurc_error", "excess_aurc_error", "coverage_at_95", "coverage_at_98")]
    assert stored == pytest.approx(STORED, abs=1e-6)


STORED = (0.073661, 0.060550, 0.385, 0.0775)
