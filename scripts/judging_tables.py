"""The tables of docs/judging.md, as Markdown, from the evaluations of runs.

marrowscope evaluate RUN --novelty --robustness all      # for each run
python scripts/judging_tables.py RUN [RUN ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from marrowscope.evaluate.novelty import METHODS
from marrowscope.schema import Card, Evaluation


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def trust(e: Evaluation) -> None:
    names = ("expected_calibration_error", "classwise_calibration_error", "brier_loss", "log_loss")
    rows = [
        [f"{c.scaling}{' (applied)' if c.applied else ''}", *(str(c.figures[n]) for n in names)] for c in e.calibration
    ]
    table(["scaling", "ECE", "class-wise ECE", "Brier", "log loss"], rows)
    rows = [
        [f"{s.method}, {1 - s.alpha:.0%}", str(s.coverage), str(s.size), str(s.single), str(s.empty)]
        for s in e.conformal
    ]
    table(["sets", "coverage", "mean size", "of one class", "empty"], rows)
    rows = [
        [
            f"{o.target:.0%}",
            o.chosen_on,
            "none" if o.threshold is None else f"{o.threshold:.3f}",
            str(o.coverage),
            str(o.accuracy),
        ]
        for o in e.operating_points
    ]
    table(["accuracy asked for", "threshold from", "threshold", "answered", "accuracy"], rows)


def novelty(e: Evaluation) -> None:
    found = e.novelty
    if found is None:
        print("No strange pictures were judged: marrowscope evaluate RUN --novelty\n")
        return
    print(f"Score of the card: {found.method}; {found.flagged} of the test cells are flagged.\n")
    rows = [[name, *(f"{a[m]:.3f}" for m in METHODS)] for name, a in found.chosen_by.items()]
    table(["stand-in (validation cells), AUROC", *METHODS], rows)
    rows = [[k.name, str(k.n), *(str(k.scores[m].auroc) for m in METHODS), str(k.flagged)] for k in found.kinds]
    table(["test, AUROC", "n", *METHODS, "flagged"], rows)
    rows = [[k.name, *(str(k.scores[m].fpr_at_95) for m in METHODS)] for k in found.kinds]
    table(["test, false positives at 95 %", *METHODS], rows)
    for kind in found.kinds:
        print(f"- {kind.name}: {kind.description}; accepted {kind.accepted}")
    for name, reason in found.left_out.items():
        print(f"- no {name}: {reason}")
    print()


def robustness(e: Evaluation) -> None:
    r = e.robustness
    if r is None:
        print("No changed pictures were judged: marrowscope evaluate RUN --robustness all\n")
        return
    print(f"{r.n} test cells, answered by the {r.model}: {r.clean} unchanged, {r.accuracy} in the mean of all changes,")
    print(f"a relative drop of {r.relative_drop}.\n")
    rows = [
        [k.kind, *(f"{p.accuracy} at {p.amount:g}" for p in k.points), str(k.accuracy), str(k.relative_drop)]
        for k in r.kinds
    ]
    table(["change", *(f"strength {s}" for s in range(1, 6)), "mean", "relative drop"], rows)


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    for run in map(Path, sys.argv[1:]):
        e, card = Evaluation.read(run / "evaluation.json"), Card.read(run / "card.json")
        print(f"### {card.name}\n\n{e.n} test cells, accuracy {e.figures['accuracy']}\n")
        trust(e)
        novelty(e)
        robustness(e)


if __name__ == "__main__":
    main()
