"""The ways of making heat maps, and which of them fit what. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from marrowscope.errors import ModelError
from marrowscope.schema import ExplanationMethod

METHODS: Mapping[str, ExplanationMethod] = MappingProxyType(
    {
        m.name: m
        for m in (
            ExplanationMethod(
                name="gradcam",
                title="Grad-CAM",
                about="Channels of the last stage, weighted by the mean gradient of the class (Selvaraju et al. 2017).",
                class_specific=True,
            ),
            ExplanationMethod(
                name="hirescam",
                title="HiResCAM",
                about="Last stage times gradient, place by place, not averaged over the whole (Draelos & Carin 2020).",
                class_specific=True,
            ),
            ExplanationMethod(
                name="layercam",
                title="LayerCAM",
                about="Last two stages times their positive gradients, place by place (Jiang et al. 2021).",
                class_specific=True,
            ),
            ExplanationMethod(
                name="rollout",
                title="Attention rollout",
                about="Attention followed from the answer down all layers, whatever the class (Abnar & Zuidema 2020).",
                class_specific=False,
            ),
            ExplanationMethod(
                name="relevance",
                title="Attention relevance",
                about="Attention times the positive gradient of the class, down all layers (Chefer et al. 2021).",
                class_specific=True,
            ),
            ExplanationMethod(
                name="occlusion",
                title="Occlusion",
                about="Fall of the probability when a window hides the place (Zeiler & Fergus 2014); needs no look "
                "inside the model.",
                class_specific=True,
            ),
        )
    }
)
"""By name, in the order they are shown."""


def chosen_methods(
    wanted: Sequence[str] | None, fitting: Sequence[str], not_fitting: Mapping[str, str], what: str
) -> tuple[str, ...]:
    """Names of the methods to use, in the order of `METHODS`.

    Args:
        wanted: Names, or None for all that fit.
        fitting: Those that fit.
        not_fitting: Why the others don't.
        what: The model, for messages.

    Raises:
        ModelError: An unknown name, or a method that doesn't fit.
    """
    if wanted is None:
        return tuple(m for m in METHODS if m in fitting)
    unknown = [m for m in wanted if m not in METHODS]
    if unknown or not wanted:
        given = ", ".join(map(repr, unknown)) or "an empty list"
        raise ModelError(f"Unknown method: {given}. Allowed: {', '.join(METHODS)}.")
    for name in wanted:
        if name in not_fitting:
            raise ModelError(
                f"The method {name!r} doesn't fit {what}: {not_fitting[name]} Methods that fit: {', '.join(fitting)}."
            )
    return tuple(m for m in METHODS if m in wanted)
