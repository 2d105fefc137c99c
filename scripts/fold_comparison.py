"""What changes of a recipe are worth on validation folds: a table from the folders of `marrowscope sweep --folds`.

    python scripts/fold_comparison.py SWEEP [SWEEP ...]

All sweeps are of one recipe, one split and the same number of folds; the first row of the first is what the others
are compared with, fold by fold. Scores are of the last epoch, which nothing chose. A row gives the mean and standard
deviation over the folds, and the differences as their mean, lowest and highest.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from marrowscope.errors import MarrowscopeError
from marrowscope.schema import Split, read_metrics


class Fold(NamedTuple):
    """The last epoch of one run, and the cells that it was validated on."""

    validated: frozenset[str]
    epochs: int
    accuracy: float
    loss: float


def combinations(sweep: Path) -> dict[str, dict[str, Fold]]:
    """Finished runs of a sweep: by the text of the grid's values, by seed and fold."""
    try:
        with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
    except OSError as e:
        raise SystemExit(f"{sweep}: no sweep.csv ({e.strerror}); give the --out folder of marrowscope sweep") from e
    keys = list(rows[0])[: list(rows[0]).index("seed")] if rows else []
    found: dict[str, dict[str, Fold]] = {}
    for row in rows:
        if row["status"] != "finished" or not row["fold"]:
            what = f"{row['run']} is {row['status']}, fold {row['fold'] or 'none'}"
            raise SystemExit(f"{sweep}: {what}; give sweeps with --folds that were run to their end")
        metrics = read_metrics(sweep / row["run"] / "metrics.csv")
        validated = frozenset(r.path for r in Split.read(sweep / row["run"] / "split.csv").part("val"))
        text = ", ".join(f"{k}={row[k]}" for k in keys) or "the recipe as it is"
        last = metrics[-1]
        one = Fold(validated, len(metrics), last["val_accuracy"], last["val_loss"])
        found.setdefault(text, {})[f"seed {row['seed']} fold {row['fold']}"] = one
    return found


def difference(values: Sequence[float]) -> str:
    return f"{fmean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


def table(sweeps: Sequence[Path]) -> list[str]:
    """Lines of the table; the first combination of the first sweep is the measure of all others."""
    named = [(text, folds) for sweep in sweeps for text, folds in combinations(sweep).items()]
    base = named[0][1] if named else {}
    if len(base) < 2:
        raise SystemExit(f"{sweeps[0]}: {len(base)} run(s) say nothing of a spread; give sweeps of three folds or more")
    out = ["| values | runs | epochs | accuracy | difference | log loss | difference |", "|" + "---|" * 7]
    for text, folds in named:
        same = folds.keys() == base.keys() and all(folds[k].validated == base[k].validated for k in base)
        if not same:
            raise SystemExit(f"{text}: other folds than those of the first sweep; use the same --split and --folds")
        accuracy, loss = [f.accuracy for f in folds.values()], [f.loss for f in folds.values()]
        cells = [
            text,
            str(len(folds)),
            str(max(f.epochs for f in folds.values())),
            f"{fmean(accuracy):.3f} ± {stdev(accuracy):.3f}",
            "" if folds is base else difference([folds[k].accuracy - base[k].accuracy for k in base]),
            f"{fmean(loss):.3f} ± {stdev(loss):.3f}",
            "" if folds is base else difference([folds[k].loss - base[k].loss for k in base]),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+")
    try:
        print("\n".join(table(parser.parse_args().sweeps)))
    except MarrowscopeError as e:
        raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
