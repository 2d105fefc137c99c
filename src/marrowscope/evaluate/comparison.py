"""The document that a comparison of models is (comparison.json)."""

from __future__ import annotations

from typing import ClassVar, Literal

from marrowscope.schema import Document, Figure, Frozen


class ComparedModel(Frozen):
    """One model, on the cells that all models answered.

    Attributes:
        name: As given, for example the file's name.
        accuracy: On the compared cells.
        unknown: Compared cells whose true class the model has no column for; it is wrong on them.
    """

    name: str
    accuracy: Figure
    unknown: int


class ClassDifference(Frozen):
    """Two models on the cells of one class; as in `ModelDifference`."""

    code: str
    n: int
    only_first: int
    only_second: int
    difference: Figure
    p_value: float
    p_adjusted: float


class ModelDifference(Frozen):
    """Two models on the same cells.

    Attributes:
        first: Name of a model.
        second: Name of another.
        only_first: Cells that only the first gets right.
        only_second: Cells that only the second gets right.
        difference: Accuracy of the second less that of the first: above 0 where the second is better.
        p_value: That the two are equally accurate; two-sided.
        p_adjusted: Holm's, over all pairs of models, or in `per_class` over the classes.
        test: How the p-value was made.
        per_class: The same on the cells of each true class (a difference of recall).
    """

    first: str
    second: str
    only_first: int
    only_second: int
    difference: Figure
    p_value: float
    p_adjusted: float
    test: str
    per_class: tuple[ClassDifference, ...]


class PublishedAccuracy(Frozen):
    """What somebody reports of a model: its name, its accuracy 0..1, and on how many images."""

    name: str
    accuracy: Figure


class PublishedDifference(Frozen):
    """Accuracy of a model less a published one, on other cells: a weak comparison."""

    model: str
    published: str
    difference: Figure


class Comparison(Document):
    """Models compared on the same cells, and with published figures.

    Attributes:
        n: Cells compared: those that every model has an answer for.
        left_out: By model: its cells that are not compared.
        models: As given.
        pairs: Each model with each later one.
        published: Figures that stand somewhere without the answers behind them.
        published_differences: Each model less each published figure, and each published figure less each earlier one.
    """

    kind: ClassVar[str] = "comparison"
    format: Literal["marrowscope comparison 1"] = "marrowscope comparison 1"
    program: str
    n: int
    left_out: dict[str, int]
    models: tuple[ComparedModel, ...]
    pairs: tuple[ModelDifference, ...]
    published: tuple[PublishedAccuracy, ...] = ()
    published_differences: tuple[PublishedDifference, ...] = ()
