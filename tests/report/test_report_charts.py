"""Charts: marks where the numbers are, legible shades, text alternatives."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from importlib import resources

import pytest

from marrowscope.report import charts, plots
from marrowscope.report.charts import ForestRow, Series
from marrowscope.schema import Figure

SVG = "{http://www.w3.org/2000/svg}"


def _parse(markup: str) -> ET.Element:
    return ET.fromstring(markup)


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.1, 5, [0, 0.5, 1, 1.5, 2]),
        (1, 12, 8, [2, 4, 6, 8, 10, 12]),
        (3, 3, 5, [3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, about: int, expected: list[float]) -> None:
    assert charts.ticks(low, high, about) == pytest.approx(expected)


def test_a_line_chart_has_text_alternatives_and_series_that_differ_without_colour() -> None:
    series = [Series("training", ((1, 2.0), (2, 1.0))), Series("validation", ((1, 2.2), (2, 1.4)))]
    svg = _parse(charts.line_chart("k", "Loss", "It falls.", series, x_label="epoch", mark=(2, "best")))
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-labelledby"] == "k-title k-desc"
    assert [svg.find("title").text, svg.find("desc").text] == ["Loss", "It falls."]  # type: ignore[union-attr]
    curves = svg.findall("polyline")
    assert [c.attrib.get("stroke-dasharray", "") for c in curves] == list(charts.DASHES)
    assert svg.findall("circle")
    assert svg.findall("path")


def test_a_higher_value_is_drawn_higher_and_infinite_ones_are_left_out() -> None:
    series = [Series("a", ((1, 0.2), (2, math.nan), (3, 0.9)))]
    svg = _parse(charts.line_chart("k", "t", "d", series, x_label="epoch", y_range=(0, 1)))
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").attrib["points"].split()]  # type: ignore[union-attr]
    assert len(points) == 2
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]


def test_a_chart_of_nothing_says_so() -> None:
    assert "No values" in charts.line_chart("k", "t", "d", [Series("a", ((1, math.nan),))], x_label="epoch")
    assert charts.describe_curves([Series("a", ())], "loss") == "No values."


def test_one_epoch_makes_a_chart() -> None:
    svg = charts.line_chart("k", "t", "d", [Series("a", ((0, 0.5),))], x_label="epoch")
    assert "nan" not in svg
    assert "inf" not in svg


def test_names_are_escaped() -> None:
    svg = charts.line_chart("k", "<b>", "&", [Series("<script>", ((1, 1.0), (2, 2.0)))], x_label="<i>")
    assert "<script>" not in svg
    assert "<b>" not in svg
    _parse(svg)


def test_a_forest_row_without_a_value_has_no_mark() -> None:
    none = Figure(value=None, low=None, high=None, n=0, method="none")
    some = Figure(value=0.5, low=0.25, high=0.75, n=10, method="Wilson")
    one = _parse(charts.forest_chart("k", "t", "d", ("recall",), [ForestRow("a", (some,))]))
    two = _parse(charts.forest_chart("k", "t", "d", ("recall",), [ForestRow("a", (some,)), ForestRow("b", (none,))]))
    assert len(one.findall("circle")) == len(two.findall("circle")) == 2  # legend and mark
    line = next(x for x in one.findall("line") if "interval" in x.attrib["class"])
    assert float(line.attrib["x1"]) < float(line.attrib["x2"])


def test_a_reliability_chart_puts_a_calibrated_bin_on_the_diagonal() -> None:
    some = Figure(value=0.5, low=0.25, high=0.75, n=10, method="Wilson")
    none = Figure(value=None, low=None, high=None, n=0, method="none")
    svg = _parse(charts.reliability_chart("k", "t", "d", [(0.5, some), (0.7, none)]))
    (point,) = svg.findall("circle")
    diagonal = next(x for x in svg.findall("line") if x.attrib["class"] == "best")
    for axis, centre in (("x", "cx"), ("y", "cy")):
        ends = [float(diagonal.attrib[f"{axis}{i}"]) for i in (1, 2)]
        assert float(point.attrib[centre]) == pytest.approx(sum(ends) / 2, abs=0.1)


def test_a_chart_of_shares_has_ticks_between_whole_numbers() -> None:
    series = [Series("a", ((0.1, 0.0), (1.0, 0.2)))]
    chart = charts.line_chart("k", "t", "d", series, x_label="share", whole=False)
    assert ">0.4<" in chart
    assert ">0.4<" not in charts.line_chart("k", "t", "d", series, x_label="share")


def test_interval_bar_only_for_shares() -> None:
    assert charts.interval_bar(Figure(value=1.3, low=1.2, high=1.4, n=5, method="m")) == ""
    assert charts.interval_bar(Figure(value=None, low=None, high=None, n=5, method="m")) == ""
    assert 'aria-hidden="true"' in charts.interval_bar(Figure(value=0.5, low=None, high=None, n=5, method="m"))


def test_heat_level_shows_a_single_cell_and_rises() -> None:
    assert charts.heat_level(0) == 0
    assert charts.heat_level(1e-6) == 1
    assert charts.heat_level(1) == charts.HEAT_STEPS
    levels = [charts.heat_level(i / 100) for i in range(101)]
    assert levels == sorted(levels)


def test_contrast_is_that_of_wcag() -> None:
    assert charts.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    # The grey that is quoted as the lightest on white that passes level AA.
    assert charts.contrast((0x76, 0x76, 0x76), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_every_shade_is_legible(kind: str, dark: bool) -> None:
    for back, text in charts.heat_colours(kind, dark=dark):
        assert charts.contrast(_rgb(back), _rgb(text)) >= 4.5


def test_heat_css_has_a_rule_for_every_level_light_and_dark() -> None:
    css = charts.heat_css()
    assert len(re.findall(r"\.matrix \.(?:right|wrong)\.h\d\{", css)) == 4 * charts.HEAT_STEPS


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_of_the_charts_is_seen_on_its_panel(dark: bool) -> None:
    css = (resources.files("marrowscope.report") / "templates" / "colours.css").read_text(encoding="utf-8")
    page = css.split("@media")[dark]
    colours = {name: _rgb(value) for name, value in re.findall(r"--([a-z]+(?:-\d)?): (#[0-9a-f]{3,6});", page)}
    shown = [n for n in colours if n.startswith(("map-", "series-"))]
    assert len(shown) == plots.COLOURS + 2
    # WCAG 2.2, 1.4.11: 3 to 1 for what must be seen to understand a chart.
    assert all(charts.contrast(colours[n], colours["panel"]) >= 3 for n in shown)


def test_classes_differ_in_colour_and_shape_together() -> None:
    groups = [plots.class_group(i, str(i), str(i), []) for i in range(21)]
    assert len({(g.kind, g.shape) for g in groups}) == 21
    # Neighbours in the clinical order, which are confused most, differ in both.
    for a, b in itertools.pairwise(groups):
        assert a.kind != b.kind
        assert a.shape != b.shape


def test_labels_of_a_map_do_not_cover_each_other() -> None:
    groups = [plots.class_group(i, f"C{i:02d}", f"class {i}", [(0.5, 0.5)]) for i in range(8)]
    places = [(x, y) for x, y, _ in plots._labels(groups)]
    assert len(places) == 8
    assert all(abs(a[0] - b[0]) >= 28 or abs(a[1] - b[1]) >= 13 for a, b in itertools.combinations(places, 2))


def test_an_interval_chart_leaves_out_what_has_no_value() -> None:
    nothing = Figure(value=None, low=None, high=None, n=0, method="none")
    some = Figure(value=0.3, low=0.2, high=0.4, n=9, method="Wilson")
    chart = plots.interval_chart("k", "t", "d", [(1.0, some), (2.0, nothing)], x_label="x", y_range=(0, 1))
    assert chart.count("<circle") == 1
    assert "nan" not in chart
    assert plots.upper_end([some, nothing]) == pytest.approx(0.4)
    assert plots.upper_end([]) == 0.1
