"""What more epochs, pixels or cells bring: a table and a chart from run folders, on their validation part.

    python scripts/learning_curves.py --by pixels RUN [RUN ...] [--chart FILE.svg]

The runs are of one recipe and one validation part, and differ in what `--by` names (and in the seed): `epochs` of the
schedule, `pixels` of the picture's side, or `cells` to train. Runs that agree in it stand in one row, as their mean
and range. The best epoch is the one that training keeps, by validation accuracy; among many epochs it is a lucky one,
so that the last epoch stands beside it, which nothing chose.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marrowscope.config import load_recipe
from marrowscope.errors import MarrowscopeError
from marrowscope.files import write_text
from marrowscope.report.chart_files import standalone
from marrowscope.report.charts import Series, line_chart
from marrowscope.report.drawings import Chart
from marrowscope.schema import Split, read_metrics


class Trained(NamedTuple):
    """What a training was given, and its validation scores: best epoch, last epoch, log loss of the last."""

    epochs: int
    pixels: int
    cells: int
    validated: frozenset[str]
    best: float
    last: float
    loss: float


def trained(run: Path) -> Trained:
    """Read a run folder; it need not be evaluated."""
    recipe, split = load_recipe(run / "config.toml"), Split.read(run / "split.csv")
    rows = read_metrics(run / "metrics.csv")
    if len(rows) < recipe.schedule.epochs:
        raise SystemExit(f"{run}: {len(rows)} of {recipe.schedule.epochs} epochs; train it to its end first")
    return Trained(
        epochs=recipe.schedule.epochs,
        pixels=recipe.image.size,
        cells=len(split.part("train")),
        validated=frozenset(row.path for row in split.part("val")),
        best=max(row["val_accuracy"] for row in rows),
        last=rows[-1]["val_accuracy"],
        loss=rows[-1]["val_loss"],
    )


def spread(values: Sequence[float]) -> str:
    """The mean, and the range where there are several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def chart(by: str, rows: dict[int, list[Trained]]) -> str:
    """Accuracy over epochs, pixels or cells, as an SVG document."""

    def curve(name: str, of: Callable[[Trained], float]) -> Series:
        return Series(name, tuple((float(x), float(np.mean([of(r) for r in runs]))) for x, runs in rows.items()))

    series = (curve("best epoch", lambda r: r.best), curve("last epoch", lambda r: r.last))
    lowest = min(p[1] for s in series for p in s.points)
    title = f"Validation accuracy by {by}"
    words = " ".join(
        f"{s.name.capitalize()}: " + ", ".join(f"{y:.3f} with {x:,.0f} {by}" for x, y in s.points) + "." for s in series
    )
    label = {"epochs": "epochs of training", "pixels": "pixels of a side", "cells": "training cells"}[by]
    drawn = line_chart(f"by-{by}", title, words, series, x_label=label, y_range=(np.floor(lowest * 20 - 0.5) / 20, 0.9))
    return standalone(Chart(f"by-{by}", title, words, drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=["epochs", "pixels", "cells"], required=True)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    given = parser.parse_args()
    try:
        found = [trained(run) for run in given.runs]
    except MarrowscopeError as e:
        raise SystemExit(str(e)) from e
    if len({run.validated for run in found}) > 1:
        raise SystemExit("the runs were validated on different cells: compare runs of one validation part")
    grouped: dict[int, list[Trained]] = defaultdict(list)
    for run in found:
        grouped[getattr(run, given.by)].append(run)
    rows = dict(sorted(grouped.items()))
    print(f"| {given.by} | trainings | best epoch | last epoch | log loss of the last |\n|---|---|---|---|---|")
    for value, runs in rows.items():
        scores = " | ".join(spread([getattr(r, name) for r in runs]) for name in ("best", "last", "loss"))
        print(f"| {value:,} | {len(runs)} | {scores} |")
    if given.chart:
        write_text(given.chart, chart(given.by, rows))


if __name__ == "__main__":
    main()
