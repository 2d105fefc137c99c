"""The other JSON files: how a split was drawn, what a model is, how a run came about."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

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
        reduced_decode: Decode a JPEG that is much larger than the input at 1/2, 1/4 or 1/8 of its size. It is quicker,
            and not the same to the last bit; so it is a property of the model, in training and afterwards.
    """

    size: int = Field(ge=16, le=1024)
    crop: float = Field(default=1.0, gt=0.2, le=1.0)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: Literal["RGB"] = "RGB"
    reduced_decode: bool = False

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes and cards of before keep their text and their hash.
        return {k: v for k, v in handler(self).items() if k != "reduced_decode" or v}

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


class CardScaling(Frozen):
    """Calibration that every later stage applies: probabilities are softmax(scale * ln p + bias), p = softmax(logits).

    Attributes:
        method: ``temperature`` (one scale for all classes, biases 0) or ``vector`` (Guo et al. 2017, ICML).
        scale: One a class.
        bias: One a class.
        fitted_on: Validation cells that it was fitted on.
    """

    method: Literal["temperature", "vector"]
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    fitted_on: int = Field(ge=1)

    @model_validator(mode="after")
    def _usable(self) -> CardScaling:
        if min(self.scale) <= 0:
            raise ValueError("scale must be above 0 for every class")
        return self


class CardConformal(Frozen):
    """Thresholds of conformal sets: a class is in the set when its calibrated probability reaches its threshold.

    Attributes:
        method: One threshold for all classes, or one for each (`evaluate.conformal`).
        alpha: Share of cells whose set may miss the truth.
        thresholds: One a class, 0..1.
        fitted_on: Validation cells that they were fitted on.
    """

    method: Literal["split", "class-conditional"]
    alpha: float = Field(gt=0.0, lt=1.0)
    thresholds: tuple[float, ...]
    fitted_on: int = Field(ge=1)


class CardNovelty(Frozen):
    """When a picture counts as none of what the model has learnt.

    Attributes:
        method: What the ONNX output ``ood_score`` is (higher: stranger), or ``energy``, which is made of the logits
            and needs no output.
        threshold: A score above it is flagged as out of distribution.
        kept: Share of validation cells at or below the threshold, 0..1.
        fitted_on: Validation cells that the threshold was chosen on.
    """

    method: Literal["energy", "mahalanobis", "relative-mahalanobis", "knn"]
    threshold: float
    kept: float = Field(gt=0.0, le=1.0)
    fitted_on: int = Field(ge=1)


class CardAcceptance(Frozen):
    """Least confidence from which answers are right in the wanted share of cases, as seen on validation cells.

    Attributes:
        accuracy: The wanted share, 0..1.
        threshold: Least calibrated confidence; above 1 where no threshold is known to reach the share.
        coverage: Share of validation cells that are accepted: confident enough, and not out of distribution.
        fitted_on: Number of validation cells.
        assurance: Probability, over validation sets, that cells like them are answered with that accuracy
            (`evaluate.selective.assured_threshold`); None: the share was only seen on the validation cells.
    """

    accuracy: float = Field(gt=0.0, lt=1.0)
    threshold: float = Field(ge=0.0)
    coverage: float = Field(ge=0.0, le=1.0)
    fitted_on: int = Field(ge=1)
    assurance: float | None = Field(default=None, gt=0.0, lt=1.0)


class CardMember(Frozen):
    """One of the networks that a model is the mean of, as its own card describes it.

    Attributes:
        input_px: Side of its own input in pixels, where the networks differ in that.
    """

    name: str
    architecture: str
    seed: int
    epochs: int
    best_epoch: int
    weights_sha256: str
    input_px: int | None = None


class Card(Document):
    """What a model is (card.json, and the metadata of an ONNX file)."""

    kind: ClassVar[str] = "model card"
    format: Literal["marrowscope card 1"] = "marrowscope card 1"
    name: str
    program: str
    architecture: str
    parameters: int
    pretrained: str
    teachers: tuple[str, ...] = Field(default=(), description="names of the models whose answers it learnt from")
    members: tuple[CardMember, ...] = Field(
        default=(), description="the networks whose mean it is; seed, epochs and best_epoch are then of the first"
    )
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
    precision: Literal["fp32", "fp16", "int8-weights", "int8"] = "fp32"
    scaling: CardScaling | None = None
    conformal: tuple[CardConformal, ...] = ()
    novelty: CardNovelty | None = None
    acceptance: tuple[CardAcceptance, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = Field(
        default=(), description="validation cells by truth (row) and answer (column), for adjusted counts"
    )
    intended_use: str = NOT_A_MEDICAL_DEVICE

    @model_validator(mode="after")
    def _codes(self) -> Card:
        classes = len(self.codes)
        if len(set(self.codes)) != classes or classes < 2:
            raise ValueError("codes must name at least two different classes")
        rows = [c.thresholds for c in self.conformal] + list(self.confusion)
        if self.scaling is not None:
            rows += [self.scaling.scale, self.scaling.bias]
        if any(len(row) != classes for row in rows) or len(self.confusion) not in {0, classes}:
            raise ValueError(f"scaling, conformal thresholds and confusion must have one entry per class ({classes})")
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
