"""The picture of a report that README.md shows, of drawn cells only.

    python scripts/report_picture.py demo/run docs/images/report.png

RUN was evaluated on phantoms (`make demo`). Needs playwright and a Chromium on the PATH, or
named by MARROWSCOPE_CHROMIUM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from marrowscope.errors import MarrowscopeError
from marrowscope.files import atomic_path
from marrowscope.report import write_report
from marrowscope.report.inputs import read_target

WIDTH = 1240
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SECTIONS = ("headline", "curves", "matrix")
"""What the picture shows, as far as the report has it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path, help="PNG file")
    arguments = parser.parse_args()
    try:
        if not read_target(arguments.run).synthetic:
            raise SystemExit(f"{arguments.run} is of real cells, and no picture in the repository may show one.")
        with tempfile.TemporaryDirectory() as folder:
            page = write_report(arguments.run, output=Path(folder) / "report.html")
            with atomic_path(arguments.output) as path:
                path.write_bytes(screenshot(page))
    except MarrowscopeError as e:
        raise SystemExit(str(e)) from None
    print(arguments.output)


def screenshot(page: Path) -> bytes:
    """PNG of the head of a report, and of some of its sections."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("MARROWSCOPE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise SystemExit("No Chromium found; install one, or name it in MARROWSCOPE_CHROMIUM.")
    shown = "".join(f":not(#{name})" for name in SECTIONS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=1)
        opened.goto(page.absolute().as_uri())
        opened.add_style_tag(content=f"main > *{shown}, footer {{ display: none }}")
        picture = opened.screenshot(full_page=True)
        browser.close()
    return picture


if __name__ == "__main__":
    main()
