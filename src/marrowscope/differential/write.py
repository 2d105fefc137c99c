"""The differential in a file, by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from marrowscope.cells import cell_class
from marrowscope.differential.documents import Differential, NamedFigure
from marrowscope.differential.fhir import to_fhir
from marrowscope.differential.page import to_html
from marrowscope.errors import OutputError
from marrowscope.files import csv_line, write_text
from marrowscope.schema import Figure

COLUMNS = (
    "kind", "code", "name", "count", "value", "low", "high", "adjusted", "adjusted_low", "adjusted_high", "corrected",
    "corrected_low", "corrected_high",
)  # fmt: skip
"""Of the CSV file. `kind` is ``class`` (values in percent of the nucleated cells), ``blasts`` (percent), ``ratio``,
``left out``, ``review`` or ``failed``; cells are empty where there is nothing to say."""


def write_differential(result: Differential, output: Path, title: str = "") -> None:
    """Write a differential.

    Args:
        result: As `count` gives it.
        output: File ending in .html, .json, .csv or .fhir.json (a FHIR DiagnosticReport).
        title: Names the smear on the page; the file's name where it is empty.

    Raises:
        OutputError: Another ending, or the file can't be written.
    """
    output = Path(output)
    check_ending(output)
    write = next(w for ending, w in _WRITERS.items() if output.name.lower().endswith(ending))
    write_text(output, write(result, title or output.name))


def check_ending(output: Path) -> None:
    """Find out whether an output has one of the endings.

    Raises:
        OutputError: It has not.
    """
    if not output.name.lower().endswith(tuple(_WRITERS)):
        raise OutputError(f"Can't write {output}: its ending must be one of {', '.join(_WRITERS)}.")


def as_text(result: Differential) -> Iterator[str]:
    """The differential in lines for a terminal."""
    yield f"{result.counted} nucleated marrow cells of {result.files} files"
    for row in result.rows:
        adjusted = "" if row.adjusted is None else f"   adjusted {_short(row.adjusted)}"
        yield f"  {row.code}  {row.name:22}{row.count:6}  {_short(row.percent):18}{adjusted}".rstrip()
    for code, n in result.left_out.items():
        yield f"  {code}  not counted           {n:6}"
    yield f"Blasts {_short(result.blast_percent.figure)} ({result.blast_percent.text})"
    yield f"M:E ratio {_short(result.myeloid_erythroid.figure, 2)} ({result.myeloid_erythroid.text})"
    review = ", ".join(f"{n} {reason}" for reason, n in result.reasons().items())
    yield f"{len(result.review)} left for review{f' ({review})' if review else ''}"
    yield from (f"{n} files failed: {cause}" for cause, n in result.failed.items())
    yield from (f"Note: {text}" for text in result.warnings)
    yield result.intended_use


def _short(figure: Figure, digits: int = 1) -> str:
    unit = " %" if digits == 1 else ""
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.{digits}f}{unit}"
    return f"{figure.value:.{digits}f}{unit} ({figure.low:.{digits}f}–{figure.high:.{digits}f})"


def _csv_rows(result: Differential) -> Iterator[list[str]]:
    for row in result.rows:
        yield ["class", row.code, row.name, str(row.count), *_numbers(row.percent, row.adjusted, row.corrected)]
    named: list[tuple[str, NamedFigure]] = [("blasts", result.blast_percent), ("ratio", result.myeloid_erythroid)]
    for kind, n in named:
        yield [kind, n.definition, n.text, "", *_numbers(n.figure, n.adjusted, n.corrected)]
    for code, cells in result.left_out.items():
        yield ["left out", code, cell_class(code).name, str(cells), *_numbers()]
    for reason, cells in result.reasons().items():
        yield ["review", "", reason, str(cells), *_numbers()]
    for why, files in result.failed.items():
        yield ["failed", "", why, str(files), *_numbers()]


def _numbers(*figures: Figure | None) -> list[str]:
    """Nine cells: value, low and high of three figures."""
    values = [v for f in figures for v in ((None,) * 3 if f is None else (f.value, f.low, f.high))]
    return ["" if v is None else f"{v:.6g}" for v in values] + [""] * (9 - len(values))


def _csv(result: Differential, _: str) -> str:
    return "".join(map(csv_line, [list(COLUMNS), *_csv_rows(result)]))


def _fhir(result: Differential, _: str) -> str:
    return json.dumps(to_fhir(result), indent=2, ensure_ascii=False) + "\n"


def _json(result: Differential, _: str) -> str:
    return result.model_dump_json(indent=2) + "\n"


# The longer ending first.
_WRITERS: dict[str, Callable[[Differential, str], str]] = {
    ".fhir.json": _fhir,
    ".json": _json,
    ".html": to_html,
    ".csv": _csv,
}
