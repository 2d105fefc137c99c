"""What a report says: every figure, list and sentence, in display order; `html` and `markdown` only set it."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from marrowscope.cells import BY_CODE, clinical_order
from marrowscope.report.charts import heat_level
from marrowscope.report.inputs import RunFiles
from marrowscope.report.thumbnails import Thumbnails
from marrowscope.schema import OK, PARTS, ClassFigures, Figure

PAIRS = 10
"""Confused pairs that are listed."""

PAIR_PICTURES = 6
MISTAKES = 24
RUNNERS_UP = 3
FAILED_SHOWN = 200

PERCENT = "\N{NO-BREAK SPACE}%"

LABELS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share of cells named right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall, every class weighing the same"),
    "top2_accuracy": ("Top-2 accuracy", "the right class is among the two likeliest"),
    "macro_precision": ("Macro precision", "mean over classes"),
    "macro_recall": ("Macro recall", "mean over classes"),
    "macro_f1": ("Macro F1", "mean over classes"),
    "weighted_precision": ("Weighted precision", "mean weighted by class size"),
    "weighted_recall": ("Weighted recall", "mean weighted by class size"),
    "weighted_f1": ("Weighted F1", "mean weighted by class size"),
    "cohen_kappa": ("Cohen's kappa", "agreement beyond chance"),
    "matthews": ("Matthews correlation", "−1 to 1; 0 is chance"),
    "log_loss": ("Log loss", "lower is better"),
    "macro_auroc": ("Macro AUROC", "one class against the rest, mean over classes"),
    "macro_average_precision": ("Macro average precision", "one class against the rest, mean over classes"),
    "tolerant_accuracy": ("Tolerant accuracy", "a neighbouring class counts as right"),
    "cost_error": ("Mean cost of an answer", "0 is right, lower is better"),
    "line_accuracy": ("Right cell line", "share of answers in the right lineage"),
    "maturation_error": ("Stages off", "mean steps of maturation in the right line; lower is better"),
    "expected_calibration_error": ("Expected calibration error", "lower is better"),
    "classwise_calibration_error": ("Class-wise calibration error", "lower is better"),
    "brier_loss": ("Brier loss", "lower is better"),
}
HEADLINE = (
    "accuracy", "tolerant_accuracy", "balanced_accuracy", "macro_f1", "top2_accuracy", "cohen_kappa", "macro_auroc",
    "matthews",
)  # fmt: skip
"""The first `HEADLINE_CARDS` of these that the evaluation has stand large."""

HEADLINE_CARDS = 6

SCALINGS = {"none": "as predicted", "temperature": "temperature scaling", "vector": "vector scaling"}


def shown(text: str) -> str:
    """Text as a page can hold it: bytes that are not UTF-8 and control characters become the replacement sign."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)


def class_name(code: str) -> str:
    """Full name of a class; the code itself where it is another program's."""
    return BY_CODE[code].name if code in BY_CODE else code


def label(key: str) -> str:
    """A figure's name in words."""
    return LABELS[key][0] if key in LABELS else key.replace("_", " ").capitalize()


def percent(share: float) -> str:
    """A share for reading, never rounded to a boundary that it has not reached."""
    if share <= 0 or share >= 1:
        return f"{share * 100:.0f}{PERCENT}"
    return f"{min(max(share * 100, 0.1), 99.9):.1f}{PERCENT}"


@dataclass(frozen=True)
class Answer:
    """What the model said of one test cell; `likeliest` are (code, probability), best first."""

    path: str
    truth: str
    likeliest: tuple[tuple[str, float], ...]

    @property
    def predicted(self) -> str:
        """The likeliest class."""
        return self.likeliest[0][0]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.likeliest[0][1]

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return self.truth == self.predicted

    @property
    def sign(self) -> str:
        """Right or wrong, without colour."""
        return "✓" if self.right else "✗"

    @property
    def sentence(self) -> str:
        """The same in words, as alternative of the picture."""
        what = "recognised" if self.right else f"taken for {class_name(self.predicted)}"
        return f"{class_name(self.truth)}, {what} with {percent(self.confidence)} confidence"


@dataclass(frozen=True)
class NamedFigure:
    """A figure with its name in words."""

    key: str
    label: str
    note: str
    figure: Figure


@dataclass(frozen=True)
class ClassRow:
    """One line of the per-class table."""

    code: str
    name: str
    figures: ClassFigures
    left_out: bool


@dataclass(frozen=True)
class MatrixCell:
    """One cell of the confusion matrix; `share` is of its row."""

    truth: str
    predicted: str
    count: int
    share: float

    @property
    def right(self) -> bool:
        """Whether it lies on the diagonal."""
        return self.truth == self.predicted

    @property
    def kind(self) -> str:
        """CSS classes for its shade."""
        level = heat_level(self.share)
        return f"{'right' if self.right else 'wrong'} h{level}" if level else ""

    @property
    def words(self) -> str:
        """What it says, for those who don't see the table around it."""
        done = "recognised" if self.right else f"taken for {class_name(self.predicted)}"
        return f"{class_name(self.truth)} {done}: {self.count} ({self.percent} of its class)"

    @property
    def number(self) -> str:
        """Share in whole per cent, without the sign."""
        if 0 < self.share < 0.005:
            return "<1"
        if 0.995 <= self.share < 1:
            return ">99"
        return f"{self.share * 100:.0f}"

    @property
    def percent(self) -> str:
        """Share in whole per cent."""
        return self.number + PERCENT


@dataclass(frozen=True)
class Pair:
    """Cells of one class taken for another, the surest first."""

    cell: MatrixCell
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Content:
    """All that a report says.

    Attributes:
        answers: All cells with an answer, in the order of the predictions.
        in_gallery: Those the gallery shows.
        failed_files: (path, reason) of files without an answer, the first `FAILED_SHOWN`.
        counts: Rows of (code, name, one number a part, total).
    """

    run: RunFiles
    thumbnails: Thumbnails
    data: str | None
    answers: tuple[Answer, ...]
    in_gallery: tuple[Answer, ...]
    headline: tuple[NamedFigure, ...]
    figures: tuple[NamedFigure, ...]
    classes: tuple[ClassRow, ...]
    matrix: tuple[tuple[MatrixCell, ...], ...]
    pairs: tuple[Pair, ...]
    mistakes: tuple[Answer, ...]
    failed_files: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, str, tuple[int, ...], int], ...]

    @property
    def title(self) -> str:
        """Heading of the page."""
        name = self.run.card.name if self.run.card else self.run.name
        return f"Report on {shown(name)}"

    @property
    def n_right(self) -> int:
        """Cells on the diagonal."""
        return sum(row[i].count for i, row in enumerate(self.matrix))

    @property
    def baseline(self) -> tuple[str, float] | None:
        """The commonest class of the test cells and its share: what a model that knows nothing would reach."""
        support = {r.code: r.figures.support for r in self.classes}
        total = sum(support.values())
        if not total:
            return None
        best = max(support, key=lambda c: support[c])
        return best, support[best] / total

    @property
    def published(self) -> tuple[ClassRow, ...]:
        """Classes that somebody published figures of; none for drawn cells, which compare with nothing."""
        if self.run.synthetic:
            return ()
        return tuple(r for r in self.classes if r.figures.published is not None)

    @property
    def costs(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Cost matrix in display order, a code and its row; empty where errors were not weighed."""
        costs, where = self.run.evaluation.costs, {c: i for i, c in enumerate(self.run.evaluation.codes)}
        codes = self.run.codes if costs else ()
        return tuple((t, tuple(costs[where[t]][where[p]] for p in codes)) for t in codes)

    @property
    def ranked(self) -> bool:
        """Whether the classes have AUROC and average precision."""
        return any(r.figures.auroc is not None for r in self.classes)

    @property
    def missing_reasons(self) -> dict[str, int]:
        """How many pictures of the gallery are missing, by reason."""
        out: dict[str, int] = {}
        for reason in self.thumbnails.missing.values():
            out[reason] = out.get(reason, 0) + 1
        return dict(sorted(out.items(), key=lambda x: (-x[1], x[0])))

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that make the run again."""
        run = shlex.quote(shown(self.run.name))
        lines = []
        if self.run.config is not None and self.run.split is not None:
            data = shlex.quote(shown(self.data)) if self.data else "DATA"
            lines.append(f"marrowscope train {run}/config.toml --data {data} --split {run}/split.csv --out {run}-again")
            run = f"{run}-again"
        part = f" --part {self.run.evaluation.part}" if self.run.evaluation.part else ""
        return (*lines, f"marrowscope evaluate {run}{part}", f"marrowscope report {run}")


def read_answers(run: RunFiles) -> tuple[Answer, ...]:
    """The answer to every file that could be read."""
    p, out = run.predictions, []
    top = min(RUNNERS_UP, len(p.codes))
    for i, (path, status, truth) in enumerate(zip(p.paths, p.status, run.truth, strict=True)):
        if status == OK:
            # A stable sort keeps the first of equals first, as argmax does.
            best = (-p.probs_NC[i]).argsort(kind="stable")[:top]
            out.append(Answer(path, truth, tuple((p.codes[j], float(p.probs_NC[i, j])) for j in best)))
    return tuple(out)


def choose(answers: Sequence[Answer], most: int) -> tuple[Answer, ...]:
    """At most so many cells for the gallery: the wrong answers first, then right ones spread over the table."""
    if len(answers) <= most:
        return tuple(answers)
    wrong = [i for i, a in enumerate(answers) if not a.right]
    right = [i for i, a in enumerate(answers) if a.right]
    kept = set(_spread(wrong, most))
    kept |= set(_spread(right, most - len(kept)))
    return tuple(answers[i] for i in sorted(kept))


def _spread(items: Sequence[int], most: int) -> list[int]:
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def build(
    run: RunFiles,
    data: str | None,
    max_cells: int,
    make_thumbnails: Callable[[Sequence[str]], Thumbnails],
) -> Content:
    """Gather all that the report says; `make_thumbnails` gets the paths of the cells to show."""
    answers = read_answers(run)
    in_gallery = choose(answers, max_cells)
    matrix = _matrix(run)
    figures = tuple(_named(k, f) for k, f in run.evaluation.figures.items())
    by_key = {f.key: f for f in figures}
    p = run.predictions
    failed = [(path, status) for path, status in zip(p.paths, p.status, strict=True) if status != OK]
    return Content(
        run=run,
        thumbnails=make_thumbnails([a.path for a in in_gallery]),
        data=data,
        answers=answers,
        in_gallery=in_gallery,
        headline=tuple([by_key[k] for k in HEADLINE if k in by_key][:HEADLINE_CARDS]),
        figures=figures,
        classes=_classes(run),
        matrix=matrix,
        pairs=_pairs(matrix, in_gallery),
        mistakes=tuple(_surest(a for a in in_gallery if not a.right)[:MISTAKES]),
        failed_files=tuple(failed[:FAILED_SHOWN]),
        counts=_counts(run),
    )


def _named(key: str, figure: Figure) -> NamedFigure:
    return NamedFigure(key, label(key), LABELS.get(key, ("", ""))[1], figure)


def _classes(run: RunFiles) -> tuple[ClassRow, ...]:
    of = {c.code: c for c in run.evaluation.per_class}
    left_out = run.evaluation.macro_left_out
    return tuple(ClassRow(c, class_name(c), of[c], c in left_out) for c in run.codes)


def _matrix(run: RunFiles) -> tuple[tuple[MatrixCell, ...], ...]:
    where = {c: i for i, c in enumerate(run.evaluation.codes)}
    rows = []
    for truth in run.codes:
        counts = run.evaluation.confusion[where[truth]]
        total = sum(counts) or 1
        rows.append(tuple(MatrixCell(truth, p, counts[where[p]], counts[where[p]] / total) for p in run.codes))
    return tuple(rows)


def _surest(answers: Iterable[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda a: (-a.confidence, a.path))


def _pairs(matrix: Sequence[Sequence[MatrixCell]], answers: Sequence[Answer]) -> tuple[Pair, ...]:
    wrong = [cell for row in matrix for cell in row if not cell.right and cell.count]
    worst = sorted(wrong, key=lambda c: (-c.count, -c.share, c.truth, c.predicted))[:PAIRS]
    out = []
    for cell in worst:
        examples = _surest(a for a in answers if (a.truth, a.predicted) == (cell.truth, cell.predicted))
        out.append(Pair(cell, tuple(examples[:PAIR_PICTURES])))
    return tuple(out)


def _counts(run: RunFiles) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    if run.split is not None:
        counts = run.split.info.counts
    elif run.card is not None:
        counts = run.card.training_data.counts
    else:
        return ()
    codes = {c for part in PARTS for c in counts.get(part, {})}
    known = clinical_order(c for c in codes if c in BY_CODE)
    rows = []
    for code in (*known, *sorted(codes - set(known))):
        numbers = tuple(counts.get(part, {}).get(code, 0) for part in PARTS)
        rows.append((code, class_name(code), numbers, sum(numbers)))
    return tuple(rows)
