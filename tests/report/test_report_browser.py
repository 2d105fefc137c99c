"""The page in a real browser: the matrix opens the gallery, filters work, nothing is loaded, axe-core is content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from marrowscope.report import write_report
from marrowscope.schema import Evaluation

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = (os.environ.get("MARROWSCOPE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((p for name in names if name and (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium found; install one, or name it in MARROWSCOPE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path]) -> Path:
    run = make_run(200, analysed=True)
    (run.parent / "data" / "ART" / "cell_00008.jpg").unlink()
    write_report(run)
    return run


@pytest.fixture
def open_page(browser: Any, run: Path) -> Iterator[Callable[..., Any]]:
    """Give a function that opens the report; at the end nothing was complained of and nothing loaded."""
    contexts, complaints, requests = [], [], []
    address = (run / "report.html").as_uri()

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("dialog", lambda d: complaints.append(f"dialog {d.message}"))
        page.on("request", lambda r: requests.append(r.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints
    assert {r for r in requests if not r.startswith("data:")} == {address}


def _captions(page: Any) -> list[str]:
    out: list[str] = page.locator("#g-cells .caption").all_inner_texts()
    return out


def test_a_click_on_the_matrix_shows_those_very_cells(open_page: Callable[..., Any], run: Path) -> None:
    page = open_page(viewport=WIDE)
    e = Evaluation.read(run / "evaluation.json")
    wrong = [(n, i, j) for i, row in enumerate(e.confusion) for j, n in enumerate(row) if n and i != j]
    count, i, j = max(wrong)
    truth, predicted = e.codes[i], e.codes[j]
    page.click(f"#matrix-counts button[data-truth={truth}][data-predicted={predicted}]")
    captions = _captions(page)
    assert len(captions) == count
    assert all(c.startswith(f"✗ {truth} → {predicted}, ") for c in captions)
    assert page.locator("#g-cells .cell.is-wrong").count() == count
    assert page.evaluate("document.activeElement.id") == "h-gallery"
    assert f"{count} cell" in page.inner_text("#g-status")


def test_the_matrix_works_from_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    reachable = page.locator("#matrix-counts button[tabindex='0']")
    assert reachable.count() == 1
    reachable.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate("[document.activeElement.dataset.truth, document.activeElement.dataset.predicted]")
    assert page.locator("#matrix-counts button[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    captions = _captions(page)
    assert captions
    assert all(f"{chosen[0]} → {chosen[1]}" in c for c in captions)


def test_the_switch_shows_one_matrix_at_a_time(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    assert page.is_visible("#matrix-counts")
    assert not page.is_visible("#matrix-shares")
    page.check("input[value=matrix-shares]")
    assert page.is_visible("#matrix-shares")
    assert not page.is_visible("#matrix-counts")


def test_the_gallery_filters(open_page: Callable[..., Any], run: Path) -> None:
    page = open_page(viewport=WIDE)
    e = Evaluation.read(run / "evaluation.json")
    right = sum(e.confusion[i][i] for i in range(len(e.codes)))
    assert len(_captions(page)) == 60
    assert page.inner_text("#g-status") == f"{e.n} cells: ✓ {right} right, ✗ {e.n - right} wrong"
    page.select_option("#f-answer", "wrong")
    assert f"✗ {e.n - right} wrong" in page.inner_text("#g-status")
    assert all(c.startswith("✗") for c in _captions(page))
    page.select_option("#f-truth", label="LYT lymphocyte")
    assert all(c.startswith("✗ LYT") for c in _captions(page))
    page.click("#f-reset")
    page.locator("#g-cells li").nth(59).wait_for()
    page.fill("#f-text", "<script>alert")
    assert len(_captions(page)) == 1
    page.fill("#f-text", "lyt -> lyt")
    assert all(c.startswith("✓ LYT → LYT") for c in _captions(page))
    page.fill("#f-text", "no such cell")
    assert page.inner_text("#g-status") == "No cell fits this filter."


def test_the_gallery_sorts_and_turns_pages(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    page.select_option("#f-order", "sure")
    sure = [float(c.split(", ")[1].split()[0]) for c in _captions(page)]
    assert sure == sorted(sure, reverse=True)
    assert page.is_disabled("#g-previous")
    page.click("#g-next")
    assert page.inner_text("#g-page") == "page 2 of 4"
    again = [float(c.split(", ")[1].split()[0]) for c in _captions(page)]
    assert again[0] <= sure[-1]


def test_a_cell_opens_large_and_closes(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    page.fill("#f-text", "umlaut nothing")
    page.fill("#f-text", "Zelle_äöüß")
    page.click("#g-cells button")
    assert page.inner_text("#zoom-file") == "LYT/Zelle_äöüß.jpg"
    assert page.locator("#zoom-likeliest tr").count() == 3
    assert page.evaluate("document.querySelector('#zoom-picture').naturalWidth") > 0
    page.keyboard.press("Escape")
    assert not page.is_visible("#zoom")


def test_the_map_shows_one_colouring_at_a_time(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    shown = "[...document.querySelectorAll('.map-panel')].filter((p) => p.offsetParent).map((p) => p.id)"
    assert page.evaluate(shown) == ["map-stage-truth"]
    page.check("input[value=map-stage-answer]")
    assert page.evaluate(shown) == ["map-stage-answer"]
    page.emulate_media(media="print")
    assert len(page.evaluate(shown)) == 3


def test_a_cell_of_the_map_is_pointed_at(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    cells = json.loads(page.inner_text("#cells-data"))["cells"]
    path, _, _, _, _, (x, y) = next(c for c in cells if c[5])
    page.locator("#map-stage-truth .map-stage").scroll_into_view_if_needed()
    box = page.locator("#map-stage-truth svg.chart").bounding_box()
    place = (box["x"] + x / 400 * box["width"], box["y"] + y / 400 * box["height"])
    page.mouse.move(*place)
    assert page.inner_text("#map-cell .path") == path
    assert page.evaluate("document.querySelector('#map-cell img').naturalWidth") > 0
    ring = page.locator("#map-stage-truth .ring")
    assert (float(ring.get_attribute("cx")), float(ring.get_attribute("cy"))) == (x, y)
    page.mouse.click(*place)
    assert page.inner_text("#zoom-file") == path
    page.keyboard.press("Escape")
    # Where there is no cell nothing is chosen anew.
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    assert page.inner_text("#map-cell .path") == path


def test_the_map_works_by_touch(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=PHONE, has_touch=True)
    cells = json.loads(page.inner_text("#cells-data"))["cells"]
    path, _, _, _, _, (x, y) = next(c for c in cells if c[5])
    page.locator("#map-stage-truth .map-stage").scroll_into_view_if_needed()
    box = page.locator("#map-stage-truth svg.chart").bounding_box()
    place = (box["x"] + x / 400 * box["width"], box["y"] + y / 400 * box["height"])
    page.touchscreen.tap(*place)
    assert page.inner_text("#map-cell .path") == path
    assert not page.is_visible("#zoom")
    page.touchscreen.tap(*place)
    assert page.inner_text("#zoom-file") == path


def test_the_map_works_from_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    page.locator("#map-stage-truth .map-stage").focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#map-cell .path")
    assert first in page.inner_text("#map-status")
    before = float(page.locator("#map-stage-truth .ring").get_attribute("cx"))
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#map-cell .path") != first
    assert float(page.locator("#map-stage-truth .ring").get_attribute("cx")) > before
    # As far as it goes, and no further.
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    last = page.inner_text("#map-cell .path")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#map-cell .path") == last
    page.keyboard.press("Enter")
    assert page.inner_text("#zoom-file") == last


def test_a_class_panel_opens_the_gallery(open_page: Callable[..., Any], run: Path) -> None:
    page = open_page(viewport=WIDE)
    e = Evaluation.read(run / "evaluation.json")
    page.click("#class-0 summary")
    assert page.locator("#class-0 .strip img").count() > 0
    button = page.locator("#class-0 button").first
    truth, predicted = (button.get_attribute(f"data-{name}") for name in ("truth", "predicted"))
    button.click()
    expected = e.confusion[e.codes.index(truth)][e.codes.index(predicted)]
    assert len(_captions(page)) == expected


def test_a_missing_picture_says_so(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    assert "1 of 197 pictures could not be shown" in page.inner_text("#missing")
    page.fill("#f-text", "ART/cell_00008")
    assert page.locator("#g-cells .nopicture").count() == 1


def test_the_class_table_sorts(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE)
    head = page.locator("#class-table th", has_text="Recall")
    values = "[...document.querySelectorAll('#class-table tbody tr')].map((r) => Number(r.cells[1].dataset.value))"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = page.evaluate(values)
    assert down == sorted(down, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    up = page.evaluate(values)
    assert up == sorted(up)


def test_the_page_fits_a_phone_and_prints(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=PHONE, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.emulate_media(media="print")
    assert page.is_visible("#matrix-counts")
    assert page.is_visible("#matrix-shares")
    assert not page.is_visible("#filters")


def test_without_script_figures_and_mistakes_are_there(open_page: Callable[..., Any]) -> None:
    page = open_page(viewport=WIDE, java_script_enabled=False)
    assert page.is_visible("#matrix-shares")
    assert page.is_visible("#mistakes img >> nth=0")
    assert not page.is_visible("#filters")
    assert "needs JavaScript" in page.inner_text("#gallery")


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_axe_finds_no_violation_of_level_a_or_aa(open_page: Callable[..., Any], size: Any, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    page = open_page(viewport=size, color_scheme=scheme)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.evaluate(axe)
    check = f"axe.run(document, {{runOnly: {json.dumps(TAGS)}}})"
    results = [page.evaluate(check)]
    page.check("input[value=matrix-shares]")
    page.click("#g-cells button >> nth=0")
    results.append(page.evaluate(check))
    for result in results:
        assert result["passes"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in result["violations"]] == []
