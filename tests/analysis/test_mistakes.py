"""Lists of cells to look at: against scikit-learn and scipy, in any order of rows, and with planted mistakes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import confusion_matrix

from marrowscope.analysis import analyse_predictions, studies
from marrowscope.analysis.mistakes import confident_mistakes, confused_pairs, entropy, label_candidates, uncertain_cells
from marrowscope.evaluate.case import Case, make_case
from marrowscope.evaluate.intervals import wilson_interval
from marrowscope.schema import OK, Predictions

CODES = ("BLA", "EOS", "LYT", "PMO")


def _predictions(n: int = 240, seed: int = 0, codes: tuple[str, ...] = CODES) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(codes), n)
    logits = rng.normal(0, 1.2, (n, len(codes)))
    logits[np.arange(n), truth] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    paths = tuple(f"{codes[t]}/{i:04d}.jpg" for i, t in enumerate(truth))
    return Predictions(paths, (OK,) * n, codes, probs, tuple(codes[t] for t in truth))


def _case(predictions: Predictions) -> tuple[Case, tuple[str, ...]]:
    return make_case(predictions, None, "test"), tuple(sorted(predictions.paths))


def test_entropy_is_scipys() -> None:
    p = _predictions().probs_NC
    np.testing.assert_allclose(entropy(p), scipy_entropy(p, axis=1) / np.log(4), rtol=1e-12)
    np.testing.assert_array_equal(entropy(np.array([[1.0, 0.0], [0.5, 0.5]])), [0.0, 1.0])


def test_pairs_are_the_largest_of_the_confusion_matrix() -> None:
    predictions = _predictions()
    case, paths = _case(predictions)
    pairs = confused_pairs(case, paths)
    assert predictions.truth is not None
    answers = [CODES[i] for i in predictions.probs_NC.argmax(1)]
    matrix = confusion_matrix(predictions.truth, answers, labels=CODES)
    off = {(CODES[i], CODES[j]): int(matrix[i, j]) for i in range(4) for j in range(4) if i != j and matrix[i, j]}
    assert {(p.truth, p.predicted): p.count for p in pairs} == dict(sorted(off.items(), key=lambda x: -x[1])[:10])
    assert [p.count for p in pairs] == sorted((p.count for p in pairs), reverse=True)
    for p in pairs:
        own = int(matrix[CODES.index(p.truth)].sum())
        assert (p.share.low, p.share.high) == pytest.approx(wilson_interval(p.count, own))
        assert p.neighbours == ({p.truth, p.predicted} == {"BLA", "PMO"})
        sure = [predictions.probs_NC[predictions.paths.index(e)].max() for e in p.examples]
        assert len(sure) == min(6, p.count)
        assert sure == sorted(sure, reverse=True)
        assert {answers[predictions.paths.index(e)] for e in p.examples} == {p.predicted}


def test_the_order_of_rows_does_not_matter() -> None:
    p = _predictions()
    order = np.random.default_rng(5).permutation(len(p.paths))
    assert p.truth is not None
    mixed = Predictions(
        tuple(p.paths[i] for i in order), p.status, p.codes, p.probs_NC[order], tuple(p.truth[i] for i in order)
    )
    assert analyse_predictions(p, doubt_labels=False) == analyse_predictions(mixed, doubt_labels=False)


def test_confident_mistakes_and_uncertain_cells_are_the_extremes() -> None:
    p = _predictions()
    case, paths = _case(p)
    assert p.truth is not None
    wrong = [i for i, t in enumerate(p.truth) if CODES[p.probs_NC[i].argmax()] != t]
    sure = sorted(wrong, key=lambda i: -p.probs_NC[i].max())[:24]
    found = confident_mistakes(case, paths)
    assert [c.path for c in found] == [p.paths[i] for i in sure]
    assert all(c.truth != c.predicted for c in found)
    spread = sorted(range(len(p.paths)), key=lambda i: -scipy_entropy(p.probs_NC[i]))[:24]
    uncertain = uncertain_cells(case, paths)
    assert [c.path for c in uncertain] == [p.paths[i] for i in spread]
    first, top = uncertain[0], np.sort(p.probs_NC[spread[0]])[::-1]
    assert (first.confidence, first.margin) == pytest.approx((top[0], top[0] - top[1]), abs=1e-6)
    assert first.predicted != first.runner_up


def test_a_planted_wrong_label_is_found_first() -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    rng = np.random.default_rng(1)
    truth = np.arange(200) % 4
    probs = rng.dirichlet([0.3] * 4, 200) * 0.1
    probs[np.arange(200), truth] += 0.9
    labels = [CODES[t] for t in truth]
    labels[17] = CODES[(truth[17] + 2) % 4]
    p = Predictions(tuple(f"{i:03d}.jpg" for i in range(200)), (OK,) * 200, CODES, probs, tuple(labels))
    found, basis = label_candidates(*_case(p), "test")
    assert [(c.path, c.label, c.suggested) for c in found] == [("017.jpg", labels[17], CODES[truth[17]])]
    assert found[0].margin == pytest.approx(found[0].suggested_probability - found[0].label_probability, abs=1e-6)
    assert "the 200 cells of the test part" in basis
    assert "expert" in basis


def test_labels_that_the_model_learned_are_not_doubted() -> None:
    found, why = label_candidates(*_case(_predictions()), "train")
    assert not found
    assert "trained on these cells" in why


def test_without_cleanlab_the_basis_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    found, why = label_candidates(*_case(_predictions()), "test")
    assert not found
    assert "cleanlab" in why
    assert "pip install" in why


def test_failed_rows_count_nowhere() -> None:
    p = _predictions(60)
    probs = p.probs_NC.copy()
    probs[:5] = np.nan
    broken = Predictions(p.paths, ("empty file",) * 5 + (OK,) * 55, p.codes, probs, p.truth)
    found = analyse_predictions(broken, doubt_labels=False)
    assert found.n == 55
    assert not set(p.paths[:5]) & {c.path for c in (*found.uncertain, *found.confident_mistakes)}


def test_nothing_to_analyse() -> None:
    p = Predictions(("a.jpg",), ("empty file",), CODES, np.full((1, 4), np.nan), ("BLA",))
    found = analyse_predictions(p)
    assert found.n == 0
    assert not found.pairs
    assert not found.uncertain


def test_studies_stand_beside_the_same_classes_only() -> None:
    seven = ("BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO")
    p = _predictions(400, codes=(*seven, "ART"))
    case, _ = _case(p)
    first, *others = studies.beside(case)
    assert p.truth is not None
    own = [i for i, t in enumerate(p.truth) if t in seven]
    hits = sum(p.codes[p.probs_NC[i].argmax()] == p.truth[i] for i in own)
    assert first.accuracy == 0.867
    assert first.here is not None
    assert (first.here.value, first.here.n) == (pytest.approx(hits / len(own)), len(own))
    assert all(s.here is None for s in others)
    assert all(s.here is None for s in studies.beside(_case(_predictions())[0]))


def test_stored_values() -> None:
    case, paths = _case(_predictions(seed=3))
    found = [(p.truth, p.predicted, p.count) for p in confused_pairs(case, paths)[:3]]
    assert found == STORED_PAIRS
    first = uncertain_cells(case, paths)[0]
    assert (first.entropy, first.confidence, first.margin) == pytest.approx(STORED_UNCERTAIN, abs=2e-6)


STORED_PAIRS = [("LYT", "BLA", 11), ("BLA", "EOS", 10), ("LYT", "EOS", 10)]
STORED_UNCERTAIN = (0.992452, 0.291585, 0.023201)
