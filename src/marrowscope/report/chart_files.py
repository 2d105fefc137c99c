"""The charts of a report as files of their own: SVG that needs nothing else, and a page that lists them."""

from __future__ import annotations

from pathlib import Path

from marrowscope.files import make_folder, write_text
from marrowscope.report.charts import chart_css
from marrowscope.report.content import Content
from marrowscope.report.drawings import Chart, all_charts
from marrowscope.report.markdown import plain
from marrowscope.schema import NOT_A_MEDICAL_DEVICE

FONT = (
    'svg{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;'
    "background:var(--panel)}"
)


def standalone(chart: Chart) -> str:
    """The chart as an SVG document with its own style; it follows a light or dark screen."""
    markup = str(chart.markup)
    head, rest = markup.split(">", 1)
    size = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" ', 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{chart_css(alone=True)}{FONT}</style>{rest}\n'


def write_chart_files(content: Content, folder: Path) -> list[Path]:
    """Write each chart as an SVG file, and README.md with their titles and text alternatives.

    No chart shows a cell.

    Raises:
        OutputError: The folder can't be written.
    """
    make_folder(folder)
    lines = [f"# Charts: {plain(content.title)}", "", f"{NOT_A_MEDICAL_DEVICE} 95 % intervals.", ""]
    if content.run.synthetic:
        lines += ["**SYNTHETIC: these cells are drawn by a program. None of them is a real cell.**", ""]
    out = []
    for chart in all_charts(content):
        path = folder / f"{chart.key}.svg"
        write_text(path, standalone(chart))
        out.append(path)
        alternative = plain(chart.description)
        lines += [f"## {plain(chart.title)}", "", f"![{alternative}]({path.name})", "", alternative, ""]
    write_text(folder / "README.md", "\n".join(lines).rstrip("\n") + "\n")
    return out
