"""From predictions to an evaluation."""

from pathlib import Path

import numpy as np
import pytest
from evaluate_cases import CODES, predictions, rows, same_figures
from sklearn import metrics as sk

from marrowscope.errors import FileFormatError
from marrowscope.evaluate import evaluate_csv, evaluate_predictions
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.headline import f1_figure
from marrowscope.files import sha256_file
from marrowscope.schema import Evaluation, Predictions


def test_every_figure_is_that_of_scikit_learn_and_lies_in_its_interval() -> None:
    p = predictions()
    assert p.truth is not None
    e = evaluate_predictions(p, source="p.csv", source_sha256="ab", part="test", class_set="mine")
    said = [CODES[i] for i in p.probs_NC.argmax(1)]
    labels = list(CODES)
    expected = {
        "accuracy": sk.accuracy_score(p.truth, said),
        "balanced_accuracy": sk.balanced_accuracy_score(p.truth, said),
        "top2_accuracy": sk.top_k_accuracy_score(p.truth, p.probs_NC, k=2, labels=labels),
        "cohen_kappa": sk.cohen_kappa_score(p.truth, said),
        "matthews": sk.matthews_corrcoef(p.truth, said),
        "log_loss": sk.log_loss(p.truth, p.probs_NC, labels=labels),
    }
    for average in ("macro", "weighted"):
        expected[f"{average}_precision"] = sk.precision_score(p.truth, said, average=average)
        expected[f"{average}_recall"] = sk.recall_score(p.truth, said, average=average)
        expected[f"{average}_f1"] = sk.f1_score(p.truth, said, average=average)
    assert set(expected) <= set(e.figures)
    for name, value in expected.items():
        f = e.figures[name]
        assert f.value == pytest.approx(value, rel=1e-12), name
        assert f.low is not None
        assert f.high is not None
        assert f.low < value < f.high
        assert f.n == 400
    each = sk.precision_recall_fscore_support(p.truth, said, labels=labels)
    for i, c in enumerate(e.per_class):
        assert c.precision.value == pytest.approx(each[0][i], rel=1e-12)
        assert c.recall.value == pytest.approx(each[1][i], rel=1e-12)
        assert c.f1.value == pytest.approx(each[2][i], rel=1e-12)
        assert c.support == each[3][i] == c.recall.n
        assert c.predicted == c.precision.n == said.count(c.code)
        for f in (c.precision, c.recall, c.f1):
            assert f.low is not None
            assert f.high is not None
            assert f.value is not None
            assert 0 <= f.low < f.value < f.high <= 1
    assert np.array_equal(e.confusion, sk.confusion_matrix(p.truth, said, labels=labels))
    assert (e.part, e.class_set, e.predictions, e.predictions_sha256, e.n) == ("test", "mine", "p.csv", "ab", 400)
    assert e.codes == CODES
    assert not e.macro_left_out
    assert not e.failed


def test_order_of_rows_does_not_matter() -> None:
    p = predictions(1)
    order = np.random.default_rng(1).permutation(400)
    assert evaluate_predictions(rows(p, order)) == evaluate_predictions(p)


def test_order_of_classes_does_not_matter() -> None:
    p = predictions(2)
    order = [3, 0, 4, 1, 2]
    q = Predictions(p.paths, p.status, tuple(CODES[i] for i in order), p.probs_NC[:, order], p.truth)
    same_figures(evaluate_predictions(p), evaluate_predictions(q))


def test_duplicated_rows_in_one_group_change_no_figure_and_no_interval() -> None:
    p = predictions(3)
    twice = rows(p, np.concatenate([np.arange(400)] * 2))
    e = evaluate_predictions(p)
    d = evaluate_predictions(twice, groups=twice.paths)
    ungrouped = evaluate_predictions(twice)
    for name, f in e.figures.items():
        g = d.figures[name]
        assert (g.value, g.low, g.high) == pytest.approx((f.value, f.low, f.high), rel=1e-9)
        assert "group" in g.method
        assert g.n == 2 * f.n
        u = ungrouped.figures[name]
        assert u.value == pytest.approx(f.value)
        if name.startswith("coverage_at"):
            continue  # a step function of the images: its interval need not shrink by the root of two
        assert u.high - u.low < 0.85 * (f.high - f.low)  # type: ignore[operator]
    for c, dc in zip(e.per_class, d.per_class, strict=True):
        for part in ("precision", "recall", "f1"):
            f, g = getattr(c, part), getattr(dc, part)
            assert (g.value, g.low, g.high) == pytest.approx((f.value, f.low, f.high), rel=1e-9)


def test_small_classes_are_left_out_of_macro_figures_and_named() -> None:
    p = predictions(4, n=60)
    assert p.truth is not None
    support = {c: p.truth.count(c) for c in CODES}
    minimum = sorted(support.values())[2]
    e = evaluate_predictions(p, macro_minimum=minimum)
    kept = [c for c in CODES if support[c] >= minimum]
    assert e.macro_left_out == tuple(c for c in CODES if c not in kept)
    assert e.macro_left_out
    said = [CODES[i] for i in p.probs_NC.argmax(1)]
    expected = sk.f1_score(p.truth, said, labels=kept, average="macro")
    assert e.figures["macro_f1"].value == pytest.approx(expected, rel=1e-12)
    assert e.figures["macro_f1"].n == sum(support[c] for c in kept)
    assert e.figures["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(p.truth, said), rel=1e-12)
    nobody = evaluate_predictions(p, macro_minimum=1000)
    assert nobody.figures["macro_f1"].value is None
    assert nobody.figures["macro_f1"].method == "none (no class has enough images)"
    assert nobody.macro_left_out == CODES


def test_a_class_never_predicted_is_named_and_has_no_precision() -> None:
    p = predictions(5)
    probs = p.probs_NC.copy()
    probs[:, 0] = 0
    probs /= probs.sum(1, keepdims=True)
    e = evaluate_predictions(Predictions(p.paths, p.status, CODES, probs, p.truth))
    assert e.never_predicted == ("BLA",)
    c = e.per_class[0]
    assert (c.precision.value, c.precision.n, c.predicted) == (None, 0, 0)
    assert c.recall.value == 0
    assert c.f1.value == 0
    assert c.recall.high is not None
    assert c.recall.high > 0
    said = [CODES[i] for i in probs.argmax(1)]
    expected = sk.precision_score(p.truth, said, average="macro", zero_division=0)
    assert e.figures["macro_precision"].value == pytest.approx(expected, rel=1e-12)


def test_all_right_does_not_pretend_certainty() -> None:
    p = predictions(6, n=100, skill=60)
    e = evaluate_predictions(p, macro_minimum=5)
    for name, f in e.figures.items():
        assert f.low is not None
        assert f.high is not None
        if name.endswith(("_loss", "_error")):
            assert f.value == pytest.approx(0)
            assert f.low == 0
            assert f.high > 0.01
        else:
            assert f.value == pytest.approx(1)
            assert f.low < 0.98
            assert f.high == pytest.approx(1)
    assert e.figures["accuracy"].low == pytest.approx(0.963, abs=5e-4)
    assert e.figures["balanced_accuracy"].low < e.figures["accuracy"].low  # type: ignore[operator]


def test_all_wrong_has_a_width_too() -> None:
    p = predictions(7, n=100, skill=60)
    shifted = Predictions(p.paths, p.status, CODES, np.roll(p.probs_NC, 1, axis=1), p.truth)
    e = evaluate_predictions(shifted, macro_minimum=5)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_recall"):
        f = e.figures[name]
        assert f.value == 0
        assert f.high is not None
        assert f.high > 0.02


def test_failed_files_are_counted_by_reason_and_in_no_figure(tmp_path: Path) -> None:
    p = predictions(8, n=50)
    assert p.truth is not None
    path = tmp_path / "predictions.csv"
    status = ("truncated", "not an image", "truncated", *p.status[3:])
    # The truth of a file without an answer need not be a class that the model knows.
    Predictions(p.paths, status, CODES, p.probs_NC, ("KSC", *p.truth[1:])).write(path)
    e = evaluate_csv(path, macro_minimum=3)
    assert e.failed == {"not an image": 1, "truncated": 2}
    assert e.n == 47
    assert sum(map(sum, e.confusion)) == 47
    assert e.predictions == "predictions.csv"
    assert e.predictions_sha256 == sha256_file(path)
    out = tmp_path / "evaluation.json"
    e.write(out)
    assert Evaluation.read(out) == e
    assert "NaN" not in out.read_text()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_or_no_images_are_no_crash(n: int) -> None:
    p = predictions(9, n=max(n, 1))
    p = p if n else Predictions(p.paths, ("truncated",), CODES, np.full((1, 5), np.nan), p.truth)
    e = evaluate_predictions(p, draws=50)
    assert e.n == n
    assert (e.figures["accuracy"].value is None) == (n == 0)
    assert Evaluation.parse(e.model_dump_json(), "it") == e


def test_another_program_s_csv(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(
        "path,status,predicted,confidence,LYT,BLA,truth,comment\n"
        "a.jpg,ok,LYT,0.9,0.9,0.1,LYT,fine\nb.jpg,ok,BLA,0.7,0.3,0.7,LYT,\nc.jpg,ok,BLA,0.6,0.4,0.6,BLA,\n"
    )
    e = evaluate_csv(path, draws=100)
    assert e.codes == ("LYT", "BLA")
    assert e.confusion == ((1, 1), (0, 1))
    assert e.figures["accuracy"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,status,predicted,confidence,BLA,LYT\na,ok,BLA,0.9,0.9,0.1\n", "no column 'truth'"),
        ("path,status,predicted,confidence,BLA,LYT,truth\na,ok,BLA,0.9,0.9,0.1,KSC\n", "'KSC'"),
        ("path,status,predicted,confidence,BLA,LYT,truth\na,ok,BLA,0.9,0.9,0.1,\n", "an empty cell"),
        ("path,status,predicted,confidence,BLA,BLA,truth\na,ok,BLA,0.5,0.5,0.5,BLA\n", "two columns"),
        ("path,status,predicted,confidence,BLA,truth\na,ok,BLA,1,1,BLA\n", "1 class columns"),
        ("path,status,predicted,confidence,BLA,LYT,truth\na,ok,LYT,0.9,0.9,0.1,BLA\n", "is predicted as 'LYT'"),
        ("path,status,predicted,confidence,BLA,LYT,truth\na,ok,,0.9,0.9,0.1,BLA\n", "is predicted as ''"),
        ("file,truth\n", "not a table of predictions"),
    ],
)
def test_a_table_that_can_not_be_judged(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        evaluate_csv(path)
    assert "p.csv" in str(caught.value)


def test_arguments_that_are_not_allowed() -> None:
    p = predictions(n=10)
    with pytest.raises(ValueError, match="groups names 3 rows"):
        evaluate_predictions(p, groups=["a", "b", "c"])
    with pytest.raises(ValueError, match="draws"):
        evaluate_predictions(p, draws=0)
    with pytest.raises(ValueError, match="macro_minimum"):
        evaluate_predictions(p, macro_minimum=-1)


def test_stored_values() -> None:
    """Found by this program once; a change means that published figures change."""
    e = evaluate_predictions(predictions(10, n=200), seed=3, validation=predictions(11, n=300))
    for name, stored in STORED.items():
        f = e.figures[name]
        assert (f.value, f.low, f.high) == pytest.approx(stored, abs=2e-6), name
    assert set(e.figures) == set(STORED)
    errors = [c.figures["expected_calibration_error"].value for c in e.calibration]
    assert errors == pytest.approx([0.201264, 0.094243, 0.056667], abs=2e-6)
    assert e.calibration[1].temperature == pytest.approx(0.494464, abs=2e-6)
    assert e.calibration[2].scale == pytest.approx((2.313888, 1.89539, 1.825592, 2.295044, 1.90231), abs=2e-5)
    sets = [(s.coverage.value, s.size.value) for s in e.conformal]
    assert sets == [(0.89, 1.375), (0.93, 1.52), (0.96, 1.905), (0.97, 2.125)]
    thresholds = [p.threshold for p in e.operating_points if p.chosen_on != "assured"]
    assert thresholds == pytest.approx([0.533706, 0.632346, 0.564505, 0.678464], abs=2e-6)
    assured = [p.threshold for p in e.operating_points if p.chosen_on == "assured"]
    assert assured == [None, None], "300 cells that are right in 80 % show neither"


STORED = {
    "accuracy": (0.795000, 0.733743, 0.845138),
    "balanced_accuracy": (0.787726, 0.721207, 0.847454),
    "top2_accuracy": (0.905000, 0.856398, 0.938337),
    "macro_precision": (0.777600, 0.714647, 0.837741),
    "macro_recall": (0.787726, 0.721207, 0.847454),
    "macro_f1": (0.780785, 0.713850, 0.838077),
    "weighted_precision": (0.801241, 0.746027, 0.858992),
    "weighted_recall": (0.795000, 0.735000, 0.850000),
    "weighted_f1": (0.797060, 0.736604, 0.851630),
    "cohen_kappa": (0.738812, 0.662206, 0.808617),
    "matthews": (0.739216, 0.662836, 0.809488),
    "log_loss": (0.693226, 0.623286, 0.765056),
    "macro_auroc": (0.960091, 0.942572, 0.974933),
    "macro_average_precision": (0.865738, 0.810329, 0.913701),
    "tolerant_accuracy": (0.795000, 0.733743, 0.845138),
    "cost_error": (0.130000, 0.093500, 0.170000),
    "line_accuracy": (0.825000, 0.766356, 0.871395),
    "maturation_error": (0.181818, 0.060606, 0.333333),
    "aurc_error": (0.062290, 0.037696, 0.095366),
    "excess_aurc_error": (0.039673, 0.023105, 0.061927),
    "coverage_at_95": (0.585000, 0.475000, 0.735000),
    "coverage_at_98": (0.545000, 0.194875, 0.620000),
}


def test_the_interval_of_f1_covers_as_it_says() -> None:
    """F1 of a class of 30 images among 150, against its value in the long run."""
    shares = np.array([[0.17, 0.03], [0.04, 0.76]])
    long_run = 2 * 0.17 / (2 * 0.17 + 0.03 + 0.04)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        counts = rng.multinomial(150, shares.ravel())
        truth, said = np.repeat([0, 0, 1, 1], counts), np.repeat([0, 1, 0, 1], counts)
        case = Case(("BLA", "LYT"), truth, said, np.eye(2)[said], np.arange(150))
        f = f1_figure(case, 0)
        assert f.low is not None
        assert f.high is not None
        inside += f.low <= long_run <= f.high
    assert 0.92 < inside / 300 < 0.98
