"""Where in a timm network to look: target layers of each family, the order of their outputs, attention layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from marrowscope.errors import ModelError
from marrowscope.models import MeanOfNetworks, MemberInput

Reshape = Callable[[Tensor], Tensor]
"""Output of a layer -> (B, C, rows, columns)."""


@dataclass(frozen=True)
class Target:
    """A layer whose output is laid out over the picture.

    Attributes:
        name: Of the module, within the backbone.
        module: The module itself.
        reshape: Its output -> (B, C, rows, columns).
    """

    name: str
    module: nn.Module
    reshape: Reshape


def target_layers(backbone: nn.Module, size: int, count: int = 1) -> list[Target]:
    """The last `count` stages of a timm network, as its ``feature_info`` names them, shallow ones first.

    Convolutional and hierarchical networks give a map (channels first, or last as in Swin). Plain transformers give
    tokens: there the target is the last block's first normalisation, because behind that block only the class token is
    read and no gradient would reach the patches; and there is one target, as all blocks have the same grid. Of networks
    that answer together it is the layers of each.

    Args:
        backbone: Any timm network.
        size: Side of its input, pixels.
        count: Stages wanted.

    Raises:
        ModelError: No ``feature_info``, or a layer whose output has no known place on the picture.
    """
    if isinstance(backbone, MeanOfNetworks):
        return [
            replace(target, name=f"members.{i}.{target.name}")
            for i, (member, own) in enumerate(zip(backbone.members, backbone.inputs, strict=True))
            for target in target_layers(member, own.size if isinstance(own, MemberInput) else size, count)
        ]
    info = getattr(backbone, "feature_info", None)
    stages = [dict(f) for f in (getattr(info, "info", info) or ())]
    if not stages:
        raise ModelError(
            f"{_kind(backbone)} doesn't say which layers its stages are (timm's feature_info), so none can be chosen "
            "for a class activation map. Take the method occlusion."
        )
    outputs = _outputs(backbone, [str(f["module"]) for f in stages], size)
    last = stages[-1]
    if outputs[str(last["module"])].dim() == 3:
        return [_token_target(backbone, str(last["module"]), outputs[str(last["module"])], size)]
    deepest: dict[int, dict[str, Any]] = {int(f["reduction"]): f for f in stages}
    chosen = [deepest[r] for r in sorted(deepest)[-count:]]
    return [_map_target(backbone, f, outputs[str(f["module"])]) for f in chosen]


def _kind(backbone: nn.Module) -> str:
    return type(backbone).__name__


def _outputs(backbone: nn.Module, names: list[str], size: int) -> dict[str, Tensor]:
    """What the named modules give for a blank picture."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output

        return hook

    handles = []
    try:
        for name in names:
            try:
                handles.append(backbone.get_submodule(name).register_forward_hook(keep(name)))
            except AttributeError:
                raise ModelError(
                    f"{_kind(backbone)} names a stage {name!r} that it doesn't have. Take the method occlusion."
                ) from None
        with torch.no_grad():
            backbone(torch.zeros(1, 3, size, size, device=next(backbone.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    odd = [n for n in names if not isinstance(found.get(n), Tensor) or found[n].dim() not in {3, 4}]
    if odd:
        raise ModelError(
            f"The stage {odd[-1]!r} of {_kind(backbone)} gives no map or row of tokens. Take the method occlusion."
        )
    return found


def _map_target(backbone: nn.Module, stage: dict[str, Any], output: Tensor) -> Target:
    channels, name = int(stage["num_chs"]), str(stage["module"])
    module = backbone.get_submodule(name)
    if output.dim() == 4 and output.shape[1] == channels and getattr(backbone, "output_fmt", "NCHW") != "NHWC":
        return Target(name, module, lambda x: x)
    if output.dim() == 4 and output.shape[3] == channels:
        return Target(name, module, lambda x: x.permute(0, 3, 1, 2))
    raise ModelError(
        f"The stage {name!r} of {_kind(backbone)} gives {tuple(output.shape)}, not a map of {channels} channels. Take "
        "the method occlusion."
    )


def _token_target(backbone: nn.Module, name: str, output: Tensor, size: int) -> Target:
    if hasattr(backbone, "unroll"):
        raise ModelError(
            f"{_kind(backbone)} keeps its tokens in an order of its own, not row by row. Take the method occlusion."
        )
    block = backbone.get_submodule(name)
    inner = getattr(block, "norm1", None)
    module = inner if isinstance(inner, nn.Module) else block
    prefix, rows, columns = token_grid(backbone, int(output.shape[1]), size)

    def reshape(x: Tensor) -> Tensor:
        return x[:, prefix:].reshape(len(x), rows, columns, x.shape[2]).permute(0, 3, 1, 2)

    return Target(f"{name}.norm1" if module is inner else name, module, reshape)


def token_grid(backbone: nn.Module, tokens: int, size: int) -> tuple[int, int, int]:
    """How `tokens` tokens lie on the picture: (number of prefix tokens, rows, columns).

    Prefix tokens (class, distillation, registers) stand first; the patches follow row by row.

    Raises:
        ModelError: The count fits no grid.
    """
    stated = int(getattr(backbone, "num_prefix_tokens", 0) or 0)
    for prefix in dict.fromkeys((stated, 0)):
        side = math.isqrt(tokens - prefix)
        if side * side == tokens - prefix > 1:
            return prefix, side, side
    raise ModelError(
        f"The {tokens} tokens of {_kind(backbone)} at {size} px, {stated} of them before the patches, make no square "
        "grid. Take the method occlusion."
    )


# ----------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class AttentionLayers:
    """The self-attention of a plain transformer.

    Attributes:
        layers: Modules that get each layer's weights (B, heads, N, N) after the softmax, first layer first.
        pooling: ``token`` where the answer is read off the class token, ``avg`` where off the mean of the patches.
    """

    layers: tuple[nn.Module, ...]
    pooling: str


def attention_layers(backbone: nn.Module) -> AttentionLayers:
    """Find them.

    Raises:
        ModelError: Not a plain transformer, or one that pools its tokens in a way that attention can't be followed
            through.
    """
    blocks = getattr(backbone, "blocks", None)
    attention = [getattr(b, "attn", None) for b in blocks] if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    drops = [getattr(a, "attn_drop", None) for a in attention]
    if not drops or not all(isinstance(d, nn.Module) for d in drops):
        raise ModelError(
            f"{_kind(backbone)} is not a plain transformer with one self-attention a block. Take a class activation "
            "map or occlusion."
        )
    pooling = getattr(backbone, "global_pool", None)
    if pooling not in {"token", "avg"}:
        raise ModelError(
            f"{_kind(backbone)} pools its tokens by {pooling!r}, and attention is followed only to a class token or a "
            "mean of the patches. Take hirescam or occlusion."
        )
    return AttentionLayers(tuple(d for d in drops if d is not None), str(pooling))


@contextmanager
def attention_weights(backbone: nn.Module, layers: AttentionLayers) -> Iterator[list[Tensor]]:
    """Collect the weights (B, heads, N, N) of each layer while the network runs within the block.

    timm's fused kernel never makes the weights, so it is switched off meanwhile; the answer stays the same up to
    rounding.
    """
    found: list[Tensor] = []
    fused = [m for m in backbone.modules() if getattr(m, "fused_attn", False)]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handles = [layer.register_forward_hook(hook) for layer in layers.layers]
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield found
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
        for handle in handles:
            handle.remove()
