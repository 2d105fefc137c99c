"""The page: all sections, all figures, nothing of the outside, nothing that a file name could break."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from report_page import Page

from marrowscope.report import words, write_report
from marrowscope.report.answers import Answer, choose
from marrowscope.report.words import percent, shown
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, Analysis, Evaluation, Predictions
from marrowscope.schema.explanations import Explanations, ExplanationTests

MakeRun = Callable[..., Path]
SECTIONS = (
    "headline curves matrix classes published calibration selective conformal novelty robustness gallery pairs "
    "mistakes uncertain doubts map quality explanations failed data card again"
).split()
FURTHER = {"published", "calibration", "selective", "conformal", "novelty", "robustness"}
ANALYSED = {"map", "quality", "explanations"}


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Path:
    return make_run(96, analysed=True)


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.mark.parametrize("synthetic", [True, False])
def test_every_section_is_there_and_linked(make_run: MakeRun, synthetic: bool) -> None:
    page = Page(write_report(make_run(96, synthetic=synthetic, analysed=True)).read_text(encoding="utf-8"))
    # Drawn cells stand beside nobody's published figures.
    sections = [s for s in SECTIONS if not (synthetic and s == "published")]
    assert [a["id"] for a in page.all("section")] == sections
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in page.all("a")}
    assert {f"#{s}" for s in sections} <= links
    assert all(link and link[1:] in ids for link in links)


def test_notices_stand_at_the_top(page: Page) -> None:
    assert NOT_A_MEDICAL_DEVICE in page.words
    assert page.words.index("None is real") < page.words.index("Report on", 100)


def test_real_cells_get_no_synthetic_notice(make_run: MakeRun) -> None:
    text = Page(write_report(make_run(24, synthetic=False)).read_text(encoding="utf-8")).words
    assert "drawn by a program" not in text
    assert "ynthetic" not in text
    assert NOT_A_MEDICAL_DEVICE in text


def test_figures_are_those_of_the_evaluation(page: Page, run: Path) -> None:
    e = Evaluation.read(run / "evaluation.json")
    for f in e.figures.values():
        assert f"{f.value:.3f} ({f.low:.3f}–{f.high:.3f})" in page.words
    for c in e.per_class:
        assert str(c.recall) in page.words
    right = sum(e.confusion[i][i] for i in range(len(e.codes)))
    assert f"{right} of {e.n} cells were named right" in page.words


def test_matrix_buttons_are_the_confusion(page: Page, run: Path) -> None:
    e = Evaluation.read(run / "evaluation.json")
    buttons = [a for a in page.all("button") if "data-truth" in a and a.get("tabindex") == "-1"]
    expected = sum(1 for row in e.confusion for v in row if v)
    assert len(buttons) == 2 * expected
    first = buttons[0]
    i, j = (e.codes.index(str(first[k])) for k in ("data-truth", "data-predicted"))
    assert f": {e.confusion[i][j]} (" in str(first["aria-label"])


def test_further_judgement_is_shown(make_run: MakeRun) -> None:
    run = make_run(96, synthetic=False)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "Somebody (2020), <b>Table 1</b>" in page.words
    assert "NGB–NGS, BLA–PMO" in page.words
    assert "Source: the tests" in page.words
    assert "Never predicted, so without a precision: artefact (ART)" in page.words
    assert "none reaches it" in page.words
    for figure in ("0.050 (", "1.700 (1.500–1.900)"):
        assert figure in page.words
        assert figure in text
    for heading in ("Beside published figures", "Calibration", "Selective answers", "Prediction sets"):
        assert f"## {heading}\n" in text


def test_classes_stand_in_clinical_order(page: Page) -> None:
    assert page.payload["codes"] == ["BLA", "PMO", "MYB", "NGB", "NGS", "EBO", "LYT", "ART"]


def test_the_gallery_holds_every_answer(page: Page, run: Path) -> None:
    p = Predictions.read(run / "predictions.csv")
    cells = page.payload["cells"]
    assert len(cells) == int(p.ok.sum())
    path, truth, likeliest, sure, picture, at = cells[0]  # type: ignore[misc]
    best = int(p.probs_NC[0].argmax())
    assert path == p.paths[0]
    assert p.truth is not None
    assert page.payload["codes"][truth] == p.truth[0]
    assert page.payload["codes"][likeliest[0][0]] == p.codes[best]
    assert likeliest[0][1] == pytest.approx(p.probs_NC[0, best], abs=1e-4)
    assert sure == percent(p.probs_NC[0, best])
    assert picture.startswith("/9j/")
    assert len(at) == 2


def test_file_names_break_nothing(page: Page, html: str) -> None:
    assert len(page.all("script")) == 2
    assert not [a for _, a in page.elements if "onerror" in a]
    assert "<script>alert" not in html
    assert "{{" not in page.words
    assert "49 & co" not in page.words
    paths = [cell[0] for cell in page.payload["cells"]]  # type: ignore[index]
    assert "LYT/<script>alert(1)</script>.jpg" in paths
    assert "NGS/{{ 7 * 7 }} & co.jpg" in paths
    assert "LYT/Zelle_äöüß.jpg" in paths
    assert any("bad_�" in p for p in paths)
    assert "ResNet-18 <b>bold</b>" in page.words


def test_every_strange_name_has_its_picture(page: Page) -> None:
    assert all(cell[4] for cell in page.payload["cells"])  # type: ignore[index]
    assert "could not be shown" not in page.words


def test_nothing_comes_from_the_network(page: Page, html: str) -> None:
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:"))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", page.scripts[1])
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_pictures_have_alternatives_and_charts_titles(page: Page) -> None:
    assert all(a.get("alt") is not None for a in page.all("img"))
    charts = [a for a in page.all("svg") if a.get("class") == "chart"]
    # Two curves, recall, two reliabilities, risk, strange pictures, two changes; five measures, three maps and three
    # methods of explaining.
    assert len(charts) == len(page.all("desc")) == 20


def test_failed_files_are_counted_and_named(page: Page) -> None:
    assert "3 files could not be read" in page.words
    assert "damaged or truncated: <b>" in page.words


def test_settings_and_commands(page: Page) -> None:
    assert 'name = "resnet18" # <script>' in page.words
    assert "marrowscope evaluate run-again --part test" in page.words
    assert "https://example.org/blobs" in page.words  # a citation, as text


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (write_report(run, output=tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()
    for suffix in (".md", ".json"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


def test_markdown_holds_the_same_figures(run: Path, html: str) -> None:
    text = (run / "report.md").read_text(encoding="utf-8")
    e = Evaluation.read(run / "evaluation.json")
    assert NOT_A_MEDICAL_DEVICE in text
    assert "SYNTHETIC" in text
    for f in e.figures.values():
        assert f"| {f} |" in text
    for c in e.per_class:
        assert f"| {c.recall} | {c.precision} | {c.f1} |" in text
    assert "<script>" not in text.replace("    [model]", "").split("## Settings")[0]
    widths = {
        line.count(" | ") for line in text.split("## Confusion matrix")[1].split("##")[0].splitlines() if "|" in line
    }
    assert widths <= {8, 0}


def test_an_evaluation_alone_makes_a_report(make_run: MakeRun) -> None:
    page = Page(write_report(make_run(24, training=False, further=False)).read_text(encoding="utf-8"))
    assert [a["id"] for a in page.all("section")] == [
        s for s in SECTIONS if s not in {"curves", "card", *FURTHER, *ANALYSED}
    ]
    assert "21 of 21 pictures could not be shown" in page.words
    assert "data folder not known" in page.words
    assert "marrowscope analyse run" in page.words
    assert "neither split.csv nor card.json" in page.words


def test_missing_pictures_are_counted(make_run: MakeRun) -> None:
    run = make_run(24)
    (run.parent / "data" / "ART" / "cell_00000.jpg").unlink()
    (run.parent / "data" / "BLA" / "cell_00001.jpg").write_text("no picture")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "2 of 21 pictures could not be shown" in page.words
    assert "1 × file not found" in page.words
    assert page.words.count("1 × ") == 2


def test_a_data_folder_that_moved(make_run: MakeRun) -> None:
    run = make_run(24)
    moved = run.parent / "else where"
    (run.parent / "data").rename(moved)
    text = Page(write_report(run).read_text(encoding="utf-8")).words
    assert "21 of 21 pictures could not be shown" in text
    assert "data folder not found" in text
    assert "could not be shown" not in Page(write_report(run, data=moved).read_text(encoding="utf-8")).words


def test_a_gallery_with_a_limit_keeps_the_wrong_answers(run: Path, tmp_path: Path) -> None:
    e = Evaluation.read(run / "evaluation.json")
    wrong = e.n - sum(e.confusion[i][i] for i in range(len(e.codes)))
    page = Page(write_report(run, output=tmp_path / "r.html", max_cells=wrong + 5).read_text(encoding="utf-8"))
    cells = page.payload["cells"]
    assert len(cells) == wrong + 5
    assert sum(1 for c in cells if c[1] != c[2][0][0]) == wrong  # type: ignore[index]
    assert f"The gallery holds {wrong + 5} of {e.n} cells" in page.words


def test_the_error_analysis_is_shown(page: Page, run: Path) -> None:
    found = Analysis.read(run / "analysis.json")
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "Some <b>basis</b>." in page.words
    assert "A note <b>on the map</b>." in page.words
    assert "1 pictures not measured: file not found" in page.words
    for figure in (found.pairs[0].share, found.quality[0].effect, found.quality[4].bins[0].error):
        assert str(figure) in page.words
        assert str(figure) in text
    assert f"entropy {found.uncertain[0].entropy:.1%}".replace("%", " %") in page.words
    for heading in ("Most uncertain cells", "Doubtful labels", "Errors and the quality of the pictures"):
        assert f"## {heading}\n" in text
    assert found.uncertain[0].path.replace("_", "\\_") in text
    assert "Trustworthiness 0.900" in text


def test_strange_and_changed_pictures_are_shown(page: Page, run: Path) -> None:
    e = Evaluation.read(run / "evaluation.json")
    text = (run / "report.md").read_text(encoding="utf-8")
    assert e.novelty is not None
    assert e.robustness is not None
    kind, changed = e.novelty.kinds[0], e.robustness.kinds[0].points[3]
    for figure in (kind.flagged, kind.accepted, kind.scores["energy"].auroc, e.robustness.accuracy, changed.accuracy):
        assert str(figure) in page.words
        assert str(figure) in text
    assert "cells of <b>others</b>" in page.words
    assert "Not judged on photographs: none <at hand>" in page.words


def test_explanations_are_shown_with_their_tests(page: Page, run: Path) -> None:
    words = page.words.split("Explanations Heat maps")[1]
    # What passed stands before what failed, and the control is last of the table.
    assert words.index("Title of good") < words.index("Title of third")
    assert "✓ passed" in words
    assert words.index("Title of bad ✗ failed") < words.index("Title of controlcontrol")
    assert "0.8 <b>above</b> 0.5" in words
    assert "1 heat maps could not be read" in words
    images = [a for a in page.all("img") if "heat by Title of" in (a.get("alt") or "")]
    assert len(images) == 3
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,/9j/") for a in images)
    assert "other weights" not in words


def test_heat_maps_of_other_weights_are_warned_of(make_run: MakeRun) -> None:
    run = make_run(24, analysed=True)
    tests = ExplanationTests.read(run / "explanation-tests.json")
    tests.model_copy(update={"weights_sha256": "2" * 64}).write(run / "explanation-tests.json")
    words = Page(write_report(run).read_text(encoding="utf-8")).words
    assert "of other weights than this run's" in words


def test_heat_maps_come_out_of_their_folder_only(make_run: MakeRun) -> None:
    run = make_run(24, analysed=True)
    maps = Explanations.read(run / "explanations" / "explanations.json")
    stolen = maps.pictures[0].model_copy(update={"overlays": {"good": "../../data/ART/cell_00000.jpg"}})
    maps.model_copy(update={"pictures": (stolen,)}).write(run / "explanations" / "explanations.json")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not [a for a in page.all("img") if "heat by" in (a.get("alt") or "")]
    assert "1 heat maps could not be read" in page.words


def test_class_panels_show_what_the_matrix_says(page: Page, run: Path) -> None:
    e = Evaluation.read(run / "evaluation.json")
    i = e.codes.index("BLA")
    j = max(
        (j for j in range(len(e.codes)) if j != i), key=lambda j: (e.confusion[i][j], [-ord(c) for c in e.codes[j]])
    )
    panel = page.words.split("Class by class")[1].split("PMO promyelocyte recall")[0]
    assert f"recall {e.per_class[i].recall}, precision {e.per_class[i].precision}" in panel
    assert f"{e.codes[j]} " in panel.split("Taken for")[1]
    assert f": {e.confusion[i][j]}, " in panel.split("Taken for")[1]


def test_json_holds_the_same(run: Path, html: str) -> None:
    data = json.loads((run / "report.json").read_text(encoding="utf-8"))
    e, found = Evaluation.read(run / "evaluation.json"), Analysis.read(run / "analysis.json")
    assert data["notice"] == NOT_A_MEDICAL_DEVICE
    assert data["synthetic"] is True
    assert Evaluation.model_validate(data["evaluation"]) == e
    assert Analysis.model_validate(data["analysis"]) == found
    assert data["card"]["seed"] == 7
    assert len(data["learning_curves"]) == 12
    assert data["settings"].startswith("[model]")
    assert data["right"] == sum(e.confusion[i][i] for i in range(len(e.codes)))


@pytest.mark.parametrize("most", [0, 1, 3, 10, 11])
def test_choose_is_ordered_and_bounded(most: int) -> None:
    answers = [Answer(str(i), "BLA", (("BLA" if i % 3 else "LYT", 0.9),)) for i in range(10)]
    kept = choose(answers, most)
    assert len(kept) == min(most, 10)
    assert [a.path for a in kept] == sorted(a.path for a in kept)
    assert sum(not a.right for a in kept) == min(most, 4)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.5, "50.0 %"), (0.1234, "12.3 %")],
)
def test_percent_reaches_no_boundary(share: float, text: str) -> None:
    assert percent(share) == text.replace(" ", "\N{NO-BREAK SPACE}")


def test_shown_drops_what_a_page_can_not_hold() -> None:
    assert shown("a\0b\x1bc\ud800") == "a�b�c�"
    assert shown("ä\udcffb") == "ä�b"


def test_unknown_figures_are_shown_by_their_name() -> None:
    assert words.label("auroc_macro") == "Auroc macro"


def test_one_class_without_cells(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(24)
    e = Evaluation.read(run / "evaluation.json")
    none = e.per_class[0].recall.model_copy(update={"value": None, "low": None, "high": None})
    empty = e.per_class[0].model_copy(update={"support": 0, "recall": none, "precision": none, "f1": none})
    e.model_copy(update={"per_class": (empty, *e.per_class[1:])}).write(run / "evaluation.json")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    # Without a figure there is a dash, never "None", "nan" or a made-up 0.
    assert "–" in page.words
    assert "None is real" in page.words
    assert not {"None", "nan"} & set(page.words.replace("None is real", "").split())


@pytest.mark.slow
def test_four_thousand_cells_stay_below_fifteen_megabytes(make_run: MakeRun) -> None:
    run = make_run(4000, side=100, analysed=True)
    out = write_report(run)
    assert out.stat().st_size < 15_000_000
    assert len(Page(out.read_text(encoding="utf-8")).payload["cells"]) == 3997
    shutil.rmtree(run.parent)
