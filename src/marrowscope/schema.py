"""What passes between stages: tables as CSV, documents as JSON; each typed, versioned, checked on reading.

    index.csv        path,label,width,height,bytes,sha256,status[,group,slide,patient,original]
    split.csv        path,label,part[,fold]  with split.json beside it (seed, rule, class set, index hash, counts)
    predictions.csv  path,status,predicted,confidence,<one column per class code>[,truth]
    evaluation.json  every figure as {value, low, high, n, method}
    card.json        what a model is: classes, preprocessing, training data, scores (also in the ONNX metadata)
    run.json         how a run folder came about: data, seed, versions

Writers are atomic (see `files`); readers raise `FileFormatError` that names the file, the line and what is allowed.
Paths in tables are relative to the data folder and POSIX.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from marrowscope.errors import FileFormatError
from marrowscope.files import UNDECODABLE, UTF8, atomic_open, write_text

OK = "ok"
"""Status of a file that could be read; any other status is the reason why not."""

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

NOT_A_MEDICAL_DEVICE = "Not a medical device: for research and teaching, not for diagnosis."


# ---------------------------------------------------------------------------------------------------------- tables


class IndexRow(NamedTuple):
    """One file of a data folder.

    `width` and `height` are in pixels as stored, 0 where they can't be told; `bytes` is the file's size; `sha256` is
    of the file's bytes, empty where the file can't be read; `label` is a class code.

    The rest is empty where nothing is known: `group` names pictures of the same cell (near duplicates), `slide` and
    `patient` where they come from, `original` the class as the collection itself calls it, before it was mapped.
    """

    path: str
    label: str
    width: int
    height: int
    bytes: int
    sha256: str
    status: str
    group: str = ""
    slide: str = ""
    patient: str = ""
    original: str = ""


class SplitRow(NamedTuple):
    """One image and the part it belongs to; and, in a split into folds, the fold that holds it out."""

    path: str
    label: str
    part: Part
    fold: int | None = None


INDEX_COLUMNS = IndexRow._fields[:7]
INDEX_EXTRA_COLUMNS = IndexRow._fields[7:]
"""Written where any row has a value, in this order; read in any choice of them."""
SPLIT_COLUMNS = SplitRow._fields[:3]


def _csv_rows(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV file, the header first."""
    try:
        with Path(path).open(newline="", encoding=UTF8, errors=UNDECODABLE) as f:
            reader = csv.reader(f, strict=True)
            for row in reader:
                yield reader.line_num, row
    except OSError as e:
        raise FileFormatError(f"Can't read the {kind} {path}: {e.strerror or e}.") from e
    except csv.Error as e:
        raise FileFormatError(f"{path} is not a {kind}: {e}.") from e


def _table(path: Path, kind: str, columns: Sequence[str], extra: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below a header that must be exactly `columns`, and then any of `extra` in their order.

    A row always has a cell for each of `columns` and of `extra`, empty where the file has no such column.
    """
    rows = _csv_rows(path, kind)
    _, header = next(rows, (0, []))
    further = header[len(columns) :]
    if tuple(header[: len(columns)]) != tuple(columns) or further != [c for c in extra if c in further]:
        allowed = ",".join(columns) + (f"[,{','.join(extra)}]" if extra else "")
        raise FileFormatError(
            f"{path} is not a {kind}: its first line must be {allowed!r}, and is {','.join(header)[:120]!r}."
        )
    where = [header.index(c) if c in header else None for c in (*columns, *extra)]
    for line, row in rows:
        if len(row) != len(header):
            raise FileFormatError(f"{path}, line {line}: {len(row)} cells where the header has {len(header)}.")
        yield line, ["" if i is None else row[i] for i in where]


def write_index(path: Path, rows: Iterable[IndexRow]) -> None:
    """Write index.csv, with those of `INDEX_EXTRA_COLUMNS` that any row has a value in."""
    rows = list(rows)
    base = len(INDEX_COLUMNS)
    extra = [i for i in range(base, len(IndexRow._fields)) if any(r[i] for r in rows)]
    with atomic_open(path) as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow([*INDEX_COLUMNS, *(IndexRow._fields[i] for i in extra)])
        out.writerows([*r[:base], *(r[i] for i in extra)] for r in rows)


def read_index(path: Path) -> list[IndexRow]:
    """Read index.csv.

    Raises:
        FileFormatError: Not an index; the message names the line.
    """
    out = []
    for line, cells in _table(path, "index", INDEX_COLUMNS, INDEX_EXTRA_COLUMNS):
        name, label, width, height, size, digest, status, *extra = cells
        try:
            out.append(IndexRow(name, label, int(width), int(height), int(size), digest, status, *extra))
        except ValueError:
            raise FileFormatError(f"{path}, line {line}: width, height and bytes must be whole numbers.") from None
    return out


def index_hash(rows: Iterable[IndexRow]) -> str:
    """SHA-256 over (path, label, sha256) of all rows, whatever their order: the identity of a data set."""
    h = hashlib.sha256()
    for r in sorted(rows):
        h.update(f"{r.path}\t{r.label}\t{r.sha256}\n".encode(UTF8, UNDECODABLE))
    return h.hexdigest()


@dataclass(frozen=True)
class Split:
    """Which image belongs to which part.

    Attributes:
        rows: One row an image, in path order.
        info: How it was drawn.
    """

    rows: tuple[SplitRow, ...]
    info: SplitInfo

    def part(self, part: Part) -> list[SplitRow]:
        """Rows of one part, in file order."""
        return [r for r in self.rows if r.part == part]

    def write(self, path: Path) -> None:
        """Write split.csv and split.json beside it (the JSON first: a table without it is refused on reading)."""
        self.info.write(Path(path).with_suffix(".json"))
        with atomic_open(path) as f:
            out = csv.writer(f, lineterminator="\n")
            folds = self.info.folds is not None
            out.writerow([*SPLIT_COLUMNS, "fold"] if folds else SPLIT_COLUMNS)
            out.writerows(self.rows if folds else (r[:3] for r in self.rows))

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read split.csv and split.json.

        Raises:
            FileFormatError: Not a split; a path or part that is not allowed; a path named twice; or a table that is
                not the one that split.json describes.
        """
        rows, seen = [], set()
        for line, (name, label, part, fold) in _table(path, "split", SPLIT_COLUMNS, ["fold"]):
            if fold and not (fold.isascii() and fold.isdecimal()):
                raise FileFormatError(f"{path}, line {line}: fold is {fold!r}; it must be a whole number from 0.")
            if part not in PARTS:
                raise FileFormatError(f"{path}, line {line}: part is {part!r}; allowed: {', '.join(PARTS)}.")
            if name in seen:
                raise FileFormatError(f"{path}, line {line}: {name} stands twice; an image belongs to one part.")
            seen.add(name)
            rows.append(SplitRow(name, label, part, int(fold) if fold else None))
        if not rows:
            raise FileFormatError(f"{path} holds no image.")
        info = SplitInfo.read(Path(path).with_suffix(".json"))
        split = cls(tuple(rows), info)
        folds = {r.fold for r in rows}
        if folds != ({None} if info.folds is None else set(range(info.folds))):
            raise FileFormatError(f"{path} does not fit {Path(path).with_suffix('.json').name}: the folds differ.")
        if info.counts != split.counts():
            raise FileFormatError(
                f"{path} does not fit {Path(path).with_suffix('.json').name}: the counts per class and part differ. "
                "Draw the split again, and don't edit it by hand."
            )
        return split

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per part and class: ``{"train": {"BLA": 562, ...}, ...}``."""
        return count_parts(self.rows)


def count_parts(rows: Iterable[SplitRow]) -> dict[str, dict[str, int]]:
    """Images per part and class code, codes sorted."""
    out: dict[str, dict[str, int]] = {p: {} for p in PARTS}
    for r in rows:
        out[r.part][r.label] = out[r.part].get(r.label, 0) + 1
    return {p: dict(sorted(c.items())) for p, c in out.items()}


@dataclass(frozen=True)
class Predictions:
    """What a model said of N files, in the order they were given.

    Attributes:
        paths: N names as given.
        status: N times ``ok``, or the reason why the file has no answer.
        codes: The C class codes, in the order of the columns.
        probs_NC: float64 (N, C); rows of `ok` files sum to 1, the others are nan.
        truth: N class codes, or None where no truth is known.
    """

    paths: tuple[str, ...]
    status: tuple[str, ...]
    codes: tuple[str, ...]
    probs_NC: npt.NDArray[np.float64]
    truth: tuple[str, ...] | None = None

    FIXED: ClassVar[tuple[str, ...]] = ("path", "status", "predicted", "confidence")

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """(N,) True where the file has an answer."""
        return np.array([s == OK for s in self.status], dtype=bool)

    def header(self) -> list[str]:
        """Column names."""
        return [*self.FIXED, *self.codes, *([] if self.truth is None else ["truth"])]

    def rows(self) -> Iterator[list[str]]:
        """Rows as text; empty cells where a file has no answer. Six significant digits keep 1e-6 of a probability."""
        for i, (path, status) in enumerate(zip(self.paths, self.status, strict=True)):
            truth = [] if self.truth is None else [self.truth[i]]
            if status != OK:
                yield [path, status, "", "", *([""] * len(self.codes)), *truth]
                continue
            p = self.probs_NC[i]
            best = int(p.argmax())
            yield [path, status, self.codes[best], f"{p[best]:.6g}", *(f"{v:.6g}" for v in p), *truth]

    def write(self, path: Path) -> None:
        """Write predictions.csv."""
        with atomic_open(path) as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(self.header())
            out.writerows(self.rows())

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read predictions.csv, of this program or of another that keeps to its columns.

        Raises:
            FileFormatError: A column is missing, a number is none, or probabilities do not sum to 1 (within 1e-3).
        """
        rows = _csv_rows(path, "table of predictions")
        _, header = next(rows, (0, []))
        if tuple(header[:4]) != cls.FIXED or len(header) < 6:
            raise FileFormatError(
                f"{path} is not a table of predictions: its columns must be {','.join(cls.FIXED)}, then one per class "
                f"code, then perhaps truth; they are {','.join(header)[:120]!r}."
            )
        columns = header[4:]
        # A class code is three capitals; whatever stands behind them (truth, later columns) is not a probability.
        codes = tuple(c for c in columns if len(c) == 3 and c.isupper())
        where = {c: header.index(c) for c in columns}
        has_truth = "truth" in where
        paths, status, truth, probs = [], [], [], []
        for line, row in rows:
            if len(row) != len(header):
                raise FileFormatError(f"{path}, line {line}: {len(row)} cells where the header has {len(header)}.")
            paths.append(row[0])
            status.append(row[1])
            if has_truth:
                truth.append(row[where["truth"]])
            if row[1] != OK:
                probs.append([math.nan] * len(codes))
                continue
            try:
                p = [float(row[where[c]]) for c in codes]
            except ValueError:
                raise FileFormatError(f"{path}, line {line}: a probability is not a number.") from None
            if not all(0.0 <= v <= 1.0 for v in p) or abs(sum(p) - 1.0) > 1e-3:
                raise FileFormatError(
                    f"{path}, line {line}: probabilities must lie in 0..1 and sum to 1 (they sum to {sum(p):.4g})."
                )
            probs.append(p)
        array = np.array(probs, dtype=np.float64).reshape(len(paths), len(codes))
        # Printed with six digits they sum to 1 within a few 1e-6; make it exact again.
        array /= np.where(np.isnan(array).any(1, keepdims=True), 1.0, array.sum(1, keepdims=True))
        return cls(tuple(paths), tuple(status), codes, array, tuple(truth) if has_truth else None)


# ------------------------------------------------------------------------------------------------------- documents


def validation_lines(error: ValidationError) -> list[str]:
    """One line a mistake: where it is, what is wrong, what was given."""
    lines = []
    for e in error.errors():
        where = ".".join(str(x) for x in e["loc"]) or "(whole file)"
        given = "" if e["type"] in {"missing", "extra_forbidden"} else f" (given: {e['input']!r})"[:120]
        lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}{given}")
    return lines


class Frozen(BaseModel):
    """Base of all typed values: unchangeable, and unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Document(Frozen):
    """Base of the JSON files."""

    kind: ClassVar[str]

    def write(self, path: Path) -> None:
        """Write as indented JSON."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read from JSON text; `where` names its origin in errors.

        Raises:
            FileFormatError: Not JSON, another kind or version of document, or a field that is not allowed.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            mistakes = "\n  ".join(validation_lines(e))
            raise FileFormatError(f"{where} is not a valid {cls.kind} of this version:\n  {mistakes}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read from a file; errors as in `parse`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise FileFormatError(f"Can't read the {cls.kind} {path}: {getattr(e, 'strerror', None) or e}.") from e
        return cls.parse(text, str(path))


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
    """How an image becomes a model's input; `images.prepare` and `images.normalise` follow it everywhere.

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


METRIC_COLUMNS = (
    "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1",
    "images_per_second", "seconds",
)  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.csv, one dict an epoch, keys `METRIC_COLUMNS`.

    Raises:
        FileFormatError: Not a table of metrics.
    """
    out = []
    for line, row in _table(path, "table of metrics", METRIC_COLUMNS):
        try:
            out.append({k: float(v) for k, v in zip(METRIC_COLUMNS, row, strict=True)})
        except ValueError:
            raise FileFormatError(f"{path}, line {line}: a cell is not a number.") from None
    return out


def write_metrics(path: Path, rows: Iterable[dict[str, float]]) -> None:
    """Write metrics.csv."""
    with atomic_open(path) as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(METRIC_COLUMNS)
        out.writerows([f"{r[k]:.8g}" for k in METRIC_COLUMNS] for r in rows)


def to_json(value: object) -> str:
    """Compact JSON with sorted keys, for hashing and for metadata."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
