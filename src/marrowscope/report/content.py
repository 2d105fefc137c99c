"""What a report says: every figure, list and sentence, in display order; the renderers only set it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from marrowscope.cells import BY_CODE, clinical_order
from marrowscope.report.answers import Answer, choose, read_answers
from marrowscope.report.charts import heat_level
from marrowscope.report.inputs import RunFiles
from marrowscope.report.thumbnails import Thumbnails
from marrowscope.report.words import PERCENT, class_name, label, note, shown
from marrowscope.schema import OK, PARTS, ClassFigures, ConfusedPair, Figure, LabelCandidate, Study

PANEL_PICTURES = 6
"""Pictures a row of a class's panel."""

FAILED_SHOWN = 200

HEADLINE = (
    "accuracy", "tolerant_accuracy", "balanced_accuracy", "macro_f1", "top2_accuracy", "cohen_kappa", "macro_auroc",
    "matthews",
)  # fmt: skip
"""The first `HEADLINE_CARDS` of these that the evaluation has stand large."""

HEADLINE_CARDS = 6


@dataclass(frozen=True)
class NamedFigure:
    """A figure with its name in words."""

    key: str
    label: str
    note: str
    figure: Figure


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
class Panel:
    """What there is to see of one class.

    Attributes:
        taken_for: Its commonest wrong names, most cells first.
        mistaken: Other classes that get its name, most cells first.
        strips: Captions and pictures: recognised, missed, and others that got its name; the surest first.
    """

    taken_for: tuple[MatrixCell, ...]
    mistaken: tuple[MatrixCell, ...]
    strips: tuple[tuple[str, tuple[Answer, ...]], ...]


@dataclass(frozen=True)
class ClassRow:
    """One line of the per-class table, and its panel."""

    code: str
    name: str
    figures: ClassFigures
    left_out: bool
    panel: Panel


@dataclass(frozen=True)
class Pair:
    """Cells of one class taken for another, the surest first."""

    cell: MatrixCell
    found: ConfusedPair
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Content:
    """All that a report says.

    Attributes:
        answers: All cells with an answer, in the order of the predictions.
        in_gallery: Those the gallery shows.
        uncertain: With the entropy of each, 0..1.
        doubts: Cells whose label is doubtful, each with why.
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
    uncertain: tuple[tuple[Answer, float], ...]
    doubts: tuple[tuple[Answer, LabelCandidate], ...]
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
    def studies(self) -> tuple[Study, ...]:
        """Published accuracies; none for drawn cells and for classes of another collection."""
        return self.run.analysis.studies if self.published else ()

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
        """How many pictures are missing, by reason."""
        counts = Counter(self.thumbnails.missing.values())
        return dict(sorted(counts.items(), key=lambda x: (-x[1], x[0])))

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that make the run again."""
        run, part = shlex.quote(shown(self.run.name)), self.run.evaluation.part
        if not self.run.is_run:
            table, target = (shlex.quote(shown(n)) for n in (self.run.evaluation.predictions, self.run.target))
            return (f"marrowscope evaluate {table}", f"marrowscope analyse {table}", f"marrowscope report {target}")
        lines = []
        if self.run.config is not None and self.run.split is not None:
            data = shlex.quote(shown(self.data)) if self.data else "DATA"
            lines.append(f"marrowscope train {run}/config.toml --data {data} --split {run}/split.csv --out {run}-again")
            run = f"{run}-again"
        option = f" --part {part}" if part else ""
        return (*lines, *(f"marrowscope {command} {run}{option}" for command in ("evaluate", "analyse", "report")))


def build(
    run: RunFiles,
    data: str | None,
    max_cells: int,
    make_thumbnails: Callable[[Mapping[str, int]], Thumbnails],
) -> Content:
    """Gather all that the report says; `make_thumbnails` gets how often the page shows the picture of each path."""
    answers = read_answers(run)
    by_path = {a.key: a for a in answers}
    in_gallery = choose(answers, max_cells)
    matrix = _matrix(run)
    figures = tuple(_named(k, f) for k, f in run.evaluation.figures.items())
    by_key = {f.key: f for f in figures}
    classes, found = _classes(run, matrix, answers), run.analysis
    pairs = _pairs(matrix, found.pairs, by_path)
    mistakes = tuple(by_path[c.path] for c in found.confident_mistakes)
    uncertain = tuple((by_path[c.path], c.entropy) for c in found.uncertain)
    doubts = tuple((by_path[c.path], c) for c in found.label_candidates)
    copies = Counter(a.path for a in in_gallery)
    strips = [strip for r in classes for _, strip in r.panel.strips] + [p.answers for p in pairs]
    copies.update(a.path for strip in strips for a in strip)
    copies.update(a.path for a in (*mistakes, *(a for a, _ in uncertain), *(a for a, _ in doubts)))
    p = run.predictions
    failed = [(path, status) for path, status in zip(p.paths, p.status, strict=True) if status != OK]
    return Content(
        run=run,
        thumbnails=make_thumbnails(copies),
        data=data,
        answers=answers,
        in_gallery=in_gallery,
        headline=tuple([by_key[k] for k in HEADLINE if k in by_key][:HEADLINE_CARDS]),
        figures=figures,
        classes=classes,
        matrix=matrix,
        pairs=pairs,
        mistakes=mistakes,
        uncertain=uncertain,
        doubts=doubts,
        failed_files=tuple(failed[:FAILED_SHOWN]),
        counts=_counts(run),
    )


def _named(key: str, figure: Figure) -> NamedFigure:
    return NamedFigure(key, label(key), note(key), figure)


def _classes(run: RunFiles, matrix: Sequence[Sequence[MatrixCell]], answers: Sequence[Answer]) -> tuple[ClassRow, ...]:
    of = {c.code: c for c in run.evaluation.per_class}
    left_out = run.evaluation.macro_left_out
    return tuple(ClassRow(c, class_name(c), of[c], c in left_out, _panel(c, matrix, answers)) for c in run.codes)


def _panel(code: str, matrix: Sequence[Sequence[MatrixCell]], answers: Sequence[Answer]) -> Panel:
    wrong = [cell for row in matrix for cell in row if cell.count and not cell.right]
    strips = (
        ("recognised, the surest", (a for a in answers if a.right and a.truth == code)),
        ("missed, the surest of another name", (a for a in answers if not a.right and a.truth == code)),
        ("wrongly given this name, the surest", (a for a in answers if not a.right and a.predicted == code)),
    )
    return Panel(
        taken_for=tuple(sorted((c for c in wrong if c.truth == code), key=lambda c: (-c.count, c.predicted))[:3]),
        mistaken=tuple(sorted((c for c in wrong if c.predicted == code), key=lambda c: (-c.count, c.truth))[:3]),
        strips=tuple((caption, tuple(_surest(found)[:PANEL_PICTURES])) for caption, found in strips),
    )


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


def _pairs(
    matrix: Sequence[Sequence[MatrixCell]], found: Sequence[ConfusedPair], by_path: Mapping[str, Answer]
) -> tuple[Pair, ...]:
    cells = {(cell.truth, cell.predicted): cell for row in matrix for cell in row}
    return tuple(
        Pair(cells[pair.truth, pair.predicted], pair, tuple(by_path[path] for path in pair.examples)) for pair in found
    )


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
