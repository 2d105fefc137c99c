"""How well predictions fit the truth: the figures of evaluation.json."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

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
        applied: Whether the judged answers have this scaling.
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
    applied: bool = False
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
        chosen_on: ``itself``: the same images, so the accuracy is reached by construction; ``validation``: the least
            threshold that reached it there, which is luck in part; or ``assured``: one that reaches it on new images in
            9 of 10 cases, as far as the validation images tell (`evaluate.selective.assured_threshold`).
        threshold: Least confidence; None where no threshold reaches the target, and nothing is answered.
        coverage: Share of images answered.
        accuracy: Of those.
    """

    target: float
    chosen_on: Literal["itself", "validation", "assured"]
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


class NoveltyScore(Frozen):
    """How well a score tells strange pictures from test cells.

    Attributes:
        auroc: How often a strange picture scores higher than a test cell.
        fpr_at_95: Share of strange pictures that pass where 95 % of the test cells pass.
    """

    auroc: Figure
    fpr_at_95: Figure


class StrangerKind(Frozen):
    """One kind of picture that the model has not learnt.

    Attributes:
        name: For example ``other classes``.
        description: What they are and where they come from.
        n: Pictures.
        scores: By method, the one of the card among them.
        flagged: Share above the card's threshold.
        accepted: Share whose answer would be accepted, by the card's threshold of confidence and its flag.
    """

    name: str
    description: str
    n: int
    scores: dict[str, NoveltyScore]
    flagged: Figure
    accepted: Figure | None = None


class Novelty(Frozen):
    """Whether the model notices what it has not learnt.

    Attributes:
        method: Of the card; what the score is: see `evaluate.novelty`.
        threshold: Of the card; a score above it is flagged.
        chosen_by: How the method was chosen: AUROC by stand-in for strangers, made of validation cells, then method.
        flagged: Share of test cells above the threshold.
        kinds: What it was judged on.
        left_out: Kinds that could not be had, and why.
    """

    method: str
    threshold: float
    chosen_by: dict[str, dict[str, float]]
    flagged: Figure
    kinds: tuple[StrangerKind, ...]
    left_out: dict[str, str] = Field(default_factory=dict)


class RobustnessPoint(Frozen):
    """Accuracy on changed pictures of one kind and strength.

    Attributes:
        strength: 1 to 5.
        amount: What it stands for, in the unit of the kind (`evaluate.corruptions`).
        accuracy: On the changed pictures.
        change: That less the accuracy on the same pictures unchanged.
        relative_drop: What share of the accuracy is lost.
    """

    strength: int
    amount: float
    accuracy: Figure
    change: Figure
    relative_drop: Figure


class RobustnessKind(Frozen):
    """One kind of change; `accuracy` and `relative_drop` are means over its strengths."""

    kind: str
    accuracy: Figure
    relative_drop: Figure
    points: tuple[RobustnessPoint, ...]


class Robustness(Frozen):
    """Accuracy when pictures are worse or other than those of training (`evaluate.corruptions`).

    Attributes:
        model: What answered: the run's checkpoint, or the name of an ONNX file.
        seed: Of the choice of cells and of the directions of the changes.
        n: Cells.
        clean: Accuracy on the cells as they are.
        accuracy: Mean over all kinds and strengths.
        relative_drop: Share of the clean accuracy that is lost in that mean.
        kinds: Each kind of change.
    """

    model: str
    seed: int
    n: int
    clean: Figure
    accuracy: Figure
    relative_drop: Figure
    kinds: tuple[RobustnessKind, ...]


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
        novelty: Whether strange pictures are noticed; None where not asked for.
        robustness: Accuracy on changed pictures; None where not asked for.
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
    novelty: Novelty | None = None
    robustness: Robustness | None = None
