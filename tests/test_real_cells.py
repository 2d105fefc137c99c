"""The whole path on real cells, where MARROWSCOPE_DATA names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from marrowscope.cells import class_set
from marrowscope.config import Recipe
from marrowscope.data.index import build_index
from marrowscope.data.split import make_split
from marrowscope.export import TOLERANCE, export_onnx
from marrowscope.infer import Classifier, predict_to_predictions
from marrowscope.report import write_report
from marrowscope.schema import OK, IndexRow, Predictions
from marrowscope.score import evaluate_run
from marrowscope.train import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def index(real_cells: Path) -> list[IndexRow]:
    return build_index(real_cells)


def test_every_real_cell_is_indexed(index: list[IndexRow]) -> None:
    assert len(index) > 0
    assert all(r.status == OK for r in index)
    assert {(r.width, r.height) for r in index} == {(250, 250)}
    assert Counter(r.label for r in index).keys() >= set(class_set("marrow-8").codes)


def test_marrow_8_splits_80_10_10(index: list[IndexRow]) -> None:
    classes = class_set("marrow-8")
    split = make_split(index, codes=classes.codes, class_set=classes.name)
    have = Counter(r.label for r in index)
    for part, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        for code, n in split.info.counts[part].items():
            assert abs(n - share * have[code]) <= 1, (part, code, n)
    parts_of = {r.sha256: set() for r in index}  # type: ignore[var-annotated]
    digest = {r.path: r.sha256 for r in index}
    for row in split.rows:
        parts_of[digest[row.path]].add(row.part)
    assert max(map(len, parts_of.values())) == 1


def test_the_whole_path_on_real_cells(
    index: list[IndexRow], real_cells: Path, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    classes = class_set("marrow-8")
    split = tmp_path / "split.csv"
    make_split(index, codes=classes.codes, class_set=classes.name, cap=130).write(split)
    recipe = tiny_recipe(
        classes="marrow-8",
        image__size=48,
        data__source="bone-marrow-cytomorphology",
        augment__mixup=0.0,
        augment__cutmix=0.0,
        optimizer__learning_rate=5e-3,
        engine__batch_size=16,
        schedule__epochs=6,
    )
    run = tmp_path / "run"
    train(recipe, data=real_cells, out=run, split=split, quiet=True)
    evaluation, _ = evaluate_run(run)
    accuracy = evaluation.figures["accuracy"].value
    assert accuracy is not None
    # Chance is 0.125; a network of 10,000 weights sees more than that within seconds.
    assert accuracy > 0.25
    page = write_report(run).read_text()
    assert "CC BY 4.0" in page

    parity = export_onnx(run, tmp_path / "model.onnx")
    assert parity.real
    judged = Predictions.read(run / "predictions.csv")
    paths = [str(real_cells / p) for p in judged.paths[:100]]
    assert len(paths) == 100
    served = predict_to_predictions(Classifier.load(tmp_path / "model.onnx"), paths)
    assert np.abs(served.probs_NC - judged.probs_NC[:100]).max() < TOLERANCE
