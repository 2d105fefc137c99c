"""Write the report of a run folder."""

from __future__ import annotations

from pathlib import Path

from marrowscope.errors import OutputError
from marrowscope.files import write_text
from marrowscope.report.content import build
from marrowscope.report.html import render_html
from marrowscope.report.inputs import read_run
from marrowscope.report.markdown import render_markdown
from marrowscope.report.thumbnails import make_thumbnails


def write_report(run: Path, *, output: Path | None = None, data: Path | None = None, max_cells: int = 4000) -> Path:
    """Write report.html, one file that needs nothing else, and report.md beside it.

    Args:
        run: Run folder with evaluation.json and predictions.csv; metrics.csv, card.json, run.json, split.csv and
            config.toml are used where they exist.
        output: The HTML file; ``RUN/report.html`` without it. The Markdown goes beside it.
        data: Folder that the paths of the predictions are relative to; without it the one that run.json names.
            Pictures that are not found are counted in the page.
        max_cells: Cells in the gallery; of more, all wrong answers come first. With 4,000 the file stays below 15 MB.

    Returns:
        The HTML file. The same run gives the same bytes.

    Raises:
        FileFormatError: The run was not evaluated, or a file of it is damaged.
        OutputError: The report can't be written.
    """
    run = Path(run)
    files = read_run(run)
    page = Path(output) if output is not None else run / "report.html"
    if page.suffix.lower() == ".md":
        raise OutputError(f"Can't write {page}: the report is HTML, and a Markdown goes beside it. Name it *.html.")
    named = files.info.data if files.info else None
    folder = Path(data) if data is not None else (Path(named) if named else None)
    content = build(
        files, str(folder) if folder is not None else None, max_cells, lambda paths: make_thumbnails(paths, folder)
    )
    write_text(page, render_html(content))
    write_text(page.with_suffix(".md"), render_markdown(content))
    return page
