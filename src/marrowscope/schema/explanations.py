"""Heat maps and their tests: explanations.json and explanation-tests.json."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from marrowscope.schema.base import NOT_A_MEDICAL_DEVICE, Document, Frozen
from marrowscope.schema.evaluation import Figure


class ExplanationMethod(Frozen):
    """A way of making heat maps.

    Attributes:
        name: As on the command line.
        title: For readers.
        about: What its heat is, in a sentence, with the source.
        class_specific: Whether the map depends on the class that is asked about.
    """

    name: str
    title: str
    about: str
    class_specific: bool


class ExplainedPicture(Frozen):
    """One picture and its heat maps; paths of files are relative to the folder of the document.

    Attributes:
        path: The picture's name as given (bytes of it that are not valid UTF-8 stand as ``\\xff``).
        status: ``ok``, or why there is no map.
        truth: Class code, where it is known.
        predicted: Class code.
        confidence: Probability of `predicted`, 0..1.
        explained: Class code that the maps are about.
        arrays: .npz file with one float32 (size, size) a method.
        overlays: PNG file, cell beside heat, by method.
        flat: Methods whose map is the same everywhere, and so says nothing.
    """

    path: str
    status: str
    truth: str | None = None
    predicted: str | None = None
    confidence: float | None = None
    explained: str | None = None
    arrays: str | None = None
    overlays: dict[str, str] = Field(default_factory=dict)
    flat: tuple[str, ...] = ()


class ExplanationGrid(Frozen):
    """All explained pictures of a class by one method on one PNG; right answers framed green, wrong ones red.

    Attributes:
        code: Class of the pictures: the true one, or the predicted one where no truth is known.
        method: Name of the method.
        file: PNG file, relative to the folder of the document.
        n: Pictures on it.
        right: How many of them were named right; None where no truth is known.
    """

    code: str
    method: str
    file: str
    n: int
    right: int | None


class Explanations(Document):
    """What a folder of heat maps holds (explanations.json)."""

    kind: ClassVar[str] = "description of heat maps"
    format: Literal["marrowscope explanations 1"] = "marrowscope explanations 1"
    model: str
    program: str
    weights_sha256: str
    synthetic: bool = Field(description="whether the model was trained on drawn cells")
    size: int = Field(description="side of the maps, pixels of the prepared picture")
    methods: tuple[ExplanationMethod, ...]
    not_fitting: dict[str, str] = Field(default_factory=dict, description="methods left out, and why")
    pictures: tuple[ExplainedPicture, ...]
    grids: tuple[ExplanationGrid, ...]
    intended_use: str = NOT_A_MEDICAL_DEVICE


class ExplanationCheck(Frozen):
    """One test of a method.

    Attributes:
        name: ``answers``, ``where``, ``faithful`` or ``sanity``.
        passed: Whether it passed.
        counted: Whether it counts for the method; one that does not fit this model is shown and not counted.
        reason: The figures that decided, in words.
    """

    name: str
    passed: bool
    counted: bool
    reason: str


class CascadeStep(Frozen):
    """Maps before and after the top part of the network lost what it had learned (Adebayo et al. 2018).

    Attributes:
        randomised: Share of the network's layers, counted from the answer down, 0..1.
        spearman: Mean rank correlation of the maps.
        ssim: Mean structural similarity of the maps.
    """

    randomised: float
    spearman: Figure
    ssim: Figure


class MethodTests(Frozen):
    """What the tests found of one method.

    Attributes:
        method: Name.
        title: For readers.
        control: A map that knows nothing of the network, to compare with; no control should pass.
        figures: By name; `explain.judge` says what each is.
        deletion: Mean probability of the explained class when 0 .. 100 % of the pixels are taken away, hottest first.
        insertion: The same when they are put back, hottest first.
        cascade: From the trained network to one wholly randomised.
        checks: The tests.
        passed: Whether all counted tests passed.
    """

    method: str
    title: str
    control: bool
    figures: dict[str, Figure]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    cascade: tuple[CascadeStep, ...]
    checks: tuple[ExplanationCheck, ...]
    passed: bool


class ExplanationTests(Document):
    """Which methods of explaining a model passed which tests (explanation-tests.json).

    Attributes:
        n: Cells of the part that were explained.
        right: How many of them the model named right.
        phantoms: Drawn cells with known masks; 0 where the model has no class that can be drawn.
        phantoms_right: How many of these the model named right.
        cell_area: Mean share of a phantom's picture that the cell covers: what chance would reach.
        nucleus_area: The same of the nucleus.
        settings: Seed, steps and sizes.
        thresholds: What the checks demand.
        not_fitting: Methods that this network can't have, and why.
    """

    kind: ClassVar[str] = "tests of explanations"
    format: Literal["marrowscope explanation tests 1"] = "marrowscope explanation tests 1"
    model: str
    program: str
    weights_sha256: str
    part: str
    synthetic: bool
    n: int
    right: int
    phantoms: int
    phantoms_right: int
    cell_area: Figure
    nucleus_area: Figure
    settings: dict[str, int | float | str]
    thresholds: dict[str, float]
    methods: tuple[MethodTests, ...]
    not_fitting: dict[str, str] = Field(default_factory=dict)
    intended_use: str = NOT_A_MEDICAL_DEVICE
