"""Learning from teachers: what they see, what is kept, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import marrowscope.train.distil as distil
import marrowscope.train.loop as loop
from marrowscope.config import Recipe, recipe_toml
from marrowscope.datasets import Batch, Indices
from marrowscope.errors import ModelError, SplitError, TrainingError
from marrowscope.evaluate.calibration import Scaling
from marrowscope.images import prepare
from marrowscope.models import load_run_model
from marrowscope.schema import Card, Preprocessing, Split, read_metrics
from marrowscope.score import predict_part
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state
from marrowscope.train.sweep import sweep

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def large(tiny_run: Path, tiny_recipe: MakeRecipe, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another teacher, of 64 px and other classes' order in its card."""
    out = tmp_path_factory.mktemp("teachers") / "large"
    recipe = tiny_recipe(image__size=64, model__name="test_vit", schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=out, split=tiny_run / "split.csv", quiet=True)
    return out


def _weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_state(run / "last")
    assert state is not None
    assert state[0].finished
    return state[1]


def test_teachers_answer_for_the_picture_that_the_network_sees(
    tiny_recipe: MakeRecipe,
    tiny_run: Path,
    large: Path,
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    losses: list[torch.Tensor] = []
    answer, loss_of = distil.Teachers.answer, loop.distillation_loss

    def watched(self: distil.Teachers, pictures: torch.Tensor) -> torch.Tensor:
        seen.append((pictures, answer(self, pictures)))
        return seen[-1][1]

    def watched_loss(logits: torch.Tensor, answers: torch.Tensor, temperature: float) -> torch.Tensor:
        losses.append(answers)
        assert temperature == 3.0
        return loss_of(logits, answers, temperature)

    monkeypatch.setattr(distil.Teachers, "answer", watched)
    monkeypatch.setattr(loop, "distillation_loss", watched_loss)
    inputs: list[torch.Tensor] = []
    step = loop.train_step

    def hooked(learner: loop.Learner, batch: Batch, whole: Indices, n: int) -> loop.Step:
        handle = learner.module.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
        try:
            return step(learner, batch, whole, n)
        finally:
            handle.remove()

    monkeypatch.setattr(loop, "train_step", hooked)
    recipe = tiny_recipe(
        distil={"teacher": [str(tiny_run), str(large)], "temperature": 3.0, "weight": 0.7},
        schedule__epochs=1,
        schedule__warmup_epochs=0,
    )
    train(recipe, data=cells, out=tmp_path / "run", split=tiny_run / "split.csv", quiet=True, limit_seconds=1e-9)
    pictures, answers = seen[0]
    assert pictures.shape == (4, 3, 64, 64), "augmented at the largest size"
    assert inputs[0].shape == (4, 3, 32, 32)
    assert torch.allclose(inputs[0], F.interpolate(pictures, (32, 32), mode="bicubic", antialias=True).clamp(0, 255))
    # By hand: each at its own size, at the temperature, averaged.
    expected = torch.zeros(4, 3)
    for path, own in ((tiny_run, inputs[0]), (large, pictures)):
        model, card = load_run_model(path)
        assert card.codes == recipe.codes
        with torch.no_grad():
            expected += F.softmax(model(own) / 3.0, dim=1) / 2
    assert torch.allclose(answers, expected, atol=1e-5)
    assert losses[0] is answers


def test_a_student_believes_its_teacher_rather_than_the_labels(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # a teacher that takes every class for the next one
        distil.Teachers,
        "_answers",
        lambda self, images, progress: torch.eye(3)[torch.from_numpy((images.labels + 1) % 3)],
    )
    recipe = tiny_recipe(
        distil={"teacher": str(tiny_run), "weight": 1.0, "view": "plain"},
        augment={},
        optimizer__learning_rate=5e-3,
        engine__ema=0.0,
        engine__monitor="val_loss",
        schedule__epochs=20,
        schedule__warmup_epochs=0,
    )
    train(recipe, data=cells, out=tmp_path / "run", split=tiny_run / "split.csv", quiet=True)
    last = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    # The accuracy that is told is that of the labels, so it falls below chance while the loss falls too.
    assert last["train_loss"] < 0.5 * read_metrics(tmp_path / "run" / "metrics.csv")[0]["train_loss"]
    assert last["train_accuracy"] < 0.2


@pytest.mark.parametrize("view", ["augmented", "plain"])
def test_a_stopped_student_ends_with_the_same_weights(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path, view: str
) -> None:
    teacher = {"teacher": str(tiny_run), "view": view}
    recipe = tiny_recipe(distil=teacher, model__drop_path=0.1, seed=5)
    split = tiny_run / "split.csv"
    train(recipe, data=cells, out=tmp_path / "whole", split=split, quiet=True)
    stopped = tmp_path / "stopped"
    train(recipe, data=cells, out=stopped, split=split, quiet=True, limit_seconds=1e-9)
    train(recipe, data=cells, out=stopped, split=split, quiet=True, resume=True)
    whole = _weights(tmp_path / "whole")
    assert all(torch.equal(v, whole[k]) for k, v in _weights(stopped).items())
    assert (stopped / "teachers.safetensors").exists() == (view == "plain")
    assert Card.read(stopped / "card.json").teachers == (Card.read(tiny_run / "card.json").name,)
    unlike = tmp_path / "unlike"
    train(tiny_recipe(model__drop_path=0.1, seed=5), data=cells, out=unlike, split=split, quiet=True)
    assert not all(torch.equal(v, whole[k]) for k, v in _weights(unlike).items())
    assert Card.read(unlike / "card.json").teachers == ()


def test_plain_answers_are_those_of_serving_and_kept_while_they_fit(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(distil={"teacher": str(tiny_run), "view": "plain", "temperature": 1.0})
    run, split = tmp_path / "run", tiny_run / "split.csv"
    train(recipe, data=cells, out=run, split=split, quiet=True, limit_seconds=1e-9)
    kept = load_file(run / "teachers.safetensors")["probabilities"]
    served = predict_part(tiny_run, "train")
    assert served.paths == tuple(r.path for r in Split.read(split).part("train"))
    scaling = Card.read(tiny_run / "card.json").scaling
    raw_NC = served.probs_NC
    if scaling is not None:  # a teacher answers as the network does, before its calibration
        raw_NC = Scaling(np.array(scaling.scale), np.array(scaling.bias)).undo(raw_NC)
    assert np.abs(kept.numpy() - raw_NC).max() < 1e-5

    asked = [0]
    answers = distil.Teachers._answers

    def counted(self: distil.Teachers, *args: object) -> torch.Tensor:
        asked[0] += 1
        return answers(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(distil.Teachers, "_answers", counted)
    train(recipe, data=cells, out=run, quiet=True, resume=True, limit_seconds=1e-9)
    assert asked[0] == 0
    save_file({"probabilities": kept.roll(1, 0)}, run / "teachers.safetensors")  # not those that were kept
    train(recipe, data=cells, out=run, quiet=True, resume=True, limit_seconds=1e-9)
    assert asked[0] == 1
    assert torch.equal(load_file(run / "teachers.safetensors")["probabilities"], kept)


def test_held_out_answers_are_of_those_that_have_not_seen_the_picture(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path
) -> None:
    split, recipe_file = tiny_run / "split.csv", tmp_path / "teacher.toml"
    recipe_file.write_text(recipe_toml(tiny_recipe(schedule__epochs=1, schedule__warmup_epochs=0)))
    folds = tmp_path / "folds"
    done = sweep(
        recipe_file, [], data=cells, out=folds, split=split, folds=3, train_only=True, seeds=[0, 1], quiet=True
    )
    teachers = [folds / t.trial.folder for t in done.trials]
    assert len(teachers) == 6

    def start(which: list[Path], out: str, **changes: object) -> Path:
        distil = {"teacher": [str(t) for t in which], "view": "held-out", "temperature": 1.0}
        train(tiny_recipe(distil=distil, **changes), data=cells, out=tmp_path / out, split=split, quiet=True)
        return tmp_path / out

    run = start(teachers, "run")
    kept = load_file(run / "teachers.safetensors")["probabilities"].numpy()
    rows = Split.read(split).part("train")
    expected = np.zeros_like(kept)
    for teacher in teachers:
        place = {r.path: i for i, r in enumerate(rows)}
        served = predict_part(teacher, "val", data=cells)  # the fold that it was not trained on
        for path, probs in zip(served.paths, served.probs_NC, strict=True):
            expected[place[path]] += probs / 2  # two seeds
    assert np.abs(expected.sum(1) - 1).max() < 1e-5, "each picture was held out twice"
    assert np.abs(kept - expected).max() < 1e-5
    assert read_metrics(run / "metrics.csv")

    with pytest.raises(SplitError, match=r"\d+ training pictures.* were learnt by every teacher.*--train-only"):
        start([teachers[0]], "one")
    with pytest.raises(SplitError, match=r"trained on every picture of this run.*Leave it out"):
        start([*teachers, tiny_run], "idle")


def test_plain_answers_are_mixed_as_the_labels_are(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that repeats the labels must leave the same targets on both sides of the loss."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = loop.soft_cross_entropy

    def watched(logits: torch.Tensor, targets: torch.Tensor, *args: object) -> torch.Tensor:
        pairs.append((targets, torch.empty(0)))
        return original(logits, targets, *args)  # type: ignore[arg-type]

    def watched_distil(logits: torch.Tensor, answers: torch.Tensor, temperature: float) -> torch.Tensor:
        pairs[-1] = (pairs[-1][0], answers)
        return logits.sum() * 0

    monkeypatch.setattr(loop, "soft_cross_entropy", watched)
    monkeypatch.setattr(loop, "distillation_loss", watched_distil)
    monkeypatch.setattr(
        distil.Teachers, "_answers", lambda self, images, progress: torch.eye(3)[torch.from_numpy(images.labels)]
    )
    recipe = tiny_recipe(
        distil={"teacher": str(tiny_run), "view": "plain"}, schedule__epochs=1, schedule__warmup_epochs=0
    )
    train(recipe, data=cells, out=tmp_path / "run", split=tiny_run / "split.csv", quiet=True)
    assert len(pairs) == 6
    assert all(torch.allclose(a, b) for a, b in pairs)
    assert any(not torch.equal(a, a.round()) for a, _ in pairs), "nothing was mixed"


def test_what_a_teacher_must_not_be_is_explained(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path
) -> None:
    split = tiny_run / "split.csv"

    def start(teacher: Path, out: str, split: Path | None = split, **changes: object) -> None:
        recipe = tiny_recipe(distil={"teacher": str(teacher)}, **changes)
        train(recipe, data=cells, out=tmp_path / out, split=split, quiet=True, limit_seconds=1e-9)

    with pytest.raises(ModelError, match=r"teacher .*nowhere can't be used.*no run folder"):
        start(tmp_path / "nowhere", "a")
    with pytest.raises(ModelError, match="give the run folder that it was exported from"):
        start(tmp_path / "model.onnx", "b")
    with pytest.raises(ModelError, match=r"knows the classes BLA LYT NGS; the recipe's are BLA NGS"):
        start(tiny_run, "c", merge={"LYT": "BLA"})
    with pytest.raises(ModelError, match=r"sees a crop of 1, the recipe's network of 0\.5"):
        start(tiny_run, "d", image__crop=0.5)
    # Another seed draws another split: the teacher has seen pictures that the student is judged on.
    with pytest.raises(SplitError, match=r"learnt from \d pictures that this run validates or tests on.*--split"):
        start(tiny_run, "e", split=None, seed=99)


def test_a_run_may_start_from_another_runs_weights_on_the_same_split(
    tiny_recipe: MakeRecipe, tiny_run: Path, cells: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model__weights=str(tiny_run / "best.safetensors"), optimizer__learning_rate=1e-12)
    train(recipe, data=cells, out=tmp_path / "a", split=tiny_run / "split.csv", quiet=True)
    name = Card.read(tiny_run / "card.json").name
    assert Card.read(tmp_path / "a" / "card.json").pretrained == f"best.safetensors of the run {name}"
    start, end = load_file(tiny_run / "best.safetensors"), load_file(tmp_path / "a" / "best.safetensors")
    same = [torch.allclose(start[k], end[k], atol=1e-6) for k in start if k.endswith("weight")]
    assert same, "no weight to compare"
    assert all(same)
    with pytest.raises(SplitError, match=r"run of the start weights .*best.safetensors learnt from"):
        train(recipe.model_copy(update={"seed": 99}), data=cells, out=tmp_path / "b", quiet=True)


def test_a_teacher_that_changed_is_noticed(
    tiny_recipe: MakeRecipe, tiny_run: Path, large: Path, cells: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(tiny_run, tmp_path / "teacher"))
    recipe = tiny_recipe(distil={"teacher": str(teacher)})
    run = tmp_path / "run"
    train(recipe, data=cells, out=run, split=tiny_run / "split.csv", quiet=True, limit_seconds=1e-9)
    shutil.rmtree(teacher)
    shutil.copytree(large, teacher)
    with pytest.raises(TrainingError, match="weights are not those that the run was begun with"):
        train(recipe, data=cells, out=run, quiet=True, resume=True)


def test_a_smaller_picture_is_as_images_are_made_smaller() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (96, 96), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(smooth)
    got = distil.resized(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float(), 64)[0].permute(1, 2, 0).numpy()
    difference = np.abs(got - prepare(pixels, Preprocessing(size=64)).astype(float))
    # Pillow rounds to whole grey values twice, after each axis.
    assert difference.max() < 2.0
    assert difference.mean() < 0.5
