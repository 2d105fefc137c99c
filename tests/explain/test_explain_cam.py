"""Class activation maps: planted truth, grad-cam's own call as the oracle, and the layers of timm's families."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from planted_networks import PLACE, Blind, Brightness, Corner, blobs, columns, share_at, subject
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from marrowscope.errors import ModelError
from marrowscope.explain.cam import cam_maps, cam_targets
from marrowscope.explain.heat import is_flat, shown
from marrowscope.explain.layers import target_layers
from marrowscope.models import CellClassifier
from marrowscope.schema import Preprocessing

CORNER = (slice(0, 16), slice(0, 16))
CAMS = ["gradcam", "hirescam", "layercam"]


@pytest.mark.parametrize("method", [*CAMS, "occlusion"])
def test_the_heat_lies_where_the_answer_comes_from(method: str) -> None:
    heat = subject(Brightness()).maps(method, blobs(), columns(1, 4))
    # Enlarging spreads the heat of a place over its neighbours, and a window of 8 px reaches 7 px beyond.
    wider = (slice(0, 20), slice(12, 32))
    assert all(share_at(h, wider) > 0.98 for h in heat)
    for h in heat:
        row, column = np.unravel_index(h.argmax(), h.shape)
        assert PLACE[0].start <= row < PLACE[0].stop
        assert PLACE[1].start <= column < PLACE[1].stop


@pytest.mark.parametrize("method", ["hirescam", "layercam", "occlusion"])
def test_what_the_answer_does_not_read_stays_cold(method: str) -> None:
    pictures = np.full((2, 32, 32, 3), 200, dtype=np.uint8)
    pictures[:, ::5, ::5] = 90
    model = subject(Corner())
    model.fill = "mean"
    if method == "occlusion":  # hiding must change something: black holes
        pictures[:, 26:, 26:] = 0
        model.fill = "background"
        pictures[:, :2], pictures[:, -2:], pictures[:, :, :2], pictures[:, :, -2:] = 0, 0, 0, 0
    heat = model.maps(method, pictures, columns(1, 2))
    beyond = (slice(0, 20), slice(0, 20))
    assert all(share_at(h, beyond) > 0.97 for h in heat)


def test_grad_cam_points_at_what_hirescam_knows_is_not_read() -> None:
    """Why HiResCAM is here: averaging the gradient first loses where it was (Draelos & Carin 2020)."""
    pictures = blobs()  # bright beyond the corner alone
    model = subject(Corner())
    heat = model.maps("gradcam", pictures, columns(1, 4))
    assert all(share_at(h, (slice(0, 16), slice(16, 32))) > 0.98 for h in heat)
    assert all(is_flat(h) for h in model.maps("hirescam", pictures, columns(1, 4)))


@pytest.mark.parametrize("method", [*CAMS, "occlusion"])
def test_a_network_that_ignores_the_picture_has_flat_maps(method: str) -> None:
    heat = subject(Blind()).maps(method, blobs(), columns(1, 4))
    assert all(is_flat(h) for h in heat)
    assert not shown(heat[0]).any()


@pytest.mark.parametrize(("method", "kind"), [("gradcam", GradCAM), ("hirescam", HiResCAM), ("layercam", LayerCAM)])
def test_maps_of_a_layer_are_those_of_grad_cam(method: str, kind: type) -> None:
    model, images, wanted = _untrained()
    targets = cam_targets(model, method, 128)[-1:]
    ours = cam_maps(model, targets, images, torch.tensor(wanted), method)
    cam = kind(model, [t.module for t in targets])
    theirs = cam(images.float().requires_grad_(), [ClassifierOutputTarget(c) for c in wanted])
    assert sum(not is_flat(a) for a in ours) >= 4
    for a, b in zip(ours, theirs, strict=True):
        # grad-cam enlarges what it has scaled to 0..1.
        scaled = (a - a.min()) / (a.max() - a.min()) if a.max() > a.min() else np.zeros_like(a)
        np.testing.assert_allclose(scaled, b, atol=1e-4)


def test_layercam_is_the_mean_of_its_scaled_layers() -> None:
    model, images, wanted = _untrained()
    both = cam_targets(model, "layercam", 128)
    assert len(both) == 2
    single = [cam_maps(model, [t], images, torch.tensor(wanted), "layercam") for t in both]
    found = cam_maps(model, both, images, torch.tensor(wanted), "layercam")
    for a, b, mean in zip(*single, found, strict=True):
        np.testing.assert_allclose(mean, (a / a.max() + b / b.max()) / 2, atol=0.06)  # scaled before enlarging


def _untrained() -> tuple[CellClassifier, Tensor, list[int]]:
    torch.manual_seed(0)
    model = CellClassifier(timm.create_model("test_resnet", num_classes=3), Preprocessing(size=128)).eval()
    return model, torch.randint(0, 256, (6, 3, 128, 128)), [2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_resnet", ["layer3", "layer4"]),
        ("test_efficientnet", None),
        ("test_convnext", ["stages.2", "stages.3"]),
        ("tf_efficientnet_lite0", ["blocks.4", "blocks.6"]),
    ],
)
def test_stages_of_convolutional_families(name: str, expected: list[str] | None) -> None:
    backbone = timm.create_model(name, num_classes=2).eval()
    found = target_layers(backbone, 64, 2)
    assert expected is None or [t.name for t in found] == expected
    assert len(found) == 2
    for target in found:
        out: list[Tensor] = []
        handle = target.module.register_forward_hook(lambda module, inputs, output, out=out: out.append(output))
        with torch.no_grad():
            backbone(torch.zeros(1, 3, 64, 64))
        handle.remove()
        assert target.reshape(out[0]).shape[2] == target.reshape(out[0]).shape[3] < 64


def test_channels_of_swin_come_first() -> None:
    backbone = SwinTransformer(img_size=64, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4)
    (target,) = target_layers(backbone.eval(), 64)
    there = torch.arange(8 * 8 * 24.0).view(1, 8, 8, 24)
    assert target.reshape(there)[0, 3, 2, 5] == there[0, 2, 5, 3]


class _Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Scrambled(_Nothing):
    feature_info = [dict(num_chs=3, reduction=8, module="tokens")]  # noqa: RUF012
    unroll = True

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.tokens(x[:, :, ::8, ::8]).mean(2))
        return out


class _Wrong(_Nothing):
    feature_info = [dict(num_chs=7, reduction=1, module="stage")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stage(x).mean((2, 3)))
        return out


class _Missing(_Nothing):
    feature_info = [dict(num_chs=7, reduction=1, module="absent")]  # noqa: RUF012


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (_Nothing(), "feature_info"),
        (_Scrambled(), "an order of its own"),
        (_Wrong(), "not a map of 7 channels"),
        (_Missing(), "doesn't have"),
    ],
)
def test_a_network_without_a_place_to_look_is_refused_and_can_be_occluded(network: nn.Module, says: str) -> None:
    with pytest.raises(ModelError, match=says) as e:
        target_layers(network, 32)
    assert "occlusion" in str(e.value)
    model = subject(network)
    assert model.fitting == ("occlusion",)
    assert says in model.not_fitting["gradcam"]
    with pytest.raises(ModelError, match=says):
        model.maps("gradcam", blobs(1), columns(0, 1))
    assert model.maps("occlusion", blobs(1), columns(0, 1)).shape == (1, 32, 32)


def test_explaining_leaves_no_hook_and_no_gradient() -> None:
    model = subject(Brightness())
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    for method in model.fitting:
        model.maps(method, blobs(2), columns(1, 2))
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert not any(m._forward_hooks for m in model.model.modules())
    assert all(p.grad is None for p in model.model.parameters())
