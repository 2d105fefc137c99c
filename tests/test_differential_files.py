"""The differential as a page, a table, JSON and FHIR."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from marrowscope.cells import BY_CODE, CLASS_SETS, clinical_order
from marrowscope.cli import app
from marrowscope.differential import Differential, count
from marrowscope.differential.fhir import CLASSES, LOINC, LOINC_TERMS, to_fhir
from marrowscope.differential.page import to_html
from marrowscope.differential.write import COLUMNS, write_differential
from marrowscope.errors import OutputError
from marrowscope.schema import Predictions
from tiny_onnx import card

M21 = CLASS_SETS["marrow-21"].codes


def smear() -> Predictions:
    """530 cells: 24 of each class and 26 blasts more; a few strange, a few not accepted, two files broken."""
    answers = np.repeat(np.arange(21), 24).tolist() + [M21.index("BLA")] * 26
    n = len(answers)
    probs = np.full((n + 2, 21), 0.005)
    probs[np.arange(n), answers] = 0.9
    probs[n:] = np.nan
    number = np.arange(n + 2)
    return Predictions(
        (*(f"cells/<{i}> & ñ.jpg" for i in range(n)), "bad.jpg", "gone.jpg"),
        (*["ok"] * n, "empty file", "missing: no such file"),
        M21,
        probs / probs.sum(1, keepdims=True),
        ood_N=(number % 50 == 7) & (number < n),
        accepted_N=(number % 20 != 3) & (number < n),
    )


@pytest.fixture(scope="module")
def result() -> Differential:
    confusion = np.eye(21, dtype=int) * 40 + 1
    model = card(M21).model_copy(update={"confusion": tuple(map(tuple, confusion.tolist()))})
    return count(smear(), card=model)


@pytest.fixture(scope="module")
def bare() -> Differential:
    return count(replace(smear(), ood_N=None, accepted_N=None))


@pytest.fixture(scope="module")
def empty() -> Differential:
    return count(Predictions(("x.jpg",), ("empty file",), ("LYT", "NGS"), np.full((1, 2), np.nan)))


# ---------------------------------------------------------------------------------------------------------------- page


class _Tables(HTMLParser):
    """The cells of all tables, row by row; and whatever could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.outside: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [v for k, v in attrs if k in {"src", "href", "xlink:href", "data"} and v]
        self.outside += [tag] if tag in {"script", "link", "iframe", "object"} else []
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in {"td", "th"}
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def parsed(result: Differential) -> _Tables:
    tables = _Tables()
    tables.feed(to_html(result, "smear <7>"))
    return tables


def test_page_has_every_class_in_order_and_every_cell_for_review(result: Differential) -> None:
    tables = parsed(result)
    assert tables.outside == []
    codes = [row[1] for row in tables.rows if len(row) == 6 and row[1] in BY_CODE]
    assert codes == clinical_order(c for c in M21 if BY_CODE[c].nucleated)
    row = next(r for r in tables.rows if r[:2] == ["blast", "BLA"])
    figures = next(r for r in result.rows if r.code == "BLA")
    assert row[2] == str(figures.count)
    assert row[3] == f"{figures.percent.value:.1f} ({figures.percent.low:.1f}–{figures.percent.high:.1f})"
    assert figures.adjusted is not None
    assert row[4].startswith(f"{figures.adjusted.value:.1f} (")
    review = [r for r in tables.rows if r[-1] in {"out of distribution", "not accepted"}]
    assert [r[0] for r in review] == [c.path for c in result.review]
    assert "cells/<3> & ñ.jpg" in {r[0] for r in review}
    assert ["not identifiable", "NIF"] in [r[:2] for r in tables.rows]
    assert ["image that could not be used: missing", "", "1"] in tables.rows


def test_page_says_what_it_is(result: Differential, bare: Differential, empty: Differential) -> None:
    page = to_html(result, "smear <7>")
    assert "Not a medical device" in page
    assert "<title>Differential count: smear &lt;7&gt;</title>" in page
    assert "Nobody has looked" in page
    assert "Adjusted" not in to_html(bare, "x")
    assert "No cell was left for review" in to_html(bare, "x")
    nothing = to_html(empty, "x")
    assert "Only 0 nucleated cells" in nothing
    assert "nan" not in nothing.lower().replace("nance", "")


def test_the_chart_is_drawn_to_scale(result: Differential) -> None:
    page = to_html(result, "x")
    widths = [float(w) for w in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)"', page)]
    percents = [r.percent.value or 0 for r in result.rows]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.array(percents) / percents[0], atol=0.02)


def test_page_in_a_browser(result: Differential, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    names = (os.environ.get("MARROWSCOPE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((p for name in names if name and (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium found; install one, or name it in MARROWSCOPE_CHROMIUM")
    write_differential(result, tmp_path / "d.html")
    address = (tmp_path / "d.html").as_uri()
    said: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
            page.on("console", lambda m: said.append(m.text))
            page.on("request", lambda r: None if r.url == address else said.append(r.url))
            page.goto(address)
            # axe is put in by the test, past the page's own rule that no script runs.
            violations: list[Any] = axe.Axe().run(page).response["violations"]
            assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert said == []


# -------------------------------------------------------------------------------------------------------------- tables


def test_csv(result: Differential, tmp_path: Path) -> None:
    write_differential(result, tmp_path / "d.csv")
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert tuple(rows[0]) == COLUMNS
    assert [r["code"] for r in rows if r["kind"] == "class"] == [r.code for r in result.rows]
    assert sum(int(r["count"]) for r in rows if r["kind"] == "class") == result.counted
    for row, want in zip(rows, result.rows, strict=False):
        assert float(row["value"]) == pytest.approx(want.percent.value, rel=1e-5)
        assert want.corrected is not None
        assert float(row["corrected_high"]) == pytest.approx(want.corrected.high, rel=1e-5)
    total = sum(int(r["count"]) for r in rows if r["kind"] in {"class", "left out", "review", "failed"})
    assert total == result.files == 532
    assert {r["kind"] for r in rows} == {"class", "blasts", "ratio", "left out", "review", "failed"}


def test_json_comes_back(result: Differential, tmp_path: Path) -> None:
    write_differential(result, tmp_path / "d.json")
    assert Differential.read(tmp_path / "d.json") == result


@pytest.mark.parametrize("name", ["d.txt", "d", "d.xlsx", "json"])
def test_endings(result: Differential, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.fhir\.json, \.json, \.html, \.csv"):
        write_differential(result, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- FHIR


@pytest.mark.parametrize("release", ["", "R4B."])
def test_fhir_is_valid(result: Differential, bare: Differential, empty: Differential, release: str) -> None:
    module = pytest.importorskip(f"fhir.resources.{release}diagnosticreport", reason="fhir.resources is not installed")
    for one in (result, bare, empty):
        text = json.dumps(to_fhir(one))
        report = module.DiagnosticReport.model_validate_json(text)
        assert json.loads(report.model_dump_json()) == json.loads(text)  # nothing was left out or changed
        assert {type(o).__name__ for o in report.contained} == {"Observation"}


def test_fhir_says_what_the_differential_says(result: Differential) -> None:
    report = to_fhir(result)
    inside = {o["id"]: o for o in report["contained"]}
    assert [r["reference"] for r in report["result"]] == [f"#{i}" for i in inside]
    assert report["status"] == "preliminary"
    assert inside["counted"]["valueQuantity"]["value"] == result.counted
    for row in result.rows:
        o = inside[row.code]
        assert o["valueQuantity"]["value"] == pytest.approx(row.percent.value, abs=1e-4)
        assert o["valueQuantity"]["code"] == "%"
        assert {"system": CLASSES, "code": row.code, "display": row.name} in o["code"]["coding"]
        assert len(o["component"]) == 2
    assert "Not a medical device" in report["conclusion"]
    assert "not accepted" in report["conclusion"]


def test_only_terms_that_were_looked_up_stand_as_loinc(result: Differential) -> None:
    def codings(node: object) -> list[tuple[str, str]]:
        if isinstance(node, dict):
            own = [(node["code"], node["display"])] if node.get("system") == LOINC else []
            return own + [c for v in node.values() for c in codings(v)]
        return [c for v in node for c in codings(v)] if isinstance(node, list) else []

    assert sorted(codings(to_fhir(result))) == sorted(LOINC_TERMS.values())
    for code, _ in LOINC_TERMS.values():  # the last figure of a LOINC code is a check digit (Luhn, mod 10)
        number, check = code.split("-")
        doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(number))]
        assert (10 - sum(sum(divmod(d, 10)) for d in doubled) % 10) % 10 == int(check)


def test_the_ratio_of_dividing_cells_is_no_myeloid_to_erythroid_ratio() -> None:
    o = next(o for o in to_fhir(count(smear(), ratio="dividing"))["contained"] if o["id"] == "ratio")
    assert "coding" not in o["code"]


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path: Path) -> None:
    smear().write(tmp_path / "p.csv")
    model = card(M21).model_copy(update={"confusion": tuple(map(tuple, (np.eye(21, dtype=int) * 9).tolist()))})
    model.write(tmp_path / "card.json")
    arguments = ["count", str(tmp_path / "p.csv"), "--model", str(tmp_path / "card.json")]
    for name in ("d.html", "d.json", "d.csv", "d.fhir.json"):
        done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).stat().st_size > 1000
        assert "for review (" in done.output
        assert "adjusted" in done.output
        assert "Not a medical device" in done.output
    everything = CliRunner().invoke(app, [*arguments[:2], "--all-cells", "--ratio", "dividing"])
    assert "0 left for review" in everything.output
    assert "adjusted" not in everything.output
    assert Differential.read(tmp_path / "d.json").adjustment is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--ratio", "m:e"], "Unknown definition 'm:e'"),
        (["-o", "d.pdf"], "its ending must be one of"),
        (["--model", "gone.onnx"], "neither a file nor a bundled name"),
        (["--model", "gone.json"], "Can't read the model card"),
    ],
)
def test_the_command_with_bad_input(tmp_path: Path, arguments: list[str], match: str) -> None:
    from marrowscope.errors import MarrowscopeError

    smear().write(tmp_path / "p.csv")
    done = CliRunner().invoke(app, ["count", str(tmp_path / "p.csv"), *arguments])
    assert isinstance(done.exception, MarrowscopeError)
    assert match in str(done.exception)
