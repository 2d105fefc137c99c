"""The metrics against scikit-learn, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from marrowscope.evaluate import metrics

C = 5


def cells(seed: int, n: int = 300, classes: int = C) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uneven truth, probabilities that are often right, and the prediction."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, size=n, p=rng.dirichlet(np.full(classes, 2.0)))
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), truth] += 1.5
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    return truth, probs, probs.argmax(1)


SEEDS = pytest.mark.parametrize("seed", range(8))


@SEEDS
def test_matrix_scores_are_those_of_scikit_learn(seed: int) -> None:
    truth, _, predicted = cells(seed)
    labels = np.arange(C)
    m = metrics.confusion_matrix(truth, predicted, C)
    assert (m == sk.confusion_matrix(truth, predicted, labels=labels)).all()
    assert m.dtype == np.int64

    def close(value: object, expected: object) -> None:
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)

    close(metrics.accuracy_score(m), sk.accuracy_score(truth, predicted))
    close(metrics.balanced_accuracy_score(m), sk.balanced_accuracy_score(truth, predicted))
    close(metrics.cohen_kappa_score(m), sk.cohen_kappa_score(truth, predicted))
    close(metrics.matthews_score(m), sk.matthews_corrcoef(truth, predicted))
    p, r, f, _ = sk.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=np.nan)
    close(metrics.precision_scores(m), p)
    close(metrics.recall_scores(m), r)
    close(metrics.f1_scores(m), f)
    everything = np.ones(C, dtype=bool)
    for scores, expected in (
        (metrics.precision_scores(m), sk.precision_score),
        (metrics.recall_scores(m), sk.recall_score),
        (metrics.f1_scores(m), sk.f1_score),
    ):
        close(metrics.macro_score(scores, m, everything), expected(truth, predicted, average="macro", zero_division=0))
        close(metrics.weighted_score(scores, m), expected(truth, predicted, average="weighted", zero_division=0))


@SEEDS
def test_probability_metrics_are_those_of_scikit_learn(seed: int) -> None:
    truth, probs, _ = cells(seed)
    labels = np.arange(C)
    assert metrics.log_losses(truth, probs).mean() == pytest.approx(sk.log_loss(truth, probs, labels=labels), rel=1e-12)
    for k in range(1, C):
        expected = sk.top_k_accuracy_score(truth, probs, k=k, labels=labels)
        assert metrics.top_k_hits(truth, probs, k).mean() == pytest.approx(expected, rel=1e-12)


def test_a_class_never_predicted_has_no_precision_and_counts_as_0_in_means() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 0, 1])
    m = metrics.confusion_matrix(truth, predicted, 3)
    precision = metrics.precision_scores(m)
    assert np.isnan(precision[2])
    assert metrics.f1_scores(m)[2] == 0
    everything = np.ones(3, dtype=bool)
    expected = sk.precision_score(truth, predicted, average="macro", zero_division=0)
    assert metrics.macro_score(precision, m, everything) == pytest.approx(expected, rel=1e-12)
    assert metrics.weighted_score(precision, m) == pytest.approx(
        sk.precision_score(truth, predicted, average="weighted", zero_division=0), rel=1e-12
    )


def test_a_class_without_images_is_no_part_of_the_macro_mean() -> None:
    m = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert np.isnan(metrics.recall_scores(m)[2])
    assert metrics.balanced_accuracy_score(m) == pytest.approx(0.75)
    assert metrics.macro_score(metrics.f1_scores(m), m, np.ones(3, dtype=bool)) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.macro_score(metrics.f1_scores(m), m, np.array([True, False, False])) == pytest.approx(2 / 3)
    assert np.isnan(metrics.macro_score(metrics.f1_scores(m), m, np.array([False, False, True])))


def test_what_is_undefined_is_nan() -> None:
    nothing = np.zeros((3, 3), dtype=np.int64)
    for f in (
        metrics.accuracy_score,
        metrics.balanced_accuracy_score,
        metrics.cohen_kappa_score,
        metrics.matthews_score,
    ):
        assert np.isnan(f(nothing))
    one = metrics.confusion_matrix(np.array([1, 1]), np.array([1, 1]), 3)
    assert metrics.accuracy_score(one) == 1
    assert np.isnan(metrics.cohen_kappa_score(one))
    assert np.isnan(metrics.matthews_score(one))


def test_a_probability_of_0_costs_a_finite_loss() -> None:
    probs = np.array([[1.0, 0.0], [0.0, 1.0]])
    loss = metrics.log_losses(np.array([1, 1]), probs)
    assert loss[0] == pytest.approx(-np.log(np.finfo(float).eps))
    assert loss[1] == 0


def test_ties_go_to_the_first_column_as_with_argmax() -> None:
    probs = np.array([[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    assert metrics.top_k_hits(np.array([0, 0]), probs, 1).tolist() == [True, True]
    assert metrics.top_k_hits(np.array([1, 2]), probs, 1).tolist() == [False, False]
    assert metrics.top_k_hits(np.array([1, 2]), probs, 2).tolist() == [True, False]


@given(st.integers(0, 10_000))
def test_order_of_rows_and_classes_and_duplication_do_not_matter(seed: int) -> None:
    truth, _, predicted = cells(seed, n=60)
    m = metrics.confusion_matrix(truth, predicted, C)
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(60), rng.permutation(C)
    assert (metrics.confusion_matrix(truth[rows], predicted[rows], C) == m).all()
    relabelled = metrics.confusion_matrix(classes[truth], classes[predicted], C)
    scores = (
        metrics.accuracy_score,
        metrics.balanced_accuracy_score,
        metrics.cohen_kappa_score,
        metrics.matthews_score,
    )
    for f in scores:
        np.testing.assert_allclose(f(relabelled), f(m), rtol=1e-12)
        np.testing.assert_allclose(f(3 * m), f(m), rtol=1e-12)
    for g in (metrics.precision_scores, metrics.recall_scores, metrics.f1_scores):
        np.testing.assert_allclose(g(relabelled)[classes], g(m), rtol=1e-12)
        np.testing.assert_allclose(g(3 * m), g(m), rtol=1e-12)


def test_many_matrices_at_once_give_the_same_as_one_by_one() -> None:
    matrices = np.stack([metrics.confusion_matrix(*cells(s)[::2], C) for s in range(6)]).reshape(2, 3, C, C)
    everything = np.ones(C, dtype=bool)
    for f in (
        metrics.accuracy_score,
        metrics.matthews_score,
        metrics.cohen_kappa_score,
        metrics.balanced_accuracy_score,
        metrics.f1_scores,
        lambda m: metrics.macro_score(metrics.precision_scores(m), m, everything),
        lambda m: metrics.weighted_score(metrics.f1_scores(m), m),
    ):
        together = f(matrices)
        for i in range(2):
            for j in range(3):
                np.testing.assert_array_equal(together[i, j], f(matrices[i, j]))
