"""Heat from the attention of a plain transformer: rollout, and relevance for a class."""

from __future__ import annotations

import torch
from torch import Tensor

from marrowscope.errors import ModelError
from marrowscope.explain.heat import Heat
from marrowscope.explain.layers import AttentionLayers, attention_weights, token_grid
from marrowscope.models import CellClassifier


def rollout(layers_BHNN: list[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, ACL, arXiv:2005.00928, section 3), (B, N, N).

    With A the weights of a layer, averaged over its heads, what reaches the next layer is (A + I) / 2, where I is the
    residual connection; the product over all layers says how much of each input token (column) is in each output token
    (row). Rows sum to 1.

    Args:
        layers_BHNN: Weights of each layer after the softmax, first layer first, each (B, heads, N, N).
    """
    total: Tensor | None = None
    for weights in layers_BHNN:
        mixed = weights.mean(1)
        mixed = (mixed + torch.eye(mixed.shape[-1], dtype=mixed.dtype, device=mixed.device)) / 2
        mixed = mixed / mixed.sum(-1, keepdim=True)
        total = mixed if total is None else mixed @ total
    assert total is not None
    return total


def relevance(layers_BHNN: list[Tensor], gradients_BHNN: list[Tensor]) -> Tensor:
    """Attention relevance for a class (Chefer et al. 2021, ICCV, arXiv:2103.15679, equations 5 and 6), (B, N, N).

    R starts as I and grows by E_h[(dA * A)+] R at each layer, where dA is the gradient of the class's logit. What is
    returned is R - I: a token's own relevance for itself says nothing of where the answer comes from.

    Args:
        layers_BHNN: As `rollout` takes them.
        gradients_BHNN: Gradient of the logit by each of them.
    """
    first = layers_BHNN[0]
    eye = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    total = eye.expand(len(first), -1, -1)
    for weights, gradient in zip(layers_BHNN, gradients_BHNN, strict=True):
        total = total + (weights * gradient).clamp(min=0).mean(1) @ total
    return total - eye


def attention_maps(
    model: CellClassifier, layers: AttentionLayers, images_BCHW: Tensor, target_B: Tensor, method: str
) -> Heat:
    """Maps of a batch on the grid of patches, float32 (B, rows, columns).

    Args:
        model: In evaluation mode.
        layers: As `layers.attention_layers` finds them.
        images_BCHW: Pixels 0..255.
        target_B: Column of the class for each picture, int64; rollout doesn't use it.
        method: ``rollout`` or ``relevance``.

    Raises:
        ModelError: The network attends within windows, not over all tokens.
    """
    with attention_weights(model.backbone, layers) as weights, torch.enable_grad():
        logits = model(images_BCHW.float().requires_grad_())
    n = int(weights[0].shape[-1]) if weights else 0
    if len(weights) != len(layers.layers) or any(w.shape[-2:] != (n, n) or len(w) != len(images_BCHW) for w in weights):
        raise ModelError(
            f"The layers of {type(model.backbone).__name__} don't attend over all tokens of the picture, so that "
            "attention can't be followed through them. Take hirescam or occlusion."
        )
    if method == "rollout":
        flow = rollout([w.detach() for w in weights])
    else:
        asked = logits.gather(1, target_B[:, None]).sum()
        # A layer that the answer doesn't depend on has no gradient.
        gradients = torch.autograd.grad(asked, weights, allow_unused=True, materialize_grads=True)
        flow = relevance([w.detach() for w in weights], list(gradients))
    prefix, rows, columns = token_grid(model.backbone, n, int(images_BCHW.shape[-1]))
    from_token = layers.pooling == "token" and prefix > 0
    read = flow[:, 0, prefix:] if from_token else flow[:, prefix:, prefix:].mean(1)
    heat: Heat = read.reshape(len(read), rows, columns).float().cpu().numpy()
    return heat
