"""Pictures of the reading room for the documentation, of drawn cells only.

    python scripts/room_picture.py demo/model.onnx docs/images [--viewport 1280x860] [--dark]

The model was trained on phantoms (`make demo`). Starts a service of its own, draws a smear, makes a reference set of
other phantoms, reviews some cells, and writes room.png (the wall and the differential) and room-cell.png (one cell with
its explanation and its like). Needs playwright and a Chromium on the PATH, or named by MARROWSCOPE_CHROMIUM.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from marrowscope.data.phantom import write_phantoms
from marrowscope.errors import MarrowscopeError
from marrowscope.files import atomic_path
from marrowscope.infer import read_card
from marrowscope.serve.reference import make_reference

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PER_CLASS = {
    "NGS": 70,
    "EBO": 60,
    "LYT": 45,
    "MYB": 30,
    "PMO": 25,
    "NGB": 25,
    "EOS": 12,
    "MON": 12,
    "BLA": 10,
    "PLM": 6,
}
"""Cells of the drawn smear."""

REVIEWED = 60


def draw(folder: Path, work: Path) -> list[Path]:
    """A smear of phantoms in `folder`."""
    write_phantoms(work / "all", per_class=max(PER_CLASS.values()), seed=11, codes=tuple(sorted(PER_CLASS)), jobs=1)
    folder.mkdir()
    out = []
    for code, n in PER_CLASS.items():
        for path in sorted((work / "all" / code).rglob("*.jpg"))[:n]:
            out.append(folder / path.name)
            shutil.copy(path, out[-1])
    return out


@contextmanager
def service(model: str, reference: Path, data: Path) -> Iterator[str]:
    """A service: its address."""
    command = [sys.executable, "-m", "marrowscope.cli", "serve", "--model", model, "--data", str(data), "--port", "0"]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--reference", str(reference)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[^ ]+", process.stdout.readline())
        if found is None:
            raise SystemExit("the service did not start")
        yield found.group().rstrip("/")
    finally:
        process.terminate()
        process.wait(60)


def prepare(address: str, cells: list[Path]) -> tuple[str, int]:
    """A case with these cells, some of them reviewed: its id, and the cell to show large."""
    with httpx.Client(base_url=address, timeout=120) as client:
        case = f"/v1/cases/{client.post('/v1/cases', json={'name': 'Drawn smear 12'}).json()['id']}"
        for start in range(0, len(cells), 50):
            files = [("files", (p.name, p.read_bytes())) for p in cells[start : start + 50]]
            client.post(f"{case}/cells", files=files).raise_for_status()
        while client.get(case).json()["pending"]:
            time.sleep(0.3)
        found = client.get(f"{case}/cells", params={"limit": 1000}).json()["cells"]
        sure = [c for c in found if not c["ood"]]
        for cell in sure[-REVIEWED:]:
            client.patch(f"{case}/cells/{cell['number']}", json={"version": 1, "accept": True}).raise_for_status()
        return case.rpartition("/")[2], int(sure[0]["number"])


def photograph(address: str, case: str, cell: int, size: tuple[int, int], dark: bool) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("MARROWSCOPE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise SystemExit("No Chromium found; install one, or name it in MARROWSCOPE_CHROMIUM.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        viewport: Any = {"width": size[0], "height": size[1]}
        page = browser.new_page(viewport=viewport, color_scheme="dark" if dark else "light")
        page.set_default_timeout(120_000)
        page.goto(f"{address}/#/case/{case}")
        page.locator(".adjusted").wait_for()
        page.wait_for_load_state("networkidle")
        yield "room", page.screenshot()
        page.select_option("#only", "all")
        tile = page.locator(f".tile[data-number='{cell}']")
        for _ in range(200):
            if tile.count():
                break
            page.locator(".wall").evaluate("wall => { wall.scrollTop += 200; }")
            page.wait_for_timeout(50)
        tile.click()
        page.click("[data-act=explain]")
        page.locator(".heat").wait_for()
        page.locator(".similar li").first.wait_for()
        page.wait_for_load_state("networkidle")
        yield "room-cell", page.screenshot()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="ONNX file of a model that was trained on phantoms")
    parser.add_argument("output", type=Path, help="folder")
    parser.add_argument("--viewport", default="1280x860")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    width, height = map(int, given.viewport.split("x"))
    try:
        if not read_card(given.model).training_data.synthetic:
            raise SystemExit(f"{given.model} knows real cells; take a model of phantoms.")
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            cells = draw(work / "smear", work)
            write_phantoms(work / "known", per_class=20, seed=12, codes=tuple(sorted(PER_CLASS)), jobs=1)
            reference, *_ = make_reference(given.model, work / "known", work / "r.npz")
            with service(given.model, reference, work / "room") as address:
                for name, png in photograph(address, *prepare(address, cells), (width, height), given.dark):
                    with atomic_path(given.output / f"{name}.png") as path:
                        path.write_bytes(png)
                    print(given.output / f"{name}.png")
    except MarrowscopeError as e:
        raise SystemExit(str(e)) from None


if __name__ == "__main__":
    main()
