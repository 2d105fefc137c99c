"""Planted label errors are found."""

from __future__ import annotations

import numpy as np
import pytest

from marrowscope.data.label_errors import confident_disagreement, find_label_errors
from marrowscope.errors import DataError
from marrowscope.schema import OK, IndexRow, Predictions

CODES = ("BLA", "EOS", "LYT", "MON")


def sample(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True classes and the probabilities of a model that is right most of the time."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CODES), n)
    logits = rng.normal(size=(n, len(CODES)))
    logits[np.arange(n), truth] += sharpness
    e = np.exp(logits)
    return truth, e / e.sum(1, keepdims=True)


def test_planted_errors_are_found_and_few_others() -> None:
    truth, probs = sample(2000, 5.0)
    labels = truth.copy()
    planted = np.arange(0, 2000, 20)
    labels[planted] = (labels[planted] + 1) % len(CODES)
    suggested = confident_disagreement(probs, labels)
    found = np.flatnonzero(suggested >= 0)
    right = np.intersect1d(found, planted)
    assert len(right) >= 0.8 * len(planted)
    assert len(right) >= 0.9 * len(found)
    assert (suggested[right] == truth[right]).mean() > 0.98


def test_small_worked_case() -> None:
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05]])
    # Class 0: mean (0.9 + 0.7) / 2 = 0.8; class 1: (0.8 + 0.05) / 2 = 0.425. Only the last reaches another class.
    assert confident_disagreement(probs, np.array([0, 0, 1, 1])).tolist() == [-1, -1, -1, 0]
    assert confident_disagreement(probs, np.array([0, 0, 0, 0])).tolist() == [-1, -1, -1, -1]


def test_order_of_classes_and_pictures_does_not_matter() -> None:
    truth, probs = sample(300, 2.0, 1)
    labels = np.random.default_rng(2).permutation(truth)
    want = confident_disagreement(probs, labels)
    pictures, classes = np.random.default_rng(3).permutation(300), np.array([2, 0, 3, 1])
    got = confident_disagreement(probs[pictures][:, classes], np.argsort(classes)[labels[pictures]])
    assert np.where(got >= 0, classes[got], -1).tolist() == want[pictures].tolist()


def predictions(paths: list[str], probs: np.ndarray) -> Predictions:
    return Predictions(tuple(paths), (OK,) * len(paths), CODES, probs)


def test_from_index_and_predictions() -> None:
    truth, probs = sample(400, 5.0)
    paths = [f"{i:04}.jpg" for i in range(400)]
    labels = [CODES[t] for t in truth]
    labels[7] = CODES[(truth[7] + 1) % 4]
    index = [IndexRow(p, c, 1, 1, 1, p, OK) for p, c in zip(paths, labels, strict=True)]
    index += [IndexRow("x.jpg", "PMO", 1, 1, 1, "x", OK), IndexRow("y.jpg", "BLA", 1, 1, 1, "y", "broken")]
    more = np.vstack([probs, np.full((3, 4), 0.25)])
    errors = find_label_errors(index, predictions([*paths, "x.jpg", "y.jpg", "z.jpg"], more))
    assert errors[0][:3] == ("0007.jpg", labels[7], CODES[truth[7]])
    assert [e.margin for e in errors] == sorted((e.margin for e in errors), reverse=True)
    assert not {"x.jpg", "y.jpg", "z.jpg"} & {e.path for e in errors}
    with pytest.raises(DataError, match=r"first prediction is of 'elsewhere/a.jpg'"):
        find_label_errors(index, predictions(["elsewhere/a.jpg"], probs[:1]))
    with pytest.raises(DataError, match="twice"):
        find_label_errors(index, predictions(["0001.jpg", "0001.jpg"], probs[:2]))
