"""The tables of docs/judged.md, as Markdown, from the evaluations of runs.

    marrowscope evaluate RUN --novelty --robustness all      # for each run
    python scripts/judging_tables.py RUN [RUN ...]

`scripts/record_judging.py` does both, and writes the tables into the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from marrowscope.evaluate.novelty import METHODS
from marrowscope.report.words import label
from marrowscope.schema import Analysis, Card, Evaluation


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def headline(e: Evaluation) -> str:
    """All overall figures, those of each class, and those beside the published ones."""
    rows = [(label(name), f, f.n, f.method) for name, f in e.figures.items()]
    out = [f"{e.n} test cells.\n", table(("figure", "value (95 % interval)", "cells", "interval by"), rows)]
    parts = ("recall", "precision", "f1", "auroc", "average_precision")
    head = ("class", "cells", "recall", "precision", "F1", "AUROC", "average precision")
    out.append(table(head, [(c.code, c.support, *(getattr(c, p) or "–" for p in parts)) for c in e.per_class]))
    published = [
        (
            c.code,
            c.precision, f"{c.published.precision:.2f}", c.recall, f"{c.published.recall:.2f}",
            c.tolerant_precision, f"{c.published.tolerant_precision:.2f}",
            c.tolerant_recall, f"{c.published.tolerant_recall:.2f}",
        )
        for c in e.per_class
        if c.published is not None
    ]  # fmt: skip
    names = ("precision", "recall", "tolerant precision", "tolerant recall")
    if published:
        out.append(f"Beside {e.published}. Other cells, other class shares, more classes: no contest.\n")
        out.append(table(("class", *(x for n in names for x in (f"{n} here", "published"))), published))
    return "\n".join(out)


def trust(e: Evaluation) -> str:
    """Calibration, prediction sets and selective answers."""
    names = ("expected_calibration_error", "classwise_calibration_error", "brier_loss", "log_loss")
    calibration = [
        (f"{c.scaling}{' (applied)' if c.applied else ''}", *(c.figures.get(n, "–") for n in names), c.by_chance)
        for c in e.calibration
    ]
    points = [
        (
            f"{o.target:.0%}",
            o.chosen_on,
            "none" if o.threshold is None else f"{o.threshold:.3f}",
            o.coverage,
            o.accuracy,
        )
        for o in e.operating_points
    ]
    return "\n".join(
        [
            table(("scaling", "ECE", "class-wise ECE", "Brier", "log loss", "ECE by chance alone"), calibration),
            sets(e),
            table(("accuracy asked for", "threshold from", "threshold", "answered", "accuracy"), points),
        ]
    )


def sets(e: Evaluation) -> str:
    """Coverage and size of prediction sets; by class those that may miss the fewest."""
    rows = [(f"{s.method}, {1 - s.alpha:.0%}", s.coverage, s.size, s.single, s.empty) for s in e.conformal]
    least = min((s.alpha for s in e.conformal), default=0.0)
    strict = [s for s in e.conformal if s.alpha == least]
    by_class = [(c.code, *(s.per_class[c.code][n] for s in strict for n in ("coverage", "size"))) for c in e.per_class]
    head = (f"class, sets at {1 - least:.0%}", *(f"{s.method}, {n}" for s in strict for n in ("coverage", "size")))
    return f"{table(('sets', 'coverage', 'mean size', 'of one class', 'empty'), rows)}\n{table(head, by_class)}"


def novelty(e: Evaluation) -> str:
    """How the score was chosen, and how it does on strange pictures."""
    found = e.novelty
    if found is None:
        return "Not recorded yet (`marrowscope evaluate RUN --novelty`).\n"
    methods = [m for m in METHODS if all(m in k.scores for k in found.kinds)]
    out = [f"Score of the card: {found.method}; {found.flagged} of the test cells are flagged.\n"]
    chosen = [(name, *(f"{a[m]:.3f}" for m in methods)) for name, a in found.chosen_by.items()]
    out.append(table(("stand-in (validation cells), AUROC", *methods), chosen))
    areas = [(k.name, k.n, *(k.scores[m].auroc for m in methods), k.flagged, k.accepted or "–") for k in found.kinds]
    out.append(table(("test, AUROC", "n", *methods, "flagged", "accepted"), areas))
    passing = [(k.name, *(k.scores[m].fpr_at_95 for m in methods)) for k in found.kinds]
    out.append(table(("test, false positives at 95 %", *methods), passing))
    notes = [f"- {k.name}: {k.description}" for k in found.kinds]
    notes += [f"- no {name}: {reason}" for name, reason in found.left_out.items()]
    unlearnt = next((k for k in found.kinds if k.name == "other classes"), None)
    if unlearnt is not None:
        missed, accepted = unlearnt.scores[found.method].fpr_at_95, unlearnt.accepted or "an unknown share"
        out.append(
            f"Cells of classes that it was not trained on: {unlearnt.flagged} are flagged, {accepted} are accepted as "
            f"answers to rely on, and {missed} pass where 95 % of the test cells do. What passes is named as a class "
            "that the model knows.\n"
        )
    return "\n".join([*out, *notes, ""])


def robustness(e: Evaluation) -> str:
    """Accuracy on changed cells."""
    r = e.robustness
    if r is None:
        return "Not recorded yet (`marrowscope evaluate RUN --robustness all`).\n"
    rows = [
        (k.kind, *(f"{p.accuracy} at {p.amount:g}" for p in k.points), k.accuracy, k.relative_drop) for k in r.kinds
    ]
    return (
        f"{r.n} test cells, answered by the {r.model}: {r.clean} unchanged, {r.accuracy} in the mean of all changes, a "
        f"relative drop of {r.relative_drop}.\n\n"
        + table(("change", *(f"strength {s}" for s in range(1, 6)), "mean", "relative drop"), rows)
    )


def errors(a: Analysis) -> str:
    """Where the model errs, and on what; no file is named."""
    pairs = [(p.truth, p.predicted, p.count, p.share, "yes" if p.neighbours else "no") for p in a.pairs]
    out = [table(("truth", "taken for", "cells", "share of the class", "neighbours"), pairs), f"{a.label_basis}\n"]
    measures = [
        (
            f"{q.name} ({q.unit})",
            q.effect,
            "–" if q.p_value is None else f"{q.p_value:.2g}",
            "–" if q.p_adjusted is None else f"{q.p_adjusted:.2g}",
        )
        for q in a.quality
    ]
    if measures:
        out.append(table(("measure of the picture", "a wrong answer's is higher", "p", "p, Holm"), measures))
    found = a.feature_map
    if found is not None:
        kept = "" if found.trustworthiness is None else f"; trustworthiness {found.trustworthiness:.3f}"
        out.append(
            f"Map of {found.dimension} features by {found.method} ({found.settings}){kept}. The nearest other cell has "
            f"the same class for {found.neighbours_alike} of the cells.\n"
        )
    return "\n".join(out)


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    for run in map(Path, sys.argv[1:]):
        e, card = Evaluation.read(run / "evaluation.json"), Card.read(run / "card.json")
        print(f"### {card.name}\n\n{e.n} test cells, accuracy {e.figures['accuracy']}\n")
        print(trust(e), novelty(e), robustness(e), sep="\n")


if __name__ == "__main__":
    main()
