"""Where a model errs, and on what: analysis.json."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marrowscope.schema.base import Document, Frozen
from marrowscope.schema.evaluation import Figure


def spelled(path: str) -> str:
    """A path as analysis.json has it: JSON can't hold bytes that are not UTF-8, so they stand as ``\\xff``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ConfusedPair(Frozen):
    """Cells of one class that were taken for another.

    Attributes:
        count: Number of them.
        share: Of the cells of the true class.
        neighbours: Whether tolerant scoring takes the two for each other.
        examples: Paths of some, the surest first.
    """

    truth: str
    predicted: str
    count: int
    share: Figure
    neighbours: bool
    examples: tuple[str, ...]


class DoubtfulCell(Frozen):
    """An answer to look at.

    Attributes:
        confidence: Probability of the answer, 0..1.
        runner_up: The second likeliest class.
        margin: Probability of the answer less that of the runner-up.
        entropy: Of all probabilities, over that of equal ones: 0 sure, 1 no idea.
    """

    path: str
    truth: str
    predicted: str
    confidence: float
    runner_up: str
    margin: float
    entropy: float


class LabelCandidate(Frozen):
    """A cell whose label the model confidently disagrees with; `margin` is the difference of the probabilities."""

    path: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    margin: float


class QualityBin(Frozen):
    """The share of wrong answers among cells whose measure lies from `low` to `high`."""

    low: float
    high: float
    error: Figure


class QualityMeasure(Frozen):
    """Whether wrong answers are commoner at some values of a measure of the picture.

    Attributes:
        name: Of the measure.
        unit: Of its values.
        what: One line on what is measured.
        bins: Equal in cells, by rising value.
        effect: Probability that a wrong answer's picture has a higher value than a right one's of the same class;
            0.5 where the measure says nothing.
        p_value: Two-sided, of the rank test within classes; None where no class has both right and wrong answers.
        p_adjusted: The same with Holm's correction for the number of measures.
    """

    name: str
    unit: str
    what: str
    bins: tuple[QualityBin, ...]
    effect: Figure
    p_value: float | None
    p_adjusted: float | None


class FeatureMap(Frozen):
    """The cells in the plane, near where the model's features are near.

    Attributes:
        method: How the plane was made.
        settings: Its settings in words.
        seed: Of its random numbers.
        note: What a reader should know, for example why the method is not UMAP; empty where there is nothing.
        dimension: Length of a feature vector.
        trustworthiness: Share of a cell's neighbours on the map that are its neighbours in the features as well, from 0
            to 1 (Venna & Kaski 2001).
        neighbours_alike: Share of cells whose nearest other cell in the features has the same true class.
        points: x and y of each cell by path, within 0..1.
    """

    method: Literal["UMAP", "PCA"]
    settings: str
    seed: int
    note: str = ""
    dimension: int
    trustworthiness: float | None
    neighbours_alike: Figure
    points: dict[str, tuple[float, float]]


class Study(Frozen):
    """An accuracy that somebody published on cells of the same collection.

    Attributes:
        name: Who or what.
        model: Its network.
        codes: Its classes; empty where only their number is known.
        classes: Their number.
        accuracy: As published, 0..1.
        about: What it was measured on, as far as it is said.
        here: Accuracy of this model on the judged cells of those classes, every answer allowed; None where the classes
            differ.
    """

    name: str
    model: str
    codes: tuple[str, ...]
    classes: int
    accuracy: float
    about: str
    here: Figure | None


class Analysis(Document):
    """Where a model errs, and on what. Paths are `spelled`.

    Attributes:
        predictions: Name of the table that was analysed.
        predictions_sha256: Its SHA-256.
        part: Part of the split that it holds; None where not known.
        n: Cells with an answer.
        pairs: The commonest confusions, most cells first.
        confident_mistakes: Wrong answers, the surest first.
        uncertain: Answers with the highest entropy, right or wrong.
        label_candidates: Cells whose label is doubtful, the surest first.
        label_basis: What that list rests on.
        quality: Errors against measures of the pictures; empty where the pictures were not given.
        unmeasured: Pictures that could not be measured, by reason.
        feature_map: The map of the features; None where it was not asked for.
        studies: Published accuracies beside this one.
    """

    kind: ClassVar[str] = "error analysis"
    format: Literal["marrowscope analysis 1"] = "marrowscope analysis 1"
    program: str
    predictions: str
    predictions_sha256: str
    part: str | None
    n: int
    pairs: tuple[ConfusedPair, ...]
    confident_mistakes: tuple[DoubtfulCell, ...]
    uncertain: tuple[DoubtfulCell, ...]
    label_candidates: tuple[LabelCandidate, ...]
    label_basis: str
    quality: tuple[QualityMeasure, ...] = ()
    unmeasured: dict[str, int] = Field(default_factory=dict)
    feature_map: FeatureMap | None = None
    studies: tuple[Study, ...] = ()
