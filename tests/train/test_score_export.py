"""From a run to predictions, an evaluation and an ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import marrowscope.export.run as export_module
from marrowscope.config import Recipe
from marrowscope.errors import ModelError, SplitError
from marrowscope.export import TOLERANCE, export_onnx
from marrowscope.images import load_prepared
from marrowscope.infer import Classifier, predict_files
from marrowscope.models import CellClassifier, load_run_model
from marrowscope.report import write_report
from marrowscope.schema import Card, Evaluation, Predictions, Split
from marrowscope.score import evaluate_run, predict_part
from marrowscope.train import train
from marrowscope.triage import calibrated


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that may be changed, as training left it: without what is fitted on validation."""
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    fitted = {"scaling": None, "conformal": (), "novelty": None, "acceptance": (), "confusion": ()}
    Card.read(copy / "card.json").model_copy(update=fitted).write(copy / "card.json")
    (copy / "novelty.safetensors").unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def onnx_file(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as one file; exported from a copy, for it fits the card of the run."""
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(Path(shutil.copytree(tiny_run, folder / "run")), folder / "model.onnx")
    return folder / "model.onnx"


def test_evaluating_writes_predictions_evaluation_and_card(run: Path) -> None:
    evaluation, where = evaluate_run(run)
    assert where == run / "evaluation.json"
    assert Evaluation.read(where) == evaluation
    predictions = Predictions.read(run / "predictions.csv")
    assert predictions.paths == tuple(r.path for r in Split.read(run / "split.csv").part("test"))
    assert predictions.truth == tuple(p.split("/")[0] for p in predictions.paths)
    right = [
        predictions.codes[i] == t for i, t in zip(predictions.probs_NC.argmax(1), predictions.truth or (), strict=True)
    ]
    assert evaluation.figures["accuracy"].value == pytest.approx(np.mean(right))
    assert Card.read(run / "card.json").test["accuracy"] == evaluation.figures["accuracy"]
    _, other = evaluate_run(run, "val")
    assert other == run / "evaluation-val.json"
    assert Evaluation.read(run / "evaluation.json") == evaluation


def test_a_run_works_out_of_an_archive(tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "cells"), "zip", cells))
    run = tmp_path / "run"
    train(tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0), data=archive, out=run, quiet=True)
    evaluation, _ = evaluate_run(run)
    assert evaluation.n == 3
    assert Card.read(run / "card.json").training_data.synthetic
    page = write_report(run).read_text()
    assert "drawn by a program" in page
    assert export_onnx(run, tmp_path / "m.onnx").real


def test_data_that_moved_are_asked_for(run: Path, cells: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(cells, moved)
    assert np.array_equal(predict_part(run, data=moved).probs_NC, predict_part(run).probs_NC)
    shutil.rmtree(moved / "BLA")
    with pytest.raises(SplitError, match="BLA/BLA_"):
        predict_part(run, data=moved)


def test_the_onnx_file_answers_like_the_checkpoint(onnx_file: Path, cells: Path, tmp_path: Path) -> None:
    model, card = load_run_model(onnx_file.parent / "run")
    served = Classifier.load(onnx_file)
    paths = sorted(cells.rglob("*.jpg"))
    prepared = np.stack([load_prepared(p, card.preprocessing) for p in paths])
    with torch.no_grad():
        ours = calibrated(card, model(torch.from_numpy(prepared).permute(0, 3, 1, 2)).numpy())
    assert np.abs(ours - served.probabilities(prepared)).max() < TOLERANCE
    # A picture's answer must not depend on its neighbours in the batch, nor on the batch's size.
    alone = np.concatenate([served.probabilities(prepared[i : i + 1]) for i in range(5)])
    assert np.abs(alone - ours[:5]).max() < TOLERANCE
    predict_files(served, [str(cells)], tmp_path / "p.csv")
    table = Predictions.read(tmp_path / "p.csv")
    assert np.abs(table.probs_NC - ours).max() < TOLERANCE


def test_the_onnx_file_carries_its_card(onnx_file: Path) -> None:
    onnx.checker.check_model(str(onnx_file), full_check=True)
    meta = {p.key: p.value for p in onnx.load(onnx_file).metadata_props}
    assert Card.parse(meta["marrowscope.card"], "metadata") == Card.read(onnx_file.parent / "run" / "card.json")
    assert Classifier.load(onnx_file).codes == ("BLA", "LYT", "NGS")


def test_the_onnx_file_tells_nothing_of_the_machine_that_made_it(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    assert b"site-packages" not in content
    assert b"graph.py" not in content
    assert str(Path.cwd()).encode() not in content


def test_without_data_noise_serves_for_the_check(run: Path, tmp_path: Path) -> None:
    parity = export_onnx(run, tmp_path / "m.onnx", data=tmp_path / "nowhere")
    assert not parity.real
    assert parity.max_difference < TOLERANCE
    assert any("no calibration" in line for line in parity.lines())
    assert Classifier.load(tmp_path / "m.onnx").card.scaling is None
    assert Card.read(run / "card.json").scaling is None


def test_a_file_that_answers_differently_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = export_module.to_onnx

    def other(model: CellClassifier, card: Card) -> onnx.ModelProto:
        content = exact(model, card)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if n.endswith("fc.bias")).add_(torch.tensor([0.5, 0.0, 0.0]))
        return content

    monkeypatch.setattr(export_module, "to_onnx", other)
    with pytest.raises(ModelError, match=r"would differ from its checkpoint.*Nothing was written"):
        export_onnx(run, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_weights_that_are_not_the_cards_are_refused(run: Path) -> None:
    weights = run / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match=r"not the file that card\.json describes"):
        load_run_model(run)
