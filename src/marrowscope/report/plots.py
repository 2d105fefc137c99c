"""Charts of errors: points with intervals, the confusion matrix as a picture, the map of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from marrowscope.report.charts import line_at, marker, plain, svg, text_at, ticks
from marrowscope.schema import Figure

Point = tuple[float, float]

COLOURS = 7
"""Colours of classes, `--map-0` ... of the page."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
"""Shapes of classes; 5 and 7 have no common factor, so that 35 classes differ in the pair."""

MAP_SIDE = 400
_RIM = 14


def interval_chart(
    key: str,
    title: str,
    description: str,
    points: Sequence[tuple[float, Figure]],
    *,
    x_label: str,
    y_range: tuple[float, float],
    level: tuple[float, str] | None = None,
    x_names: Sequence[str] = (),
) -> Markup:
    """Figures with their intervals over a value.

    Args:
        key: Prefix of the ids, unique in the page.
        title: Of the chart.
        description: The same in words.
        points: Value and figure; a figure without a value is left out.
        x_label: What the value is.
        y_range: Ends of the y axis.
        level: A horizontal line to compare with, and what it is.
        x_names: Names at the points instead of round numbers.
    """
    width, height, left, right, top, bottom = 340, 232, 42, 14, 22, 44
    values = [x for x, _ in points]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.06 or 0.5
    low, high = low - room, high + room

    def place(x: float, y: float) -> Point:
        across = left + (x - low) / (high - low) * (width - left - right)
        return across, top + (y_range[1] - y) / (y_range[1] - y_range[0]) * (height - top - bottom)

    parts = []
    for v in ticks(*y_range):
        y = place(low, v)[1]
        parts += [line_at(left, y, width - right, y, "grid"), text_at(left - 7, y + 4, plain(v), anchor="end")]
    named = list(zip(values, x_names, strict=True)) if x_names else [(v, plain(v)) for v in ticks(low, high)]
    for v, name in named:
        parts.append(text_at(place(v, 0)[0], height - bottom + 18, name, anchor="middle"))
    parts.append(line_at(left, height - bottom, width - right, height - bottom, "axis"))
    parts.append(text_at((left + width - right) / 2, height - 8, x_label, anchor="middle", kind="label"))
    if level is not None:
        y = place(low, level[0])[1]
        parts += [line_at(left, y, width - right, y, "best"), text_at(width - right, 14, level[1], anchor="end")]
    for x, f in points:
        if f.value is None:
            continue
        if f.low is not None and f.high is not None:
            parts.append(line_at(*place(x, f.low), *place(x, f.high), "interval s0"))
        parts.append(marker(*place(x, f.value), 0))
    return svg(key, title, description, (width, height), parts)


def upper_end(figures: Sequence[Figure]) -> float:
    """A round upper end of an axis for shares: at least 0.1, at most 1."""
    highest = max((f.high if f.high is not None else f.value or 0.0 for f in figures), default=0.0)
    return min(1.0, max(0.1, -(-highest // 0.1) * 0.1))


def matrix_chart(
    key: str, title: str, description: str, codes: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]
) -> Markup:
    """A confusion matrix as a picture.

    Args:
        key: Prefix of the ids.
        title: Of the chart.
        description: The same in words.
        codes: Of rows and columns.
        rows: Text and CSS classes (`right h5`) of each cell.
    """
    step = 40 if len(codes) <= 10 else 32
    left, top = 64, 54
    width, height = left + step * len(codes) + 8, top + step * len(codes) + 8
    parts = [
        text_at(left + step * len(codes) / 2, 16, "predicted", anchor="middle", kind="label"),
        text_at(8, top - 10, "truth", kind="label"),
    ]
    for i, code in enumerate(codes):
        middle = (i + 0.5) * step
        parts.append(text_at(left + middle, top - 10, code, anchor="middle"))
        parts.append(text_at(left - 10, top + middle + 4, code, anchor="end"))
        for j, (text, kind) in enumerate(rows[i]):
            x, y = left + j * step, top + i * step
            if kind:
                parts.append(
                    Markup('<rect class="heat {}" x="{}" y="{}" width="{}" height="{}" rx="3"/>').format(
                        kind, x + 1, y + 1, step - 2, step - 2
                    )
                )
            parts.append(text_at(x + step / 2, y + step / 2 + 4.5, text, anchor="middle", kind=f"count {kind}".strip()))
    return svg(key, title, description, (width, height), parts)


# ------------------------------------------------------------------------------------------- the map of the features


@dataclass(frozen=True)
class Group:
    """Points of one colour and shape; its name stands in the legend, its label at its middle on the map."""

    name: str
    label: str
    kind: str
    shape: str
    points: tuple[Point, ...]


def class_group(place: int, code: str, name: str, points: Sequence[Point]) -> Group:
    """The points of the class that stands at `place` in the list of classes."""
    return Group(name, code, f"m{place % COLOURS}", SHAPES[place % len(SHAPES)], tuple(points))


def on_map(point: Point) -> Point:
    """Where a point of 0..1 lies in a map's picture."""
    inner = MAP_SIDE - 2 * _RIM
    return round(_RIM + point[0] * inner, 1), round(_RIM + (1 - point[1]) * inner, 1)


def _shape(shape: str, x: float, y: float, r: float) -> str:
    """Path of one marker, compact: a page may hold many thousands."""
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0"
    if shape == "square":
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"
    if shape == "triangle":
        return f"M{x:.1f} {y - 1.3 * r:.1f}l{1.25 * r:g} {2.2 * r:g}h{-2.5 * r:g}z"
    if shape == "diamond":
        return f"M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {1.4 * r:g}l{-1.4 * r:g} {-1.4 * r:g}z"
    s = r * 0.55  # a cross with arms of some width
    arm = r * 1.35 - s
    return (
        f"M{x - s:.1f} {y - s - arm:.1f}h{2 * s:.2g}v{arm:.2g}h{arm:.2g}v{2 * s:.2g}h{-arm:.2g}v{arm:.2g}h{-2 * s:.2g}"
        f"v{-arm:.2g}h{-arm:.2g}v{-2 * s:.2g}h{arm:.2g}z"
    )


def swatch(group: Group) -> Markup:
    """The marker of a group as a small picture, for a legend in words beside it."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true" focusable="false">'
        '<path class="pt {}" d="{}"/></svg>'
    ).format(group.kind, _shape(group.shape, 7, 7, 4))


def map_chart(key: str, title: str, description: str, groups: Sequence[Group], *, legend: bool = False) -> Markup:
    """The cells in the plane, a path a group.

    Args:
        key: Prefix of the ids, unique in the page.
        title: Of the chart.
        description: The same in words.
        groups: The later ones lie above; points within 0..1.
        legend: Whether a legend stands below, for a chart that is shown alone.
    """
    total = sum(len(g.points) for g in groups)
    radius = 3.4 if total <= 600 else 2.6 if total <= 2000 else 1.9
    parts = []
    for group in groups:
        path = "".join(_shape(group.shape, *on_map(p), radius) for p in group.points)
        parts.append(Markup('<path class="pt {}" d="{}"/>').format(group.kind, path))
    for x, y, text in _labels(groups):
        parts.append(text_at(x, y + 4, text, anchor="middle", kind="on-map"))
    height = float(MAP_SIDE)
    if legend:
        lines, height = _map_legend(groups)
        parts += lines
    return svg(key, title, description, (MAP_SIDE, round(height)), parts)


def _labels(groups: Sequence[Group]) -> list[tuple[float, float, str]]:
    """Labels at the middle (median) of their groups, moved apart where they would cover each other."""
    placed: list[tuple[float, float, str]] = []
    for group in groups:
        if not group.label or not group.points:
            continue
        x, y = (sorted(axis)[len(group.points) // 2] for axis in zip(*map(on_map, group.points), strict=True))
        while any(abs(x - a) < 28 and abs(y - b) < 13 for a, b, _ in placed) and y < MAP_SIDE - 13:
            y += 3
        placed.append((x, y, group.label))
    return placed


def _map_legend(groups: Sequence[Group]) -> tuple[list[Markup], float]:
    parts = []
    for i, group in enumerate(groups):
        x, y = 14 + (i % 2) * 195, MAP_SIDE + 16 + (i // 2) * 18
        parts.append(Markup('<path class="pt {}" d="{}"/>').format(group.kind, _shape(group.shape, x, y - 4, 4)))
        parts.append(text_at(x + 10, y, group.name, kind="legend small"))
    return parts, MAP_SIDE + 16 + (len(groups) + 1) // 2 * 18
