"""How often a run's test part was opened.

A test part that is looked at again and again, while settings change, slowly becomes a validation part. So every opening
leaves a line in the run folder that says when, with which program, for which weights and with which answers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

import marrowscope
from marrowscope.files import sha256_file
from marrowscope.schema import Document, Frozen

TEST_USE = "test-use.json"
"""File in the run folder."""


class Opening(Frozen):
    """One opening of the test part: when (UTC), program and version, SHA-256 of the weights and of predictions.csv."""

    at: str
    program: str
    weights_sha256: str
    predictions_sha256: str


class HoldoutUse(Document):
    """All openings of a run's test part (test-use.json), the first one first."""

    kind: ClassVar[str] = "record of test use"
    format: Literal["marrowscope test use 1"] = "marrowscope test use 1"
    openings: tuple[Opening, ...] = ()


def read_use(run: Path) -> HoldoutUse:
    """The openings so far; none where there is no record.

    Raises:
        FileFormatError: The record is damaged.
    """
    path = run / TEST_USE
    return HoldoutUse.read(path) if path.exists() else HoldoutUse()


def record_use(run: Path, predictions: Path, weights_sha256: str) -> HoldoutUse:
    """Add an opening, whose answers are in the file `predictions`.

    Raises:
        FileFormatError: The record is damaged.
        OutputError: It can't be written.
    """
    opening = Opening(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        program=f"marrowscope {marrowscope.__version__}",
        weights_sha256=weights_sha256,
        predictions_sha256=sha256_file(predictions),
    )
    use = HoldoutUse(openings=(*read_use(run).openings, opening))
    use.write(run / TEST_USE)
    return use


def use_line(run: Path) -> str:
    """``the test part of this run was opened 2 times``, and of how many different weights."""
    openings = read_use(run).openings
    times = "once" if len(openings) == 1 else f"{len(openings)} times"
    weights = len({o.weights_sha256 for o in openings})
    of_several = f", for {weights} different weights" if weights > 1 else ""
    return f"the test part of this run was opened {times}{of_several}"
