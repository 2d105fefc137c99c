"""Augmentation of whole batches of training pictures.

All random numbers of a batch come from one generator, so a step's pictures depend on nothing but (seed, step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from marrowscope.config import AugmentConfig

# Rows: optical density of haematoxylin, eosin and the residual (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23).
STAIN_VECTORS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
STAIN_VECTORS = STAIN_VECTORS / STAIN_VECTORS.norm(dim=1, keepdim=True)

_GREY = (0.299, 0.587, 0.114)


def _uniform(n: int, span: float, generator: torch.Generator, columns: int = 1) -> Tensor:
    """(n, columns) numbers, uniform within +/- span."""
    return (torch.rand(n, columns, generator=generator) * 2 - 1) * span


@dataclass(frozen=True)
class Augment:
    """The random changes of a recipe, as a function of a batch and a generator."""

    config: AugmentConfig

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 or float (B, 3, H, W), 0..255 -> float32 of the same shape and range; the input is left as it is.

        `generator` lives on the CPU, so that a GPU sees the same pictures.
        """
        c = self.config
        n, device = len(images_BCHW), images_BCHW.device
        x = images_BCHW.float()
        if c.rotation or c.scale or c.shift:
            x = self._affine(x, generator)
        if c.flip:
            for axis in (2, 3):
                flipped = torch.rand(n, generator=generator) < 0.5
                x = torch.where(flipped.to(device).view(-1, 1, 1, 1), x.flip(axis), x)
        if c.stain:
            x = stain_shift(
                x,
                1 + _uniform(n, c.stain, generator, 3).to(device),
                _uniform(n, c.stain * 0.1, generator, 3).to(device),
            )
        if c.brightness:
            x = x * (1 + _uniform(n, c.brightness, generator).to(device)).view(-1, 1, 1, 1)
        if c.contrast:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * (1 + _uniform(n, c.contrast, generator).to(device)).view(-1, 1, 1, 1)
        if c.saturation:
            grey = (x * torch.tensor(_GREY, device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
            x = grey + (x - grey) * (1 + _uniform(n, c.saturation, generator).to(device)).view(-1, 1, 1, 1)
        if c.stain or c.brightness or c.contrast or c.saturation:
            x = x.clamp(0, 255)
        if c.erase:
            x = self._erase(x, generator)
        return x

    def _affine(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate, zoom and shift about the centre; what comes in from outside is the mirrored picture."""
        c, n = self.config, len(x)
        angle = _uniform(n, math.radians(c.rotation), generator)[:, 0]
        zoom = torch.exp(_uniform(n, math.log1p(c.scale), generator))[:, 0]
        shift = _uniform(n, 2 * c.shift, generator, 2)
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        theta = torch.stack(
            [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], dim=1
        ).to(x.device)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _erase(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Blank a rectangle of 2 to 20 % of the area with the picture's mean colour."""
        n, _, height, width = x.shape
        on = torch.rand(n, generator=generator) < self.config.erase
        area = 0.02 + 0.18 * torch.rand(n, generator=generator)
        aspect = torch.exp(_uniform(n, math.log(3), generator))[:, 0]
        half_h, half_w = torch.sqrt(area * aspect) / 2, torch.sqrt(area / aspect) / 2
        centre = torch.rand(n, 2, generator=generator)
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        inside = ((rows[None] - centre[:, :1]).abs() < half_h[:, None])[:, :, None] & (
            (columns[None] - centre[:, 1:]).abs() < half_w[:, None]
        )[:, None, :]
        mask = (inside & on[:, None, None])[:, None].to(x.device)
        return torch.where(mask, x.mean((2, 3), keepdim=True), x)


def stain_shift(images_BCHW: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Scale and shift the amount of each stain, in optical density (Tellez et al. 2019, Med Image Anal 58).

    float (B, 3, H, W), 0..255, in and out; `factor` and `offset` are (B, 3), a column for each row of `STAIN_VECTORS`.
    """
    vectors = STAIN_VECTORS.to(images_BCHW.device)
    inverse = torch.linalg.inv(STAIN_VECTORS).to(images_BCHW.device)
    # density' = density @ inverse @ diag(factor) @ vectors + offset @ vectors: one 3 x 3 matrix a picture.
    matrix = inverse[None] @ (factor[:, :, None] * vectors[None])
    density = -torch.log((images_BCHW + 1) / 256)
    shifted = torch.einsum("bchw,bcd->bdhw", density, matrix) + (offset @ vectors)[:, :, None, None]
    return 256 * torch.exp(-shifted) - 1


def mix(
    images_BCHW: Tensor, targets_BC: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch with its own reverse; targets are probabilities and are mixed alike.

    With both on, each batch draws one of them (as in timm); with both off the batch comes back as it is.
    """
    if not (config.mixup or config.cutmix):
        return images_BCHW, targets_BC
    use_cutmix = config.cutmix > 0 and (config.mixup == 0 or bool(torch.rand((), generator=generator) < 0.5))
    share = _beta(config.cutmix if use_cutmix else config.mixup, generator)
    other, other_targets = images_BCHW.flip(0), targets_BC.flip(0)
    if use_cutmix:
        height, width = images_BCHW.shape[2:]
        cut_h, cut_w = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
        top = int(torch.randint(0, height - cut_h + 1, (), generator=generator))
        left = int(torch.randint(0, width - cut_w + 1, (), generator=generator))
        images = images_BCHW.clone()
        images[:, :, top : top + cut_h, left : left + cut_w] = other[:, :, top : top + cut_h, left : left + cut_w]
        share = 1 - cut_h * cut_w / (height * width)
    else:
        images = images_BCHW * share + other * (1 - share)
    return images, targets_BC * share + other_targets * (1 - share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); torch's own distributions take no generator."""
    gamma = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64), generator=generator)
    return float(gamma[0] / gamma.sum().clamp_min(1e-12))
