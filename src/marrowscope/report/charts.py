"""Charts as inline SVG: pure functions from numbers to markup.

Series differ in colour, dash and marker, so that none of the three is needed to tell them apart. Colours are CSS
variables of the page (`--series-0`, ...), so that a chart follows light and dark. Every chart has a <title> and a
<desc>; the page gives its numbers as a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from marrowscope.schema import Figure

Point = tuple[float, float]

DASHES = ("", "7 4")
MARKERS = ("circle", "diamond")


@dataclass(frozen=True)
class Series:
    """One line of a chart; points that are not finite are left out."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ForestRow:
    """One row of a forest plot: a label and one figure a measure."""

    label: str
    figures: tuple[Figure, ...]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within low..high, some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def text_at(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick") -> Markup:
    """Text at a place; `kind` is its CSS class."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def line_at(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line; `kind` is its CSS classes."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def marker(x: float, y: float, series: int) -> Markup:
    """The marker of one of the two series."""
    if MARKERS[series % len(MARKERS)] == "circle":
        return Markup('<circle class="mark s{}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(series, x, y)
    return Markup('<path class="mark hollow s{}" d="M{:.1f} {:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"/>').format(
        series, x, y - 4.6
    )


def svg(key: str, title: str, description: str, size: tuple[int, int], parts: Sequence[Markup]) -> Markup:
    """A chart with its title and description; `key` makes their ids."""
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {w} {h}" aria-labelledby="{k}-title {k}-desc">'
        '<title id="{k}-title">{t}</title><desc id="{k}-desc">{d}</desc>{body}</svg>'
    ).format(w=size[0], h=size[1], k=key, t=title, d=description, body=Markup("").join(parts))


def legend(names: Sequence[str], left: float, y: float, *, dashes: bool = True) -> list[Markup]:
    """Names of the series in a row."""
    parts, x = [], left
    for i, name in enumerate(names):
        dash = DASHES[i % len(DASHES)] if dashes else ""
        parts.append(
            Markup('<line class="curve s{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"{}/>').format(
                i, x, y - 4, x + 28, y - 4, Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
            )
        )
        parts.append(marker(x + 14, y - 4, i))
        parts.append(text_at(x + 35, y, name, kind="legend"))
        x += 35 + 7.2 * len(name) + 22
    return parts


def plain(value: float) -> str:
    """A tick's number."""
    return f"{value:.10g}"


def line_chart(
    key: str,
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    whole: bool = True,
) -> Markup:
    """Curves over epochs, or over shares.

    Args:
        key: Prefix of the ids, unique in the page.
        series: At most two.
        whole: The x axis counts whole things, so that no tick stands between two.
        y_range: Fixed axis; else from 0 or the lowest value to the highest.
        mark: A place on the x axis and what it is (the best epoch).
    """
    width, height, left, right, top, bottom = 400, 262, 40, 12, 34, 44
    finite = [[p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])] for s in series]
    everything = [p for points in finite for p in points]
    if not everything:
        return svg(key, title, description, (width, 60), [text_at(left, 34, "No values", kind="legend")])
    x_low, x_high = min(p[0] for p in everything), max(p[0] for p in everything)
    y_low, y_high = y_range or (min(0.0, *(p[1] for p in everything)), max(p[1] for p in everything) * 1.05)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(p: Point) -> Point:
        x = left + (p[0] - x_low) / x_span * (width - left - right)
        return x, top + (y_high - p[1]) / y_span * (height - top - bottom)

    parts = legend([s.name for s in series], left, 16)
    for v in ticks(y_low, y_high):
        y = place((x_low, v))[1]
        parts += [line_at(left, y, width - right, y, "grid"), text_at(left - 7, y + 4, plain(v), anchor="end")]
    for v in ticks(x_low, x_high, 8):
        if not whole or v == int(v):
            x = place((v, y_low))[0]
            parts.append(text_at(x, height - bottom + 18, plain(v), anchor="middle"))
    parts.append(line_at(left, height - bottom, width - right, height - bottom, "axis"))
    parts.append(text_at((left + width - right) / 2, height - 8, x_label, anchor="middle", kind="label"))
    if mark is not None and x_low <= mark[0] <= x_high:
        parts += _mark(place((mark[0], 0))[0], mark[1], (left, width - right), (top, height - bottom))
    for i, points in enumerate(finite):
        parts += _curve([place(p) for p in points], i)
    return svg(key, title, description, (width, height), parts)


def _mark(x: float, label: str, across: tuple[float, float], down: tuple[float, float]) -> list[Markup]:
    """A vertical line with its label, on the side where there is room."""
    roomy = x < (across[0] + across[1]) / 2
    anchor, shift = ("start", 5) if roomy else ("end", -5)
    return [line_at(x, down[0], x, down[1], "best"), text_at(x + shift, down[1] - 7, label, anchor=anchor, kind="note")]


def _curve(points: Sequence[Point], series: int) -> list[Markup]:
    """A line with some fifteen markers on it."""
    dash = DASHES[series % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = Markup('<polyline class="curve s{}" points="{}"{}/>').format(
        series, path, Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
    )
    every = max(1, math.ceil(len(points) / 15))
    return [line, *(marker(x, y, series) for x, y in points[::every])]


def reliability_chart(key: str, title: str, description: str, bins: Sequence[tuple[float, Figure]]) -> Markup:
    """Accuracy with its interval over mean confidence; on the diagonal a probability is what it says."""
    width, height, left, right, top, bottom = 340, 330, 42, 12, 10, 44

    def place(p: Point) -> Point:
        return left + p[0] * (width - left - right), top + (1 - p[1]) * (height - top - bottom)

    parts = []
    for v in ticks(0, 1):
        (x, y0), (x0, y) = place((v, 0)), place((0, v))
        parts += [line_at(x0, y, width - right, y, "grid"), text_at(left - 7, y + 4, plain(v), anchor="end")]
        parts.append(text_at(x, y0 + 18, plain(v), anchor="middle"))
    parts += [line_at(*place((0, 0)), *place((1, 1)), "best"), line_at(*place((0, 0)), *place((1, 0)), "axis")]
    parts.append(text_at((left + width - right) / 2, height - 8, "mean confidence", anchor="middle", kind="label"))
    for confidence, accuracy in bins:
        if accuracy.value is None:
            continue
        if accuracy.low is not None and accuracy.high is not None:
            parts.append(
                line_at(*place((confidence, accuracy.low)), *place((confidence, accuracy.high)), "interval s0")
            )
        parts.append(marker(*place((confidence, accuracy.value)), 0))
    return svg(key, title, description, (width, height), parts)


def forest_chart(key: str, title: str, description: str, measures: Sequence[str], rows: Sequence[ForestRow]) -> Markup:
    """Figures between 0 and 1 with their intervals, a row each; two measures a row at most."""
    width, left, right, top, step = 460, 196, 16, 34, 30
    height = top + step * len(rows) + 36

    def place(v: float) -> float:
        return left + v * (width - left - right)

    parts = legend(measures, left, 16, dashes=False)
    for v in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line_at(place(v), top, place(v), height - 34, "grid"))
        parts.append(text_at(place(v), height - 16, f"{v:g}", anchor="middle"))
    for r, row in enumerate(rows):
        middle = top + step * (r + 0.5)
        parts.append(text_at(left - 10, middle + 4, row.label, anchor="end", kind="label"))
        for m, f in enumerate(row.figures):
            y = middle + (m - (len(row.figures) - 1) / 2) * 11
            if f.value is None:
                continue
            if f.low is not None and f.high is not None:
                parts.append(line_at(place(f.low), y, place(f.high), y, f"interval s{m}"))
            parts.append(marker(place(f.value), y, m))
    return svg(key, title, description, (width, height), parts)


def interval_bar(figure: Figure) -> Markup:
    """A figure between 0 and 1 and its interval as a small picture; decoration beside the printed numbers."""
    value = figure.value
    if value is None or not 0 <= value <= 1:
        return Markup("")
    low = value if figure.low is None else max(0.0, figure.low)
    high = value if figure.high is None else min(1.0, figure.high)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '<rect class="track" x="0" y="3" width="100" height="4"/>'
        '<rect class="fill" x="{:.1f}" y="1" width="{:.1f}" height="8"/>'
        '<rect class="point" x="{:.1f}" y="0" width="1.4" height="10"/></svg>'
    ).format(low * 100, max(0.5, (high - low) * 100), value * 100 - 0.7)


# ------------------------------------------------------------------------------------------------- heat of a matrix

HEAT_STEPS = 9
"""Shades of a confusion matrix; 0 stands for an empty cell."""

_HEAT = {
    # kind: (light page: palest, deepest), (dark page: palest, deepest)
    "right": (((226, 238, 249), (8, 69, 148)), ((22, 42, 64), (107, 174, 236))),
    "wrong": (((255, 240, 224), (166, 54, 3)), ((58, 36, 20), (253, 165, 96))),
}


def heat_level(share: float) -> int:
    """Shade of a share of a row; the square root keeps a few per cent visible."""
    return 0 if share <= 0 else max(1, min(HEAT_STEPS, math.ceil(math.sqrt(share) * HEAT_STEPS - 1e-9)))


def luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """Contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def heat_colours(kind: str, *, dark: bool) -> list[tuple[str, str]]:
    """Background and text of each shade, palest first; one of black and white is always legible."""
    palest, deepest = _HEAT[kind][dark]
    out = []
    for step in range(HEAT_STEPS):
        t = step / (HEAT_STEPS - 1)
        r, g, b = (round(p + (d - p) * t) for p, d in zip(palest, deepest, strict=True))
        black, white = contrast((r, g, b), (0, 0, 0)), contrast((r, g, b), (255, 255, 255))
        out.append((f"#{r:02x}{g:02x}{b:02x}", "#000" if black >= white else "#fff"))
    return out


MATRIX_RULE = ".matrix .{kind}.h{step}{{background:{back};color:{text}}}"


def heat_css(rule: str = MATRIX_RULE) -> str:
    """A rule for each shade (`.right.h1` ... `.wrong.h9`), for a light page and for a dark one on screens."""

    def rules(dark: bool) -> str:
        return "".join(
            rule.format(kind=kind, step=i, back=back, text=text)
            for kind in _HEAT
            for i, (back, text) in enumerate(heat_colours(kind, dark=dark), 1)
        )

    return f"{rules(False)}@media screen and (prefers-color-scheme:dark){{{rules(True)}}}"


def chart_css(*, alone: bool = False) -> str:
    """Rules of all charts; `alone`: with the page's colours, for a chart in a file of its own."""
    heat = heat_css("svg .heat.{kind}.h{step}{{fill:{back}}}svg .count.{kind}.h{step}{{fill:{text}}}")
    own = (resources.files("marrowscope.report") / "templates" / "charts.css").read_text(encoding="utf-8")
    colours = (resources.files("marrowscope.report") / "templates" / "colours.css").read_text(encoding="utf-8")
    return (colours if alone else "") + own + heat


def describe_curves(series: Sequence[Series], noun: str) -> str:
    """One sentence a curve: where it starts, ends, and where it is best; the text alternative of a line chart."""
    out = []
    for s in series:
        points = [p for p in s.points if math.isfinite(p[1])]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            out.append(f"{s.name} {noun} goes from {y0:.3f} in epoch {x0:g} to {y1:.3f} in epoch {x1:g}.")
    return " ".join(out) or "No values."
