"""The scripts that go with training: curves of several runs, self-supervised learning, a run from an exported file."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from marrowscope.config import Recipe, recipe_toml
from marrowscope.datasets import CellImages
from marrowscope.errors import ModelError, SplitError, TrainingError
from marrowscope.export import Precision, export_onnx
from marrowscope.infer import Classifier
from marrowscope.models import build_model, load_run_model
from marrowscope.outputs import cell_outputs
from marrowscope.schema import Card, Split, read_metrics, write_metrics
from marrowscope.score import evaluate_run
from marrowscope.train import train
from marrowscope.train.join import join
from marrowscope.train.sweep import sweep

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def _run(of: Path, to: Path, **last: float) -> Path:
    """A copy of a run whose last epoch scored otherwise."""
    shutil.copytree(of, to)
    rows = read_metrics(to / "metrics.csv")
    rows[-1] |= last
    write_metrics(to / "metrics.csv", rows)
    return to


def test_curves_show_the_mean_of_runs_that_agree(
    script: Callable[[str], Any],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    curves = script("learning_curves")
    runs = [
        _run(tiny_run, tmp_path / "a", val_accuracy=0.5, val_loss=1.0),
        _run(tiny_run, tmp_path / "b", val_accuracy=0.7, val_loss=1.2),
        _run(tiny_run, tmp_path / "c", val_accuracy=0.875, val_loss=0.25),
    ]
    config = runs[2] / "config.toml"
    text = config.read_text(encoding="utf-8")
    assert "size = 32" in text
    config.write_text(text.replace("size = 32", "size = 48"), encoding="utf-8")
    svg = tmp_path / "curve.svg"
    monkeypatch.setattr(sys, "argv", ["x", "--by", "pixels", *map(str, runs), "--chart", str(svg)])
    curves.main()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(r[0], r[1], r[3], r[4]) for r in rows] == [
        ("32", "2", "0.600 (0.500–0.700)", "1.100 (1.000–1.200)"),
        ("48", "1", "0.875", "0.250"),
    ]
    assert "Last epoch: 0.600 with 32 pixels, 0.875 with 48 pixels." in svg.read_text(encoding="utf-8")


def test_curves_are_of_whole_runs_on_the_same_cells(
    script: Callable[[str], Any], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = script("learning_curves")
    short, other = _run(tiny_run, tmp_path / "short"), _run(tiny_run, tmp_path / "other")
    write_metrics(short / "metrics.csv", read_metrics(short / "metrics.csv")[:1])
    split = Split.read(other / "split.csv")
    val = split.part("val")[0]
    train_row = next(r for r in split.part("train") if r.label == val.label)
    swap = {val.path: "train", train_row.path: "val"}
    rows = [r._replace(part=swap.get(r.path, r.part)) for r in split.rows]
    Split(tuple(rows), split.info).write(other / "split.csv")
    for runs, message in (([short], "1 of 2 epochs"), ([tiny_run, other], "different cells")):
        monkeypatch.setattr(sys, "argv", ["x", "--by", "cells", *map(str, runs)])
        with pytest.raises(SystemExit, match=message):
            curves.main()


def test_folds_compare_changes_fold_by_fold(
    script: Callable[[str], Any], tiny_recipe: Callable[..., Recipe], tiny_run: Path, cells: Path, tmp_path: Path
) -> None:
    compare = script("fold_comparison")
    recipe = tmp_path / "r.toml"
    recipe.write_text(recipe_toml(tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)), encoding="utf-8")

    def swept(name: str, grid: str, folds: int | None) -> Path:
        split = tiny_run / "split.csv"
        sweep(recipe, [grid] if grid else [], data=cells, out=tmp_path / name, split=split, folds=folds, quiet=True)
        return tmp_path / name

    def score(out: Path, value: str, *folds: tuple[float, float]) -> None:
        for fold, (accuracy, loss) in enumerate(folds):
            (run,) = out.glob(f"runs/*{value or 'as-it-is'}/seed-*-fold-{fold}")
            path = run / "metrics.csv"
            rows = read_metrics(path)
            rows[-1] |= {"val_accuracy": accuracy, "val_loss": loss}
            write_metrics(path, rows)

    base = swept("base", "", 3)
    others = swept("others", "loss.label_smoothing=0.0,0.2", 3)
    score(base, "", (0.5, 1.0), (0.6, 0.9), (0.7, 0.8))
    score(others, "0.0", (0.6, 1.0), (0.6, 1.1), (0.75, 0.7))
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in compare.table([base, others])]
    assert rows[2] == ["the recipe as it is", "3", "1", "0.600 ± 0.100", "", "0.900 ± 0.100", ""]
    accuracy, loss = "+0.050 (+0.000 to +0.100)", "+0.033 (-0.100 to +0.200)"
    assert rows[3] == ["loss.label_smoothing=0.0", "3", "1", "0.650 ± 0.087", accuracy, "0.933 ± 0.208", loss]
    assert rows[4][0] == "loss.label_smoothing=0.2"
    assert len(rows) == 5

    with pytest.raises(SystemExit, match="other folds"):
        compare.table([base, swept("four", "loss.label_smoothing=0.1", 4)])
    with pytest.raises(SystemExit, match="fold none"):
        compare.table([swept("no-folds", "loss.label_smoothing=0.1", None)])
    with pytest.raises(SystemExit, match=r"no sweep\.csv"):
        compare.table([tmp_path / "none"])


def test_weights_learnt_without_labels_can_be_fine_tuned(
    script: Callable[[str], Any],
    tiny_recipe: Callable[..., Recipe],
    tiny_run: Path,
    cells: Path,
    tmp_path: Path,
) -> None:
    learn = script("self_supervised")
    recipe, split = tiny_recipe(), Split.read(tiny_run / "split.csv")
    file = tmp_path / "cells.safetensors"
    losses = learn.pretrain(recipe, cells, split, file, epochs=6, batch_size=8, learning_rate=1e-3)
    assert losses[-1] < losses[0] - 0.1, "what one view says of the other can be foretold"
    learnt = load_file(file)
    torch.manual_seed(recipe.seed)
    start = build_model(recipe.model, 0, recipe.image).backbone.state_dict()
    assert learnt.keys() == start.keys()
    assert all(not torch.equal(learnt[k], start[k]) for k in learnt if k.endswith("conv1.weight"))
    tuned = tiny_recipe(model__weights=str(file))
    train(tuned, data=cells, out=tmp_path / "run", split=tiny_run / "split.csv", quiet=True)
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_the_loss_is_that_of_its_paper(script: Callable[[str], Any]) -> None:
    learn = script("self_supervised")
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert learn.regression_loss(a, 7 * a) == pytest.approx(0)
    assert learn.regression_loss(a, -a) == pytest.approx(4)
    unit = a / a.norm(dim=1, keepdim=True)
    b = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert learn.regression_loss(a, b) == pytest.approx(((unit - b) ** 2).sum(1).mean().item())


@pytest.fixture(scope="module")
def two(
    tiny_run: Path, tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The mean of two networks, judged and calibrated."""
    out = tmp_path_factory.mktemp("two")
    train(tiny_recipe(seed=4), data=cells, out=out / "b", split=tiny_run / "split.csv", quiet=True)
    join([tiny_run, out / "b"], out / "mean", name="two")
    evaluate_run(out / "mean")
    return out / "mean"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-weights"])
def test_a_file_becomes_a_run_that_answers_as_it_does_and_teaches(
    script: Callable[[str], Any],
    two: Path,
    tiny_recipe: Callable[..., Recipe],
    cells: Path,
    tmp_path: Path,
    precision: Precision,
) -> None:
    export_onnx(two, tmp_path / "two.onnx", precision=precision)
    split = Split.read(two / "split.csv")
    script("run_from_file").run_from_file(str(tmp_path / "two.onnx"), tiny_recipe(), split, tmp_path / "again")
    model, card = load_run_model(tmp_path / "again")
    assert (card.name, card.precision, len(card.members)) == ("two", "fp32", 2)
    images = CellImages(cells, split.part("test"), card.codes, card.preprocessing)
    served = Classifier.load(tmp_path / "two.onnx")
    pixels = np.stack([images.load(i) for i in range(len(images))])
    np.testing.assert_allclose(cell_outputs(model, images).logits_NC, served.logits(pixels), atol=1e-4)
    student = tiny_recipe(distil={"teacher": str(tmp_path / "again")}, schedule__epochs=1, schedule__warmup_epochs=0)
    train(student, data=cells, out=tmp_path / "student", split=two / "split.csv", quiet=True)
    assert Card.read(tmp_path / "student" / "card.json").teachers == ("two",)


def test_a_file_that_can_not_teach_is_refused_before_anything_is_written(
    script: Callable[[str], Any],
    tiny_run: Path,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, out = script("run_from_file"), tmp_path / "again"
    recipe, split, file = tiny_recipe(), Split.read(tiny_run / "split.csv"), tmp_path / "tiny.onnx"
    export_onnx(tiny_run, file)
    fewer = dict(split.info.counts) | {"val": dict.fromkeys(split.info.codes, 7)}
    other = Split(split.rows, split.info.model_copy(update={"counts": fewer}))
    with pytest.raises(SplitError, match="trained on another split"):
        module.run_from_file(str(file), recipe, other, out)
    with pytest.raises(TrainingError, match="holds a run already"):
        module.run_from_file(str(file), recipe, split, tiny_run)
    proto = onnx.load(file)
    names = {"model.backbone.fc.weight": "weight"}
    for part in (*proto.graph.initializer, *proto.graph.node):
        if isinstance(part, onnx.TensorProto):
            part.name = names.get(part.name, part.name)
        else:
            part.input[:] = [names.get(i, i) for i in part.input]
    onnx.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(ModelError, match=r"no tensor of backbone\.fc\.weight"):
        module.run_from_file(str(tmp_path / "renamed.onnx"), recipe, split, out)
    monkeypatch.setattr(module, "unfold", lambda network, graph: None)
    with pytest.raises(ModelError, match=r"answers otherwise than .*tiny\.onnx"):
        module.run_from_file(str(file), recipe, split, out)
    assert not out.exists()
