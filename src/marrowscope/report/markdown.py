"""Set the content as Markdown: the same figures, without pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from marrowscope.report.answers import Answer
from marrowscope.report.content import Content
from marrowscope.report.drawings import describe_map
from marrowscope.report.words import SCALINGS, class_name, label, percent, shown
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, PARTS, Card, MethodTests


def plain(text: object) -> str:
    """Text that no Markdown reader takes for markup."""
    out = shown(str(text)).replace("\\", "\\\\")
    for character in "|`*_[]#":
        out = out.replace(character, "\\" + character)
    return out.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table; every cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


def render_markdown(content: Content) -> str:
    """The whole file."""
    parts = [
        _head(content),
        _figures(content),
        _curves(content),
        _classes(content),
        _matrix(content),
        _published(content),
        _studies(content),
        _calibration(content),
        _selective(content),
        _conformal(content),
        _novelty(content),
        _robustness(content),
        _errors(content),
        _quality(content),
        _map(content),
        _explanations(content),
        _failed(content),
        _data(content),
        _settings(content),
    ]
    return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"


def _head(content: Content) -> list[str]:
    lines = [f"# {plain(content.title)}", "", f"**{NOT_A_MEDICAL_DEVICE}**", ""]
    if content.run.synthetic:
        lines += ["**SYNTHETIC: these cells are drawn by a program. None of them is a real cell.**", ""]
    e = content.run.evaluation
    accuracy = e.figures.get("accuracy")
    if accuracy is not None and accuracy.value is not None:
        lines += [
            f"{content.n_right:,} of {e.n:,} cells named right; accuracy {accuracy} (95 % interval in brackets).",
            "",
        ]
    if content.baseline:
        code, share = content.baseline
        lines += [f"Always answering “{class_name(code)}”, the commonest class, would reach {share:.3f}.", ""]
    return lines


def _figures(content: Content) -> list[str]:
    e = content.run.evaluation
    rows = [(f.label, f.figure, f.figure.n, f.figure.method) for f in content.figures]
    lines = ["## Figures", "", *table(("figure", "value (95 % interval)", "cells", "interval by"), rows)]
    if e.macro_left_out:
        names = ", ".join(f"{class_name(c)} ({c})" for c in e.macro_left_out)
        lines += [f"Macro figures leave out classes with fewer than {e.macro_minimum} images: {names}.", ""]
    return lines


def _curves(content: Content) -> list[str]:
    if not content.run.metrics:
        return []
    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_macro_f1")
    rows = [(f"{m['epoch']:g}", *(f"{m[k]:.4f}" for k in keys)) for m in content.run.metrics]
    head = ("epoch", "training loss", "validation loss", "training accuracy", "validation accuracy", "macro F1")
    return ["## Learning curves", "", *table(head, rows)]


def _classes(content: Content) -> list[str]:
    parts = [("recall", "recall"), ("precision", "precision"), ("F1", "f1")]
    if content.ranked:
        parts += [("AUROC", "auroc"), ("average precision", "average_precision")]
    if any(r.figures.tolerant_recall is not None for r in content.classes):
        parts += [("tolerant recall", "tolerant_recall"), ("tolerant precision", "tolerant_precision")]
    rows = [
        (
            r.code,
            r.name,
            r.figures.support,
            r.figures.predicted,
            *(getattr(r.figures, part) or "–" for _, part in parts),
        )
        for r in content.classes
    ]
    head = ("code", "class", "cells", "predicted", *(name for name, _ in parts))
    return ["## Classes", "", *table(head, rows), *_costs(content)]


def _costs(content: Content) -> list[str]:
    if not content.costs:
        return []
    head = ("truth \\ predicted", *(plain(code) for code, _ in content.costs))
    rows = [(code, *(f"{v:g}" for v in row)) for code, row in content.costs]
    source = content.run.evaluation.costs_source
    return [f"What an error costs ({plain(source)}):", "", *table(head, rows)]


def _matrix(content: Content) -> list[str]:
    codes = content.run.codes
    head = ("truth \\ predicted", *map(plain, codes))
    counts = [(row[0].truth, *(c.count for c in row)) for row in content.matrix]
    shares = [(row[0].truth, *(c.percent for c in row)) for row in content.matrix]
    return [
        "## Confusion matrix",
        "",
        *table(head, counts),
        "As shares of the true class:",
        "",
        *table(head, shares),
    ]


def _published(content: Content) -> list[str]:
    if not content.published:
        return []
    rows = []
    for r in content.published:
        f, p = r.figures, r.figures.published
        assert p is not None
        strict = (f.precision, p.precision, f.recall, p.recall)
        tolerant = (f.tolerant_precision or "–", p.tolerant_precision, f.tolerant_recall or "–", p.tolerant_recall)
        rows.append((r.code, *strict, *tolerant, f.support, p.n))
    names = ("precision", "recall", "tolerant precision", "tolerant recall", "images")
    head = ("class", *(x for name in names for x in (f"{name} here", "published")))
    source = content.run.evaluation.published
    lines = ["## Beside published figures", "", *table(head, rows)]
    return [*lines, f"Source: {plain(source)}", ""] if source else lines


def _calibration(content: Content) -> list[str]:
    every = content.run.evaluation.calibration
    if not every:
        return []
    head = ("figure", *(SCALINGS[k.scaling] for k in every))
    rows = [(label(name), *(k.figures.get(name, "–") for k in every)) for name in every[0].figures]
    rows.append(("Calibration error by chance alone", *(k.by_chance for k in every)))
    lines = ["## Calibration", "", *table(head, rows)]
    for k in every:
        bins = [(f"{b.low:.3f}–{b.high:.3f}", f"{b.confidence:.3f}", b.accuracy, b.accuracy.n) for b in k.bins]
        lines += [f"Bins, {SCALINGS[k.scaling]}:", ""]
        lines += table(("confidence", "mean", "accuracy", "cells"), bins)
    rows = [(r.code, *(k.per_class.get(r.code, "–") for k in every)) for r in content.classes]
    head = ("class", *(SCALINGS[k.scaling] for k in every))
    return [*lines, "Calibration error of each class:", "", *table(head, rows)]


def _selective(content: Content) -> list[str]:
    points = content.run.evaluation.operating_points
    if not points:
        return []
    rows = [
        (percent(o.target), "–" if o.threshold is None else f"{o.threshold:.3f}", o.coverage, o.accuracy, o.chosen_on)
        for o in points
    ]
    head = ("wanted accuracy", "least confidence", "cells answered", "accuracy of the answers", "chosen on")
    return ["## Selective answers", "", *table(head, rows)]


def _conformal(content: Content) -> list[str]:
    sets = content.run.evaluation.conformal
    if not sets:
        return []
    rows = [(k.method, percent(1 - k.alpha), k.coverage, k.size, k.single, k.empty, k.calibrated_on) for k in sets]
    head = ("method", "aimed at", "coverage", "classes in a set", "sets of one", "empty sets", "calibrated on")
    lines = ["## Prediction sets", "", *table(head, rows)]
    for k in sets:
        of_class = [
            (
                r.code,
                f"{k.thresholds[r.code]:.4f}",
                *(k.per_class[r.code].get(name, "–") for name in ("coverage", "size")),
            )
            for r in content.classes
            if r.code in k.thresholds and r.code in k.per_class
        ]
        lines += [f"By class, {k.method}, {percent(1 - k.alpha)}:", ""]
        lines += table(("class", "least probability", "coverage", "classes in a set"), of_class)
    return lines


def _novelty(content: Content) -> list[str]:
    found = content.run.evaluation.novelty
    if found is None:
        return []
    rows = [
        (k.name, k.n, name + (" (taken)" if name == found.method else ""), s.auroc, s.fpr_at_95,
         k.flagged if name == found.method else "", (k.accepted or "–") if name == found.method else "")
        for k in found.kinds
        for name, s in k.scores.items()
    ]  # fmt: skip
    head = ("strange pictures", "number", "score", "AUROC", "pass where 95 % of test cells do", "flagged", "accepted")
    lines = ["## What it does not know", "", f"Of the test cells {found.flagged} are flagged.", "", *table(head, rows)]
    chosen = [(kind, *(f"{v:.3f}" for v in scores.values())) for kind, scores in found.chosen_by.items()]
    if chosen:
        lines += ["The score was chosen by its AUROC on stand-ins made of validation cells:", ""]
        lines += table(("stand-ins", *next(iter(found.chosen_by.values()))), chosen)
    left = [f"- not judged on {plain(name)}: {plain(reason)}" for name, reason in found.left_out.items()]
    return [*lines, *left, ""] if left else lines


def _robustness(content: Content) -> list[str]:
    found = content.run.evaluation.robustness
    if found is None:
        return []
    rows = [
        (k.kind, p.strength, f"{p.amount:g}", p.accuracy, p.change, p.relative_drop)
        for k in found.kinds
        for p in k.points
    ]
    kinds = [(k.kind, k.accuracy, k.relative_drop) for k in found.kinds]
    text = f"{found.n:,} cells by {plain(found.model)}: unchanged {found.clean}, mean over all changes {found.accuracy}"
    return [
        "## Robustness",
        "",
        f"{text}, share of the accuracy lost {found.relative_drop}.",
        "",
        *table(("change", "mean accuracy", "share lost"), kinds),
        *table(("change", "strength", "amount", "accuracy", "difference", "share lost"), rows),
    ]


def _studies(content: Content) -> list[str]:
    if not content.studies:
        return []
    rows = [
        (s.name, s.model, f"{s.classes} {' '.join(s.codes)}".strip(), f"{s.accuracy:.3f}", s.here or "–", s.about)
        for s in content.studies
    ]
    head = ("study", "model", "classes", "accuracy, published", "accuracy here, on those classes", "measured on")
    return ["## Accuracies that others report", "", *table(head, rows)]


def _row(a: Answer) -> tuple[str, str, str, str]:
    return a.path, class_name(a.truth), class_name(a.predicted), percent(a.confidence)


def _listed(title: str, about: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    about_lines = [about, ""] if about else []
    return [f"## {title}", "", *about_lines, *(table(head, rows) if rows else ["None.", ""])]


def _errors(content: Content) -> list[str]:
    pairs = [
        (
            class_name(p.cell.truth),
            class_name(p.cell.predicted),
            p.cell.count,
            p.found.share,
            "yes" if p.found.neighbours else "no",
        )
        for p in content.pairs
    ]
    cell = ("file", "truth", "answer", "confidence")
    doubts = [
        (a.path, class_name(c.label), class_name(c.suggested), f"{c.label_probability:.3f}",
         f"{c.suggested_probability:.3f}")
        for a, c in content.doubts
    ]  # fmt: skip
    head = ("truth", "taken for", "cells", "share of the class", "neighbours")
    lines = _listed("Most confused pairs", "", head, pairs)
    lines += _listed("Most confident mistakes", "", cell, [_row(a) for a in content.mistakes])
    uncertain = [(*_row(a), f"{entropy:.3f}") for a, entropy in content.uncertain]
    lines += _listed("Most uncertain cells", "", (*cell, "entropy"), uncertain)
    head = ("file", "label", "suggested", "probability of the label", "of the suggestion")
    return lines + _listed("Doubtful labels", plain(content.run.analysis.label_basis), head, doubts)


def _quality(content: Content) -> list[str]:
    analysis = content.run.analysis
    if not analysis.quality:
        return []
    rows = [
        (m.name, m.effect, "–" if m.p_value is None else f"{m.p_value:.3g}",
         "–" if m.p_adjusted is None else f"{m.p_adjusted:.3g}")
        for m in analysis.quality
    ]  # fmt: skip
    head = ("measure", "a wrong answer's is higher (0.5: no difference)", "p", "p with Holm's correction")
    lines = ["## Errors and the quality of the pictures", "", *table(head, rows)]
    for m in analysis.quality:
        lines += [f"{plain(m.name)} ({plain(m.unit)}), {plain(m.what)}:", ""]
        lines += table(
            ("from", "to", "share of errors", "cells"),
            [(f"{b.low:.4g}", f"{b.high:.4g}", b.error, b.error.n) for b in m.bins],
        )
    for reason, count in analysis.unmeasured.items():
        lines += [f"- not measured: {count:,}, {plain(reason)}"]
    return [*lines, ""] if analysis.unmeasured else lines


def _map(content: Content) -> list[str]:
    found = content.run.analysis.feature_map
    if found is None:
        return []
    note = [plain(found.note), ""] if found.note else []
    settings = f"{found.method}: {plain(found.settings)}; seed {found.seed}."
    return ["## Map of the features", "", plain(describe_map(found)), "", settings, "", *note]


def _explanations(content: Content) -> list[str]:
    explained = content.run.explained
    if explained is None or explained.tests is None:
        return []
    rows = [
        (t.title + (" (control)" if t.control else ""), "passed" if t.passed else "failed",
         "; ".join(f"{'✓' if c.passed else '✗'} {c.name}: {c.reason}" for c in t.checks))
        for t in explained.of_method
    ]  # fmt: skip
    t = explained.tests
    on = f"On {t.n:,} cells of the {plain(t.part)} part, {t.right:,} of them named right, "
    on += f"and {t.phantoms:,} drawn cells with known outlines."
    if t.phantoms:
        on += f" Of these pictures the cell covers {t.cell_area}, its nucleus {t.nucleus_area}."
    lines = ["## Explanations", "", *table(("method", "tests", "each"), rows), on, ""]
    for method in explained.of_method:
        lines += _figures_of(method)
    return lines


def _figures_of(method: MethodTests) -> list[str]:
    figures = [(label(name), f, f.n) for name, f in method.figures.items()]
    lines = [f"{plain(method.title)}:", "", *table(("figure", "value (95 % interval)", "pictures"), figures)]
    steps = [(percent(s.randomised), s.spearman, s.ssim) for s in method.cascade]
    if not steps:
        return lines
    head = ("layers randomised, from the answer down", "rank correlation of the maps", "structural similarity")
    return [*lines, *table(head, steps)]


def _failed(content: Content) -> list[str]:
    failed = content.run.evaluation.failed
    if not failed:
        return ["## Files without an answer", "", "None.", ""]
    total = sum(failed.values())
    return [
        "## Files without an answer",
        "",
        f"{total:,} files could not be read; they count in no figure.",
        "",
        *table(("reason", "files"), failed.items()),
    ]


def _data(content: Content) -> list[str]:
    lines = ["## Data", ""]
    if content.counts:
        rows = [(code, name, *numbers, total) for code, name, numbers, total in content.counts]
        sums = [sum(r[2][i] for r in content.counts) for i in range(len(PARTS))]
        rows.append(("", "all", *sums, sum(sums)))
        lines += table(("code", "class", *PARTS, "all"), rows)
    if content.run.split:
        info = content.run.split.info
        lines += [f"- split rule: {plain(info.rule)}", f"- seed: {info.seed}", f"- index SHA-256: {info.index_sha256}"]
    if content.run.card:
        d = content.run.card.training_data
        lines += [f"- name: {plain(d.name)}", f"- licence: {plain(d.licence)}", f"- citation: {plain(d.citation)}"]
    return [*lines, ""]


def _training(card: Card) -> list[tuple[str, object]]:
    if card.members:
        return [
            (f"training of {m.name}", f"{m.epochs} epochs, best {m.best_epoch}, seed {m.seed}") for m in card.members
        ]
    return [("epochs", f"{card.epochs}, best {card.best_epoch}"), ("seed", card.seed)]


def _card(card: Card) -> list[str]:
    rows: list[tuple[str, object]] = [
        ("name", card.name),
        ("architecture", card.architecture),
        ("parameters", f"{card.parameters:,}"),
        ("pretrained", card.pretrained),
        ("class set", card.class_set),
        ("input", f"{card.preprocessing.size} px, crop {card.preprocessing.crop:g}"),
        *_training(card),
        ("weights SHA-256", card.weights_sha256),
        ("program", card.program),
        ("intended use", card.intended_use),
    ]
    return ["## Model card", "", *table(("field", "value"), rows)]


def _settings(content: Content) -> list[str]:
    run = content.run
    lines = _card(run.card) if run.card else []
    if run.info:
        rows = [("device", run.info.device), ("precision", run.info.precision), *sorted(run.info.versions.items())]
        lines += ["## Versions", "", *table(("what", "version"), rows)]
    if run.config is not None:
        lines += ["## Settings", "", *(f"    {shown(line)}" for line in run.config.splitlines()), ""]
    return [*lines, "## Again", "", *(f"    {command}" for command in content.commands), ""]
