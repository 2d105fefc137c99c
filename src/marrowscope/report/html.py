"""Set the content as one HTML file: template, style, script and pictures in one, nothing to load."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from marrowscope.report import charts, drawings, plots
from marrowscope.report.answers import Answer
from marrowscope.report.content import Content
from marrowscope.report.words import SCALINGS, change, class_name, label, note, p_value, percent, shown
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
        shown=shown,
        percent=percent,
        class_name=class_name,
        thousands=lambda n: f"{n:,}",
        label=label,
        note=note,
        p_value=p_value,
        change=change,
    )
    return environment


def _asset(name: str) -> str:
    return (resources.files("marrowscope.report") / "templates" / name).read_text(encoding="utf-8")


def render_html(content: Content) -> str:
    """The whole page."""
    script = _asset("report.js") + _asset("map.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    style = _asset("colours.css") + _asset("report.css") + charts.chart_css() + charts.heat_css()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            c=content,
            notice=NOT_A_MEDICAL_DEVICE,
            parts=PARTS,
            # These files are our own and hold no tag.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_digest=digest,
            payload=payload(content),
            curves=drawings.learning_curves(content),
            forest=drawings.forest(content),
            reliability=drawings.reliability(content),
            risk=drawings.risk_coverage(content),
            novelty=drawings.novelty(content),
            robustness=drawings.robustness(content),
            quality=drawings.quality(content),
            faithful=drawings.explanations(content),
            maps=drawings.maps(content),
            describe_map=drawings.describe_map,
            swatch=plots.swatch,
            scalings=SCALINGS,
            bar=charts.interval_bar,
            picture=lambda a: picture(content, a),
            uri=lambda encoded: PICTURE + encoded,
        )
    )


def picture(content: Content, answer: Answer) -> str | None:
    """Data URI of a cell's thumbnail, or None."""
    found = content.thumbnails.images.get(answer.path)
    return None if found is None else PICTURE + found


def payload(content: Content) -> Markup:
    """The gallery and the map as JSON inside a script element; nothing in it can end the element."""
    codes = list(content.run.codes)
    for a in content.in_gallery:
        codes += [c for c in (a.truth, *(code for code, _ in a.likeliest)) if c not in codes]
    where = {c: i for i, c in enumerate(codes)}
    found = content.run.analysis.feature_map
    cells = [
        [
            shown(a.path),
            where[a.truth],
            [[where[c], round(p, 4)] for c, p in a.likeliest],
            percent(a.confidence),
            content.thumbnails.images.get(a.path),
            # Its place on the map, in the picture's own units.
            list(plots.on_map(found.points[a.key])) if found is not None and a.key in found.points else None,
        ]
        for a in content.in_gallery
    ]
    data = {"codes": [shown(c) for c in codes], "names": [shown(class_name(c)) for c in codes], "cells": cells}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704
