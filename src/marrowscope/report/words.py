"""Words of the page: names of figures and classes, and numbers for reading."""

from __future__ import annotations

import unicodedata

from marrowscope.cells import BY_CODE

PERCENT = "\N{NO-BREAK SPACE}%"

LABELS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share of cells named right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall, every class weighing the same"),
    "top2_accuracy": ("Top-2 accuracy", "the right class is among the two likeliest"),
    "macro_precision": ("Macro precision", "mean over classes"),
    "macro_recall": ("Macro recall", "mean over classes"),
    "macro_f1": ("Macro F1", "mean over classes"),
    "weighted_precision": ("Weighted precision", "mean weighted by class size"),
    "weighted_recall": ("Weighted recall", "mean weighted by class size"),
    "weighted_f1": ("Weighted F1", "mean weighted by class size"),
    "cohen_kappa": ("Cohen's kappa", "agreement beyond chance"),
    "matthews": ("Matthews correlation", "−1 to 1; 0 is chance"),
    "log_loss": ("Log loss", "lower is better"),
    "macro_auroc": ("Macro AUROC", "one class against the rest, mean over classes"),
    "macro_average_precision": ("Macro average precision", "one class against the rest, mean over classes"),
    "tolerant_accuracy": ("Tolerant accuracy", "a neighbouring class counts as right"),
    "cost_error": ("Mean cost of an answer", "0 is right, lower is better"),
    "line_accuracy": ("Right cell line", "share of answers in the right lineage"),
    "maturation_error": ("Stages off", "mean steps of maturation in the right line; lower is better"),
    "expected_calibration_error": ("Expected calibration error", "lower is better"),
    "classwise_calibration_error": ("Class-wise calibration error", "lower is better"),
    "brier_loss": ("Brier loss", "lower is better"),
    "aurc_error": ("Area under risk-coverage", "mean error rate over all thresholds; lower is better"),
    "excess_aurc_error": ("The same above the best order", "0: every wrong answer is less sure than every right one"),
    "coverage_at_95": ("Coverage at 95 % accuracy", "share of cells answered when only the surest are"),
    "coverage_at_98": ("Coverage at 98 % accuracy", "share of cells answered when only the surest are"),
    # of the tests of explanations
    "not_flat": ("Maps that are not flat", "a flat map says nothing"),
    "other_class": ("Likeness to the map of the second class", "rank correlation; 1: the class does not matter"),
    "other_cell": ("Likeness to the map of another cell", "rank correlation; 1: the picture does not matter"),
    "deletion": ("Area under deletion", "lower is better"),
    "insertion": ("Area under insertion", "higher is better"),
    "deletion_gain": ("Deletion, less than by chance", "above 0 is better"),
    "insertion_gain": ("Insertion, more than by chance", "above 0 is better"),
    "spearman": ("Likeness when all layers forgot, rank correlation", "lower is better"),
    "ssim": ("Likeness when all layers forgot, structural similarity", "lower is better"),
    "pointing_cell": ("Hottest pixel on the cell", "share of drawn cells"),
    "pointing_nucleus": ("Hottest pixel on the nucleus", "share of drawn cells"),
    "energy_cell": ("Heat on the cell", "mean share of the heat"),
    "energy_nucleus": ("Heat on the nucleus", "mean share of the heat"),
    "energy_cell_gain": ("Heat on the cell, above its share of the picture", "0 is chance"),
    "energy_nucleus_gain": ("Heat on the nucleus, above its share of the picture", "0 is chance"),
}
SCALINGS = {"none": "as predicted", "temperature": "temperature scaling", "vector": "vector scaling"}


def shown(text: str) -> str:
    """Text as a page can hold it: bytes that are not UTF-8 and control characters become the replacement sign."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)


def class_name(code: str) -> str:
    """Full name of a class; the code itself where it is another program's."""
    return BY_CODE[code].name if code in BY_CODE else code


def label(key: str) -> str:
    """A figure's name in words."""
    return LABELS[key][0] if key in LABELS else key.replace("_", " ").capitalize()


def note(key: str) -> str:
    """What a figure is, in some words more; empty where its name says all."""
    return LABELS.get(key, ("", ""))[1]


def percent(share: float) -> str:
    """A share for reading, never rounded to a boundary that it has not reached."""
    if share <= 0 or share >= 1:
        return f"{share * 100:.0f}{PERCENT}"
    return f"{min(max(share * 100, 0.1), 99.9):.1f}{PERCENT}"


def change(kind: str) -> str:
    """Name of a kind of change."""
    return "JPEG" if kind == "jpeg" else kind.capitalize()


def p_value(p: float) -> str:
    """A p-value for reading."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
