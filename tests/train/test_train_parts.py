"""Losses, learning rate, averaging, order, augmentation."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import gaussian_blur as oracle_blur

import marrowscope.augment as augment_module
from marrowscope.augment import (
    STAIN_VECTORS,
    Augment,
    augmented,
    gaussian_blur,
    jpeg_noise,
    mix,
    stain_shift,
    while_reading,
)
from marrowscope.config import AugmentConfig, LossConfig, Recipe, ScheduleConfig, parse_recipe, recipe_toml
from marrowscope.datasets import epoch_order
from marrowscope.images import load_prepared
from marrowscope.models import CellClassifier
from marrowscope.schema import Split
from marrowscope.train import train
from marrowscope.train.losses import class_weights, smooth_targets, soft_cross_entropy
from marrowscope.train.runtime import StopWish
from marrowscope.train.schedule import Ema, learning_rate_factor
from tiny import tiny_values


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
        {"stain": 0.3, "stain_axes": "giemsa"},
        {"erase": 1.0},
        {"blur": 2.0},
        {"jpeg": 20},
    ],
    ids=lambda c: " ".join(c),
)
def test_each_change_changes_and_is_repeatable(config: dict[str, Any]) -> None:
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


ALL_OLD: dict[str, Any] = {
    "flip": True, "rotation": 180, "scale": 0.1, "shift": 0.05, "stain": 0.1, "brightness": 0.2, "contrast": 0.2,
    "saturation": 0.2, "erase": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "means", "pixels"),
    [
        (
            ALL_OLD,
            [141.36, 121.07, 121.56, 151.46, 132.52, 126.84],
            [139.85, 124.55, 79.59, 173.65, 61.35, 28.02],
        ),
        (
            {"flip": True, "stain": 0.2},
            [126.01, 139.28, 109.33, 130.77, 122.74, 133.24],
            [163.59, 255.0, 127.03, 231.15, 198.29, 129.66],
        ),
    ],
)
def test_a_recipe_draws_what_it_drew_in_the_first_version(
    config: dict[str, Any], means: list[float], pixels: list[float]
) -> None:
    got = Augment(AugmentConfig(**config))(_pictures(), _seeded(7))
    assert got.mean((1, 2, 3)).tolist() == pytest.approx(means, abs=0.02)
    assert got[:, 1, 7, 30].tolist() == pytest.approx(pixels, abs=0.02)


def test_a_new_option_leaves_the_draws_of_the_others_alone() -> None:
    old = Augment(AugmentConfig(**ALL_OLD))._draw(6, _seeded(1))
    new = Augment(AugmentConfig(**ALL_OLD, blur=2.0, jpeg=30))._draw(6, _seeded(1))
    assert set(new) - set(old) == {"blur", "jpeg"}
    assert all(torch.equal(old[k], new[k]) for k in old)


def test_pictures_do_not_depend_on_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, augment = _pictures(11), Augment(AugmentConfig(**ALL_OLD, blur=1.0, jpeg=50))
    whole = augment(pictures, _seeded(1))
    monkeypatch.setattr(augment_module, "_AT_A_TIME", 3)
    # JPEG rounds to whole grey values, and a last bit may tip one over.
    assert ((augment(pictures, _seeded(1)) - whole).abs() > 0.01).float().mean() < 1e-3


def test_augmenting_while_reading_takes_few_threads_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, before = _pictures(11), torch.get_num_threads()
    seen: list[int] = []
    change = Augment._change
    monkeypatch.setattr(Augment, "_change", lambda *a: (seen.append(torch.get_num_threads()), change(*a))[1])
    try:
        torch.set_num_threads(2)
        whole = Augment(AugmentConfig(**ALL_OLD))(pictures, _seeded(1))
        assert set(seen) == {2}
        seen.clear()
        reading = while_reading(AugmentConfig(**ALL_OLD))
        assert torch.allclose(reading(pictures, _seeded(1)), whole, atol=0.01)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(Augment, "_change", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reading(pictures, _seeded(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_flip_after_a_rotation_flips_the_rotated_picture() -> None:
    pictures, generator = _pictures(), _seeded(3)
    turned = Augment(AugmentConfig(rotation=180))(pictures, generator)
    for axis in (2, 3):
        flipped = torch.rand(6, generator=generator) < 0.5
        turned = torch.where(flipped.view(-1, 1, 1, 1), turned.flip(axis), turned)
    both = Augment(AugmentConfig(rotation=180, flip=True))(pictures, _seeded(3))
    assert torch.allclose(both, turned, atol=0.02)


def test_blur_is_the_gaussian_blur_of_another_library() -> None:
    pictures = _pictures(3).float()
    sigma = torch.tensor([0.0, 0.7, 2.0])
    blurred = gaussian_blur(pictures, sigma, reach=6)
    assert torch.equal(blurred[0], pictures[0])
    for i in (1, 2):
        expected = oracle_blur(pictures[i : i + 1], [13, 13], [float(sigma[i])] * 2)
        assert torch.allclose(blurred[i : i + 1], expected, atol=1e-2)


@pytest.mark.parametrize("size", [32, 41], ids=["whole blocks", "parts of blocks"])
def test_jpeg_noise_is_what_a_jpeg_file_loses(size: int) -> None:
    y, x = np.mgrid[:size, :size]
    waves = [np.sin(x / 3 + y / 7), np.cos(x * y / 90), np.sin(y / 2) * (x > size / 2)]
    picture = np.clip(128 + 90 * np.stack(waves, 2), 0, 255).astype(np.uint8)
    for quality in (5, 30, 49, 50, 75, 95, 100):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.asarray(Image.open(buffer)).astype(float)
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        got = jpeg_noise(tensor, torch.tensor([quality]))[0].permute(1, 2, 0).numpy()
        lost, error = np.abs(expected - picture).mean(), np.abs(got - expected).mean()
        assert error < 0.1 * lost + 0.2, f"quality {quality}: {error:.2f} off where JPEG loses {lost:.2f}"


def test_augmented_views_are_those_of_training_and_repeatable() -> None:
    pictures = _pictures().permute(0, 2, 3, 1).numpy()
    config = AugmentConfig(flip=True, jpeg=50, cutmix=1.0)
    views = augmented(pictures, config, draws=3, seed=1)
    assert views.shape == (3, *pictures.shape)
    assert views.dtype == np.uint8
    assert np.array_equal(views, augmented(pictures, config, draws=3, seed=1))
    assert not np.array_equal(views[0], views[1])
    assert np.array_equal(augmented(pictures, AugmentConfig(), draws=1, seed=1)[0], pictures)


def test_a_recipe_without_the_newer_options_keeps_its_text() -> None:
    plain = parse_recipe(tiny_values(), "tiny")
    for text in (recipe_toml(plain), plain.model_dump_json()):
        assert not any(word in text for word in ("blur", "jpeg", "cache_folder", "stain_axes"))
    new = parse_recipe(
        tiny_values(augment__blur=1.5, augment__jpeg=40, augment__stain_axes="giemsa", data__cache_folder="x"), "tiny"
    )
    text = recipe_toml(new)
    assert all(line in text for line in ("blur = 1.5", "jpeg = 40", 'stain_axes = "giemsa"', 'cache_folder = "x"'))


@pytest.mark.parametrize("axes", STAIN_VECTORS)
def test_a_stain_shift_of_nothing_is_the_same_picture(axes: str) -> None:
    pictures = _pictures().float()
    same = stain_shift(pictures, torch.ones(6, 3), torch.zeros(6, 3), STAIN_VECTORS[axes])
    assert torch.allclose(same, pictures, atol=0.05)
    stronger = stain_shift(pictures, torch.full((6, 3), 1.5), torch.zeros(6, 3), STAIN_VECTORS[axes])
    assert (stronger <= pictures + 0.05).all(), "more stain is darker"


@pytest.mark.parametrize("axes", ["haematoxylin-eosin", "giemsa"])
def test_a_stain_shift_changes_each_stain_by_its_own_share(axes: str) -> None:
    """Unmixed with the published vectors, each stain has changed by its own factor and offset, and by nothing else."""
    rows = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])  # Ruifrok & Johnston 2001
    if axes == "giemsa":
        rows = pytest.importorskip("skimage.color.colorconv").rgb_from_bex
    # Rows of length 1, so that an offset means the same amount for all axes.
    unmix = np.linalg.inv(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    factor = torch.tensor([[1.3, 0.8, 1.1], [0.7, 1.2, 0.9]])
    offset = torch.tensor([[0.05, -0.03, 0.02], [-0.04, 0.06, 0.01]])
    pictures = _pictures(2).float()
    changed = stain_shift(pictures, factor, offset, STAIN_VECTORS[axes])
    before, after = (-np.log((p.permute(0, 2, 3, 1).numpy() + 1) / 256) @ unmix for p in (pictures, changed))
    wanted = before * factor.numpy()[:, None, None] + offset.numpy()[:, None, None]
    np.testing.assert_allclose(after, wanted, atol=2e-3)


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


def test_training_pictures_are_augmented_and_validation_pictures_are_not(
    tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's pictures as the network gets them, against those on the disk."""
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    forward = CellClassifier.forward

    def watched(self: CellClassifier, images: torch.Tensor) -> torch.Tensor:
        seen[self.training].append(images.detach().float())
        return forward(self, images)

    monkeypatch.setattr(CellClassifier, "forward", watched)
    recipe = tiny_recipe(augment={"rotation": 10}, schedule__epochs=1, schedule__warmup_epochs=0)
    train(recipe, data=cells, out=tmp_path / "run", quiet=True)
    split = Split.read(tmp_path / "run" / "split.csv")
    for part, training in (("train", True), ("val", False)):
        on_disk = [load_prepared(cells / r.path, recipe.image) for r in split.rows if r.part == part]
        known = {p.transpose(2, 0, 1).astype(np.float32).tobytes() for p in on_disk}
        shown = [x.contiguous().numpy().tobytes() for batch in seen[training] for x in batch]
        shown = [x for x in shown if any(x)]  # without the blank picture that checks the size
        assert len(shown) == len(known)
        assert (set(shown) <= known) is not training, part
        assert not (set(shown) & known) or not training, "a training picture went by unchanged"
