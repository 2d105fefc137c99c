"""Losses, learning rate, averaging, order, augmentation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from marrowscope.augment import Augment, mix, stain_shift
from marrowscope.config import AugmentConfig, LossConfig, ScheduleConfig
from marrowscope.datasets import epoch_order
from marrowscope.train.losses import class_weights, smooth_targets, soft_cross_entropy
from marrowscope.train.runtime import StopWish
from marrowscope.train.schedule import Ema, learning_rate_factor


def test_the_loss_is_that_of_torch() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 5), torch.randint(0, 5, (40,))
    weights = torch.rand(5) + 0.1
    plain = smooth_targets(labels, 5, 0.0)
    assert torch.allclose(soft_cross_entropy(logits, plain), F.cross_entropy(logits, labels))
    smooth = smooth_targets(labels, 5, 0.1)
    assert torch.allclose(soft_cross_entropy(logits, smooth), F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert torch.allclose(soft_cross_entropy(logits, plain, weights), F.cross_entropy(logits, labels, weights))


def test_the_focal_loss_is_that_of_its_paper() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 5), torch.randint(0, 5, (40,))
    p = logits.softmax(1)[torch.arange(40), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    got = soft_cross_entropy(logits, smooth_targets(labels, 5, 0.0), focal_gamma=2.0)
    assert torch.allclose(got, expected)


def test_class_weights_are_inverse_to_counts() -> None:
    labels = np.array([0] * 30 + [1] * 10 + [2] * 60)
    assert class_weights(labels, 3, LossConfig()) is None
    weights = class_weights(labels, 3, LossConfig(class_weights="balanced"))
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)
    assert (weights * torch.tensor([30.0, 10.0, 60.0])).std() < 1e-5


def test_the_learning_rate_rises_falls_and_stays_above_its_floor() -> None:
    config = ScheduleConfig(epochs=10, warmup_epochs=2, floor=0.1)
    factors = [learning_rate_factor(s, 20, config) for s in range(200)]
    assert factors[:40] == sorted(factors[:40])
    assert factors[40] == 1.0
    assert factors[40:] == sorted(factors[40:], reverse=True)
    assert 0.1 <= factors[-1] < 0.101
    assert learning_rate_factor(10_000, 20, config) == pytest.approx(0.1)
    constant = ScheduleConfig(epochs=10, constant=True)
    assert {learning_rate_factor(s, 20, constant) for s in range(200)} == {1.0}


def test_the_average_follows_the_model_and_copies_whole_numbers() -> None:
    model = torch.nn.BatchNorm1d(3)
    ema = Ema(model, copy.deepcopy(model), 0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    ema.update(model, step=10_000)
    assert torch.equal(ema.module.weight, torch.full((3,), 2.0))
    assert int(ema.module.num_batches_tracked) == 7
    assert not ema.module.weight.requires_grad


@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=80),
    st.integers(2, 16),
    st.integers(0, 5),
    st.sampled_from(["natural", "balanced"]),
)
def test_an_epoch_has_whole_batches_and_depends_on_its_number_alone(
    labels: list[int], batch: int, epoch: int, sampling: str
) -> None:
    array = np.array(labels)
    order = epoch_order(array, seed=1, epoch=epoch, sampling=sampling, batch_size=batch)
    again = epoch_order(array, seed=1, epoch=epoch, sampling=sampling, batch_size=batch)
    assert [list(a) for a in order] == [list(a) for a in again]
    drawn = np.concatenate(order)
    if len(labels) > batch:
        assert {len(b) for b in order} == {batch}
        assert len(drawn) == len(labels) - len(labels) % batch
    if sampling == "natural":
        assert len(set(drawn)) == len(drawn)


def test_balanced_sampling_shows_classes_equally_often() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    drawn = labels[np.concatenate(epoch_order(labels, seed=0, epoch=0, sampling="balanced", batch_size=10))]
    counts = np.bincount(drawn)
    assert counts.sum() == 1000
    assert counts.max() - counts.min() <= 3


def _pictures(n: int = 6, size: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_off_means_off() -> None:
    pictures = _pictures()
    assert torch.equal(Augment(AugmentConfig())(pictures, _seeded(1)), pictures.float())
    targets = torch.eye(6)
    mixed, mixed_targets = mix(pictures.float(), targets, AugmentConfig(), _seeded(1))
    assert torch.equal(mixed, pictures.float())
    assert torch.equal(mixed_targets, targets)


@pytest.mark.parametrize(
    "config",
    [
        {"flip": True},
        {"rotation": 180.0},
        {"scale": 0.3},
        {"shift": 0.2},
        {"brightness": 0.3},
        {"contrast": 0.3},
        {"saturation": 0.5},
        {"stain": 0.3},
        {"erase": 1.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_each_change_changes_and_is_repeatable(config: dict[str, float]) -> None:
    pictures = _pictures()
    before = pictures.clone()
    augment = Augment(AugmentConfig(**config))
    one, same, other = (augment(pictures, _seeded(s)) for s in (1, 1, 2))
    assert torch.equal(pictures, before), "the input was changed"
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, pictures.float())
    assert one.shape == pictures.shape
    assert one.min() >= -0.01
    assert one.max() <= 255.01


def test_flips_only_move_pixels() -> None:
    pictures = _pictures()
    flipped = Augment(AugmentConfig(flip=True))(pictures, _seeded(3))
    for a, b in zip(pictures.float(), flipped, strict=True):
        assert any(torch.equal(b, a.flip(axes)) for axes in ([], [1], [2], [1, 2]))


def test_a_rotation_by_90_degrees_is_the_rotated_picture() -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    augment = Augment(AugmentConfig(rotation=90))
    generator = _seeded(0)
    torch_rand = torch.rand

    def always_one(*shape: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.ones(*shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", always_one)
        turned = augment(ramp, generator)
    assert torch.rand is torch_rand
    quarter = [torch.rot90(ramp, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(turned, q, atol=1e-3) for q in quarter)


def test_a_stain_shift_of_nothing_is_the_same_picture() -> None:
    pictures = _pictures().float()
    same = stain_shift(pictures, torch.ones(6, 3), torch.zeros(6, 3))
    assert torch.allclose(same, pictures, atol=0.05)
    stronger = stain_shift(pictures, torch.full((6, 3), 1.5), torch.zeros(6, 3))
    assert (stronger <= pictures + 0.05).all(), "more stain is darker"


@pytest.mark.parametrize("config", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_mixes_targets_as_much_as_pictures(config: dict[str, float]) -> None:
    # Picture i is filled with the number i, so the share of each can be read off the pixels.
    pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32).clone()
    for seed in range(20):
        mixed, targets = mix(pictures, torch.eye(4), AugmentConfig(**config), _seeded(seed))
        assert torch.allclose(targets.sum(1), torch.ones(4))
        means = mixed.mean((1, 2, 3))
        assert torch.allclose(targets @ torch.arange(4.0), means, atol=1e-4)


def test_a_stop_wish_comes_true_when_the_time_is_up() -> None:
    now = [0.0]
    wish = StopWish(10, clock=lambda: now[0])
    assert not wish
    now[0] = 10.0
    assert wish
    assert wish.reason == "the time limit"
    assert not StopWish(None, clock=lambda: math.inf)
