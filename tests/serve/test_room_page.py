"""The page itself in a real browser: five thousand cells, keys, a tablet, what is shown of a cell, accessibility."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import (
    TABLET,
    WIDE,
    Site,
    Visits,
    answered,
    axe,
    browser,
    cells_of,
    chosen,
    drop,
    filled,
    holds,
    key_of,
    new_case,
    open_site,
    visits,
    wall_has,
)
from PIL import Image
from rooms import picture, until, write_trusting_model
from sqlalchemy import insert

from marrowscope.serve.reference import make_reference
from marrowscope.serve.service import open_database
from marrowscope.serve.store import casework
from marrowscope.serve.store.blobs import Blobs, digest
from marrowscope.serve.store.history import Person
from marrowscope.serve.store.tables import READY, Case, Cell

__all__ = ["browser", "open_site", "visits"]

MANY = 5000
CODES = ("BLA", "EOS", "LYT", "NGS")


def _fill(site: Site, sha256: str) -> str:
    """A case of `MANY` cells with answers, straight in the store; its id."""
    rng = np.random.default_rng(0)
    database, blobs = open_database(site.settings), Blobs(site.settings.data)
    confidence = rng.uniform(0.3, 0.999, MANY).round(6)
    best = rng.integers(0, 4, MANY)
    who = Person("local", "admin")
    with database.write() as session:
        case = casework.create(session, who, name="Many", model="full", sha256=sha256, codes=CODES)
        session.flush()
        rows = []
        for i in range(MANY):
            buffer = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), (i % 251, i // 251 * 9, 90), np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue()
            path = blobs.path(case.id, digest(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)  # without waiting for the disk, which 5,000 times takes long
            rest = round((1 - confidence[i]) / 3, 6)
            probabilities = [float(rest)] * 4
            probabilities[best[i]] = float(confidence[i])
            rows.append(
                {
                    "case_id": case.id, "number": i + 1, "sha256": digest(data), "bytes": len(data), "width": 16,
                    "height": 16, "uploaded_by": "local", "uploaded_at": case.created_at, "status": READY,
                    "predicted": CODES[best[i]], "confidence": float(confidence[i]),
                    "uncertainty": float(1 - confidence[i]), "probabilities": probabilities, "ood": bool(i % 50 == 0),
                    "excluded": False, "version": 1, "changed": 1,
                }
            )  # fmt: skip
        session.execute(insert(Cell), rows)
        session.get_one(Case, case.id).last_number = MANY
        found = case.id
    database.close()
    return found


def test_five_thousand_cells_stand_on_the_wall_and_few_of_them_in_the_page(
    open_site: Callable[..., Site], visits: Visits, full_model: Path
) -> None:
    site = open_site(full_model)
    sha256 = site.client().get("/v1/models").json()["models"][0]["sha256"]
    case = _fill(site, sha256)
    page = visits.open(site, path=f"/#/case/{case}")
    page.locator("#shown", has_text=f"{MANY} of {MANY} cells").wait_for()
    found = page.evaluate(
        """async () => {
          const wall = document.querySelector('.wall');
          const frame = () => new Promise((done) => requestAnimationFrame(done));
          let most = 0, last = performance.now();
          const gaps = [], seen = new Set();
          for (let top = 0; top < wall.scrollHeight; top += 250) {
            wall.scrollTop = top;
            await frame();
            const now = performance.now();
            gaps.push(now - last);
            last = now;
            most = Math.max(most, wall.querySelectorAll('*').length);
            for (const tile of wall.querySelectorAll('.tile')) seen.add(tile.dataset.number);
          }
          gaps.sort((a, b) => a - b);
          return {most, seen: seen.size, middle: gaps[gaps.length >> 1], all: document.querySelectorAll('*').length};
        }"""
    )
    assert found["seen"] == MANY, "every cell came by"
    assert found["most"] < 1200, "elements on the wall at any time"
    assert found["all"] < 2000
    assert found["middle"] < 100, "milliseconds between two pictures of the page while it scrolls"

    # Where it stands still, all pictures come; the groups are in order, the least certain cells first.
    loaded = "[...document.querySelectorAll('.tile img')].every((i) => i.complete && i.naturalWidth > 0)"
    holds(page, loaded)
    page.evaluate("document.querySelector('.wall').scrollTop = 0")
    holds(page, "document.querySelector('.group')?.dataset.group === 'ood'")
    holds(page, loaded)
    page.select_option("#only", "LYT")
    page.locator("#shown", has_text=" of 5000 cells").wait_for()
    numbers = [int(n) for n in page.eval_on_selector_all(".tile", "tiles => tiles.map((t) => t.dataset.number)")]
    wanted = [c for c in cells_of(site.client(), case) if c["code"] == "LYT" and not c["ood"]]
    wanted.sort(key=lambda c: -c["uncertainty"])
    assert numbers == [c["number"] for c in wanted[: len(numbers)]]
    page.locator(".tile").first.focus()
    page.keyboard.press(key_of(page, "BLA"))
    until(lambda: site.client().get(f"/v1/cases/{case}/cells/{numbers[0]}").json()["label"] == "BLA")


@pytest.fixture
def smear(tmp_path: Path) -> Path:
    """Forty drawn pictures of many colours, one of them with metadata, and a file that is no picture."""
    out = tmp_path / "smear"
    out.mkdir()
    for i in range(40):
        (out / f"cell_{i:02}.png").write_bytes(picture(i, 96))
    (out / "broken.png").write_bytes(b"not a picture")
    return out


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """The full model with a reference set beside it."""
    folder = tmp_path / "model"
    for k, code in enumerate(CODES):
        (folder / "known" / code).mkdir(parents=True)
        for i in range(3):
            (folder / "known" / code / f"{i}.png").write_bytes(picture(500 + 10 * k + i))
    model = write_trusting_model(folder / "full.onnx", "full", full=True)
    make_reference(model, folder / "known")
    return model


def _filled(site: Site, page: Any, smear: Path) -> str:
    case = filled(site, page, "Smear <b>7</b>", smear, 40)
    page.locator(".drop-status", has_text="40 added, 0 there already, 1 refused").wait_for()
    page.keyboard.press("/")
    return case


def test_a_cell_is_shown_with_all_that_is_known_of_it(
    open_site: Callable[..., Site], visits: Visits, compared: Path, smear: Path
) -> None:
    site = open_site(compared)
    page = visits.open(site)
    case = _filled(site, page, smear)
    assert page.inner_text("h1") == "Smear <b>7</b>"
    page.click(".refused summary")
    assert "broken.png" in page.inner_text(".refused li")
    tile = page.locator(".tile").nth(12)
    number = int(tile.get_attribute("data-number"))
    tile.click()
    cell = site.client().get(f"/v1/cases/{case}/cells/{number}").json()
    dialog = page.locator("dialog[open]")
    button = dialog.locator("[data-act=explain]")
    place = button.bounding_box()
    dialog.locator(".similar li").nth(7).wait_for()
    assert button.bounding_box() == place, "what comes later moves nothing away from under a click"
    assert dialog.locator("h2").inner_text() == f"Cell {number}"
    assert page.evaluate("document.querySelector('dialog .frame img').decode().then(() => true)")
    rows = dialog.locator(".bars tr").all()
    shown = {row.locator("th").inner_text(): row.locator(".number").inner_text() for row in rows}
    models = site.client().get("/v1/models").json()
    names = {c["code"]: c["name"] for c in models["classes"]}
    assert shown.keys() == {names[c] for c in CODES}
    best = max(zip(cell["probabilities"], CODES, strict=True))
    assert shown[names[best[1]]].replace(" %", "") in {f"{100 * best[0]:.0f}", f"{100 * best[0]:.1f}"}
    text = dialog.inner_text()
    assert "Conformal set (95 %): " + ", ".join(names[c] for c in cell["conformal_set"]) in text
    assert cell["file_name"] in text

    page.click("[data-act=explain]")
    page.locator(".heat").wait_for()
    assert "Orange: hiding it lowers the probability of" in dialog.inner_text()
    page.click("[data-act=explain]")
    page.locator(".heat").wait_for(state="detached")

    near = site.client().get(f"/v1/cases/{case}/cells/{number}/similar").json()["cells"]
    said = [item.inner_text().split() for item in dialog.locator(".similar li").all()]
    assert said == [[n["code"], f"{n['similarity']:.2f}"] for n in near]
    assert "Out of 12 labelled cells" in dialog.inner_text()

    page.keyboard.press("x")
    page.click("dialog[open] .history summary")
    page.locator("dialog[open] .history li", has_text="local excluded it").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert chosen(page) == number
    holds(page, f"document.activeElement.dataset.number === '{number}'")  # once the event of closing came


def test_a_model_without_a_reference_set_is_said_to_have_none(
    open_site: Callable[..., Site], visits: Visits, tiny_model: Path, smear: Path
) -> None:
    site = open_site(tiny_model)
    page = visits.open(site)
    _filled(site, page, smear)
    page.locator(".tile").first.click()
    assert "This model has no reference set to compare with." in page.inner_text(".similar")
    page.keyboard.press("Escape")
    page.locator("details.adjusted summary").click()
    page.locator("#unadjusted", has_text="does not tell its confusions").wait_for()


def test_adjusted_counts_stand_beside_the_raw_ones(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, smear: Path
) -> None:
    site = open_site(full_model)
    page = visits.open(site)
    case = _filled(site, page, smear)
    page.locator("details.adjusted summary").click()
    page.locator("tr[data-adjusted]").first.wait_for()
    d = site.client().get(f"/v1/cases/{case}/differential").json()["differential"]
    for row in d["rows"]:
        shown = page.locator(f"tr[data-adjusted={row['code']}] td").all_inner_texts()
        wanted = [row["adjusted"], row["corrected"]]
        assert shown == [f"{f['value']:.1f} ({f['low']:.1f}–{f['high']:.1f})" for f in wanted]
    assert page.locator("details.adjusted").get_attribute("open") is not None
    page.locator(".tile").first.focus()
    page.keyboard.press(" ")
    page.locator("#reviewed", has_text="1 of 500").wait_for()
    assert page.locator("details.adjusted").get_attribute("open") is not None, "it stays open"


def test_everything_can_be_done_from_the_keyboard(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, smear: Path
) -> None:
    site = open_site(full_model)
    page = visits.open(site)
    case = _filled(site, page, smear)
    # From the top of the page to the wall with the tabulator alone, every stop with a visible mark.
    page.reload()
    page.locator(".tile").first.wait_for()
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
              const e = document.activeElement, s = getComputedStyle(e);
              return [e.id || e.className || e.tagName, s.outlineStyle, e.getClientRects().length];
            }"""
        )
        stops.append(at[0])
        assert at[1] != "none", f"{at} has no visible focus"
        assert at[2], f"{at} can't be seen"
        if at[0] == "tile":
            break
    assert stops[-1] == "tile"
    assert {"skip", "home", "theme", "undo", "help", "sign", "only", "unseen", "regroup"} <= set(stops)

    first = chosen(page)
    page.keyboard.press("ArrowRight")
    second = chosen(page)
    assert second != first
    page.keyboard.press("ArrowLeft")
    assert chosen(page) == first
    page.keyboard.press("Enter")
    page.locator("dialog[open] h2", has_text=f"Cell {first}").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator("dialog[open] h2", has_text=f"Cell {second}").wait_for()
    page.keyboard.press(key_of(page, "NGS"))
    until(lambda: site.client().get(f"/v1/cases/{case}/cells/{second}").json()["label"] == "NGS")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert "names the chosen cell" in page.inner_text("dialog[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("z")
    until(lambda: site.client().get(f"/v1/cases/{case}/cells/{second}").json()["label"] is None)
    holds(page, f"document.querySelector('.tile[aria-current=true]').dataset.number === '{second}'")


def test_no_key_names_a_cell_that_nobody_picked(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, smear: Path
) -> None:
    """While cells arrive another one may come to stand first: a key meant for one must not name the other."""
    site = open_site(full_model)
    page = visits.open(site)
    case = filled(site, page, "Arriving", smear, 40)

    def labelled() -> dict[int, str]:
        return {c["number"]: c["label"] for c in cells_of(site.client(), case) if c["label"] is not None}

    first = chosen(page)
    page.keyboard.press(key_of(page, "EOS"))
    holds(page, f"document.activeElement.dataset.number === '{first}'")
    assert labelled() == {}, "the first key only picked the cell"
    page.keyboard.press(key_of(page, "EOS"))
    until(lambda: labelled() == {first: "EOS"})

    # Picked by the focus, or by sorting anew, a cell stays the chosen one though others come to stand before it.
    for by_focus in (True, False):
        page = visits.open(site, path=f"/#/case/{case}")
        wall_has(page, (before := len(cells_of(site.client(), case))))
        page.locator(".tile").first.focus() if by_focus else page.keyboard.press("/")
        number = chosen(page)
        first = int(page.locator(".tile").first.get_attribute("data-number"))
        assert number == first
        while first == number:  # until another one stands first
            more = [
                ("files", (f"more {i}.png", picture(1000 + i, 96), "image/png")) for i in range(before, before + 50)
            ]
            assert site.client().post(f"/v1/cases/{case}/cells", files=more).is_success
            before += 50
            answered(site.client(), case, before)
            wall_has(page, before)
            assert before < 500, "none of so many came to stand first"
            first = int(page.locator(".tile").first.get_attribute("data-number"))
        assert chosen(page) == number
        assert page.evaluate("document.activeElement.dataset.number ?? null") == (str(number) if by_focus else None)


def test_it_works_on_a_tablet(open_site: Callable[..., Site], visits: Visits, full_model: Path, smear: Path) -> None:
    site = open_site(full_model)
    page = visits.open(site, viewport=TABLET, has_touch=True, is_mobile=True)
    case = new_case(page, "On a tablet")
    page.locator(".drop input[type=file]").first.set_input_files(sorted(smear.glob("cell_*.png")))
    answered(site.client(), case, 40)
    wall_has(page, 40)
    assert page.evaluate("document.documentElement.scrollWidth") <= TABLET["width"]
    page.tap("#regroup")
    page.locator(".tile").nth(3).tap()
    number = chosen(page)
    dialog = page.locator("dialog[open]")
    dialog.locator("h2", has_text=f"Cell {number}").wait_for()
    box = dialog.evaluate("d => d.getBoundingClientRect()")
    assert box["left"] >= 0
    assert box["right"] <= TABLET["width"]
    dialog.locator(".keys .key[data-code=EOS]").tap()
    until(lambda: site.client().get(f"/v1/cases/{case}/cells/{number}").json()["label"] == "EOS")
    assert chosen(page) != number, "it goes on to the next cell"
    dialog.locator(".close").tap()
    heights = page.evaluate(  # in one step: the table is drawn anew with every change
        "[...document.querySelectorAll('.counts table .key')].map((k) => k.getBoundingClientRect().height)"
    )
    assert len(heights) >= len(CODES)
    assert min(heights) >= 24, "large enough for a finger (WCAG 2.2, 2.5.8)"


@pytest.mark.parametrize("size", [WIDE, TABLET], ids=["1280", "tablet"])
def test_nothing_of_the_differential_is_cut_off(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, smear: Path, size: dict[str, int]
) -> None:
    site = open_site(full_model)
    page = visits.open(site, viewport=size)
    _filled(site, page, smear)
    page.locator("details.adjusted summary").click()
    page.locator("tr[data-adjusted]").first.wait_for()
    hidden = page.evaluate(
        "[...document.querySelectorAll('.right, .right .scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    assert hidden == [0] * len(hidden)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.locator(".wall").bounding_box()["height"] > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, TABLET], ids=["1280", "tablet"])
def test_axe_finds_no_violation_of_level_a_or_aa(
    open_site: Callable[..., Site], visits: Visits, compared: Path, smear: Path, size: dict[str, int], scheme: str
) -> None:
    visits.allow("status of 401")
    site = open_site(compared, tokens={"anna": "admin"})
    page = visits.open(site, viewport=size, color_scheme=scheme)
    page.locator("#token").wait_for()
    found = {"token": axe(page)}
    page.fill("#token", site.tokens["anna"])
    page.keyboard.press("Enter")
    page.locator("#new-name").wait_for()
    found["no cases"] = axe(page)
    case = new_case(page, "Smear 7")
    drop(page, smear)
    answered(site.client("anna"), case, 40)
    page.locator(".drop-status", has_text="refused").wait_for()
    page.locator("details.adjusted").wait_for()
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.keyboard.press("/")
    page.locator(".tile").first.focus()
    page.keyboard.press("x")
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    found["room"] = axe(page)
    page.keyboard.press("Enter")
    page.locator("dialog[open] .similar li").first.wait_for()
    page.click("[data-act=explain]")
    page.locator(".heat").wait_for()
    found["detail"] = axe(page)
    page.keyboard.press("Escape")
    page.click("#help")
    found["help"] = axe(page)
    page.keyboard.press("Escape")
    page.click("#sign")
    page.locator("#sign-go").wait_for()
    found["signing"] = axe(page)
    page.click("#sign-go")
    page.locator(".signed").wait_for()
    found["signed"] = axe(page)
    page.click("a.backlink")
    page.locator("table.cases").wait_for()
    found["cases"] = axe(page)
    assert {where: rules for where, rules in found.items() if rules} == {}
