"""A model that a service has loaded, the queue before it, and the cells to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from marrowscope.infer import Classifier
from marrowscope.serve.batcher import Batcher
from marrowscope.serve.reference import ReferenceSet, digest_of


@dataclass(frozen=True)
class Model:
    """A model that is loaded."""

    classifier: Classifier
    batcher: Batcher
    reference: ReferenceSet | None = None

    @property
    def name(self) -> str:
        return self.classifier.card.name

    @property
    def sha256(self) -> str:
        """Of its ONNX file."""
        return digest_of(self.classifier)
