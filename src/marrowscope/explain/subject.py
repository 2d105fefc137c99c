"""What is explained: an exported model, of which only the answers are known, or a network. Loads no torch by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from marrowscope.errors import ModelError
from marrowscope.explain.heat import Heat
from marrowscope.explain.methods import METHODS
from marrowscope.images import Pixels
from marrowscope.infer import Classifier
from marrowscope.occlusion import Fill, occlude
from marrowscope.schema import Card
from marrowscope.triage import calibrated

if TYPE_CHECKING:
    import torch

    from marrowscope.explain.layers import AttentionLayers, Target
    from marrowscope.models import CellClassifier

Probabilities = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]
Precision = Literal["fp32", "bf16"]


class Subject(ABC):
    """A model that answers for prepared pictures and can be explained.

    Attributes:
        card: What the model is.
        not_fitting: Methods that it can't have, and why.
        window, steps, fill: Options of `occlusion.occlude`.
    """

    def __init__(self, card: Card, *, window: float = 0.2, steps: int = 12, fill: Fill = "background") -> None:
        self.card = card
        self.not_fitting: dict[str, str] = {}
        self.window, self.steps, self.fill = window, steps, fill

    @property
    def codes(self) -> tuple[str, ...]:
        """The C class codes, in the order of the probabilities."""
        return self.card.codes

    @property
    def fitting(self) -> tuple[str, ...]:
        """Names of the methods that it can have."""
        return tuple(m for m in METHODS if m not in self.not_fitting)

    @abstractmethod
    def answer(self, pictures_NHWC: Pixels) -> Probabilities:
        """Prepared pictures uint8 (N, size, size, 3) -> probabilities, float64 (N, C)."""

    def maps(self, method: str, pictures_NHWC: Pixels, target_N: Columns) -> Heat:
        """Heat of each pixel for the class asked about, float32 (N, size, size), 0 or more, not scaled.

        Args:
            method: One of `fitting`.
            pictures_NHWC: Prepared pictures, uint8 (N, size, size, 3).
            target_N: Column of the class for each.

        Raises:
            ModelError: The method doesn't fit.
        """
        if method in self.not_fitting or method not in METHODS:
            raise ModelError(f"The method {method!r} doesn't fit: {self.not_fitting.get(method, 'it is unknown.')}")
        if method != "occlusion":
            return self._inside(method, pictures_NHWC, target_N)
        pairs = zip(pictures_NHWC, target_N, strict=True)
        options = {"window": self.window, "steps": self.steps, "fill": self.fill}
        found = [occlude(self.answer, p, int(t), **options) for p, t in pairs]  # type: ignore[arg-type]
        return np.stack([np.maximum(o.drop_HW, 0) for o in found])

    def _inside(self, method: str, pictures_NHWC: Pixels, target_N: Columns) -> Heat:
        """`maps` of a method that looks inside the model."""
        raise ModelError(f"The method {method!r} looks inside the model, which {type(self).__name__} can't show.")


class ExportedSubject(Subject):
    """An ONNX file: its answers are known, its inside is not."""

    def __init__(self, model: Classifier, *, window: float = 0.2, steps: int = 12, fill: Fill = "background") -> None:
        super().__init__(model.card, window=window, steps=steps, fill=fill)
        self.model = model
        why = "an ONNX file gives answers but no gradients or attention; explain its run folder instead."
        self.not_fitting = {m: why for m in METHODS if m != "occlusion"}

    def answer(self, pictures_NHWC: Pixels) -> Probabilities:
        return self.model.probabilities(pictures_NHWC)


class NetworkSubject(Subject):
    """A network of PyTorch.

    Attributes:
        model: In evaluation mode; its weights take no gradient any more.
        batch_size: Pictures at a time.
        precision: Of the answers; ``bf16`` keeps three digits. What looks inside always has float32.
    """

    def __init__(
        self,
        model: CellClassifier,
        card: Card,
        *,
        window: float = 0.2,
        steps: int = 12,
        fill: Fill = "background",
        batch_size: int = 16,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(card, window=window, steps=steps, fill=fill)
        import torch

        from marrowscope.explain.cam import STAGES, cam_targets
        from marrowscope.explain.layers import attention_layers

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self._device).eval().requires_grad_(False)
        self.batch_size = batch_size
        self.precision: Precision = precision
        self._targets: dict[str, list[Target]] = {}
        self._attention: AttentionLayers | None = None
        for method in STAGES:
            try:
                self._targets[method] = cam_targets(model, method, card.preprocessing.size)
            except ModelError as e:
                self.not_fitting[method] = str(e)
        try:
            self._attention = attention_layers(model.backbone)
        except ModelError as e:
            self.not_fitting |= {"rollout": str(e), "relevance": str(e)}

    def answer(self, pictures_NHWC: Pixels) -> Probabilities:
        import torch

        half = torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), half:
            logits = [self.model(images).float().cpu().numpy() for images in self._batches(pictures_NHWC)]
        return calibrated(self.card, np.concatenate(logits))

    def of(self, model: CellClassifier) -> NetworkSubject:
        """Another network of the same kind, explained in the same way."""
        return NetworkSubject(
            model,
            self.card,
            window=self.window,
            steps=self.steps,
            fill=self.fill,
            batch_size=self.batch_size,
            precision=self.precision,
        )

    def _inside(self, method: str, pictures_NHWC: Pixels, target_N: Columns) -> Heat:
        import torch

        from marrowscope.explain.attention import attention_maps
        from marrowscope.explain.cam import cam_maps
        from marrowscope.explain.heat import enlarged

        out = []
        wanted = torch.split(torch.from_numpy(np.asarray(target_N, dtype=np.int64)), self.batch_size)
        for images, some in zip(self._batches(pictures_NHWC), wanted, strict=True):
            columns = some.to(images.device)
            if method in self._targets:
                out.append(cam_maps(self.model, self._targets[method], images, columns, method))
            else:
                assert self._attention is not None
                heat = attention_maps(self.model, self._attention, images, columns, method)
                out.append(np.stack([enlarged(h, images.shape[-1]) for h in heat]))
        return np.concatenate(out)

    def _batches(self, pictures_NHWC: Pixels) -> list[torch.Tensor]:
        import torch

        images = torch.from_numpy(np.ascontiguousarray(pictures_NHWC)).permute(0, 3, 1, 2)
        return [b.to(self._device) for b in torch.split(images, self.batch_size)]


def open_subject(
    model: Path, *, window: float = 0.2, steps: int = 12, fill: Fill = "background", threads: int | None = None
) -> Subject:
    """Open a run folder (needs torch and grad-cam) or an ONNX file (needs neither).

    Args:
        model: Run folder or ONNX file.
        window: As `occlusion.occlude`.
        steps: As `occlusion.occlude`.
        fill: As `occlusion.occlude`.
        threads: CPU threads of an ONNX file.

    Raises:
        ModelError: Neither of the two, or it can't be used.
        MissingExtraError: A run folder needs packages that are not installed.
    """
    if not Path(model).is_dir():
        return ExportedSubject(Classifier.load(model, threads=threads), window=window, steps=steps, fill=fill)
    need_packages()
    from marrowscope.models import load_run_model

    network, card = load_run_model(Path(model))
    return NetworkSubject(network, card, window=window, steps=steps, fill=fill)


def need_packages() -> None:
    """See that what looks inside a network is installed.

    Raises:
        MissingExtraError: It is not.
    """
    from importlib.util import find_spec

    from marrowscope.errors import MissingExtraError

    for module, package, extra in (("torch", "torch", "train"), ("timm", "timm", "train")):
        if find_spec(module) is None:
            raise MissingExtraError(
                package, extra, "Explaining a run folder (an ONNX file can be explained without it)"
            )
    if find_spec("pytorch_grad_cam") is None:
        raise MissingExtraError("grad-cam", "explain", "Explaining a run folder (an ONNX file needs no such package)")
