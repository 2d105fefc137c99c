"""The tables of docs/explanations.md, out of files of `marrowscope explain RUN --test`.

    python scripts/explanation_figures.py NAME=explanation-tests.json ...

Prints, for each file, a line on what was tested and two Markdown tables: on the cells of the part, and on phantoms.
`scripts/record_judging.py` writes them into the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

from marrowscope.schema import ExplanationTests, Figure, MethodTests

ON_CELLS = {
    "deletion_gain": "deletion gain",
    "insertion_gain": "insertion gain",
    "spearman": "after forgetting",
    "other_class": "second class",
    "other_cell": "next cell",
}
ON_PHANTOMS = {
    "pointing_cell": "points at cell",
    "energy_cell": "heat on cell",
    "pointing_nucleus": "points at nucleus",
    "energy_nucleus": "heat on nucleus",
}


def short(figure: Figure | None) -> str:
    """Two digits with the interval; a dash where there is no such figure."""
    if figure is None or figure.value is None:
        return "–"
    if figure.low is None or figure.high is None or figure.high - figure.low < 0.005:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def verdicts(tests: MethodTests) -> str:
    """Which counted checks failed, or that all passed."""
    failed = [c.name for c in tests.checks if c.counted and not c.passed]
    return "**passed**" if not failed else f"failed: {', '.join(failed)}"


def table(found: ExplanationTests, columns: dict[str, str], last: bool) -> str:
    """One table, a row a method."""
    columns = {k: v for k, v in columns.items() if any(k in m.figures for m in found.methods)}
    head = ["method", *columns.values(), *(["verdict"] if last else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for m in found.methods:
        cells = [m.title, *(short(m.figures.get(name)) for name in columns), *([verdicts(m)] if last else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tables(found: ExplanationTests) -> str:
    """What was tested, and both tables."""
    settings = ", ".join(f"{k} {v}" for k, v in found.settings.items())
    out = [
        f"{found.n} cells of the {found.part} part, {found.right} of them named right ({settings}).\n",
        table(found, ON_CELLS, last=True),
    ]
    if found.phantoms:
        chance = f"{short(found.cell_area)} for the cell, {short(found.nucleus_area)} for the nucleus"
        out += [
            f"{found.phantoms} phantoms, {found.phantoms_right} of them named right. Chance: {chance}.\n",
            table(found, ON_PHANTOMS, last=False),
        ]
    for why in dict.fromkeys(found.not_fitting.values()):
        out.append(f"Without {', '.join(m for m, w in found.not_fitting.items() if w == why)}: {why}\n")
    return "\n".join(out)


def main() -> None:
    """Print the tables of all files named."""
    if len(sys.argv) < 2 or not all("=" in a for a in sys.argv[1:]):
        raise SystemExit(__doc__)
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        print(f"**{name}**\n\n{tables(ExplanationTests.read(Path(path)))}")


if __name__ == "__main__":
    main()
