"""Attention rollout and relevance against calculations by hand, and timm's attention layers in all their kinds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from planted_networks import SIZE, all_eyes_on, columns, subject, vit, wrapped

from marrowscope.errors import ModelError
from marrowscope.explain.attention import attention_maps, relevance, rollout
from marrowscope.explain.heat import is_flat
from marrowscope.explain.layers import attention_layers, attention_weights, target_layers, token_grid


def test_rollout_matches_a_calculation_by_hand() -> None:
    first = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.5]]]])
    second = torch.tensor([[[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [0.2, 0.8]]]])
    # Means of the heads: [.5 .5; .25 .75] and [.3 .7; .4 .6]; with the residual halved: [.75 .25; .125 .875] and
    # [.65 .35; .2 .8]; the second times the first:
    expected = [
        [0.65 * 0.75 + 0.35 * 0.125, 0.65 * 0.25 + 0.35 * 0.875],
        [0.2 * 0.75 + 0.8 * 0.125, 0.2 * 0.25 + 0.8 * 0.875],
    ]
    torch.testing.assert_close(rollout([first, second]), torch.tensor([expected]))


def test_relevance_matches_a_calculation_by_hand() -> None:
    first = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])
    second = torch.tensor([[[[0.1, 0.9], [0.4, 0.6]]]])
    up = torch.tensor([[[[2.0, -1.0], [0.0, 4.0]]]])
    down = torch.tensor([[[[1.0, 1.0], [-1.0, 0.5]]]])
    # Layer 1: (dA * A)+ = [1 0; 0 3], R = [2 0; 0 4]. Layer 2: [.1 .9; 0 .3] R = [.2 3.6; 0 1.2]. R - I:
    torch.testing.assert_close(relevance([first, second], [up, down]), torch.tensor([[[1.2, 3.6], [0.0, 4.2]]]))


@pytest.mark.parametrize("patch", [0, 5, 15])
def test_rollout_of_a_network_points_where_all_of_its_attention_goes(patch: int) -> None:
    model = wrapped(all_eyes_on(patch))
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE))
    heat = attention_maps(model, attention_layers(model.backbone), images, torch.zeros(2, dtype=torch.int64), "rollout")
    expected = np.zeros((2, 4, 4), dtype=np.float32)
    expected[:, patch // 4, patch % 4] = 0.75  # half of it in each of two layers
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_uniform_attention_gives_a_flat_map() -> None:
    network = vit()
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
    heat = subject(network, codes=("BLA", "LYT", "NGS")).maps("rollout", _pictures(2), columns(0, 2))
    assert all(is_flat(h) for h in heat)
    np.testing.assert_allclose(heat, 3 / 4 / 17, rtol=1e-5)  # ((J/N + I) / 2) squared, off the diagonal


def test_the_collected_weights_are_those_of_the_network_and_leave_it_as_it_was() -> None:
    model = wrapped(vit())
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE))
    fused = [m.fused_attn for m in model.backbone.modules() if hasattr(m, "fused_attn")]
    assert any(fused)
    with torch.no_grad():
        plain = model(images)
        with attention_weights(model.backbone, attention_layers(model.backbone)) as weights:
            again = model(images)
        block = model.backbone.blocks[0]
        tokens = block.norm1(_first_tokens(model, images))
        q, k, _ = block.attn.qkv(tokens).reshape(2, 17, 3, 2, 4).permute(2, 0, 3, 1, 4)
        expected = (q @ k.transpose(-2, -1) / 4**0.5).softmax(-1)
    torch.testing.assert_close(weights[0], expected)
    torch.testing.assert_close(plain, again)
    assert [m.fused_attn for m in model.backbone.modules() if hasattr(m, "fused_attn")] == fused
    assert not any(layer._forward_hooks for layer in attention_layers(model.backbone).layers)


def _first_tokens(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    handle = model.backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    model(images)
    handle.remove()
    return caught[0]


def _pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(("registers", "pool"), [(0, "token"), (4, "token"), (0, "avg")])
@pytest.mark.parametrize("method", ["rollout", "relevance", "gradcam", "hirescam", "layercam"])
def test_every_kind_of_prefix_and_pooling_has_maps(registers: int, pool: str, method: str) -> None:
    model = subject(vit(registers, pool), codes=("BLA", "LYT", "NGS"))
    heat = model.maps(method, _pictures(3), columns(1, 3))
    assert heat.shape == (3, SIZE, SIZE)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert not any(np.array_equal(a, b) for a, b in pairwise(heat))


def test_relevance_depends_on_the_class_and_rollout_does_not() -> None:
    model = subject(vit(), codes=("BLA", "LYT", "NGS"))
    first, second = ({m: model.maps(m, _pictures(1), columns(c, 1)) for m in ("rollout", "relevance")} for c in (0, 1))
    np.testing.assert_array_equal(first["rollout"], second["rollout"])
    assert not np.allclose(first["relevance"], second["relevance"], rtol=0.05)


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_vit", 160), ("test_vit4", 160), ("eva02_tiny_patch14_224", 224), ("deit_tiny_distilled_patch16_224", 224)],
)
def test_timm_transformers_give_their_attention(name: str, size: int) -> None:
    backbone = timm.create_model(name, num_classes=2).eval()
    layers = attention_layers(backbone)
    with torch.no_grad(), attention_weights(backbone, layers) as weights:
        backbone(torch.zeros(1, 3, size, size))
    assert len(weights) == len(layers.layers)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(weights[0].shape[:3]))


def test_what_is_no_plain_transformer_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="ResNet is not a plain transformer"):
        attention_layers(timm.create_model("test_resnet", num_classes=2))
    siglip = timm.create_model("test_vit", num_classes=2)
    siglip.global_pool = "map"
    with pytest.raises(ModelError, match="pools its tokens by 'map'"):
        attention_layers(siglip)


def test_tokens_lie_row_by_row_behind_their_prefix() -> None:
    network = vit(4)
    assert token_grid(network, 21, SIZE) == (5, 4, 4)
    (target,) = target_layers(network, SIZE)
    assert target.name == "blocks.1.norm1"
    tokens = torch.arange(21.0).view(1, 21, 1)
    torch.testing.assert_close(target.reshape(tokens), torch.arange(5.0, 21.0).view(1, 1, 4, 4))
    with pytest.raises(ModelError, match="make no square grid"):
        token_grid(network, 20, SIZE)
