"""The page in a real browser before a real server: a whole case, two reviewers, a server that goes away."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    Site,
    Visits,
    answered,
    browser,
    cells_of,
    chosen,
    drop,
    filled,
    holds,
    key_of,
    new_case,
    open_site,
    saved,
    visits,
    wall_has,
)
from rooms import picture, until
from statsmodels.stats.proportion import multinomial_proportions_confint, proportion_confint

from marrowscope.cells import BY_CODE
from marrowscope.data.phantom import write_phantoms

__all__ = ["browser", "open_site", "visits"]

GONE = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_SOCKET_NOT_CONNECTED")
"""What the browser says of a server that is away."""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 300 drawn cells, in folders by class."""
    out = tmp_path_factory.mktemp("smear") / "cells"
    write_phantoms(out, per_class=22, seed=3, jobs=1)
    (out / "SYNTHETIC.txt").unlink()  # which says that they are drawn
    for path in sorted(out.rglob("*.jpg"))[300:]:
        path.unlink()
    return out


@pytest.fixture(scope="module")
def real_smear(real_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 300 real cells."""
    out = tmp_path_factory.mktemp("real") / "smear"
    found = sorted(real_cells.rglob("*.jpg"))
    for path in [found[i * len(found) // 300] for i in range(300)]:
        out.mkdir(exist_ok=True)
        shutil.copy(path, out / path.name)
    return out


def _relabel(page: Any, codes: tuple[str, ...], n: int) -> dict[int, str]:
    """Name n cells from the keyboard, each with another class than the model's; what was given."""
    given: dict[int, str] = {}
    for i in range(n):
        number = chosen(page)
        while number in given:  # it has moved to its new class, whose turn has come
            page.keyboard.press("ArrowRight")
            holds(page, f"document.querySelector('.tile[aria-current=true]').dataset.number !== '{number}'")
            number = chosen(page)
        said = page.locator(".tile[aria-current=true]").get_attribute("aria-label")
        other = next(c for c in codes[i % len(codes) :] + codes if BY_CODE[c].name not in said)
        page.keyboard.press(key_of(page, other))
        given[number] = other
        holds(page, f"document.querySelector('.tile[aria-current=true]').dataset.number !== '{number}'")
    return given


def _counted(rows: list[dict[str, str]]) -> Counter[str]:
    """Cells by class as the exported rows have them, counted here."""
    kept = [r for r in rows if r["excluded"] == "no" and (r["label"] or r["ood"] != "yes")]
    return Counter(r["label"] or r["predicted"] for r in kept)


def _download(page: Any, kind: str) -> str:
    if not page.locator("#export").evaluate("e => e.open"):
        page.click("#export > summary")
    with page.expect_download() as got:
        page.click(f"#export a[data-kind={kind}]")
    return Path(got.value.path()).read_text()


def _check_figures(document: dict[str, Any], counts: Counter[str]) -> None:
    """The differential of an export against figures worked out from the counts by another library."""
    d = document["summary"]["differential"]
    nucleated = {c: n for c, n in counts.items() if BY_CODE[c].nucleated}
    assert {r["code"]: r["count"] for r in d["rows"] if r["count"]} == nucleated
    assert {c: n for c, n in d["left_out"].items() if n} == {c: n for c, n in counts.items() if c not in nucleated}
    total = sum(nucleated.values())
    assert d["counted"] == total
    intervals = multinomial_proportions_confint([r["count"] for r in d["rows"]], 0.05, "goodman")
    for row, (low, high) in zip(d["rows"], intervals, strict=True):
        p = row["percent"]
        assert (p["value"], p["low"], p["high"]) == pytest.approx((100 * row["count"] / total, 100 * low, 100 * high))
    blasts = nucleated.get("BLA", 0)
    low, high = proportion_confint(blasts, total, 0.05, "wilson")
    b = d["blast_percent"]["figure"]
    assert (b["value"], b["low"], b["high"]) == pytest.approx((100 * blasts / total, 100 * low, 100 * high))


def _whole_case(site: Site, visits: Visits, smear: Path, codes: tuple[str, ...]) -> dict[str, Any]:
    """Drop, name, undo, load anew, sign out, export: the exported document, whose figures were checked."""
    page = visits.open(site)
    case = new_case(page, "Smear 1")
    drop(page, smear)
    page.locator(".drop-status", has_text="300 added, 0 there already, 0 refused").wait_for()
    client = site.client()
    answered(client, case, 300)
    wall_has(page, 300)

    page.keyboard.press("/")
    page.locator(".tile").first.focus()
    given = _relabel(page, codes, 20)
    assert len(given) == 20
    for _ in range(3):
        page.keyboard.press("z")
    for number in list(given)[-3:]:
        del given[number]
    until(lambda: _labels(client, case) == given)
    last = chosen(page)
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    accepted = chosen(page)
    page.keyboard.press(" ")
    cells = {c["number"]: c for c in cells_of(client, case)}
    given[accepted] = cells[accepted]["predicted"]
    until(lambda: _labels(client, case) == given)

    saved(page)
    page.reload()
    page.locator("#shown", has_text="300 of 300 cells").wait_for()
    reviewed = sum(BY_CODE[c].nucleated for c in given.values())
    page.locator("#reviewed", has_text=f"{reviewed} of 500 looked at").wait_for()
    for number, code in given.items():
        assert _tile_says(page, number) == f"✓ {code}"
    assert _tile_says(page, last) == "✕"

    page.click("#sign")
    assert f"You sign {len(given)} cells that people looked at" in page.inner_text("dialog[open]")
    assert page.locator("dialog[open] #ratio").count() == 1
    page.fill("#sign-comment", "Signed in a test.")
    page.click("#sign-go")
    page.locator(".signed", has_text="Signed by local").wait_for()
    assert page.locator(".drop").count() == 0

    rows = list(csv.DictReader(io.StringIO(_download(page, "csv"))))
    document = json.loads(_download(page, "json"))
    assert len(rows) == 300
    assert {int(r["number"]): r["label"] for r in rows if r["label"]} == given
    assert [int(r["number"]) for r in rows if r["excluded"] == "yes"] == [last]
    assert all(r.get("file_name") is None for r in rows)
    counts = _counted(rows)
    _check_figures(document, counts)
    assert document["signed"]["comment"] == "Signed in a test."
    shown = {
        row.get_attribute("data-code"): int(row.locator("td").first.inner_text())
        for row in page.locator(".counts > .scroll tbody tr[data-code]").all()
    }
    assert {c: n for c, n in shown.items() if n} == dict(counts)
    return document


def _labels(client: Any, case: str) -> dict[int, str]:
    return {c["number"]: c["label"] for c in cells_of(client, case) if c["label"] is not None}


def _tile_says(page: Any, number: int) -> str:
    """What stands below a cell's picture, brought into sight first."""
    text: str = page.evaluate(
        """async (n) => {
          const wall = document.querySelector('.wall');
          for (let top = 0; top <= wall.scrollHeight; top += 300) {
            wall.scrollTop = top;
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const tile = wall.querySelector(`.tile[data-number="${n}"]`);
            if (tile) return tile.innerText.trim();
          }
          return 'not on the wall';
        }""",
        number,
    )
    return text


def test_a_whole_case_of_phantoms(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, phantoms: Path
) -> None:
    """Dropped, named from the keyboard, undone, loaded anew, signed out and exported; the figures are right."""
    document = _whole_case(open_site(full_model), visits, phantoms, ("BLA", "EOS", "LYT", "NGS"))
    assert document["summary"]["differential"]["adjustment"]["model"] == "full"


@pytest.mark.slow
@pytest.mark.real
def test_a_whole_case_of_real_cells(open_site: Callable[..., Site], visits: Visits, real_smear: Path) -> None:
    """The same with the bundled model and 300 real cells."""
    document = _whole_case(open_site(Path("marrow8")), visits, real_smear, ("BLA", "LYT", "MON", "PMO", "NIF"))
    assert document["summary"]["reviewed"] == 18


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of 60 drawn pictures of many colours."""
    out = tmp_path / "few"
    out.mkdir()
    for i in range(60):
        (out / f"cell {i}.png").write_bytes(picture(i))
    return out


def test_two_reviewers_at_once(open_site: Callable[..., Site], visits: Visits, full_model: Path, few: Path) -> None:
    visits.allow("status of 401", "status of 409")
    site = open_site(full_model, tokens={"anna": "reviewer", "ben": "reviewer", "rita": "reader"})
    anna = visits.open(site, "anna")
    case = new_case(anna, "Smear of two")
    drop(anna, few)
    client = site.client("anna")
    answered(client, case, 60)
    ben = visits.open(site, "ben")
    ben.click(f"a[href='#/case/{case}']")
    for page in (anna, ben):
        wall_has(page, 60)
        page.keyboard.press("/")

    # Each sees what the other has done, without loading the page anew.
    first = chosen(anna)
    anna.locator(".tile").first.focus()
    anna.keyboard.press(key_of(anna, "EOS"))
    ben.locator(f".tile[data-number='{first}']", has_text="✓ EOS").wait_for()
    assert "labelled by anna" in ben.locator(f".tile[data-number='{first}']").get_attribute("aria-label")

    # Both work on different cells at the same time.
    ben.locator(".tile").nth(30).focus()
    given = {first: "EOS"}
    for _ in range(5):
        for page, code in ((anna, "BLA"), (ben, "LYT")):
            given[chosen(page)] = code
            page.keyboard.press(key_of(page, code))
    assert len(given) == 11
    until(lambda: _labels(client, case) == given)

    # Who comes second to a cell is told, and what the first one said stands.
    contested = chosen(ben)
    version = client.get(f"/v1/cases/{case}/cells/{contested}").json()["version"]
    ben.route("**/cells?*", lambda route: route.abort() if "changed_since" in route.request.url else route.continue_())
    visits.allow("ERR_FAILED")
    client.patch(f"/v1/cases/{case}/cells/{contested}", json={"version": version, "label": "NGS"})
    ben.keyboard.press(key_of(ben, "BLA"))
    ben.locator("#banner", has_text=f"anna has changed cell {contested} meanwhile").wait_for()
    assert "✓ NGS" in ben.locator(f".tile[data-number='{contested}']").inner_text()
    ben.unroute("**/cells?*")

    # Each undoes only what is her or his own, the last first: anna's is that of the contested cell.
    before = _labels(client, case)
    anna.keyboard.press("z")
    until(lambda: _labels(client, case) == {n: c for n, c in before.items() if n != contested})
    ben.keyboard.press("z")
    until(lambda: len(_labels(client, case)) == len(before) - 2)
    (gone,) = before.keys() - _labels(client, case).keys() - {contested}
    assert before[gone] == "LYT"

    # When one signs, the other's page is locked; a reader could not change anything at all.
    anna.click("#sign")
    anna.click("#sign-go")
    ben.locator(".signed", has_text="Signed by anna").wait_for()
    ben.locator(".counts .key:disabled").first.wait_for()
    rita = visits.open(site, "rita", path=f"/#/case/{case}")
    rita.locator("#shown", has_text="60 of 60 cells").wait_for()
    assert rita.locator("#sign, #undo, .drop").count() == 0


def test_a_server_that_is_stopped_and_started_in_the_middle_loses_nothing(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, few: Path
) -> None:
    visits.allow(*GONE)
    site = open_site(full_model)
    page = visits.open(site)
    case = filled(site, page, "Interrupted", few, 60)
    page.keyboard.press("/")
    page.locator(".tile").first.focus()
    given = _relabel(page, ("EOS", "NGS"), 3)
    until(lambda: _labels(site.client(), case) == given)

    assert site.live.stop() in {0, -signal.SIGTERM}
    given |= _relabel(page, ("BLA", "LYT"), 4)
    page.locator("#banner", has_text="4 changes are not saved yet").wait_for()
    site.restart()
    page.locator("#banner", has_text="everything is saved").wait_for()
    assert _labels(site.client(), case) == given

    site.live.kill()
    page.locator("#banner", has_text="No connection").wait_for()
    site.restart()
    page.locator("#banner", has_text="Connected again").wait_for()
    page.keyboard.press("z")
    until(lambda: _labels(site.client(), case) == dict(list(given.items())[:-1]))


def test_an_upload_goes_on_where_a_killed_server_broke_it_off(
    open_site: Callable[..., Site], visits: Visits, full_model: Path, phantoms: Path
) -> None:
    visits.allow(*GONE)
    site = open_site(full_model)
    page = visits.open(site)
    case = new_case(page, "Broken off")
    drop(page, phantoms)
    until(lambda: site.client().get(f"/v1/cases/{case}").json()["cells"] >= 50, 60)
    site.live.kill()
    before = page.inner_text(".drop-status")
    assert "refused" not in before, "it was still under way"
    page.locator(".drop-status", has_text="No connection; trying again.").wait_for()
    site.restart()
    page.locator(".drop-status", has_text="refused").wait_for()
    cells = cells_of(site.client(), case)
    assert len(cells) == 300
    assert len({c["sha256"] for c in cells}) == 300
    drop(page, phantoms)
    page.locator(".drop-status", has_text="0 added, 300 there already, 0 refused").wait_for()
