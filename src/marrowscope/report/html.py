"""Set the content as one HTML file: template, style, script and pictures in one, nothing to load."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from marrowscope.report import charts
from marrowscope.report.charts import ForestRow, Series
from marrowscope.report.content import SCALINGS, Answer, Content, class_name, label, percent, shown
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, PARTS

PICTURE = "data:image/jpeg;base64,"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("marrowscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        shown=shown, percent=percent, class_name=class_name, thousands=lambda n: f"{n:,}", label=label
    )
    return environment


def _asset(name: str) -> str:
    return (resources.files("marrowscope.report") / "templates" / name).read_text(encoding="utf-8")


def render_html(content: Content) -> str:
    """The whole page."""
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            c=content,
            notice=NOT_A_MEDICAL_DEVICE,
            parts=PARTS,
            # Both files are our own and hold no tag.
            style=Markup(_asset("report.css")) + charts.heat_css(),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_digest=digest,
            payload=payload(content),
            curves=learning_curves(content),
            forest=forest(content),
            reliability=reliability(content),
            risk=risk_coverage(content),
            scalings=SCALINGS,
            bar=charts.interval_bar,
            picture=lambda a: picture(content, a),
        )
    )


def picture(content: Content, answer: Answer) -> str | None:
    """Data URI of a cell's thumbnail, or None."""
    found = content.thumbnails.images.get(answer.path)
    return None if found is None else PICTURE + found


def payload(content: Content) -> Markup:
    """The gallery as JSON inside a script element; nothing in it can end the element."""
    codes = list(content.run.codes)
    for a in content.in_gallery:
        codes += [c for c in (a.truth, *(code for code, _ in a.likeliest)) if c not in codes]
    where = {c: i for i, c in enumerate(codes)}
    cells = [
        [
            shown(a.path),
            where[a.truth],
            [[where[c], round(p, 4)] for c, p in a.likeliest],
            percent(a.confidence),
            content.thumbnails.images.get(a.path),
        ]
        for a in content.in_gallery
    ]
    data = {"codes": [shown(c) for c in codes], "names": [shown(class_name(c)) for c in codes], "cells": cells}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def learning_curves(content: Content) -> list[Markup]:
    """Loss and accuracy over the epochs; empty where training left no metrics."""
    metrics = content.run.metrics
    if not metrics:
        return []
    card = content.run.card
    mark = (float(card.best_epoch), f"best epoch {card.best_epoch}") if card else None
    out = []
    for key, title, y_range in (("loss", "Loss", None), ("accuracy", "Accuracy", (0.0, 1.0))):
        series = [
            Series(name, tuple((m["epoch"], m[f"{part}_{key}"]) for m in metrics))
            for part, name in (("train", "training"), ("val", "validation"))
        ]
        text = charts.describe_curves(series, key)
        out.append(charts.line_chart(f"curve-{key}", title, text, series, x_label="epoch", y_range=y_range, mark=mark))
    return out


def forest(content: Content) -> Markup:
    """Recall and precision of every class with their intervals."""
    rows = [
        ForestRow(f"{r.code} {r.name}" if r.name != r.code else r.code, (r.figures.recall, r.figures.precision))
        for r in content.classes
    ]
    known = [r for r in content.classes if r.figures.recall.value is not None]
    text = "Recall and precision with 95 % intervals, a row for each class; the table below has the numbers."
    if known:
        low = min(known, key=lambda r: r.figures.recall.value or 0.0)
        high = max(known, key=lambda r: r.figures.recall.value or 0.0)
        text += f" Recall is lowest for {low.name} ({low.figures.recall}), highest for {high.name}"
        text += f" ({high.figures.recall})."
    return charts.forest_chart("forest", "Recall and precision by class", text, ("recall", "precision"), rows)


def reliability(content: Content) -> list[Markup]:
    """One reliability diagram a scaling."""
    out = []
    for i, c in enumerate(content.run.evaluation.calibration):
        error = c.figures.get("expected_calibration_error")
        text = f"Accuracy by confidence in {len(c.bins)} bins, {SCALINGS[c.scaling]}; the table below has the numbers."
        text += f" Expected calibration error {error}." if error else ""
        bins = [(b.confidence, b.accuracy) for b in c.bins]
        out.append(charts.reliability_chart(f"reliability-{i}", f"Reliability, {SCALINGS[c.scaling]}", text, bins))
    return out


def risk_coverage(content: Content) -> Markup | None:
    """Share of errors among the answers, over the share of cells answered."""
    points = tuple((p.coverage, p.error) for p in content.run.evaluation.risk_coverage)
    if not points:
        return None
    best, whole = min(points), max(points)
    text = (
        f"Answering the surest {percent(best[0])} of cells, {percent(best[1])} of the answers are wrong; "
        f"answering {percent(whole[0])}, {percent(whole[1])}."
    )
    series = [Series("errors among the answers", tuple(sorted(points)))]
    return charts.line_chart("risk", "Errors by coverage", text, series, x_label="share of cells answered", whole=False)
