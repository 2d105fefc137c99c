"""A model that a service has loaded, and the queue before it."""

from __future__ import annotations

from dataclasses import dataclass

from marrowscope.infer import Classifier
from marrowscope.serve.batcher import Batcher


@dataclass(frozen=True)
class Model:
    """A model that is loaded."""

    classifier: Classifier
    batcher: Batcher

    @property
    def name(self) -> str:
        return self.classifier.card.name

    @property
    def sha256(self) -> str:
        """Of its ONNX file: the first word of the identity, before the thresholds that are used."""
        return self.classifier.identity.split()[0]
