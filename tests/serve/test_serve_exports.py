"""What a case's files say: the same figures in all of them, in the form that each kind asks for, and nobody's names."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rooms import MakeRoom, picture
from statsmodels.stats.proportion import multinomial_proportions_confint

KINDS = ("csv", "json", "fhir", "html", "pdf")


class Signed:
    """A signed case of 40 cells: three labelled, one of them with a class that the model doesn't know, one excluded."""

    def __init__(self, make_room: MakeRoom, model: Path) -> None:
        room = make_room(models=(str(model),), tokens={"anna": "reviewer", "ben": "reader", "root": "admin"})
        self.anna, self.ben, self.root = (room.client(room.tokens[n]) for n in ("anna", "ben", "root"))
        self.case = room.case(self.anna, [picture(i) for i in range(40)])
        self.url = f"/v1/cases/{self.case}"
        for number, body in (
            (1, {"label": "PMO"}),
            (2, {"label": "BLA"}),
            (3, {"accept": True}),
            (4, {"excluded": True}),
        ):
            answer = self.anna.patch(f"{self.url}/cells/{number}", json={"version": 1, **body})
            assert answer.status_code == 200, answer.text
        self.cells = self.anna.get(f"{self.url}/cells", params={"limit": 100, "sort": "number"}).json()["cells"]

    def sign(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.anna.get(f"{self.url}/differential").json()
        body = {"version": seen["case_version"], "comment": "Aspirate <b>hypocellular</b> & stained twice"}
        assert self.anna.post(f"{self.url}/sign", json=body).status_code == 200
        return seen

    def export(self, kind: str, client: Any = None, **options: Any) -> bytes:
        answer = (client or self.anna).get(f"{self.url}/export/{kind}", params=options)
        assert answer.status_code == 200, answer.text
        content: bytes = answer.content
        return content

    def counts(self) -> Counter[str]:
        """Cells by class, counted here: labels first, then the model's class where it is no stranger's."""
        counted = [c for c in self.cells if not c["excluded"] and (c["label"] is not None or not c["ood"])]
        return Counter(c["label"] or c["predicted"] for c in counted)


@pytest.fixture
def signed(make_room: MakeRoom, full_model: Path) -> Signed:
    return Signed(make_room, full_model)


class _Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.parts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def _pdf_text(data: bytes) -> str:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    pages = pypdf.PdfReader(io.BytesIO(data)).pages
    return " ".join(" ".join(p.extract_text() for p in pages).split())


def test_csv_and_json_hold_every_cell_and_the_figures_counted_by_hand(signed: Signed) -> None:
    seen = signed.sign()
    rows = list(csv.DictReader(io.StringIO(signed.export("csv").decode())))
    document = json.loads(signed.export("json"))
    assert len(rows) == len(document["cells"]) == 40
    for row, cell, known in zip(rows, document["cells"], signed.cells, strict=True):
        assert int(row["number"]) == cell["number"] == known["number"]
        assert row["class"] == cell["code"] == known["code"]
        assert row["sha256"] == cell["sha256"] == known["sha256"]
        assert (row["label"] or None) == cell["label"] == known["label"]
        assert row["excluded"] == ("yes" if known["excluded"] else "no")
        assert float(row["BLA"]) == pytest.approx(cell["probabilities"]["BLA"], rel=1e-5)
        assert row["conformal_set"].split() == known["conformal_set"]
    assert (rows[0]["label"], rows[0]["label_by"]) == ("PMO", "anna")
    counts = signed.counts()
    assert document["summary"] == seen
    table = {r["code"]: r for r in document["summary"]["differential"]["rows"]}
    assert {c: r["count"] for c, r in table.items() if r["count"]} == dict(counts)
    total = sum(counts.values())
    shares = multinomial_proportions_confint([r["count"] for r in table.values()], 0.05, "goodman")
    for row, (low, high) in zip(table.values(), shares, strict=True):
        assert row["percent"]["value"] == pytest.approx(100 * row["count"] / total)
        assert (row["percent"]["low"], row["percent"]["high"]) == pytest.approx((100 * low, 100 * high))
    assert document["signed"]["by"] == "anna"
    assert document["signed"]["comment"].startswith("Aspirate")
    assert "Not a medical device" in document["intended_use"]


@pytest.mark.parametrize("release", ["", "R4B."])
def test_fhir_is_valid_final_and_says_the_same(signed: Signed, release: str) -> None:
    module = pytest.importorskip(f"fhir.resources.{release}diagnosticreport", reason="fhir.resources is not installed")
    draft = module.DiagnosticReport.model_validate_json(signed.export("fhir"))
    assert draft.status == "preliminary"
    seen = signed.sign()
    report = module.DiagnosticReport.model_validate_json(signed.export("fhir"))
    assert report.status == "final"
    assert report.resultsInterpreter[0].display == "anna"
    assert report.identifier[0].value == f"urn:uuid:{signed.case}"
    assert {o.status for o in report.contained} == {"final"}
    by_id = {o.id: o for o in report.contained}
    counts = signed.counts()
    assert float(by_id["counted"].valueQuantity.value) == sum(counts.values())
    for row in seen["differential"]["rows"]:
        o = by_id[row["code"]]
        assert float(o.valueQuantity.value) == pytest.approx(100 * counts[row["code"]] / sum(counts.values()), abs=1e-4)
        assert f"{row['count']} cells" in o.note[0].text
        assert "People looked at 3 of" in o.method.text
    adjusted = {c.code.text.partition(" ")[0]: c for c in by_id["BLA"].component}
    bla = next(r for r in seen["differential"]["rows"] if r["code"] == "BLA")
    assert float(adjusted["adjusted"].valueQuantity.value) == pytest.approx(bla["adjusted"]["value"], abs=1e-4)
    assert "1 cells were taken out" in report.conclusion
    waiting = sum(c["ood"] and c["label"] is None and not c["excluded"] for c in signed.cells)
    assert waiting
    assert f"{waiting} out of distribution" in report.conclusion


def test_the_page_says_who_looked_and_signed_and_its_text_is_no_markup(signed: Signed) -> None:
    draft = _Text(signed.export("html").decode())
    assert "draft, not signed" in draft.text
    assert "Not signed." in draft.text
    seen = signed.sign()
    page = _Text(signed.export("html").decode())
    assert "Signed by anna" in page.text
    assert "Aspirate <b>hypocellular</b> & stained twice" in page.text
    assert not {"b", "script", "img", "link"} & set(page.tags)
    assert "People looked at 3 of" in page.text
    assert "Nobody has looked" not in page.text
    for row in seen["differential"]["rows"]:
        figures = (row["percent"], row["adjusted"], row["corrected"])
        shown = " ".join("–" if f is None else f"{f['value']:.1f} ({f['low']:.1f}–{f['high']:.1f})" for f in figures)
        assert f"{row['name']} {row['code']} {row['count']} {shown}" in page.text
    waiting = [c for c in signed.cells if c["ood"] and c["label"] is None and not c["excluded"]]
    assert f"{len(waiting)} cells that the model would not answer for" in page.text
    assert f"cell {waiting[0]['number']} " in page.text


def test_the_pdf_holds_the_figures_the_signature_and_the_warning(signed: Signed) -> None:
    assert "Not signed: this is a draft." in _pdf_text(signed.export("pdf"))
    seen = signed.sign()
    text = _pdf_text(signed.export("pdf"))
    assert "Not a medical device" in text
    assert "Signed by anna" in text
    assert "Aspirate <b>hypocellular</b> & stained twice" in text
    d = seen["differential"]
    for row in d["rows"]:
        p = row["percent"]
        figures = f"{p['value']:.1f} {p['low']:.1f} to {p['high']:.1f}"
        assert f"{row['code']} {row['name']} {row['count']} {figures}" in text
        if row["adjusted"] is not None:
            assert f"{row['adjusted']['value']:.1f} ({row['adjusted']['low']:.1f} to" in text
    assert f"{d['counted']} nucleated cells counted; 3 of them looked at by a person." in text
    assert "1 excluded" in text
    assert signed.anna.get(signed.url).json()["model_sha256"] in text.replace(" ", "")


def test_a_signed_case_reads_the_same_when_exported_again(signed: Signed) -> None:
    signed.sign()
    first = {kind: signed.export(kind) for kind in KINDS if kind != "pdf"}
    assert {kind: signed.export(kind) for kind in first} == first


def test_names_of_files_go_out_only_to_whom_they_belong_and_only_when_asked_for(signed: Signed) -> None:
    for kind in KINDS:
        assert b"cell_0.png" not in signed.export(kind)
    assert b"cell_0.png" in signed.export("csv", names=True)
    assert b"cell_0.png" in signed.export("json", names=True)
    assert b"cell_0.png" in signed.export("json", signed.root, names=True)
    assert b"cell_0.png" not in signed.export("json", signed.ben, names=True)
    assert b"cell_0.png" not in signed.export("csv", signed.ben, names=True)


def test_text_that_spreadsheets_would_run_is_made_harmless(make_room: MakeRoom) -> None:
    room = make_room()
    client = room.client()
    case = client.post("/v1/cases", json={"name": "x"}).json()["id"]
    name = '=HYPERLINK(1),"x".png'
    client.post(f"/v1/cases/{case}/cells", files=[("files", (name, picture(0), "image/png"))])
    row = next(csv.DictReader(io.StringIO(client.get(f"/v1/cases/{case}/export/csv?names=true").text)))
    assert row["file_name"].startswith("'=HYPERLINK(1)")
