"""Model cards for people: what a model is, what it was trained on, how good it is, and what it does not know.

The facts are those of the card that every model carries (`schema.Card`); the form follows Mitchell et al. (2019),
"Model cards for model reporting".
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

from marrowscope import infer
from marrowscope.cells import CLASS_SETS, cell_class
from marrowscope.schema import Card

_PRECISION = {
    "fp32": "in fp32",
    "fp16": "stored in fp16",
    "int8-weights": "stored in int8",
    "int8": "in int8",
}


class BundledModel(NamedTuple):
    """A model that comes with the package, and the size of its file in bytes."""

    card: Card
    name: str
    bytes: int


def bundled_models() -> list[BundledModel]:
    """All models that come with the package, by name.

    Raises:
        ModelError: A file of the package is damaged.
    """
    out = []
    for name in infer.bundled():
        with resources.as_file(resources.files("marrowscope") / "models_onnx" / f"{name}.onnx") as path:
            out.append(BundledModel(infer.read_card(path), name, path.stat().st_size))
    return out


def read_card(model: str) -> Card:
    """The card of a bundled model, of an ONNX file, or of a run folder.

    Raises:
        ModelError: There is no such model.
        FileFormatError: The run folder's card is damaged.
    """
    card = Path(model) / "card.json"
    return infer.read_card(card if card.is_file() else model)


def card_line(model: BundledModel) -> str:
    """One line of facts for a list of models."""
    card = model.card
    accuracy = str(card.test["accuracy"]) if "accuracy" in card.test else "not measured"
    return (
        f"{model.name}: {len(card.codes)} classes ({' '.join(card.codes)}), input {card.preprocessing.size} px, "
        f"{card.precision}, {model.bytes / 1e6:.1f} MB, test accuracy {accuracy}; trained on "
        f"{card.training_data.name} ({card.training_data.licence})"
    )


def card_markdown(card: Card) -> str:
    """The whole card as Markdown."""
    data, image = card.training_data, card.preprocessing
    total = {part: sum(counts.values()) for part, counts in data.counts.items()}
    start = {"hub": "pre-trained weights from timm's hub", "none": "random weights"}.get(card.pretrained)
    lines = [
        f"# {card.name}",
        "",
        f"**{card.intended_use}**",
        "",
        *(
            ["**Trained on synthetic cells**, which a program drew: it knows nothing of real ones.", ""]
            * data.synthetic
        ),
        "## What it is",
        "",
        f"- Network: {card.architecture}, {card.parameters:,} weights, {_PRECISION[card.precision]}.",
        *_training(card, start or f"the weights {card.pretrained}"),
        *(
            [f"- It learnt from the answers of {' and '.join(card.teachers)} as well (distillation)."]
            if card.teachers
            else []
        ),
        f"- Input: one cell a picture, RGB, {image.size} x {image.size} px, resized by {image.interpolation} filter"
        + (f" from the central {image.crop:.0%}." if image.crop < 1 else "."),
        f"- Output: a probability for each of {len(card.codes)} classes ({card.class_set}).",
        f"- Made by {card.program}; SHA-256 of the weights `{card.weights_sha256}`.",
        "",
        "## Classes and data",
        "",
        f"{data.name}; licence {data.licence}. {data.citation}",
        "",
        "| class | | " + " | ".join(total) + " |",
        "|---|---|" + "---|" * len(total),
        *(
            f"| {code} | {cell_class(code).name} | "
            + " | ".join(str(data.counts[p].get(code, 0)) for p in total)
            + " |"
            for code in card.codes
        ),
        "| all | | " + " | ".join(map(str, total.values())) + " |",
        "",
        "## Scores",
        "",
        *_scores(card),
        "",
        "## Which answers to trust",
        "",
        *_trust(card),
        "",
        "## What it does not know",
        "",
        *_limits(card),
    ]
    return "\n".join(lines) + "\n"


def _training(card: Card, start: str) -> list[str]:
    if card.members:
        return [
            f"- It answers with the mean of the probabilities of {len(card.members)} networks, trained one by one from",
            f"  {start}; the weights of each are those of the epoch which did best on validation cells:",
            *(
                f"  - {m.name}: {m.architecture}{f' at {m.input_px} px' if m.input_px else ''}, seed {m.seed}, "
                f"epoch {m.best_epoch} of {m.epochs}."
                for m in card.members
            ),
        ]
    return [
        f"- Trained from {start} (seed {card.seed}) for {card.epochs} epochs;",
        f"  the weights are those of epoch {card.best_epoch}, which did best on validation cells.",
    ]


def _scores(card: Card) -> list[str]:
    if card.test:
        rows = [f"| {name.replace('_', ' ')} | {f} | {f.n} | {f.method} |" for name, f in card.test.items()]
        out = [
            "On the test part (95 % intervals):",
            "",
            "| figure | value | cells | interval |",
            "|---|---|---|---|",
            *rows,
        ]
    else:
        out = ["The test part was not opened yet."]
    values = ", ".join(f"{k.removeprefix('val_').replace('_', ' ')} {v:.3f}" for k, v in card.validation.items())
    chose = "the epochs" if card.members else "the epoch"
    return [*out, "", f"On validation cells, which chose {chose}: {values}."]


def _trust(card: Card) -> list[str]:
    out = []
    if card.scaling is not None:
        out.append(f"- Probabilities are calibrated ({card.scaling.method} scaling, {card.scaling.fitted_on} cells).")
    out += [
        f"- Confidence of {a.threshold:.3f} and more: {a.accuracy:.0%} of answers right on validation cells; "
        f"{a.coverage:.0%} of cells reach it."
        if a.threshold <= 1
        else f"- No confidence is known to make {a.accuracy:.0%} of answers right."
        for a in card.acceptance
    ]
    out += [
        f"- Sets of classes that hold the truth for {1 - c.alpha:.0%} of cells ({c.method})." for c in card.conformal
    ]
    if card.novelty is not None:
        n = card.novelty
        out.append(f"- Pictures unlike its training cells are flagged ({n.method}; {n.kept:.0%} of its own are not).")
    return out or ["Nothing was fitted that says so: confidence is the network's own, and not calibrated."]


def _limits(card: Card) -> list[str]:
    out = []
    known = set(card.codes)
    wider = next((CLASS_SETS[n] for n in ("marrow-14", "marrow-21") if known < set(CLASS_SETS[n].codes)), None)
    if wider is not None:
        unknown = [f"{cell_class(c).name} ({c})" for c in wider.codes if c not in known]
        out.append(f"- {len(unknown)} of the {len(wider)} classes of {wider.name}, which it calls something else:")
        out.append(f"  {', '.join(unknown)}.")
    out.append("- Cells of other patients: the collection names none, so that cells of one may stand in training and")
    out.append("  test. Scores on new patients will be lower.")
    out.append("- Other stains, scanners and magnifications than those of its training cells.")
    out.append("- The mix of a real marrow: its classes were drawn to similar numbers.")
    return out
