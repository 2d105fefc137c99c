"""What a card says beyond the network: fitted once, applied alike everywhere; and the trials of a fitted run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import marrowscope.fit as fit_module
from marrowscope.cli import app
from marrowscope.config import Recipe
from marrowscope.datasets import CellImages
from marrowscope.errors import DataError, FileFormatError, ModelError, SplitError
from marrowscope.evaluate import novelty
from marrowscope.evaluate.corruptions import KINDS
from marrowscope.evaluate.thresholds import UNREACHABLE, with_thresholds
from marrowscope.export import Precision, export_onnx
from marrowscope.fit import STATISTICS, Fitted, fit_card, load_fitted, spread
from marrowscope.images import load_prepared
from marrowscope.infer import Classifier, predict_files
from marrowscope.outputs import cell_outputs
from marrowscope.schema import Card, Evaluation, Predictions, Split, read_index, write_index
from marrowscope.score import evaluate_run, group_names, predict_part
from marrowscope.strangers import PHOTOGRAPHS, WINDOW, judge_novelty, novel_cells, photograph_pieces
from marrowscope.train import train
from marrowscope.trials import ROBUSTNESS, RobustnessAnswers, add_trials, judge_robustness


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, fitted and evaluated; tests must not change it."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("fitted") / "run"))
    evaluate_run(run)
    return run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of that which may be changed."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def _outputs(fitted: Fitted, run: Path, part: Any) -> Any:
    rows = Split.read(run / "split.csv").part(part)
    root = Path(json.loads((run / "run.json").read_text())["data"])
    images = CellImages(root, rows, fitted.card.codes, fitted.card.preprocessing)
    return cell_outputs(fitted.model, images), images.labels


# ------------------------------------------------------------------------------------------------------------ fitting


def test_a_card_is_fitted_on_validation_cells_and_stored(evaluated: Path) -> None:
    card = Card.read(evaluated / "card.json")
    fitted = load_fitted(evaluated)
    (logits_NC, features_ND), labels_N = _outputs(fitted, evaluated, "val")
    assert card.scaling is not None
    assert card.scaling.fitted_on == len(labels_N) == 3
    assert {(c.method, c.alpha) for c in card.conformal} == {
        (m, a) for m in ("split", "class-conditional") for a in (0.1, 0.05)
    }
    assert [a.accuracy for a in card.acceptance] == [0.95, 0.98]
    assert [a.threshold for a in card.acceptance] == [UNREACHABLE] * 2, "three cells show no accuracy"
    assert np.sum(card.confusion) == 3
    assert card.novelty is not None
    score = novelty.card_score(fitted.known.statistics, card.novelty.method, logits_NC, features_ND)  # type: ignore[union-attr]
    assert card.novelty.threshold == pytest.approx(score.max())
    expected = with_thresholds(card, labels_N, logits_NC, novelty_method=card.novelty.method, ood_score_N=score)
    assert expected.scaling == card.scaling
    assert expected.conformal == card.conformal
    assert Card.parse(card.model_dump_json(), "it") == card


def test_the_test_part_is_not_looked_at(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    read: set[str] = set()

    class Watched(CellImages):
        def load(self, index: int) -> Any:
            read.add(self.rows[index].path)
            return super().load(index)

    monkeypatch.setattr(fit_module, "CellImages", Watched)
    fit_card(run, again=True)
    split = Split.read(run / "split.csv")
    assert read == {r.path for r in (*split.part("train"), *split.part("val"))}
    assert not read & {r.path for r in split.part("test")}
    assert not (run / "test-use.json").exists()


def test_what_is_fitted_is_not_fitted_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "card.json").read_bytes()
    monkeypatch.setattr(fit_module, "cell_outputs", None)
    assert fit_card(run).card == Card.read(run / "card.json")
    assert (run / "card.json").read_bytes() == before
    monkeypatch.undo()
    assert fit_card(run, again=True).card == Card.read(run / "card.json"), "the same again: nothing is drawn"
    assert fit_card(run, scaling="vector").card.scaling.method == "vector"  # type: ignore[union-attr]


def test_statistics_of_other_weights_are_not_taken(run: Path) -> None:
    card = Card.read(run / "card.json")
    about = card.novelty.model_copy(update={"method": "mahalanobis"})  # type: ignore[union-attr]
    card.model_copy(update={"novelty": about}).write(run / "card.json")
    (run / STATISTICS).unlink()
    with pytest.raises(ModelError, match=r"novelty\.safetensors is missing.*--refit"):
        predict_part(run)
    (run / STATISTICS).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"):
        fit_card(run)


def test_a_run_without_validation_cells_can_not_be_fitted(run: Path) -> None:
    split = Split.read(run / "split.csv")
    rows = tuple(r for r in split.rows if r.part != "val")
    counts = {**split.info.counts, "val": {}}
    Split(rows, split.info.model_copy(update={"counts": counts})).write(run / "split.csv")
    with pytest.raises(SplitError, match="no image in the part 'val'"):
        fit_card(run, again=True)


# ------------------------------------------------------------------------------------------------- the same everywhere


@pytest.mark.parametrize("method", novelty.CARD_METHODS)
def test_predict_says_what_evaluate_says(run: Path, cells: Path, tmp_path: Path, method: str) -> None:
    """Calibrated probabilities, sets, scores and flags of the checkpoint and of the file, for each score of novelty."""
    fitted = load_fitted(run)
    (logits_NC, features_ND), labels_N = _outputs(fitted, run, "val")
    score = novelty.card_score(fitted.known.statistics, method, logits_NC, features_ND)  # type: ignore[union-attr]
    with_thresholds(fitted.card, labels_N, logits_NC, novelty_method=method, ood_score_N=score).write(run / "card.json")
    evaluate_run(run)
    ours = Predictions.read(run / "predictions.csv")
    parity = export_onnx(run, tmp_path / "m.onnx")
    assert (parity.score_difference is None) == (method == "energy")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "m.onnx").graph
    unused = {i.name for i in graph.initializer} - {i for node in graph.node for i in node.input}
    assert not unused, "ONNX Runtime warns of each when others load the file"
    served = Classifier.load(tmp_path / "m.onnx")
    assert served.card == Card.read(run / "card.json")
    predict_files(served, [str(cells / p) for p in ours.paths], tmp_path / "p.csv")
    theirs = Predictions.read(tmp_path / "p.csv")
    assert np.abs(ours.probs_NC - theirs.probs_NC).max() < 1e-4
    assert ours.ood_score_N is not None
    assert theirs.ood_score_N == pytest.approx(ours.ood_score_N, rel=1e-4, abs=1e-4)
    for name in ("sets_NC", "ood_N", "accepted_N"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    prepared = np.stack([load_prepared(cells / p, served.card.preprocessing) for p in ours.paths])
    (_, features_ND), _ = _outputs(fitted, run, "test")
    assert np.abs(served.features(prepared) - features_ND).max() < 1e-4
    alone = np.concatenate([served.answer([prepared[i : i + 1]]).ood_score_N for i in range(3)])  # type: ignore[misc]
    assert alone == pytest.approx(ours.ood_score_N, rel=1e-4, abs=1e-4), "whatever else is in the batch"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_keep_the_statistics_and_are_fitted_on_their_own_answers(
    run: Path, cells: Path, tmp_path: Path, precision: Precision
) -> None:
    card = Card.read(run / "card.json")
    about = card.novelty.model_copy(update={"method": "mahalanobis"})  # type: ignore[union-attr]
    card.model_copy(update={"novelty": about}).write(run / "card.json")
    export_onnx(run, tmp_path / "m.onnx", precision=precision)
    content = onnx.load(tmp_path / "m.onnx")
    stored = {i.name: numpy_helper.to_array(i) for i in content.graph.initializer if i.name.startswith("ood_score.")}
    statistics = load_fitted(run).known.statistics  # type: ignore[union-attr]
    assert stored["ood_score.axes"].dtype == np.float32
    assert np.array_equal(stored["ood_score.axes"], statistics.axes_DK.astype(np.float32))
    served = Classifier.load(tmp_path / "m.onnx")
    val = Split.read(run / "split.csv").part("val")
    prepared = np.stack([load_prepared(cells / r.path, card.preprocessing) for r in val])
    scores = served.answer([prepared]).ood_score_N
    assert served.card.novelty.threshold == pytest.approx(max(scores))  # type: ignore[union-attr, arg-type]
    assert served.card.scaling != card.scaling, "its logits are others"


def test_openvino_gives_the_same_score(run: Path, cells: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    card = Card.read(run / "card.json")
    about = card.novelty.model_copy(update={"method": "mahalanobis"})  # type: ignore[union-attr]
    card.model_copy(update={"novelty": about}).write(run / "card.json")
    export_onnx(run, tmp_path / "m.onnx")
    paths = sorted(cells.rglob("*.jpg"))[:4]
    prepared = np.stack([load_prepared(p, card.preprocessing) for p in paths])
    # Where the processor can, OpenVINO computes in bfloat16 unless it is told not to.
    compiled = openvino.Core().compile_model(str(tmp_path / "m.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"images": prepared})
    by_name = {next(iter(k.names)): v for k, v in found.items()}
    answers = Classifier.load(tmp_path / "m.onnx").answer([prepared])
    assert by_name["ood_score"] == pytest.approx(answers.ood_score_N, rel=1e-3)


def test_an_old_evaluation_and_an_old_card_are_still_read(evaluated: Path) -> None:
    evaluation = json.loads((evaluated / "evaluation.json").read_text())
    for new in ("novelty", "robustness"):
        del evaluation[new]
    for entry in evaluation["calibration"]:
        del entry["applied"]
    assert Evaluation.parse(json.dumps(evaluation), "old").novelty is None
    card = json.loads((evaluated / "card.json").read_text())
    for new in ("scaling", "conformal", "novelty", "acceptance", "confusion"):
        del card[new]
    assert Card.parse(json.dumps(card), "old").scaling is None


def test_the_evaluation_says_which_calibration_is_applied(evaluated: Path) -> None:
    e = Evaluation.read(evaluated / "evaluation.json")
    assert [(c.scaling, c.applied) for c in e.calibration] == [
        ("none", False), ("temperature", True), ("vector", False),
    ]  # fmt: skip
    card = Card.read(evaluated / "card.json")
    assert e.calibration[1].temperature == pytest.approx(1 / card.scaling.scale[0])  # type: ignore[union-attr]
    assert e.calibration[1].figures["log_loss"].value == pytest.approx(e.figures["log_loss"].value)
    thresholds = {(c.method, c.alpha): tuple(c.thresholds.values()) for c in e.conformal}
    assert thresholds == {(c.method, c.alpha): pytest.approx(c.thresholds) for c in card.conformal}


# ------------------------------------------------------------------------------------------------------------- groups


def test_cells_are_grouped_by_what_the_index_says_most_of(run: Path, cells: Path) -> None:
    rows = Split.read(run / "split.csv").part("test")
    assert len(set(group_names(run, rows, cells, None))) == len(rows)
    index = read_index(run / "index.csv")
    write_index(run / "index.csv", [r._replace(slide="s1", group="g") for r in index])
    assert set(group_names(run, rows, cells, None)) == {"slide s1"}
    assert set(group_names(run, rows, cells, "group")) == {"group g"}
    with pytest.raises(FileFormatError, match="has no 'patient' for these cells"):
        group_names(run, rows, cells, "patient")
    assert "1 groups" in evaluate_run(run)[0].figures["accuracy"].method
    write_index(run / "index.csv", [r._replace(sha256="0" * 64) for r in index])
    with pytest.raises(DataError, match="is not the file that the run's index"):
        group_names(run, rows, cells, None)


# ------------------------------------------------------------------------------------------------------------- trials


def test_novel_cells_are_those_of_no_class_that_was_learnt(
    tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(merge={"NGS": "LYT"}, schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=run, quiet=True)
    codes = Card.read(run / "card.json").codes
    assert codes == ("BLA", "LYT")
    assert novel_cells(run, codes, cells, None)[0] == [], "a merged class is known"
    more = tmp_path / "more"
    shutil.copytree(cells / "BLA", more / "EOS")
    shutil.copytree(cells / "NGS", more / "NGS")
    rows, source = novel_cells(run, codes, cells, more)
    assert {r.label for r in rows} == {"EOS"}
    assert len(rows) == 10
    assert source.has(rows[0].path)


def test_a_run_is_judged_on_strangers(run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = tmp_path / "more"
    shutil.copytree(cells / "BLA", more / "EOS")
    monkeypatch.setattr("marrowscope.strangers.PHOTOGRAPHS", PHOTOGRAPHS[:1])
    steps: list[tuple[int, int]] = []
    found = judge_novelty(run, load_fitted(run), novel=more, progress=lambda d, t: steps.append((d, t)))
    assert [k.name for k in found.kinds] == [
        "other classes", "other stain, strength 3", "other stain, strength 5", "photographs",
    ]  # fmt: skip
    assert found.left_out == {"phantoms": "the model was trained on phantoms"}
    assert [k.n for k in found.kinds[:3]] == [10, 3, 3]
    for kind in found.kinds:
        assert set(kind.scores) == set(novelty.METHODS)
    assert steps[-1] == (3 + sum(k.n for k in found.kinds),) * 2
    add_trials(run / "evaluation.json", novelty=found)
    assert Evaluation.read(run / "evaluation.json").novelty == found
    assert evaluate_run(run)[0].novelty == found, "evaluating the same answers again keeps what took long"


def test_pieces_of_photographs(tmp_path: Path, cells: Path) -> None:
    pieces = list(photograph_pieces(None))
    names = {name for name, _ in pieces}
    assert len(names) >= 8
    assert all(p.shape == (WINDOW, WINDOW, 3) and p.dtype == np.uint8 for _, p in pieces)
    assert max(sum(n == name for n, _ in pieces) for name in names) <= 24
    assert len(list(photograph_pieces(cells / "BLA"))) == 10
    with pytest.raises(DataError, match="holds no photograph of at least 250 x 250"):
        list(photograph_pieces(_small(tmp_path / "small")))


def _small(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    Image.new("RGB", (100, 100)).save(folder / "a.png")
    return folder


def test_robustness_goes_on_where_it_stopped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def stop(done: int, total: int) -> None:
        steps.append(done)
        if done == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_robustness(run, progress=stop)
    record = RobustnessAnswers.read(run / ROBUSTNESS)
    assert len(record.predicted) == 10
    steps.clear()
    found = judge_robustness(run, progress=lambda d, t: steps.append(d))
    assert steps == list(range(33, 94, 3)), "what was answered is not asked again"
    assert [k.kind for k in found.kinds] == list(KINDS)
    assert found.n == found.clean.n == 3
    assert found.model == "checkpoint"
    fresh = Path(shutil.copytree(run, run.parent / "fresh"))
    (fresh / ROBUSTNESS).unlink()
    assert judge_robustness(fresh) == found
    accuracy = Evaluation.read(run / "evaluation.json").figures["accuracy"].value
    assert found.clean.value == accuracy
    assert judge_robustness(run, cells=2).n == 2, "other cells start anew"


def test_a_file_can_answer_in_place_of_the_checkpoint(run: Path, tmp_path: Path) -> None:
    export_onnx(run, tmp_path / "m.onnx")
    served = judge_robustness(run, model=tmp_path / "m.onnx")
    assert served.model == "m.onnx"
    ours = judge_robustness(run)
    assert [k.accuracy.value for k in served.kinds] == [k.accuracy.value for k in ours.kinds]


def test_a_file_of_another_model_is_refused(
    run: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe], cells: Path
) -> None:
    other = tmp_path / "other"
    recipe = tiny_recipe(image__size=48, schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=other, quiet=True)
    export_onnx(other, tmp_path / "o.onnx")
    with pytest.raises(ModelError, match=r"at 48 px, and the run .* at 32 px"):
        judge_robustness(run, model=tmp_path / "o.onnx")


def test_spread_is_even() -> None:
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []


def test_the_command_writes_all_of_it(run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marrowscope.strangers.PHOTOGRAPHS", PHOTOGRAPHS[:1])
    result = CliRunner().invoke(app, ["evaluate", str(run), "--novelty", "--robustness", "2"])
    assert result.exit_code == 0, result.output
    e = Evaluation.read(run / "evaluation.json")
    assert e.novelty is not None
    assert e.robustness is not None
    assert e.robustness.n == 2
    for part in ("strange pictures", "photographs", "changed pictures", "relative drop"):
        assert part in result.output
