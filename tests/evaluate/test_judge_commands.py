"""`evaluate` and `compare` on tables of predictions, as a user calls them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_cases import CODES, predictions
from statsmodels.stats.proportion import confint_proportions_2indep  # type: ignore[import-untyped]
from typer.testing import CliRunner

from marrowscope.cli import app
from marrowscope.errors import FileFormatError, MarrowscopeError
from marrowscope.evaluate import compare_published, evaluate_csv, parse_published, read_groups
from marrowscope.evaluate.comparison import Comparison
from marrowscope.evaluate.costs import default_costs, write_costs
from marrowscope.schema import Evaluation


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def with_column(path: Path, name: str, values: list[str]) -> None:
    with path.open(newline="") as f:
        header, *rows = list(csv.reader(f))
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([[*header, name], *([*r, v] for r, v in zip(rows, values, strict=True))])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.csv"
    predictions(1).write(path)
    with_column(path, "patient", [f"p{i % 20}" for i in range(400)])
    return path


def test_intervals_rest_on_a_column_of_the_table(table: Path) -> None:
    result = call("evaluate", table, "--groups", "patient")
    assert result.exit_code == 0, result.output
    e = Evaluation.read(table.with_name("theirs.evaluation.json"))
    assert "20 groups" in e.figures["accuracy"].method
    assert "by group" in e.figures["macro_f1"].method
    alone = evaluate_csv(table)
    assert e.figures["accuracy"].value == alone.figures["accuracy"].value
    assert e.figures["accuracy"].low != alone.figures["accuracy"].low


def test_a_user_s_costs_and_validation_are_taken(table: Path, tmp_path: Path) -> None:
    costs = default_costs(CODES)
    costs[0, 2] = 7.0
    write_costs(tmp_path / "costs.csv", CODES, costs)
    predictions(2).write(tmp_path / "val.csv")
    result = call("evaluate", table, "--costs", tmp_path / "costs.csv", "--validation", tmp_path / "val.csv")
    assert result.exit_code == 0, result.output
    e = Evaluation.read(table.with_name("theirs.evaluation.json"))
    assert e.costs_source == "costs.csv"
    assert e.costs[0][2] == 7
    wrong = np.array(e.confusion) * costs
    assert e.figures["cost_error"].value == pytest.approx(wrong.sum() / e.n)
    assert [(c.scaling, c.applied) for c in e.calibration] == [
        ("none", True),
        ("temperature", False),
        ("vector", False),
    ]
    assert len(e.conformal) == 4


def test_tables_in_json_lines_are_judged_too(tmp_path: Path) -> None:
    import json

    p = predictions(3, n=50)
    records = [dict(zip(p.header(), row, strict=True)) for row in p.rows()]
    for r in records:
        r.update({k: float(r[k]) for k in ("confidence", *CODES)})
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    p.write(tmp_path / "p.csv")
    assert evaluate_csv(path).figures == evaluate_csv(tmp_path / "p.csv").figures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "slide"], "no column 'slide' to group by"),
        (["--novelty"], "--novelty: for run folders only"),
        (["--robustness", "5"], "--robustness: for run folders only"),
        (["--robustness", "many"], "for run folders only"),
        (["--costs", "missing.csv"], "Can't read the table of costs"),
    ],
)
def test_options_that_do_not_fit_a_table(table: Path, options: list[str], message: str) -> None:
    result = call("evaluate", table, *options)
    assert result.exit_code != 0
    said = f"{result.output} {result.exception}"
    assert message in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation", "v.csv"], "--validation: for tables only"),
        (["--novel", "x"], "--novel goes with --novelty"),
        (["--model", "m.onnx"], "--model goes with --robustness"),
        (["--robustness", "none"], "give a number of cells from 1, or all"),
        (["--novelty", "--part", "val"], "are of the test part"),
    ],
)
def test_options_that_do_not_fit_a_run(tmp_path: Path, options: list[str], message: str) -> None:
    result = call("evaluate", tmp_path, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_row_without_a_group(table: Path) -> None:
    with_column(table, "slide", ["s"] * 7 + [""] + ["s"] * 392)
    with pytest.raises(FileFormatError, match="line 9: the column 'slide' is empty"):
        read_groups(table, "slide")


# ------------------------------------------------------------------------------------------------------------ compare


def test_published_figures_alone(tmp_path: Path) -> None:
    result = call(
        "compare", "--published", "old=0.684/1000", "--published", "new = x=0.8/500", "-o", tmp_path / "c.json"
    )
    assert result.exit_code == 0, result.output
    c = Comparison.read(tmp_path / "c.json")
    (d,) = c.published_differences
    assert (d.model, d.published) == ("new = x", "old")
    low, high = confint_proportions_2indep(400, 500, 684, 1000, method="newcomb", compare="diff")
    assert (d.difference.value, d.difference.low, d.difference.high) == pytest.approx((0.116, low, high))
    assert "Newcombe" in d.difference.method
    assert c.models == ()


def test_a_table_and_a_published_figure(table: Path, tmp_path: Path) -> None:
    result = call("compare", table, "--published", "paper=0.867/981", "-o", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    c = Comparison.read(tmp_path / "c.json")
    (model,), (d,) = c.models, c.published_differences
    assert d.difference.value == pytest.approx(model.accuracy.value - 0.867)  # type: ignore[operator]
    assert d.published == "paper"
    assert "as published" in result.output


def test_somebody_else_s_table_by_class_and_by_group(table: Path, tmp_path: Path) -> None:
    predictions(1, skill=2.0).write(tmp_path / "ours.csv")
    p = predictions(1)
    worse = p.probs_NC.copy()
    worse[::3] = np.roll(worse[::3], 1, axis=1)
    type(p)(p.paths, p.status, p.codes, worse, None).write(tmp_path / "other.csv")
    result = call("compare", table, tmp_path / "other.csv", "--groups", "patient", "-o", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    (pair,) = Comparison.read(tmp_path / "c.json").pairs
    assert pair.test.startswith("sign flips of groups")
    assert pair.difference.value < -0.2  # type: ignore[operator]
    for code in CODES:
        assert f"  {code} (" in result.output


@pytest.mark.parametrize("text", ["0.8/500", "x=80/500", "x=0.8", "x=0.8/0", "=0.8/5", "x=a/b"])
def test_figures_that_are_none(text: str) -> None:
    with pytest.raises(FileFormatError, match="NAME=ACCURACY/IMAGES"):
        parse_published(text)


def test_one_figure_is_no_comparison() -> None:
    with pytest.raises(MarrowscopeError, match="two or more"):
        compare_published([parse_published("x=0.8/500")])
    with pytest.raises(MarrowscopeError, match="different"):
        compare_published([parse_published("x=0.8/500")] * 2)
