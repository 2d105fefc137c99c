"""What the model said of each cell, and how the page words it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marrowscope.report.inputs import RunFiles
from marrowscope.report.words import class_name, percent
from marrowscope.schema import OK
from marrowscope.schema.analysis import spelled

RUNNERS_UP = 3
"""Classes that are listed of each answer, likeliest first."""


@dataclass(frozen=True)
class Answer:
    """What the model said of one test cell; `likeliest` are (code, probability), best first."""

    path: str
    truth: str
    likeliest: tuple[tuple[str, float], ...]

    @property
    def key(self) -> str:
        """The path as analysis.json has it."""
        return spelled(self.path)

    @property
    def predicted(self) -> str:
        """The likeliest class."""
        return self.likeliest[0][0]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.likeliest[0][1]

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return self.truth == self.predicted

    @property
    def sign(self) -> str:
        """Right or wrong, without colour."""
        return "✓" if self.right else "✗"

    @property
    def sentence(self) -> str:
        """The same in words, as alternative of the picture."""
        what = "recognised" if self.right else f"taken for {class_name(self.predicted)}"
        return f"{class_name(self.truth)}, {what} with {percent(self.confidence)} confidence"


def read_answers(run: RunFiles) -> tuple[Answer, ...]:
    """The answer to every file that could be read."""
    p, out = run.predictions, []
    top = min(RUNNERS_UP, len(p.codes))
    for i, (path, status, truth) in enumerate(zip(p.paths, p.status, run.truth, strict=True)):
        if status == OK:
            # A stable sort keeps the first of equals first, as argmax does.
            best = (-p.probs_NC[i]).argsort(kind="stable")[:top]
            out.append(Answer(path, truth, tuple((p.codes[j], float(p.probs_NC[i, j])) for j in best)))
    return tuple(out)


def choose(answers: Sequence[Answer], most: int) -> tuple[Answer, ...]:
    """At most so many cells for the gallery: the wrong answers first, then right ones spread over the table."""
    if len(answers) <= most:
        return tuple(answers)
    wrong = [i for i, a in enumerate(answers) if not a.right]
    right = [i for i, a in enumerate(answers) if a.right]
    kept = set(_spread(wrong, most))
    kept |= set(_spread(right, most - len(kept)))
    return tuple(answers[i] for i in sorted(kept))


def _spread(items: Sequence[int], most: int) -> list[int]:
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
