"""Write the report of a run folder, or of an evaluated table of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from marrowscope.errors import OutputError
from marrowscope.files import write_text
from marrowscope.report.chart_files import write_chart_files
from marrowscope.report.content import Content, build
from marrowscope.report.document import render_json
from marrowscope.report.html import render_html
from marrowscope.report.inputs import RunFiles, read_target
from marrowscope.report.markdown import render_markdown
from marrowscope.report.thumbnails import Thumbnails, make_thumbnails
from marrowscope.schema import Part

MAX_CELLS = 4000


def write_report(
    target: Path,
    *,
    part: Part = "test",
    output: Path | None = None,
    data: Path | None = None,
    max_cells: int = MAX_CELLS,
) -> Path:
    """Write report.html, one file that needs nothing else, and report.md and report.json beside it.

    Args:
        target: Run folder with evaluation.json and predictions.csv; analysis.json, explanations/, metrics.csv,
            card.json, run.json, split.csv and config.toml are used where they exist. Or the evaluation.json of a table
            of predictions, of any program, with the table beside it.
        part: Part of a run's split (its ``evaluation-val.json``, ``predictions-val.csv``).
        output: The HTML file; ``RUN/report.html`` (``report-val.html`` for another part) without it. The others go
            beside it.
        data: Folder, archive or Parquet that the paths of the predictions are relative to; without it the one that
            run.json names. Pictures that are not found are counted in the page.
        max_cells: Cells in the gallery, at least 1; of more, all wrong answers come first. With 4,000 the file stays
            below 15 MB.

    Returns:
        The HTML file. The same run gives the same bytes.

    Raises:
        FileFormatError: The run was not evaluated, or a file of it is damaged.
        OutputError: The report can't be written.
        ValueError: `max_cells` is below 1.
    """
    if max_cells < 1:
        raise ValueError(f"max_cells must be at least 1; it is {max_cells}.")
    target = Path(target)
    files = read_target(target, part)
    page = Path(output) if output is not None else _page(target, part)
    if page.suffix.lower() in {".md", ".json"}:
        raise OutputError(
            f"Can't write {page}: the report is HTML, and a Markdown and a JSON go beside it. Name it *.html."
        )
    content = _content(files, data, max_cells)
    write_text(page, render_html(content))
    write_text(page.with_suffix(".md"), render_markdown(content))
    write_text(page.with_suffix(".json"), render_json(content))
    return page


def write_charts(target: Path, folder: Path, *, part: Part = "test") -> list[Path]:
    """Write the charts of a report alone, as SVG files with text alternatives, and a README.md that lists them.

    None of them shows a cell. Arguments and errors as `write_report`.

    Returns:
        The SVG files.
    """
    files = read_target(Path(target), part)
    content = build(files, None, MAX_CELLS, lambda copies: Thumbnails())
    return write_chart_files(content, Path(folder))


def _page(target: Path, part: Part) -> Path:
    if target.is_dir():
        return target / ("report.html" if part == "test" else f"report-{part}.html")
    stem = target.name.removesuffix(".json")
    name = stem.replace("evaluation", "report") if "evaluation" in stem else f"{stem}.report"
    return target.with_name(f"{name}.html")


def _content(files: RunFiles, data: Path | None, max_cells: int) -> Content:
    named = files.info.data if files.info else None
    folder = Path(data) if data is not None else (Path(named) if named else None)

    def thumbnails(copies: Mapping[str, int]) -> Thumbnails:
        return make_thumbnails(copies, folder)

    return build(files, str(folder) if folder is not None else None, max_cells, thumbnails)
