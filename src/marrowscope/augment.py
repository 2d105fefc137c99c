"""Augmentation of whole batches of training pictures.

All random numbers of a batch come from one generator, so a step's pictures depend on nothing but (seed, step). They
are drawn first, for the whole batch, and an option that is off draws none. The work is then done, on a CPU, for a few
pictures at a time: their arrays stay in the processor's cache, and the memory of one group serves the next.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from marrowscope.config import AugmentConfig

# Methylene blue and eosin as G. Landini measured them ("Giemsa" in the Colour Deconvolution plugin of ImageJ, and
# `rgb_from_bex` of scikit-image, which also takes what is at right angles to both for the residual).
_METHYLENE_BLUE, _EOSIN = torch.tensor([[0.834750233, 0.513556283, 0.196330403], [0.092789, 0.954111, 0.283111]])

STAIN_VECTORS = {
    # Haematoxylin, eosin and the residual (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23, 291-299).
    "haematoxylin-eosin": torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]]),
    "giemsa": torch.stack([_METHYLENE_BLUE, _EOSIN, torch.linalg.cross(_METHYLENE_BLUE, _EOSIN)]),
}
"""By stain axes: rows are the optical densities of each stain in red, green and blue, of length 1."""
STAIN_VECTORS = {name: rows / rows.norm(dim=1, keepdim=True) for name, rows in STAIN_VECTORS.items()}

_GREY = (0.299, 0.587, 0.114)

# Rows: Y, Cb, Cr of the JPEG File Interchange Format (ITU-T T.871), without the offsets of 128.
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])

# Quantisation tables K.1 and K.2 of ITU-T T.81, which libjpeg scales by the quality.
_LUMINANCE = """
16 11 10 16  24  40  51  61   12 12 14 19  26  58  60  55   14 13 16 24  40  57  69  56   14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77   24 35 55 64  81 104 113  92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103  99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
_TABLES = torch.tensor([[float(v) for v in t.split()] for t in (_LUMINANCE, _CHROMINANCE)]).view(2, 8, 8)

# Row k: the k-th cosine of the orthonormal discrete cosine transform of eight values.
_COSINES = torch.tensor(
    [[math.cos((2 * i + 1) * k * math.pi / 16) / (2 if k else math.sqrt(8)) for i in range(8)] for k in range(8)]
)

_AT_A_TIME = 4
"""Pictures of a group on a CPU, for each of torch's threads."""

Draws = dict[str, Tensor]
"""What happens to each picture, by option: a row a picture; an option that is off has none."""


def _uniform(n: int, span: float, generator: torch.Generator, columns: int = 1) -> Tensor:
    """(n, columns) numbers, uniform within +/- span."""
    return (torch.rand(n, columns, generator=generator) * 2 - 1) * span


@dataclass(frozen=True)
class Augment:
    """The random changes of a recipe, as a function of a batch and a generator."""

    config: AugmentConfig
    threads: int | None = None
    """On a CPU: at most so many of torch's threads; see `while_reading`."""

    def __call__(
        self, images_BCHW: Tensor, generator: torch.Generator, *, share: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """uint8 or float (B, 3, H, W), 0..255 -> float32 of the same shape and range; the input is left as it is.

        `generator` lives on the CPU, so that a GPU sees the same pictures. Where several processes share a batch,
        `share` is the size of the whole batch and the places of these pictures in it, int64 (B,): each picture is then
        changed as it would be in one process.
        """
        draws = self._draw(len(images_BCHW) if share is None else share[0], generator)
        if share is not None:
            draws = {k: v[share[1]] for k, v in draws.items()}
        if not draws:
            return images_BCHW.float()
        if images_BCHW.device.type != "cpu":
            return self._change(images_BCHW, {k: v.to(images_BCHW.device) for k, v in draws.items()})
        out = torch.empty(images_BCHW.shape)
        with _at_most(self.threads):
            step = _AT_A_TIME * torch.get_num_threads()
            for i in range(0, len(out), step):
                group = slice(i, i + step)
                out[group] = self._change(images_BCHW[group], {k: v[group] for k, v in draws.items()})
        return out

    def _draw(self, n: int, generator: torch.Generator) -> Draws:
        """Draw for `n` pictures. A new option is drawn last, so that the recipes there are draw what they drew."""
        c = self.config
        draws: Draws = {}
        if c.rotation or c.scale or c.shift:
            draws["affine"] = self._draw_affine(n, generator)
        if c.flip:
            draws["flip"] = torch.stack([torch.rand(n, generator=generator) < 0.5 for _ in ("rows", "columns")], 1)
        if c.stain:
            draws["stain_factor"] = 1 + _uniform(n, c.stain, generator, 3)
            draws["stain_offset"] = _uniform(n, c.stain * 0.1, generator, 3)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(c, name):
                draws[name] = (1 + _uniform(n, getattr(c, name), generator)).view(n, 1, 1, 1)
        if c.erase:
            draws["erase"] = self._draw_erase(n, generator)
        if c.blur:
            draws["blur"] = torch.rand(n, generator=generator) * c.blur
        if c.jpeg:
            draws["jpeg"] = torch.randint(c.jpeg, 101, (n,), generator=generator)
        return draws

    def _draw_affine(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 2, 3): where each point comes from, on a scale of -1 to 1 along each side."""
        c = self.config
        angle = _uniform(n, math.radians(c.rotation), generator)[:, 0]
        zoom = torch.exp(_uniform(n, math.log1p(c.scale), generator))[:, 0]
        shift = _uniform(n, 2 * c.shift, generator, 2)
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        return torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], dim=1)

    def _draw_erase(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 4): half height and width (0: none) and the centre of a rectangle, as shares of the sides."""
        on = torch.rand(n, generator=generator) < self.config.erase
        area = 0.02 + 0.18 * torch.rand(n, generator=generator)
        aspect = torch.exp(_uniform(n, math.log(3), generator))[:, 0]
        half_h, half_w = torch.sqrt(area * aspect) / 2, torch.sqrt(area / aspect) / 2
        centre = torch.rand(n, 2, generator=generator)
        return torch.cat([torch.stack([half_h * on, half_w * on], 1), centre], dim=1)

    def _change(self, images: Tensor, draws: Draws) -> Tensor:
        x = images.contiguous().to(torch.float32, copy=True)
        if "affine" in draws:
            x = _affine(x, draws["affine"], draws.get("flip"))
        elif "flip" in draws:
            for axis, flipped in zip((2, 3), draws["flip"].T, strict=True):
                x[flipped] = x[flipped].flip(axis)
        if "stain_factor" in draws:
            vectors = STAIN_VECTORS[self.config.stain_axes]
            x = stain_shift(x, draws["stain_factor"], draws["stain_offset"], vectors)
        if "blur" in draws:
            x = gaussian_blur(x, draws["blur"], reach=math.ceil(3 * self.config.blur))
        if "brightness" in draws or "contrast" in draws:
            x = _brightness_and_contrast(x, draws.get("brightness"), draws.get("contrast"))
        if "saturation" in draws:
            grey = (x * torch.tensor(_GREY, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
            x.sub_(grey).mul_(draws["saturation"]).add_(grey)
        x.clamp_(0, 255)
        if "jpeg" in draws:
            x = jpeg_noise(x, draws["jpeg"])
        if "erase" in draws:
            x = _erase(x, draws["erase"])
        return x


def while_reading(config: AugmentConfig) -> Augment:
    """Augmentation that leaves the processor to threads that decode pictures at the same time.

    Torch's threads wait for work in a loop that keeps their cores busy, which the decoders then lack: on two cores
    reading gets hardly faster than on one. Decoding takes about three times as long as augmentation, so that a quarter
    of the threads keeps up with it. The step of the network, which comes after, has all of them.
    """
    return Augment(config, threads=max(1, torch.get_num_threads() // 4))


@contextlib.contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    """Let torch use no more than so many threads for the time being."""
    before = torch.get_num_threads()
    if threads is None or threads >= before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _affine(x: Tensor, theta: Tensor, flip: Tensor | None) -> Tensor:
    """Rotate, zoom and shift about the centre, then flip; what comes in from outside is the mirrored picture."""
    height, width = x.shape[2:]
    if flip is not None:  # a flip turns the axes of the result round, and so costs nothing
        axes = 1 - 2 * flip.flip(1).to(theta.dtype)
        theta = torch.cat([theta[:, :, :2] * axes[:, None], theta[:, :, 2:]], dim=2)
    columns = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    rows = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    # What F.affine_grid does, without its matrix product.
    grid = torch.empty(len(x), height, width, 2, device=x.device)
    for k in (0, 1):
        along, down = theta[:, k, 0, None] * columns, theta[:, k, 1, None] * rows + theta[:, k, 2, None]
        torch.add(along[:, None, :], down[:, :, None], out=grid[..., k])
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _brightness_and_contrast(x: Tensor, brightness: Tensor | None, contrast: Tensor | None) -> Tensor:
    """Multiply by the brightness, then stretch about the mean by the contrast, in place."""
    if contrast is None:
        return x if brightness is None else x.mul_(brightness)
    mean = x.mean((1, 2, 3), keepdim=True)
    if brightness is None:
        return x.mul_(contrast).add_(mean * (1 - contrast))
    return x.mul_(brightness * contrast).add_(mean * brightness * (1 - contrast))


def _erase(x: Tensor, box: Tensor) -> Tensor:
    """Blank a rectangle of 2 to 20 % of the area with the picture's mean colour."""
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) + 0.5) / height
    columns = (torch.arange(width, device=x.device) + 0.5) / width
    inside_rows = (rows[None] - box[:, 2, None]).abs() < box[:, 0, None]
    inside_columns = (columns[None] - box[:, 3, None]).abs() < box[:, 1, None]
    mask = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return torch.where(mask, x.mean((2, 3), keepdim=True), x)


def stain_shift(images_BCHW: Tensor, factor: Tensor, offset: Tensor, vectors: Tensor) -> Tensor:
    """Scale and shift the amount of each stain, in optical density (Tellez et al. 2019, Med Image Anal 58).

    float (B, 3, H, W), 0..255, in and out; `factor` and `offset` are (B, 3), a column for each row of `vectors` (3, 3),
    which are those of `STAIN_VECTORS` or others like them.
    """
    inverse = torch.linalg.inv(vectors).to(images_BCHW.device)
    vectors = vectors.to(images_BCHW.device)
    # density' = density @ inverse @ diag(factor) @ vectors + offset @ vectors: one 3 x 3 matrix a picture. With
    # density = -ln((x + 1) / 256), the result 256 exp(-density') - 1 is 2^(bias + log1p(x) @ matrix / ln 2) - 1.
    matrix = inverse[None] @ (factor[:, :, None] * vectors[None])
    bias = 8 * (1 - matrix.sum(1)) - offset @ vectors / math.log(2)
    logs = torch.log1p(images_BCHW).flatten(2)
    powers = torch.baddbmm(bias[:, :, None], matrix.transpose(1, 2) / math.log(2), logs)
    return powers.exp2_().sub_(1).view(images_BCHW.shape)


def gaussian_blur(images_BCHW: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur each picture with its own Gaussian of `sigma` (B,) pixels, cut off at `reach` pixels (below the side)."""
    n, channels, height, _ = images_BCHW.shape
    steps = torch.arange(-reach, reach + 1, device=images_BCHW.device)
    weights = torch.exp(-0.5 * (steps[None] / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(images_BCHW, (reach, reach, reach, reach), mode="reflect").reshape(
        1, n * channels, height + 2 * reach, -1
    )
    x = F.conv2d(x, weights[:, None, None, :], groups=n * channels)
    return F.conv2d(x, weights[:, None, :, None], groups=n * channels).view(images_BCHW.shape)


def jpeg_noise(images_BCHW: Tensor, quality: Tensor) -> Tensor:
    """What is left of each picture after JPEG compression at its own `quality` (B,), 1 to 100.

    float (B, 3, H, W), 0..255, in and out. The lossy steps of a baseline JPEG file as libjpeg writes it, with colour
    at half the resolution (4:2:0); coding the numbers, which loses nothing, is left out. So it runs on any device, in
    whole batches, and needs no copy to the CPU.
    """
    height, width = images_BCHW.shape[2:]
    device = images_BCHW.device
    x = F.pad(images_BCHW.round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = torch.matmul(_YCC.to(device), x.flatten(2)).view(x.shape).round_()
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200.0 - 2 * quality)
    tables = torch.floor((_TABLES.to(device)[None] * scale[:, None, None, None] + 50) / 100).clamp_(1, 255)
    brightness = _quantised(ycc[:, :1] - 128, tables[:, 0]) + 128
    halved = F.avg_pool2d(ycc[:, 1:], 2)
    halved[..., 0::2].add_(0.25)  # libjpeg rounds halves down in one column and up in the next
    halved[..., 1::2].add_(0.5)
    colour = _quantised(halved.floor_(), tables[:, 1])
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False).round_()
    ycc = torch.cat([brightness, colour], dim=1)
    rgb = torch.matmul(torch.linalg.inv(_YCC).to(device), ycc.flatten(2)).view(x.shape)
    return rgb.round_().clamp_(0, 255)[:, :, :height, :width].contiguous()


def _quantised(x: Tensor, table: Tensor) -> Tensor:
    """Round the cosine transform of each 8 x 8 block of (B, C, H, W) to multiples of `table` (B, 8, 8)."""
    n, channels, height, width = x.shape
    cosines, steps = _COSINES.to(x.device), table[:, None, None, :, None, :]
    blocks = torch.matmul(cosines, x.reshape(n, channels, height // 8, 8, width)).view(
        n, channels, -1, 8, width // 8, 8
    )
    blocks = torch.matmul(blocks, cosines.T).div_(steps).round_().mul_(steps)
    blocks = torch.matmul(blocks, cosines).view(n, channels, height // 8, 8, width)
    return torch.matmul(cosines.T, blocks).view(x.shape).round_().clamp_(-128, 127)


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


def augmented(
    images_NHWC: npt.NDArray[np.uint8], config: AugmentConfig, *, draws: int, seed: int
) -> npt.NDArray[np.uint8]:
    """What training makes of prepared pictures, mixing included, for showing: uint8 (draws, N, H, W, 3)."""
    x = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    out = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
        seen, _ = mix(Augment(config)(x, generator), torch.eye(len(x)), config, generator)
        out.append(seen.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.stack(out)
