"""The charts of a report: from its content to markup, one place for the page and for files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from marrowscope.report import charts, plots
from marrowscope.report.charts import ForestRow, Series
from marrowscope.report.content import Content
from marrowscope.report.plots import Group, Point
from marrowscope.report.words import SCALINGS, class_name, percent
from marrowscope.schema import FeatureMap, Figure, QualityMeasure


@dataclass(frozen=True)
class Chart:
    """A chart with its caption; `key` is the prefix of its ids, and its file's name."""

    key: str
    title: str
    description: str
    markup: Markup


def learning_curves(content: Content) -> list[Chart]:
    """Loss and accuracy over the epochs; empty where training left no metrics."""
    metrics = content.run.metrics
    if not metrics:
        return []
    card = content.run.card
    mark = (float(card.best_epoch), f"best epoch {card.best_epoch}") if card else None
    out = []
    for key, name, y_range in (("loss", "Loss", None), ("accuracy", "Accuracy", (0.0, 1.0))):
        series = [
            Series(words, tuple((m["epoch"], m[f"{part}_{key}"]) for m in metrics))
            for part, words in (("train", "training"), ("val", "validation"))
        ]
        title, text = f"{name} by epoch", charts.describe_curves(series, key)
        chart = charts.line_chart(f"curve-{key}", title, text, series, x_label="epoch", y_range=y_range, mark=mark)
        out.append(Chart(f"curve-{key}", title, text, chart))
    return out


def confusion(content: Content) -> Chart:
    """The confusion matrix as a picture."""
    rows = [[(str(c.count) if c.count else "", c.kind) for c in row] for row in content.matrix]
    title = "Confusion matrix"
    text = f"Counts, a row for each true class, a column for each answer. {content.n_right:,} cells on the diagonal."
    worst = content.pairs[0].cell if content.pairs else None
    text += f" Most often confused: {worst.words}." if worst else ""
    return Chart("confusion", title, text, plots.matrix_chart("confusion", title, text, content.run.codes, rows))


def forest(content: Content) -> Chart:
    """Recall and precision of every class with their intervals."""
    rows = [
        ForestRow(f"{r.code} {r.name}" if r.name != r.code else r.code, (r.figures.recall, r.figures.precision))
        for r in content.classes
    ]
    known = [r for r in content.classes if r.figures.recall.value is not None]
    text = "Recall and precision with 95 % intervals, a row for each class; a table of the report has the numbers."
    if known:
        low = min(known, key=lambda r: r.figures.recall.value or 0.0)
        high = max(known, key=lambda r: r.figures.recall.value or 0.0)
        text += f" Recall is lowest for {low.name} ({low.figures.recall}), highest for {high.name}"
        text += f" ({high.figures.recall})."
    title = "Recall and precision by class"
    return Chart("forest", title, text, charts.forest_chart("forest", title, text, ("recall", "precision"), rows))


def reliability(content: Content) -> list[Chart]:
    """One reliability diagram a scaling."""
    out = []
    for c in content.run.evaluation.calibration:
        error = c.figures.get("expected_calibration_error")
        text = f"Accuracy by confidence in {len(c.bins)} bins, {SCALINGS[c.scaling]}."
        text += f" Expected calibration error {error}." if error else ""
        key, title = f"reliability-{c.scaling}", f"Accuracy by confidence, {SCALINGS[c.scaling]}"
        bins = [(b.confidence, b.accuracy) for b in c.bins]
        out.append(Chart(key, title, text, charts.reliability_chart(key, title, text, bins)))
    return out


def risk_coverage(content: Content) -> Chart | None:
    """Share of errors among the answers, over the share of cells answered."""
    points = tuple((p.coverage, p.error) for p in content.run.evaluation.risk_coverage)
    if not points:
        return None
    best, whole = min(points), max(points)
    text = (
        f"Answering the surest {percent(best[0])} of cells, {percent(best[1])} of the answers are wrong; "
        f"answering {percent(whole[0])}, {percent(whole[1])}."
    )
    series, title = [Series("errors among the answers", tuple(sorted(points)))], "Share of errors by share answered"
    chart = charts.line_chart("risk", title, text, series, x_label="share of cells answered", whole=False)
    return Chart("risk", title, text, chart)


def quality(content: Content) -> list[Chart]:
    """Error rate by each measure of the pictures."""
    measures = content.run.analysis.quality
    top = plots.upper_end([b.error for m in measures for b in m.bins])
    return [_quality_chart(content, m, top) for m in measures]


def _quality_chart(content: Content, measure: QualityMeasure, top: float) -> Chart:
    accuracy = content.run.evaluation.figures.get("accuracy")
    overall = None
    if accuracy is not None and accuracy.value is not None:
        overall = (1 - accuracy.value, "dotted: all cells")
    points = [((b.low + b.high) / 2, b.error) for b in measure.bins]
    key, title = f"quality-{measure.name}", f"Share of errors by {measure.name}"
    rates = ", ".join(f"{b.low:.3g} to {b.high:.3g}: {b.error}" for b in measure.bins)
    text = f"{title} ({measure.unit}), bins of equal numbers of cells. {rates}."
    label = f"{measure.name} ({measure.unit})"
    chart = plots.interval_chart(key, title, text, points, x_label=label, y_range=(0.0, top), level=overall)
    return Chart(key, title, text, chart)


AMOUNTS = {
    "stain": "shift of the stains (ln)",
    "brightness": "change of the light (ln)",
    "blur": "blur (px)",
    "jpeg": "JPEG quality",
    "scale": "magnified or reduced (times)",
    "rotation": "turned (degrees)",
}
"""What the amount of a change is, by its kind."""


def robustness(content: Content) -> list[Chart]:
    """Accuracy by the strength of each kind of change."""
    found = content.run.evaluation.robustness
    if found is None:
        return []
    out = []
    clean = None if found.clean.value is None else (found.clean.value, "dotted: unchanged")
    for kind in found.kinds:
        points = [(float(p.strength), p.accuracy) for p in kind.points]
        names = [f"{p.amount:g}" for p in kind.points]
        key, title = f"robustness-{kind.kind}", f"Accuracy by {kind.kind if kind.kind != 'jpeg' else 'JPEG'}"
        values = ", ".join(f"{p.amount:g}: {p.accuracy}" for p in kind.points)
        text = f"Accuracy on {found.n:,} cells, unchanged {found.clean}; {AMOUNTS.get(kind.kind, kind.kind)} {values}."
        label = AMOUNTS.get(kind.kind, f"{kind.kind}, from slight to severe")
        chart = plots.interval_chart(
            key, title, text, points, x_label=label, y_range=(0.0, 1.0), level=clean, x_names=names
        )
        out.append(Chart(key, title, text, chart))
    return out


def novelty(content: Content) -> Chart | None:
    """How well strange pictures are told from test cells, a row for each kind."""
    found = content.run.evaluation.novelty
    if found is None or not found.kinds:
        return None
    title = "Strange pictures: told apart (0.5 is chance), and flagged"
    rows = [ForestRow(k.name, (k.scores[found.method].auroc, k.flagged)) for k in found.kinds]
    rows.append(ForestRow("test cells", (Figure(value=None, low=None, high=None, n=0, method="none"), found.flagged)))
    values = "; ".join(f"{k.name}: AUROC {k.scores[found.method].auroc}, flagged {k.flagged}" for k in found.kinds)
    text = f"By the score {found.method}. {values}; test cells: flagged {found.flagged}."
    return Chart("novelty", title, text, charts.forest_chart("novelty", title, text, ("AUROC", "share flagged"), rows))


def explanations(content: Content) -> list[Chart]:
    """Deletion and insertion curves of each method that can be believed or not, and of the controls."""
    explained = content.run.explained
    out = []
    for method in explained.of_method if explained else ():
        series = [
            Series(name, tuple((i / (len(curve) - 1), p) for i, p in enumerate(curve)))
            for name, curve in (("deletion", method.deletion), ("insertion", method.insertion))
            if len(curve) > 1
        ]
        if not series:
            continue
        key, title = f"explain-{method.method}", f"{method.title}{' (control)' if method.control else ''}"
        text = "Mean probability of the explained class. " + " ".join(
            f"{s.name.capitalize()}: {s.points[0][1]:.3f} at none, {s.points[len(s.points) // 2][1]:.3f} at half, "
            f"{s.points[-1][1]:.3f} at all of the pixels."
            for s in series
        )
        chart = charts.line_chart(key, title, text, series, x_label="share of pixels", y_range=(0.0, 1.0), whole=False)
        out.append(Chart(key, title, text, chart))
    return out


# ------------------------------------------------------------------------------------------- the map of the features


@dataclass(frozen=True)
class MapChart:
    """One colouring of the map."""

    by: str
    chart: Chart
    groups: tuple[Group, ...]


def maps(content: Content, *, legend: bool = False) -> list[MapChart]:
    """The map coloured by truth, by answer and by right and wrong; empty without a map."""
    found = content.run.analysis.feature_map
    if found is None:
        return []
    cells = [(found.points[a.key], a) for a in content.answers if a.key in found.points]
    truth = [(p, a.truth) for p, a in cells]
    predicted = [(p, a.predicted) for p, a in cells]
    errors = (
        Group("✓ right", "", "pt-right", "circle", tuple(p for p, a in cells if a.right)),
        Group("✗ wrong", "", "pt-wrong", "cross", tuple(p for p, a in cells if not a.right)),
    )
    colourings = (
        ("truth", "true class", _by_class(content, truth)),
        ("predicted", "predicted class", _by_class(content, predicted)),
        ("answer", "right and wrong answers", errors),
    )
    out = []
    for by, words, groups in colourings:
        title = f"Map of the features by {words}"
        text = f"{describe_map(found)} {_where(groups)}"
        key = f"map-{by}"
        chart = plots.map_chart(key, title, text, groups, legend=legend)
        out.append(MapChart(by, Chart(key, title, text, chart), groups))
    return out


def _by_class(content: Content, cells: Sequence[tuple[Point, str]]) -> tuple[Group, ...]:
    groups = []
    for i, code in enumerate(content.run.codes):
        name = f"{code} {class_name(code)}" if class_name(code) != code else code
        groups.append(plots.class_group(i, code, name, [p for p, c in cells if c == code]))
    return tuple(groups)


def describe_map(found: FeatureMap) -> str:
    """What the map is, in words."""
    kept = (
        "" if found.trustworthiness is None else f" Trustworthiness {found.trustworthiness:.3f} (1 keeps neighbours)."
    )
    return (
        f"{len(found.points):,} cells in the plane by {found.method} of {found.dimension:,} features.{kept} In the "
        f"features, the nearest other cell is of the same class for {found.neighbours_alike} of the cells."
    )


def _where(groups: Sequence[Group]) -> str:
    """Where the groups lie, for those who don't see the map."""
    out = []
    for g in groups:
        if g.points:
            x, y = (sorted(axis)[len(g.points) // 2] for axis in zip(*g.points, strict=True))
            across = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
            down = "bottom" if y < 1 / 3 else "top" if y > 2 / 3 else "middle"
            place = across if down == "middle" else down if across == "middle" else f"{down} {across}"
            out.append(f"{g.name.lstrip('✓✗ ')}: {len(g.points):,} cells, around the {place}")
    return "; ".join(out) + "."


def all_charts(content: Content) -> list[Chart]:
    """Every chart of the report, in its order; none of them shows a cell."""
    risk, strange = risk_coverage(content), novelty(content)
    return [
        *learning_curves(content),
        confusion(content),
        forest(content),
        *reliability(content),
        *([risk] if risk else []),
        *([strange] if strange else []),
        *robustness(content),
        *quality(content),
        *(m.chart for m in maps(content, legend=True)),
        *explanations(content),
    ]
