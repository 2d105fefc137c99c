"""Every opening of a run's test part leaves a line, and nothing but `evaluate` opens it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from marrowscope.errors import FileFormatError
from marrowscope.export import export_onnx
from marrowscope.holdout import TEST_USE, read_use, use_line
from marrowscope.report import write_report
from marrowscope.schema import Card
from marrowscope.score import evaluate_run


def test_each_opening_is_counted(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert read_use(run).openings == ()
    evaluate_run(run, "val")
    assert not (run / TEST_USE).exists(), "the validation part is open to all"
    evaluate_run(run)
    assert use_line(run) == "the test part of this run was opened once"
    evaluate_run(run)
    first, second = read_use(run).openings
    assert use_line(run) == "the test part of this run was opened 2 times"
    assert first.predictions_sha256 == hashlib.sha256((run / "predictions.csv").read_bytes()).hexdigest()
    assert first.weights_sha256 == Card.read(run / "card.json").weights_sha256
    assert first.at <= second.at
    # Other weights in the same folder: somebody went on choosing after having looked.
    other = second.model_copy(update={"weights_sha256": "0" * 64})
    read_use(run).model_copy(update={"openings": (first, second, other)}).write(run / TEST_USE)
    assert use_line(run).endswith("opened 3 times, for 2 different weights")
    (run / TEST_USE).write_text("damaged")
    with pytest.raises(FileFormatError, match=TEST_USE):
        evaluate_run(run)


def test_reports_and_exports_do_not_open_it(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    export_onnx(run, tmp_path / "model.onnx")
    assert not (run / TEST_USE).exists()
    evaluate_run(run)
    write_report(run)
    assert len(read_use(run).openings) == 1
