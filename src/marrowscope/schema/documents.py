"""The other JSON files: how a split was drawn, what a model is, how a run came about."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from marrowscope.schema.base import NOT_A_MEDICAL_DEVICE, Document, Frozen
from marrowscope.schema.evaluation import Figure


class SplitInfo(Document):
    """How a split was drawn (split.json)."""

    kind: ClassVar[str] = "split description"
    format: Literal["marrowscope split 1"] = "marrowscope split 1"
    seed: int
    rule: str
    class_set: str
    codes: tuple[str, ...]
    ratios: tuple[float, float, float]
    cap: int | None = None
    index_sha256: str
    folds: int | None = Field(default=None, description="number of folds; test is then one fold, val the next")
    shots: int | None = Field(default=None, description="training images drawn per class")
    left_out: dict[str, int] = Field(default_factory=dict, description="images not in the split, by reason")
    notes: tuple[str, ...] = Field(default=(), description="what a reader of the split should know")
    counts: dict[str, dict[str, int]]


class Preprocessing(Frozen):
    """How an image becomes a model's input; `images.prepare` and `models.CellClassifier` follow it everywhere.

    Attributes:
        size: Side of the square input, pixels.
        crop: Share of the shorter side that is kept around the centre, in (0, 1].
        interpolation: Resampling filter (Pillow's, with antialiasing).
        mean: Subtracted from each RGB channel, on the 0..1 scale.
        std: Divided by, after that.
    """

    size: int = Field(ge=16, le=1024)
    crop: float = Field(default=1.0, gt=0.2, le=1.0)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: Literal["RGB"] = "RGB"

    @model_validator(mode="after")
    def _positive(self) -> Preprocessing:
        if min(self.std) <= 0:
            raise ValueError("std must be above 0 in every channel")
        return self


class TrainingData(Frozen):
    """What a model was trained on."""

    name: str
    licence: str
    citation: str
    synthetic: bool
    index_sha256: str
    counts: dict[str, dict[str, int]]


class Card(Document):
    """What a model is (card.json, and the metadata of an ONNX file)."""

    kind: ClassVar[str] = "model card"
    format: Literal["marrowscope card 1"] = "marrowscope card 1"
    name: str
    program: str
    architecture: str
    parameters: int
    pretrained: str
    class_set: str
    codes: tuple[str, ...]
    preprocessing: Preprocessing
    training_data: TrainingData
    seed: int
    epochs: int
    best_epoch: int
    validation: dict[str, float]
    test: dict[str, Figure] = Field(default_factory=dict)
    weights_sha256: str
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    intended_use: str = NOT_A_MEDICAL_DEVICE

    @model_validator(mode="after")
    def _codes(self) -> Card:
        if len(set(self.codes)) != len(self.codes) or len(self.codes) < 2:
            raise ValueError("codes must name at least two different classes")
        return self


class RunInfo(Document):
    """How a run folder came about (run.json)."""

    kind: ClassVar[str] = "run description"
    format: Literal["marrowscope run 1"] = "marrowscope run 1"
    data: str
    synthetic: bool
    started: str
    versions: dict[str, str]
    device: str
    precision: str
    cpu_threads: int
