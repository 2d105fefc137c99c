"""Planted label errors are found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from marrowscope.data.label_errors import find_label_errors, join_folds, probable_errors
from marrowscope.errors import DataError, MissingExtraError
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


@pytest.mark.parametrize("seed", range(3))
def test_planted_errors_are_found_and_few_others(seed: int) -> None:
    truth, probs = sample(2000, 5.0, seed)
    labels = truth.copy()
    planted = np.arange(0, 2000, 20)
    labels[planted] = (labels[planted] + 1) % len(CODES)
    suggested = probable_errors(probs, labels)
    found = np.flatnonzero(suggested >= 0)
    right = np.intersect1d(found, planted)
    assert len(right) >= 0.8 * len(planted)
    assert len(right) >= 0.8 * len(found)
    assert (suggested[right] == truth[right]).mean() > 0.98


def test_nothing_is_found_where_all_labels_fit() -> None:
    truth, probs = sample(300, 20.0)
    assert set(probable_errors(probs, truth).tolist()) == {-1}


def test_small_worked_case() -> None:
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05]])
    # Class 0: mean (0.9 + 0.7) / 2 = 0.8; class 1: (0.8 + 0.05) / 2 = 0.425. Only the last reaches another class.
    assert probable_errors(probs, np.array([0, 0, 1, 1])).tolist() == [-1, -1, -1, 0]
    assert probable_errors(probs, np.array([0, 0, 0, 0])).tolist() == [-1, -1, -1, -1]


def test_a_class_without_a_picture_is_never_suggested() -> None:
    truth, probs = sample(400, 5.0)
    probs[:, 3] = 0.9
    labels = np.minimum(truth, 2)
    labels[::20] = (labels[::20] + 1) % 3
    found = probable_errors(probs, labels)
    assert (found >= 0).any()
    assert found.max() <= 2


def test_order_of_classes_and_pictures_does_not_matter() -> None:
    truth, probs = sample(300, 2.0, 1)
    labels = np.random.default_rng(2).permutation(truth)
    want = probable_errors(probs, labels)
    pictures, classes = np.random.default_rng(3).permutation(300), np.array([2, 0, 3, 1])
    got = probable_errors(probs[pictures][:, classes], np.argsort(classes)[labels[pictures]])
    assert np.where(got >= 0, classes[got], -1).tolist() == want[pictures].tolist()


def test_without_cleanlab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingExtraError, match=r"marrowscope\[audit\]"):
        probable_errors(np.eye(2), np.array([0, 1]))


def predictions(paths: list[str], probs: np.ndarray) -> Predictions:
    return Predictions(tuple(paths), (OK,) * len(paths), CODES, probs)


def test_tables_of_folds_are_joined() -> None:
    _, probs = sample(6, 3.0)
    whole = predictions([f"{i}.jpg" for i in range(6)], probs)
    folds = {Path(f"{f}.csv"): predictions([f"{i}.jpg" for i in range(f, 6, 2)], probs[f::2]) for f in range(2)}
    joined = join_folds(folds)
    assert sorted(joined.paths) == list(whole.paths)
    assert all((joined.probs_NC[joined.paths.index(p)] == whole.probs_NC[i]).all() for i, p in enumerate(whole.paths))
    other = Predictions(("9.jpg",), (OK,), ("BLA", "PMO"), np.array([[0.5, 0.5]]))
    with pytest.raises(DataError, match=r"other.csv is of the classes BLA PMO, and 0.csv of BLA EOS LYT MON"):
        join_folds({**folds, Path("other.csv"): other})


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
