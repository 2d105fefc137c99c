"""Accuracies that others report on cells of the same collection. Other cells, splits and class sets: no contest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marrowscope.cells import CLASS_SETS
from marrowscope.evaluate.case import Case
from marrowscope.evaluate.figures import proportion
from marrowscope.schema import Study

_FOURTEEN = CLASS_SETS["marrow-14"].codes


@dataclass(frozen=True)
class _Published:
    name: str
    model: str
    codes: tuple[str, ...]
    accuracy: float
    about: str


_STUDIES = (
    _Published(
        "ViT-B/16, fine-tuned",
        "ViT-B/16, ImageNet weights, 384 px",
        ("BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"),
        0.867,
        "seven classes, 4,899 training cells; number of test cells not stated",
    ),
    _Published(
        "Two-notebook study",
        "ResNet-50",
        _FOURTEEN,
        0.684,
        "fourteen balanced classes; number of test cells not stated",
    ),
    _Published(
        "Two-notebook study",
        "ViT-B/16",
        _FOURTEEN,
        0.803,
        "fourteen balanced classes, on its validation part; number of cells not stated",
    ),
)


def beside(case: Case) -> tuple[Study, ...]:
    """Published accuracies, each with this model's on the judged cells of the same classes where it knows them all.

    A model that knows more classes than a study is at a disadvantage: each of its answers may be one of them.
    """
    out = []
    for s in _STUDIES:
        own = np.isin(case.truth_N, [case.codes.index(c) for c in s.codes if c in case.codes])
        knows = set(s.codes) <= set(case.codes) and bool(own.any())
        out.append(
            Study(
                name=s.name,
                model=s.model,
                codes=s.codes,
                classes=len(s.codes),
                accuracy=s.accuracy,
                about=s.about,
                here=proportion(case.right_N[own], case.group_N[own]) if knows else None,
            )
        )
    return tuple(out)
