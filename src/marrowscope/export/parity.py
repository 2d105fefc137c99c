"""Whether an ONNX file answers as the checkpoint does, and how fast it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from marrowscope.evaluate.compare import paired_difference
from marrowscope.evaluate.figures import proportion
from marrowscope.evaluate.metrics import Integers
from marrowscope.images import Pixels
from marrowscope.infer.classifier import INPUT, OUTPUT, SCORE, Classifier, available_cores
from marrowscope.schema import Figure

TOLERANCE = 1e-4
"""A probability of the fp32 file may differ from the checkpoint's by less than this."""

SCORE_TOLERANCE = 1e-3
"""An ood_score of the fp32 file may differ from the checkpoint's by less than this share of it, or of 1 if smaller."""

SAME_ANSWERS = 0.99
"""Least share of validation cells on which a smaller file gives the answer of the fp32 file."""

LOST_ACCURACY = 0.005
"""Most accuracy on validation that a smaller file may lose."""

PAYS_FROM = 1.3
"""An int8 file that is not this many times as fast as fp32 isn't worth its loss."""

DRAWS = 2000
_ROUNDS, _BATCH = 7, 4

Probabilities = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its checkpoint, and what it costs; from `agreement` on, of smaller files only.

    Attributes:
        pictures: Number of pictures compared.
        real: Whether they were cells of the run's data (or noise, where the data are not at hand).
        max_difference: Largest absolute difference of a probability: of the checkpoint and the fp32 file, or of the
            fp32 file and the smaller one.
        precision: ``fp32``, ``fp16``, ``int8-weights`` or ``int8``.
        agreement: Share of validation cells with the fp32 file's answer.
        accuracy: On validation.
        accuracy_change: Less that of the fp32 file, on the same cells.
        speed: How many times as fast as the fp32 file, one thread each, measured in turns.
        size: Bytes of the file as a share of the fp32 file's.
        method: What chose the ranges of int8: MinMax, Percentile or Entropy.
        in_float: Layers that int8 leaves in float32.
        score_difference: Largest difference of an ood_score, as a share of it (`SCORE_TOLERANCE`): of the checkpoint
            and the fp32 file; None where the file has no such output.
        note: What the user should know of the file.
    """

    pictures: int
    real: bool
    max_difference: float
    precision: str = "fp32"
    agreement: Figure | None = None
    accuracy: Figure | None = None
    accuracy_change: Figure | None = None
    speed: float | None = None
    size: float | None = None
    method: str = ""
    in_float: tuple[str, ...] = ()
    score_difference: float | None = None
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the gate lets the file through."""
        if self.agreement is None or self.accuracy_change is None:
            return self.max_difference < TOLERANCE
        same, change = self.agreement.value, self.accuracy_change.value
        return same is not None and change is not None and same >= SAME_ANSWERS and change >= -LOST_ACCURACY

    @property
    def pays(self) -> bool | None:
        """Whether the file is worth its loss in speed; None where the speed wasn't measured."""
        return None if self.speed is None else self.speed > PAYS_FROM

    def lines(self) -> list[str]:
        """What to tell the user, a line each."""
        pictures = f"{self.pictures} {'cells' if self.real else 'noise pictures'}"
        out = [f"largest difference of a probability on {pictures}: {self.max_difference:.1e}"]
        if self.score_difference is not None:
            out.append(f"largest difference of an ood_score, as a share of it: {self.score_difference:.1e}")
        if self.agreement is not None:
            out.append(f"the same answers as fp32: {self.agreement}; accuracy {self.accuracy}")
            out.append(f"accuracy less that of fp32: {self.accuracy_change}")
        if self.method:
            out.append(f"ranges by {self.method}; {len(self.in_float)} layers stay in float32")
        if self.speed is not None and self.size is not None:
            out.append(f"{self.speed:.2f} times as fast as fp32 (one thread), {self.size:.0%} of its size")
        if self.precision == "int8" and self.pays is False:
            out.append(f"int8 does not pay for this network here: it is not more than {PAYS_FROM} times as fast")
        return [*out, self.note] if self.note else out


@dataclass(frozen=True)
class Truth:
    """What the validation cells are.

    Attributes:
        labels_N: Places of the true classes.
        group_N: Cells that are no independent evidence (identical files) share a number.
        codes: Class codes.
    """

    labels_N: Integers
    group_N: Integers
    codes: Sequence[str]


def file_outputs(file: Path, chunks: Iterable[Pixels]) -> tuple[Logits, Logits | None]:
    """Run prepared cells, uint8 (N, size, size, 3) each time, through a file: logits (N, C) and ood_score (N,).

    The score is None where the file has no such output.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = available_cores()
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    wanted = [name for name in (OUTPUT, SCORE) if name in {o.name for o in session.get_outputs()}]
    logits, scores = [], []
    for chunk in chunks:
        found = session.run(wanted, {INPUT: chunk})
        logits.append(found[0])
        scores += found[1:]
    return np.concatenate(logits), np.concatenate(scores) if scores else None


def compare_answers(precision: str, expected: Probabilities, answered: Probabilities, truth: Truth) -> Parity:
    """Compare a smaller file's answers with those of the fp32 file, both (N, C), on the whole validation part."""
    first, second = expected.argmax(1), answered.argmax(1)
    right_first, right_second = first == truth.labels_N, second == truth.labels_N
    return Parity(
        pictures=len(expected),
        real=True,
        max_difference=float(np.abs(expected - answered).max()),
        precision=precision,
        agreement=proportion(first == second, truth.group_N),
        accuracy=proportion(right_second, truth.group_N),
        accuracy_change=paired_difference(right_first, right_second, truth.group_N, DRAWS, 0),
    )


def explain(parity: Parity, expected: Probabilities, answered: Probabilities, codes: Sequence[str]) -> str:
    """Why the gate is shut: the figures, what is asked for, and which classes are mistaken for which."""
    first, second = expected.argmax(1), answered.argmax(1)
    changed = Counter((codes[a], codes[b]) for a, b in zip(first, second, strict=True) if a != b)
    pairs = ", ".join(f"{a} to {b} {n}" for (a, b), n in changed.most_common(6))
    return (
        f"the same answers as fp32 on {parity.agreement} of {parity.pictures} validation cells (at least "
        f"{SAME_ANSWERS} is needed), accuracy changed by {parity.accuracy_change} (at most -{LOST_ACCURACY} is "
        f"allowed); answers that changed: {pairs or 'none'}"
    )


def speed_ratio(reference: Path, other: Path, cells: Pixels) -> float:
    """How many times as fast as the first file the second is: one thread each, in turns, median of the rounds.

    The processor's time is measured, so that other programs on a busy machine don't count.
    """
    first, second = (Classifier.load(p, threads=1) for p in (reference, other))
    batch = cells[:_BATCH]
    ratios = []
    for turn in range(_ROUNDS + 1):
        start = time.process_time()
        first.logits(batch)
        middle = time.process_time()
        second.logits(batch)
        end = time.process_time()
        if turn:  # the first one warms up
            ratios.append((middle - start) / max(end - middle, 1e-9))
    return float(np.median(ratios))
