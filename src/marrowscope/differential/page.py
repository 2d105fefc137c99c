"""The differential as one self-contained HTML page that prints on paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from marrowscope.cells import cell_class
from marrowscope.differential.documents import CountRow, Differential
from marrowscope.schema import Figure

_BAR, _LEFT, _RIGHT, _WIDTH = 26, 250, 60, 860
"""Pixels of the chart's own scale: a row's height, the margin for names, that for numbers, and the whole width."""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("marrowscope.differential"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=_number, interval=_interval)
    return environment


def to_html(result: Differential, title: str, *, looked: str = "Nobody has looked yet.") -> str:
    """The whole page; `title` names the smear, `looked` says who has looked at its cells."""
    style = (resources.files("marrowscope.differential") / "templates" / "page.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            d=result,
            title=title,
            looked=looked,
            chart=_chart(result),
            left_out=[(code, cell_class(code).name, n) for code, n in result.left_out.items()],
            style=Markup(style),  # noqa: S704 -- our own file, without a tag
        )
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(figure: Figure | None, digits: int = 1) -> str:
    """``12.3 (10.1–14.9)``."""
    if figure is None or figure.value is None:
        return "–"
    if figure.low is None:
        return _number(figure.value, digits)
    high = "∞" if figure.high is None else _number(figure.high, digits)
    return f"{_number(figure.value, digits)} ({_number(figure.low, digits)}–{high})"


def _chart(result: Differential) -> Markup:
    """A bar a class with its interval, as SVG; its text alternative is the table."""
    rows = result.rows
    top = max([10.0, *(f.high for r in rows for f in (r.percent, r.adjusted, r.corrected) if f and f.high is not None)])
    height = _BAR * len(rows) + 44

    def x(percent: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * percent / top, 1)

    step = next(s for s in (2, 5, 10, 20, 25) if top / s <= 6 or s == 25)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="chart-title chart-text">',
        '<title id="chart-title">Percent of nucleated cells by class</title>',
        '<desc id="chart-text">A bar for each class with its 95 % interval; the table has the same numbers.</desc>',
    ]
    for tick in range(0, int(top) + 1, step):
        parts.append(f'<line class="grid" x1="{x(tick)}" y1="8" x2="{x(tick)}" y2="{height - 28}"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 10}" text-anchor="middle">{tick} %</text>')
    for i, row in enumerate(rows):
        parts.extend(_bar(row, 12 + i * _BAR, x))
    # All text in it is made here of numbers and of the fixed names of the classes.
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704


def _bar(row: CountRow, y: float, x: Callable[[float], float]) -> list[str]:
    p, middle = row.percent, y + _BAR / 2 - 4
    parts = [f'<text class="name" x="{_LEFT - 12}" y="{middle + 5}" text-anchor="end">{row.name} ({row.code})</text>']
    if p.value is None or p.low is None or p.high is None:
        return parts
    parts.append(
        f'<rect x="{x(0)}" y="{y}" width="{max(0.0, x(p.value) - x(0)):.1f}" height="{_BAR - 8}" '
        f'fill="{cell_class(row.code).colour}"/>'
    )
    parts.extend(
        f'<line class="{look}" x1="{x(p.low)}" y1="{middle}" x2="{x(p.high)}" y2="{middle}"/>'
        for look in ("halo", "interval")
    )
    parts.extend(
        f'<line class="interval" x1="{x(end)}" y1="{middle - 4}" x2="{x(end)}" y2="{middle + 4}"/>'
        for end in (p.low, p.high)
    )
    if row.adjusted is not None and row.adjusted.value is not None:
        at = x(row.adjusted.value)
        parts.append(
            f'<path class="adjusted" d="M{at} {middle - 7}L{at + 6} {middle}L{at} {middle + 7}L{at - 6} {middle}Z"/>'
        )
    parts.append(f'<text class="value" x="{x(p.high) + 8}" y="{middle + 5}">{_number(p.value)}</text>')
    return parts
