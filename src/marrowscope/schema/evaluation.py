"""How well predictions fit the truth: the figures of evaluation.json."""

from __future__ import annotations

from typing import ClassVar, Literal

from marrowscope.schema.base import Document, Frozen


class Figure(Frozen):
    """A measured figure with its 95 % interval.

    Attributes:
        value: The figure; None where it can't be computed (a class without images).
        low: Lower end of the interval.
        high: Upper end.
        n: Number of images it rests on.
        method: How the interval was made, for example ``Wilson`` or ``bootstrap (2000 draws)``.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class PublishedFigures(Frozen):
    """What a paper reports of a class, on how many images; shares from 0 to 1."""

    precision: float
    recall: float
    tolerant_precision: float
    tolerant_recall: float
    n: int


class ClassFigures(Frozen):
    """Figures of one class against the rest; tolerant ones count its neighbours (`Evaluation.neighbours`) as right."""

    code: str
    support: int
    predicted: int
    precision: Figure
    recall: Figure
    f1: Figure
    tolerant_precision: Figure | None = None
    tolerant_recall: Figure | None = None
    auroc: Figure | None = None
    average_precision: Figure | None = None
    published: PublishedFigures | None = None


class ReliabilityBin(Frozen):
    """The images whose confidence lies from `low` to `high`: their mean confidence, and how many are right."""

    low: float
    high: float
    confidence: float
    accuracy: Figure


class Calibration(Frozen):
    """Whether probabilities are what they say, before or after a scaling.

    Attributes:
        scaling: ``none``; ``temperature``: softmax(ln p / temperature); ``vector``: softmax(scale * ln p + bias).
        temperature: 1 without a temperature.
        scale: Per class, in the order of the codes; empty without a vector.
        bias: Likewise.
        fitted_on: Number of (validation) images that the scaling was fitted on; 0 without one.
        figures: accuracy, expected_calibration_error, classwise_calibration_error, brier_loss, log_loss.
        by_chance: The expected_calibration_error that a perfectly calibrated model with these confidences would show
            on as many images: mean and the range of 95 %.
        per_class: Calibration error of each class's probability, by code.
        bins: Equal in images, by rising confidence.
    """

    scaling: Literal["none", "temperature", "vector"]
    temperature: float = 1.0
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    fitted_on: int = 0
    figures: dict[str, Figure]
    by_chance: Figure
    per_class: dict[str, Figure]
    bins: tuple[ReliabilityBin, ...]


class RiskPoint(Frozen):
    """Answering only where the confidence is at least `threshold`: the share answered, and its share of errors."""

    threshold: float
    coverage: float
    error: float


class OperatingPoint(Frozen):
    """Answering from a threshold upward, chosen so that the answers reach a target accuracy.

    Attributes:
        target: Accuracy asked for.
        chosen_on: ``itself``: the same images, so the accuracy is reached by construction; or ``validation``.
        threshold: Least confidence; None where no threshold reaches the target, and nothing is answered.
        coverage: Share of images answered.
        accuracy: Of those.
    """

    target: float
    chosen_on: Literal["itself", "validation"]
    threshold: float | None
    coverage: Figure
    accuracy: Figure


class ConformalSets(Frozen):
    """Sets of classes that hold the truth with a set probability (conformal prediction).

    Attributes:
        method: ``split``: one threshold; ``class-conditional``: one a class, so that each class is covered.
        alpha: Share of misses allowed; the sets aim to cover 1 - alpha.
        calibrated_on: Number of (validation) images.
        thresholds: Least probability by which a class enters the set, by code.
        coverage: Share of sets that hold the truth.
        size: Mean number of classes in a set.
        single: Share of sets with one class.
        empty: Share of sets with none.
        per_class: By true class: coverage and size.
    """

    method: Literal["split", "class-conditional"]
    alpha: float
    calibrated_on: int
    thresholds: dict[str, float]
    coverage: Figure
    size: Figure
    single: Figure
    empty: Figure
    per_class: dict[str, dict[str, Figure]]


class Evaluation(Document):
    """How well predictions fit the truth (evaluation.json).

    Attributes:
        figures: By name: accuracy, balanced_accuracy, top2_accuracy, macro_precision, macro_recall, macro_f1,
            weighted_precision, weighted_recall, weighted_f1, cohen_kappa, matthews, log_loss.
        per_class: In the order of `codes`.
        confusion: Counts, row = truth, column = prediction, in the order of `codes`.
        macro_left_out: Codes that macro figures leave out, having fewer than `macro_minimum` images.
        never_predicted: Codes that have images and are never predicted: their precision is None, and counts as 0 in
            macro and weighted precision (as scikit-learn counts it).
        failed: Files without an answer, by reason; they count in no figure.
        neighbours: Pairs of codes that tolerant figures take for each other.
        published: Where the figures in `ClassFigures.published` come from; None where they are of no use here.
        costs: What calling the row's class the column's costs, in the order of `codes`; empty where not asked for.
        costs_source: Where the costs come from.
        calibration: As predicted, then after each scaling fitted on validation.
        risk_coverage: By falling threshold, thinned to a few hundred points.
        operating_points: By target.
        conformal: Each method at each alpha, calibrated on validation.
    """

    kind: ClassVar[str] = "evaluation"
    format: Literal["marrowscope evaluation 1"] = "marrowscope evaluation 1"
    program: str
    predictions: str
    predictions_sha256: str
    part: str | None
    class_set: str | None
    codes: tuple[str, ...]
    n: int
    failed: dict[str, int]
    macro_minimum: int
    macro_left_out: tuple[str, ...]
    never_predicted: tuple[str, ...] = ()
    figures: dict[str, Figure]
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    neighbours: tuple[tuple[str, str], ...] = ()
    published: str | None = None
    costs: tuple[tuple[float, ...], ...] = ()
    costs_source: str | None = None
    calibration: tuple[Calibration, ...] = ()
    risk_coverage: tuple[RiskPoint, ...] = ()
    operating_points: tuple[OperatingPoint, ...] = ()
    conformal: tuple[ConformalSets, ...] = ()
