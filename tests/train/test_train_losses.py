"""Losses for unlike classes and for teachers, and learning the classifier first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import marrowscope.train.loop as loop
import marrowscope.train.runtime as runtime
from marrowscope.config import LossConfig, Recipe
from marrowscope.datasets import Batch, Indices
from marrowscope.errors import TrainingError
from marrowscope.models import build_model
from marrowscope.train import train
from marrowscope.train.checkpoint import load_state
from marrowscope.train.losses import distillation_loss, logit_offsets, smooth_targets, soft_cross_entropy

MakeRecipe = Callable[..., Recipe]


def test_the_distillation_loss_is_that_of_its_paper() -> None:
    # Two pictures, three classes, T = 2; each term written out as in Hinton et al. (2015).
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    teacher_logits = torch.tensor([[1.0, 1.0, -2.0], [0.0, -1.0, 4.0]])
    temperature = 2.0
    p, q = (np.exp(z.numpy() / temperature) for z in (teacher_logits, logits))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    assert float(distillation_loss(logits, teacher, temperature)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation_loss(teacher_logits, teacher, temperature)) == pytest.approx(0.0, abs=1e-6)


def test_the_square_of_the_temperature_keeps_the_gradients_size() -> None:
    torch.manual_seed(0)
    teacher_logits = torch.randn(8, 5)

    def gradient(temperature: float) -> torch.Tensor:
        logits = torch.zeros(8, 5, requires_grad=True)
        distillation_loss(logits, F.softmax(teacher_logits / temperature, dim=1), temperature).backward()
        assert logits.grad is not None
        return logits.grad

    # For a high temperature the gradient tends to that of half the squared error of centred logits, over C.
    centred = teacher_logits - teacher_logits.mean(1, keepdim=True)
    assert torch.allclose(gradient(1000.0), -centred / 5 / 8, atol=1e-4)
    ratio = gradient(100.0).norm() / gradient(1000.0).norm()
    assert float(ratio) == pytest.approx(1.0, abs=0.02)


def test_logit_adjustment_is_that_of_its_paper() -> None:
    torch.manual_seed(1)
    labels_all = np.array([0] * 70 + [1] * 25 + [2] * 5)
    assert logit_offsets(labels_all, 3, LossConfig()) is None
    offsets = logit_offsets(labels_all, 3, LossConfig(logit_adjustment=1.5))
    assert offsets is not None
    logits, labels = torch.randn(40, 3), torch.randint(0, 3, (40,))
    # Menon et al. (2021), eq. 10: log(1 + sum over y' != y of (pi_y' / pi_y)^tau exp(f_y' - f_y)).
    prior = torch.tensor([0.7, 0.25, 0.05])
    expected = []
    for f, y in zip(logits, labels, strict=True):
        others = [c for c in range(3) if c != int(y)]
        expected.append(torch.log1p(sum((prior[c] / prior[y]) ** 1.5 * torch.exp(f[c] - f[y]) for c in others)))  # type: ignore[arg-type]
    got = soft_cross_entropy(logits + offsets, smooth_targets(labels, 3, 0.0))
    assert float(got) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_state(run / "last")
    assert state is not None
    return state[1]


def test_training_uses_the_adjusted_logits_and_answers_without(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = loop.soft_cross_entropy

    def watched(logits: torch.Tensor, *args: object) -> torch.Tensor:
        seen.append(logits.detach())
        return original(logits, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "soft_cross_entropy", watched)
    for name, tau in (("plain", 0.0), ("adjusted", 1.0)):
        recipe = tiny_recipe(loss__logit_adjustment=tau, schedule__epochs=1, schedule__warmup_epochs=0)
        train(recipe, data=cells, out=tmp_path / name, quiet=True, limit_seconds=1e-9)
    # Eight of each class: every offset is log(1/3), and so the loss is the same, but the logits that it saw are not.
    assert torch.allclose(seen[1] - seen[0], torch.full_like(seen[0], np.log(1 / 3)), atol=1e-6)


def test_for_the_first_epochs_only_the_classifier_learns(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(schedule__head_epochs=1, engine__ema=0.0)
    after: list[dict[str, torch.Tensor]] = []
    original = loop.train_step

    def watched(learner: loop.Learner, batch: Batch, whole: Indices, step: int) -> loop.Step:
        after.append({k: v.clone() for k, v in learner.module.state_dict().items()})
        return original(learner, batch, whole, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", watched)
        train(recipe, data=cells, out=tmp_path / "run", quiet=True)
    start, warm, end = after[0], after[6], _weights(tmp_path / "run")
    moved = {k for k in start if not torch.equal(start[k], warm[k])}
    assert moved == {"backbone.fc.weight", "backbone.fc.bias"}, "statistics of batch norm count as learning too"
    assert all(not torch.equal(warm[k], end[k]) for k in start if k.endswith("weight"))

    # Stopped within either epoch and resumed, it ends alike.
    stopped = tmp_path / "stopped"
    for step in (3, 8):

        def interrupted(learner: loop.Learner, batch: Batch, whole: Indices, n: int, at: int = step) -> loop.Step:
            if n == at:
                raise KeyboardInterrupt
            return original(learner, batch, whole, n)

        often = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"checkpoint_minutes": 1e-9})})
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(often, data=cells, out=stopped, resume=True, quiet=True)
    train(often, data=cells, out=stopped, resume=True, quiet=True)
    resumed = _weights(stopped)
    assert all(torch.equal(end[k], resumed[k]) for k in end)


def test_in_several_processes_the_gradients_of_the_rest_are_dropped(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP must see all gradients; there the rest is kept still by another way, with the same result."""
    recipe = tiny_recipe(schedule__head_epochs=1, engine__ema=0.0)
    mode = loop.Learner.train_mode

    def as_in_ddp(self: loop.Learner, head_only: bool) -> None:
        mode(self, head_only)
        for p in self.module.parameters():
            p.requires_grad_(True)

    train(recipe, data=cells, out=tmp_path / "one", quiet=True)
    monkeypatch.setattr(loop.Learner, "train_mode", as_in_ddp)
    train(recipe, data=cells, out=tmp_path / "other", quiet=True)
    one, other = _weights(tmp_path / "one"), _weights(tmp_path / "other")
    # Only the norm that clips may differ, and it does not: dropped gradients are not part of it.
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_batch_norm_is_synchronised_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from marrowscope.config import ModelConfig
    from marrowscope.models import build_model
    from marrowscope.schema import Preprocessing
    from marrowscope.train.runtime import synchronised

    module = build_model(ModelConfig(name="test_resnet"), 3, Preprocessing(size=32))
    keys = set(module.state_dict())

    def fabric(kind: str, world: int) -> object:
        return type("F", (), {"world_size": world, "device": torch.device(kind)})()

    for kind, world in (("cpu", 2), ("cpu", 1), ("cuda", 1)):
        same = synchronised(module, fabric(kind, world))  # type: ignore[arg-type]
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in same.modules())
    over_all = synchronised(module, fabric("cuda", 2))  # type: ignore[arg-type]
    assert any(isinstance(m, nn.SyncBatchNorm) for m in over_all.modules())
    assert not any(type(m) is nn.BatchNorm2d for m in over_all.modules())
    assert set(over_all.state_dict()) == keys, "a checkpoint must fit both"


def test_a_machine_that_cant_compile_is_told_so_before_training(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    recipe = tiny_recipe(engine__compile=True)
    with pytest.raises(TrainingError, match=r"engine\.compile.*No working C\+\+ compiler.*leave engine\.compile out"):
        train(recipe, data=cells, out=tmp_path / "run", quiet=True)


def test_a_compiled_network_is_trained_and_saved_as_the_plain_one(
    tiny_recipe: MakeRecipe, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's `eager` backend, which makes no code: what is left is that checkpoints and gradients fit."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda thing, **options: whole(thing, backend="eager"))
    for name, on in (("plain", False), ("compiled", True)):
        recipe = tiny_recipe(engine__compile=on, augment={}, schedule__epochs=1, schedule__warmup_epochs=0)
        train(recipe, data=cells, out=tmp_path / name, quiet=True)
    plain, compiled = _weights(tmp_path / "plain"), _weights(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[k], compiled[k], atol=1e-6) for k in plain)


@pytest.mark.parametrize(
    ("asked", "device", "precision", "flags", "fused"),
    [
        ("auto", "cpu", "bf16-mixed", "avx512_bf16", False),
        ("auto", "cpu", "bf16-mixed", "avx512_bf16 amx_bf16", True),
        ("auto", "cpu", "32-true", "avx512_bf16", True),
        ("auto", "cuda", "bf16-mixed", "avx512_bf16", True),
        ("fused", "cpu", "bf16-mixed", "avx512_bf16", True),
        ("plain", "cuda", "32-true", "", False),
    ],
)
def test_attention_is_plain_where_that_trains_faster_or_the_recipe_asks_for_it(
    tiny_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    device: str,
    precision: str,
    flags: str,
    fused: bool,
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: set(flags.split()))
    fabric = SimpleNamespace(device=torch.device(device), _precision=SimpleNamespace(precision=precision))
    recipe = tiny_recipe(model__name="test_vit + test_vit", image__size=64, engine__attention=asked)
    module = build_model(recipe.model, 3, recipe.image).eval()
    before = module(pictures := 255 * torch.rand(2, 3, 64, 64))
    runtime.choose_attention(module, recipe.engine, fabric)  # type: ignore[arg-type]
    found = [m.fused_attn for m in module.modules() if hasattr(m, "fused_attn")]
    assert len(found) == 2 * 6
    assert set(found) == {fused}
    torch.testing.assert_close(module(pictures), before, atol=1e-5, rtol=1e-4)
