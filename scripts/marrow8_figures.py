"""The tables of docs/results.md, from run folders that were evaluated.

    python scripts/marrow8_figures.py RUN [RUN ...] [--data DATA]

For each run: the headline figures, the seven classes without ART (with ART still a possible answer, and as a question
of seven classes, where ART's probability is left out), and a row a class. Of several runs, mean and standard deviation
of these figures: give the same recipe under several seeds, and they say how far a seed moves them; how many cells all
of them name wrong; and what the mean of their probabilities scores. With `--data`, and where `marrowscope predict
RUN/model.onnx DATA -o RUN/all.csv` was run, the largest difference of a probability between the checkpoint's answers
and the ONNX file's on the test cells.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import f1_score

from marrowscope.evaluate.intervals import wilson_interval
from marrowscope.schema import Card, Evaluation, Predictions, read_metrics

HEADLINE = ("accuracy", "macro_f1", "tolerant_accuracy", "top2_accuracy", "macro_auroc")


class WithoutArt(NamedTuple):
    """Cells of the seven classes without ART: their number, right answers out of all classes and out of seven, and the
    macro F1 of the latter."""

    n: int
    of_eight: int
    of_seven: int
    macro_f1: float

    def __str__(self) -> str:
        return f"{share(self.of_eight, self.n)} | {share(self.of_seven, self.n)} | {self.macro_f1:.3f}"


def share(hits: int, n: int) -> str:
    """Hits of n, with Wilson's interval."""
    low, high = wilson_interval(hits, n)
    return f"{hits}/{n} = {hits / n:.3f} ({low:.3f}–{high:.3f})"


def without_art(table: Predictions) -> WithoutArt:
    """The cells of a table that are not artefacts."""
    assert table.truth is not None
    kept = np.array([t != "ART" for t in table.truth])
    codes = np.array(table.codes)
    truth = np.array(table.truth)[kept]
    probs_NC = table.probs_NC[kept]
    seven = codes != "ART"
    of_eight, of_seven = codes[probs_NC.argmax(1)], codes[seven][probs_NC[:, seven].argmax(1)]
    macro = f1_score(truth, of_seven, average="macro", labels=codes[seven])
    return WithoutArt(len(truth), int((of_eight == truth).sum()), int((of_seven == truth).sum()), float(macro))


def headline(run: Path) -> str:
    """One row of the table of models."""
    card, found = Card.read(run / "card.json"), Evaluation.read(run / "evaluation.json")
    table = Predictions.read(run / "predictions.csv")
    figures = " | ".join(str(found.figures[name]) for name in HEADLINE if name in found.figures)
    return (
        f"| {card.name} | {card.architecture} | {card.preprocessing.size} px | {training(run, card)}"
        f" | {figures} | {without_art(table)} |"
    )


def training(run: Path, card: Card) -> str:
    """How long a run took, or what it was joined from."""
    if card.members:
        return "the mean of " + ", ".join(m.name for m in card.members)
    minutes = sum(row["seconds"] for row in read_metrics(run / "metrics.csv")) / 60
    return f"{card.epochs} epochs, {minutes:.0f} min"


def spread(runs: list[Path]) -> list[str]:
    """Mean and sample standard deviation over runs."""
    values: dict[str, list[float]] = {}
    for run in runs:
        found, seven = Evaluation.read(run / "evaluation.json"), without_art(Predictions.read(run / "predictions.csv"))
        for name in HEADLINE:
            if name in found.figures:
                values.setdefault(name, []).append(found.figures[name].value)
        values.setdefault("seven, of eight", []).append(seven.of_eight / seven.n)
        values.setdefault("seven, of seven", []).append(seven.of_seven / seven.n)
        values.setdefault("its macro F1", []).append(seven.macro_f1)
    return [
        f"| {k} | {np.mean(v):.4f} | {np.std(v, ddof=1):.4f} | {min(v):.4f}–{max(v):.4f} |" for k, v in values.items()
    ]


def together(runs: list[Path], table: str) -> str:
    """What the runs say as one: cells that all name right, that all name wrong, and that all name wrong by one and the
    same class; and the score of the mean of their probabilities."""
    tables = [Predictions.read(run / table) for run in runs]
    named = [dict(zip(t.paths, np.array(t.codes)[t.probs_NC.argmax(1)], strict=True)) for t in tables]
    first = tables[0]
    assert first.truth is not None
    if any((t.paths, t.codes) != (first.paths, first.codes) for t in tables):
        raise SystemExit("the runs were judged on different cells")
    answers = [(truth, {n[path] for n in named}) for path, truth in zip(first.paths, first.truth, strict=True)]
    right = sum(given == {truth} for truth, given in answers)
    wrong = sum(truth not in given for truth, given in answers)
    alike = sum(truth not in given and len(given) == 1 for truth, given in answers)
    mean_NC = np.mean([t.probs_NC for t in tables], axis=0)
    place = [first.codes.index(truth) for truth in first.truth]
    loss = -np.log(mean_NC[np.arange(len(place)), place]).mean()
    hits = int((mean_NC.argmax(1) == place).sum())
    return (
        f"Of {len(answers)} cells {right} are right with all {len(runs)} runs and {wrong} wrong with all; {alike} of "
        "these are one and the same other class to all.\nThe mean of their probabilities: log loss "
        f"{loss:.3f}, right {share(hits, len(place))}; without ART {without_art(replace(first, probs_NC=mean_NC))}"
    )


def classes(runs: list[Path]) -> list[str]:
    """Rows a class: cells, and precision, recall and F1 of each run."""
    found = [Evaluation.read(run / "evaluation.json") for run in runs]
    lines = []
    for number, first in enumerate(found[0].per_class):
        cells = [
            f"{e.per_class[number].precision} | {e.per_class[number].recall} | {e.per_class[number].f1}" for e in found
        ]
        lines.append(f"| {first.code} | {first.support} | {' | '.join(cells)} |")
    return lines


def served(run: Path, data: Path) -> str:
    """How far the answers of the ONNX file are from those of the checkpoint."""
    judged, all_cells = Predictions.read(run / "predictions.csv"), Predictions.read(run / "all.csv")
    place = {p: i for i, p in enumerate(all_cells.paths)}
    same = all_cells.probs_NC[[place[str(data / p)] for p in judged.paths]]
    kept = int((same.argmax(1) == judged.probs_NC.argmax(1)).sum())
    return (
        f"{run}: {len(same)} test cells, {kept} of the same answer, largest difference of a probability "
        f"{np.abs(same - judged.probs_NC).max():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    columns = ["model", "network", "input", "training", *HEADLINE, "seven, of eight", "seven, of seven", "its macro F1"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    print("\n".join(headline(run) for run in options.runs))
    print("\n" + "\n".join(classes(options.runs)))
    if len(options.runs) > 1:
        print(f"\n| of {len(options.runs)} runs | mean | standard deviation | range |\n|---|---|---|---|")
        print("\n".join(spread(options.runs)))
        print()
        for table in ("predictions.csv", "predictions-val.csv"):  # the second after `evaluate --part val`
            if all((run / table).exists() for run in options.runs):
                print(f"{table}: {together(options.runs, table)}")
    for run in options.runs:
        if options.data is not None and (run / "all.csv").exists():
            print(served(run, options.data))


if __name__ == "__main__":
    main()
