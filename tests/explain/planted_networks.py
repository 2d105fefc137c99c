"""Networks so small that what their answer hangs on is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from marrowscope.explain.subject import NetworkSubject
from marrowscope.images import Pixels
from marrowscope.models import CellClassifier
from marrowscope.schema import Card, Preprocessing
from tiny_onnx import card

SIZE = 32
PLACE = (slice(4, 12), slice(20, 28))
"""Where the pictures of `blobs` are bright."""


class _Stem(nn.Module):
    """Bright places on a grid of 8 x 8: (B, 3, 32, 32) -> (B, 1, 8, 8), 0 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, stride=4)
        nn.init.constant_(self.conv.weight, 1 / 48)
        nn.init.constant_(self.conv.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Brightness(nn.Module):
    """Class 1 is as probable as the picture is bright; class 0 as it is dark."""

    feature_info = [dict(num_chs=1, reduction=4, module="stem")]  # noqa: RUF012  as in timm

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Stem()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-20.0], [20.0]]))
            self.head.bias.copy_(torch.tensor([1.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stem(x).mean((2, 3)))
        return out


class Peaks(Brightness):
    """Reads bright places alone: a blurred picture has none."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.conv.bias.fill_(-1.2)
            self.head.weight.mul_(5)


class Corner(Brightness):
    """Reads the upper left quarter of its feature map alone."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stem(x)[:, :, :4, :4].mean((2, 3)))
        return out


class Blind(Brightness):
    """Gives the same answer for every picture."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.head(0 * self.stem(x).mean((2, 3))) + self.head.bias


def wrapped(backbone: nn.Module, size: int = SIZE, codes: tuple[str, ...] = ("BLA", "LYT")) -> CellClassifier:
    # std 0.5 and mean 0: grey 128 becomes 1.
    return CellClassifier(backbone, spec(size)).eval()


def spec(size: int = SIZE) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5))


def planted_card(size: int = SIZE, codes: tuple[str, ...] = ("BLA", "LYT")) -> Card:
    return card(codes, size).model_copy(update={"preprocessing": spec(size)})


def subject(backbone: nn.Module, size: int = SIZE, codes: tuple[str, ...] = ("BLA", "LYT")) -> NetworkSubject:
    return NetworkSubject(wrapped(backbone, size), planted_card(size, codes), window=0.25, steps=8)


def blobs(n: int = 4, size: int = SIZE) -> Pixels:
    """Black pictures with one bright square each, at `PLACE`."""
    pictures = np.zeros((n, size, size, 3), dtype=np.uint8)
    pictures[:, PLACE[0], PLACE[1]] = 200 + 6 * np.arange(n, dtype=np.uint8)[:, None, None, None]
    return pictures


def columns(value: int, n: int) -> npt.NDArray[np.int64]:
    return np.full(n, value, dtype=np.int64)


def share_at(heat_HW: npt.NDArray[np.float32], place: tuple[slice, slice]) -> float:
    return float(heat_HW[place].sum() / heat_HW.sum())


def vit(prefix_registers: int = 0, pool: str = "token", depth: int = 2, classes: int = 3) -> VisionTransformer:
    """16 patches, two heads."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=8,
        depth=depth,
        num_heads=2,
        num_classes=classes,
        reg_tokens=prefix_registers,
        global_pool=pool,
    ).eval()


def all_eyes_on(patch: int) -> VisionTransformer:
    """A ViT whose tokens all attend to one patch, in every layer and head, whatever the picture."""
    network = vit()
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        for block in network.blocks:
            block.norm1.weight.fill_(1.0)
            for head in range(2):
                # Queries ask for the number 1 in the head's first place; keys have it where the token's number 0 is.
                block.attn.qkv.bias[4 * head] = 100.0
                block.attn.qkv.weight[8 + 4 * head, 0] = 1.0
        network.pos_embed[0, 1 + patch, 0] = 5.0
    return network
