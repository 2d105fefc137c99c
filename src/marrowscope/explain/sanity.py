"""Does a map show what the network learned? If it does, a network that forgot it must give another map.

The sanity check of Adebayo et al. (2018, NeurIPS, arXiv:1810.03292, section 3): the layers are randomised one after
another, from the answer down, and the maps are compared with those of the trained network. An edge detector, which
looks like an explanation, does not change at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from timm.models import group_parameters
from torch import Tensor, nn

from marrowscope.explain.heat import Heat, is_flat, shown
from marrowscope.images import Pixels
from marrowscope.models import CellClassifier

Floats = npt.NDArray[np.float64]

SHARES = (0.0, 1 / 3, 2 / 3, 1.0)
"""Parts of the network that are randomised, from the answer down; at 0 the answer's own layer alone is."""


def cascade(
    model: CellClassifier, pictures_NHWC: Pixels, seed: int, shares: Sequence[float] = SHARES
) -> Iterator[tuple[float, CellClassifier]]:
    """Copies of the network with more and more of it randomised, each with the share of its layers that are.

    A tensor is randomised by shuffling its numbers. So the network keeps the scale of its weights and stays a working
    network that knows nothing; a fresh initialisation would often be degenerate (in many networks the residual branches
    begin near 0). Running means and variances of batch normalisation belong to the weights before them, and are taken
    anew from the pictures.

    Args:
        model: A trained network; it is not changed.
        pictures_NHWC: Prepared pictures for the statistics.
        seed: Of the shuffling.
        shares: Rising, 0..1.
    """
    groups = layer_groups(model.backbone)
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(changed.backbone.named_parameters())
    done = 0
    for share in shares:
        until = max(1, round(share * len(groups)))
        for names in groups[done:until]:
            for name in names:
                _shuffle(parameters[name], generator)
        done = max(done, until)
        _renew_statistics(changed, {n.rpartition(".")[0] for g in groups[:done] for n in g}, pictures_NHWC)
        yield done / len(groups), changed


def layer_groups(backbone: nn.Module) -> list[list[str]]:
    """Names of the parameters, layer by layer from the answer down.

    timm says which parameters make a layer; for another network it is its direct children, in order of definition.
    """
    names = [n for n, _ in backbone.named_parameters()]
    if hasattr(backbone, "group_matcher"):
        matcher: Any = backbone.group_matcher
        groups: dict[int, list[str]] = group_parameters(backbone, matcher(coarse=False))
        return [groups[i] for i in sorted(groups, reverse=True)]
    by_child: dict[str, list[str]] = {}
    for name in names:
        by_child.setdefault(name.partition(".")[0], []).append(name)
    return list(by_child.values())[::-1]


def _shuffle(tensor: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))


def _renew_statistics(model: CellClassifier, changed: set[str], pictures_NHWC: Pixels) -> None:
    """Take the running statistics of the changed batch normalisations from the pictures."""
    modules = dict(model.backbone.named_modules())
    norms = [m for n in sorted(changed) if isinstance(m := modules[n], nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        images = torch.from_numpy(np.ascontiguousarray(pictures_NHWC)).permute(0, 3, 1, 2)
        for batch in torch.split(images, 32):
            if len(batch) > 1:
                model(batch.to(device))
    model.eval()


# ---------------------------------------------------------------------------------------------------------- similarity


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of maps are.

    Attributes:
        spearman_N: Rank correlation of each pair, -1..1; 0 where either map is flat.
        ssim_N: Structural similarity of each pair, scaled to a peak of 1, -1..1.
    """

    spearman_N: Floats
    ssim_N: Floats


def similarity(first_NHW: Heat, second_NHW: Heat) -> Similarity:
    """Compare maps pair by pair."""
    pairs = list(zip(first_NHW, second_NHW, strict=True))
    return Similarity(
        np.array([spearman(a, b) for a, b in pairs], dtype=np.float64),
        np.array([ssim(shown(a), shown(b)) for a, b in pairs], dtype=np.float64),
    )


def spearman(first_HW: Heat, second_HW: Heat) -> float:
    """Spearman's rank correlation of two maps, ties at their mean rank; 0 where a map is flat and has no ranks."""
    if is_flat(first_HW) or is_flat(second_HW):
        return 0.0
    a, b = (rankdata(m.ravel()) for m in (first_HW, second_HW))
    return float(np.corrcoef(a, b)[0, 1])


def ssim(first_HW: npt.NDArray[Any], second_HW: npt.NDArray[Any], window: int = 7) -> float:
    """Mean structural similarity of two maps with values 0..1 (Wang et al. 2004, IEEE TIP, equation 13), -1..1.

    Uniform windows of `window` pixels a side, those that lie wholly inside; K1 = 0.01 and K2 = 0.03 as in the paper.
    """
    a, b = (np.asarray(m, dtype=np.float64) for m in (first_HW, second_HW))

    def mean(values: Floats) -> Floats:
        out: Floats = uniform_filter(values, window)
        return out

    unbiased = window**2 / (window**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = unbiased * (mean(a * a) - mean_a**2), unbiased * (mean(b * b) - mean_b**2)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    full = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    rim = window // 2
    return float(full[rim:-rim, rim:-rim].mean())


Explain = Callable[[CellClassifier], Heat]
"""Maps of the same pictures and classes, by the network given."""


def sanity(
    model: CellClassifier, pictures_NHWC: Pixels, explain: Explain, seed: int, shares: Sequence[float] = SHARES
) -> list[tuple[float, Similarity]]:
    """Compare the maps of the trained network with those of more and more randomised ones.

    Returns:
        For each of `shares` the share of layers that was randomised, and how alike the maps still are.
    """
    trained = explain(model)
    return [
        (share, similarity(trained, explain(other))) for share, other in cascade(model, pictures_NHWC, seed, shares)
    ]
