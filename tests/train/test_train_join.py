"""Joined runs: a run folder that answers with the mean of several, for all later stages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from marrowscope.cli import app
from marrowscope.config import Recipe
from marrowscope.datasets import CellImages
from marrowscope.errors import MarrowscopeError, ModelError, SplitError, TrainingError
from marrowscope.explain.cam import cam_maps, cam_targets
from marrowscope.explain.sanity import cascade, layer_groups
from marrowscope.export import export_onnx
from marrowscope.images import prepare
from marrowscope.infer import Classifier
from marrowscope.modelcards import card_markdown
from marrowscope.models import MeanOfNetworks, build_model, load_run_model
from marrowscope.outputs import cell_outputs
from marrowscope.report import write_report
from marrowscope.schema import Card, Split, read_index
from marrowscope.score import evaluate_run, predict_part
from marrowscope.train import train
from marrowscope.train.join import join
from marrowscope.train.schedule import make_optimizer
from marrowscope.triage import calibrated, energy

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def runs(tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one split, one of another network."""
    out = tmp_path_factory.mktemp("members")
    changes = {"seed1": {"seed": 4}, "vit": {"model__name": "test_vit", "seed": 5}}
    for name, change in changes.items():
        recipe = tiny_recipe(name=name, **change)
        train(recipe, data=cells, out=out / name, split=tiny_run / "split.csv", quiet=True)
    return [tiny_run, out / "seed1", out / "vit"]


@pytest.fixture(scope="module")
def joined(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "run"
    join(runs, out, name="three")
    return out


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def test_it_answers_with_the_mean_of_the_probabilities(runs: list[Path], joined: Path, cells: Path) -> None:
    rows = Split.read(joined / "split.csv").part("val")
    model, card = load_run_model(joined)
    images = CellImages(cells, rows, card.codes, card.preprocessing)
    together = cell_outputs(model, images)
    alone = [cell_outputs(load_run_model(run)[0], images) for run in runs]
    mean = np.mean([_softmax(o.logits_NC) for o in alone], axis=0)
    np.testing.assert_allclose(_softmax(together.logits_NC), mean, atol=1e-6)
    np.testing.assert_allclose(
        energy(together.logits_NC), np.mean([energy(o.logits_NC) for o in alone], axis=0), atol=1e-5
    )
    np.testing.assert_array_equal(together.features_ND, np.concatenate([o.features_ND for o in alone], axis=1))
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([images.load(i) for i in range(len(images))])).permute(0, 3, 1, 2)
        np.testing.assert_allclose(model(pixels).numpy(), together.logits_NC, atol=1e-5)
    # The validation scores of the card, by hand.
    right = mean.argmax(1) == images.labels
    assert card.validation["val_accuracy"] == pytest.approx(right.mean())
    picked = mean[np.arange(len(mean)), images.labels]
    assert card.validation["val_loss"] == pytest.approx(-np.log(picked).mean(), abs=1e-5)


def test_the_mean_of_one_network_is_that_network(tiny_run: Path) -> None:
    model, _ = load_run_model(tiny_run)
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(MeanOfNetworks([model.backbone])(pictures), model.backbone(pictures), atol=1e-5)


def test_its_card_names_every_member(runs: list[Path], joined: Path) -> None:
    card, cards = Card.read(joined / "card.json"), [Card.read(run / "card.json") for run in runs]
    assert card.name == "three"
    assert card.architecture == "test_resnet + test_resnet + test_vit"
    assert card.parameters == sum(c.parameters for c in cards)
    assert [(m.name, m.seed, m.epochs, m.weights_sha256) for m in card.members] == [
        (c.name, c.seed, c.epochs, c.weights_sha256) for c in cards
    ]
    text = card_markdown(card)
    assert "the mean of the probabilities of 3 networks" in text
    assert "vit: test_vit, seed 5" in text


def test_later_stages_take_it_as_any_run(joined: Path, cells: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(joined, run)
    evaluation, _ = evaluate_run(run)
    assert Card.read(run / "card.json").scaling is not None
    answers = predict_part(run, "test")
    assert evaluation.figures["accuracy"].n == len(answers.paths)
    page = write_report(run).read_text()
    assert "Training of three" not in page
    assert "Training of vit" in page
    parity = export_onnx(run, tmp_path / "m.onnx")
    assert parity.passes
    served = Classifier.load(tmp_path / "m.onnx")
    assert len(served.card.members) == 3
    model, card = load_run_model(run)
    rows = Split.read(run / "split.csv").part("test")
    images = CellImages(cells, rows, card.codes, card.preprocessing)
    pixels = np.stack([images.load(i) for i in range(len(images))])
    expected = calibrated(card, cell_outputs(model, images).logits_NC)
    np.testing.assert_allclose(served.probabilities(pixels), expected, atol=1e-5)
    assert len(read_index(run / "index.csv")) == 30


def test_members_may_take_pictures_of_their_own_size_and_normalisation(
    runs: list[Path], cells: Path, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        name="large", model__name="test_vit", image__size=48, image__mean=[0.5, 0.4, 0.3], image__std=[0.2, 0.25, 0.3]
    )
    train(recipe, data=cells, out=tmp_path / "large", split=runs[0] / "split.csv", quiet=True)
    order = [runs[0], tmp_path / "large", runs[1]]
    card = join(order, tmp_path / "run", name="mixed")
    assert card.preprocessing == recipe.image, "pictures are prepared for the largest"
    assert [m.input_px for m in card.members] == [32, 48, 32]
    assert "large: test_vit at 48 px, seed 3" in card_markdown(card)

    # Each member answers as it does alone, to what `prepare` makes smaller once more, but for the rounding to bytes.
    model, card = load_run_model(tmp_path / "run")
    rows = Split.read(tmp_path / "run" / "split.csv").part("val")
    images = CellImages(cells, rows, card.codes, card.preprocessing)
    pixels = np.stack([images.load(i) for i in range(len(images))])
    answers = []
    for run in order:
        alone, own = load_run_model(run)
        small = np.stack([prepare(p, own.preprocessing) for p in pixels])
        with torch.no_grad():
            answers.append(_softmax(alone(torch.from_numpy(small).permute(0, 3, 1, 2)).numpy()))
    outputs = cell_outputs(model, images)
    together = _softmax(outputs.logits_NC)
    np.testing.assert_allclose(together, np.mean(answers, axis=0), atol=0.01)
    assert np.abs(answers[0] - answers[1]).max() > 0.05, "the members differ by more than that"
    right = together.argmax(1) == images.labels
    assert card.validation["val_accuracy"] == pytest.approx(right.mean())

    # Later stages: judged, explained, exported in full and in eight bits.
    evaluate_run(tmp_path / "run")
    card = Card.read(tmp_path / "run" / "card.json")
    targets = cam_targets(model, "hirescam", 48)
    assert [t.name.split(".")[1] for t in targets] == ["0", "1", "2"]
    batch = torch.from_numpy(pixels[:2]).permute(0, 3, 1, 2)
    heat = cam_maps(model, targets, batch, torch.tensor([0, 1]), "hirescam")
    assert heat.shape == (2, 48, 48)
    assert export_onnx(tmp_path / "run", tmp_path / "m.onnx").passes
    served = Classifier.load(tmp_path / "m.onnx")
    np.testing.assert_allclose(served.probabilities(pixels), calibrated(card, outputs.logits_NC), atol=1e-5)
    assert export_onnx(tmp_path / "run", tmp_path / "m8.onnx", precision="int8").passes
    served = Classifier.load(tmp_path / "m8.onnx")
    np.testing.assert_allclose(served.probabilities(pixels), calibrated(served.card, outputs.logits_NC), atol=0.1)


def test_it_can_teach(joined: Path, cells: Path, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(distil={"teacher": str(joined), "weight": 0.5}, schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=tmp_path / "student", split=joined / "split.csv", quiet=True)
    assert Card.read(tmp_path / "student" / "card.json").teachers == ("three",)


def test_maps_are_means_over_the_members(runs: list[Path], cells: Path, tmp_path: Path) -> None:
    join(runs[:2], tmp_path / "two")
    model, card = load_run_model(tmp_path / "two")
    names = [t.name for t in cam_targets(model, "hirescam", 32)]
    (alone,) = cam_targets(load_run_model(runs[0])[0], "hirescam", 32)
    assert names == [f"members.0.{alone.name}", f"members.1.{alone.name}"]
    rows = Split.read(tmp_path / "two" / "split.csv").part("val")
    images = CellImages(cells, rows, card.codes, card.preprocessing)
    pixels = torch.from_numpy(images.load(0).copy()).permute(2, 0, 1)[None]
    target = torch.tensor([0])
    heat = cam_maps(model, cam_targets(model, "hirescam", 32), pixels, target, "hirescam")
    assert heat.shape == (1, 32, 32)
    assert heat.max() > 0


def test_layers_of_members_are_randomised_together(joined: Path, cells: Path) -> None:
    model, card = load_run_model(joined)
    groups = layer_groups(model.backbone)
    assert sorted(n for g in groups for n in g) == sorted(n for n, _ in model.backbone.named_parameters())
    assert {n.split(".")[1] for n in groups[0]} == {"0", "1", "2"}, "the answer's own layers come first, of all members"
    rows = Split.read(joined / "split.csv").part("val")
    images = CellImages(cells, rows, card.codes, card.preprocessing)
    pixels = np.stack([images.load(i) for i in range(len(images))])
    before = cell_outputs(model, images).logits_NC
    shares = [share for share, _ in cascade(model, pixels, seed=0)]
    assert shares[-1] == 1.0
    np.testing.assert_array_equal(cell_outputs(model, images).logits_NC, before)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_a_mean_is_a_network_that_can_be_trained(tiny_recipe: MakeRecipe, layer_decay: float) -> None:
    recipe = tiny_recipe(model__name="test_resnet + test_vit", optimizer__layer_decay=layer_decay)
    model = build_model(recipe.model, 3, recipe.image)
    assert isinstance(model.backbone, MeanOfNetworks)
    optimizer = make_optimizer(model, recipe.optimizer)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    free = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    (position,) = [p for n, p in model.named_parameters() if n.endswith("pos_embed")]
    assert id(position) in free


def test_what_can_not_be_joined_is_said(
    runs: list[Path], joined: Path, cells: Path, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    def refused(kind: type[MarrowscopeError], text: str, *given: Path, out: Path = tmp_path / "out") -> None:
        with pytest.raises(kind, match=text):
            join(given, out)
        assert out == joined or not out.exists(), "nothing is left behind"

    refused(TrainingError, "two runs or more; 1 given", runs[0])
    refused(TrainingError, "holds a run already", *runs, out=joined)
    refused(TrainingError, "same weights", runs[0], runs[1], runs[0])
    refused(ModelError, "was joined from 3 runs itself", joined, runs[0])
    refused(ModelError, "no run folder", runs[0], tmp_path)
    train(tiny_recipe(image__crop=0.8, schedule__epochs=1), data=cells, out=tmp_path / "cropped",
          split=runs[0] / "split.csv", quiet=True)  # fmt: skip
    refused(ModelError, r"differ in preprocessing.crop \(1.0; 0.8\)", runs[0], tmp_path / "cropped")
    train(tiny_recipe(seed=9, schedule__epochs=1), data=cells, out=tmp_path / "other", quiet=True)
    refused(SplitError, "different splits", runs[0], tmp_path / "other")


def test_the_command_joins(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean"
    done = CliRunner().invoke(app, ["join", *map(str, runs), "--out", str(out), "--name", "mean"])
    assert done.exit_code == 0, done.output
    assert "3 networks" in done.output
    assert Card.read(out / "card.json").name == "mean"
    wrong = CliRunner().invoke(app, ["join", *map(str, runs), "--out", str(tmp_path / "x"), "--name", "Bad name"])
    assert wrong.exit_code != 0
    assert "name" in str(wrong.exception)
