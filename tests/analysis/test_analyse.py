"""The stage: files in, analysis.json out, and the command."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marrowscope.analysis import analyse_csv, feature_map
from marrowscope.analysis.pictures import Pictures
from marrowscope.errors import DataError, FileFormatError, ImageError
from marrowscope.files import sha256_file
from marrowscope.images import load_prepared
from marrowscope.schema import OK, Analysis, Predictions
from tiny import TINY_CODES


@pytest.fixture
def table(cells: Path, tmp_path: Path) -> Path:
    """Answers to all phantoms but two that are not there, every fourth wrong."""
    paths = sorted(p.relative_to(cells).as_posix() for p in cells.rglob("*") if p.suffix in {".jpg", ".png"})
    paths += ["BLA/gone.jpg", "LYT/bad_\udcff.jpg"]
    truth = [p[:3] for p in paths]
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1.0] * 3, len(paths)) * 0.4
    for i, code in enumerate(truth):
        probs[i, (TINY_CODES.index(code) + (i % 4 == 0)) % 3] += 0.6
    out = tmp_path / "predictions.csv"
    Predictions(tuple(paths), (OK,) * len(paths), TINY_CODES, probs, tuple(truth)).write(out)
    return out


def test_a_table_with_its_pictures(table: Path, cells: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = analyse_csv(table, data=cells, draws=50, progress=lambda done, total: seen.append((done, total)))
    assert found.n == 32
    assert found.unmeasured == {"file not found": 2}
    assert {m.name for m in found.quality} == {"brightness", "contrast", "sharpness", "stain", "size"}
    assert all(sum(b.error.n for b in m.bins) == 30 for m in found.quality)
    assert seen[-1] == (32, 32)
    assert found.predictions_sha256 == sha256_file(table)
    assert found.feature_map is None


def test_it_is_written_and_read_again_with_any_name(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_map, "find_spec", lambda name: None)  # UMAP takes long to load
    features = {p: np.arange(4, dtype=np.float32) + i for i, p in enumerate(Predictions.read(table).paths)}
    found = analyse_csv(table, features=features, draws=20)
    found.write(tmp_path / "analysis.json")
    assert Analysis.read(tmp_path / "analysis.json") == found
    assert found.feature_map is not None
    assert "LYT/bad_\\xff.jpg" in found.feature_map.points
    with pytest.raises(ValueError, match="features are missing for 31 cells"):
        analyse_csv(table, features={"BLA/gone.jpg": np.ones(4, np.float32)})


def test_identical_pictures_count_as_one(table: Path, cells: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    files = sorted((data / "BLA").iterdir())
    for file in files[1:]:
        shutil.copy(files[0], file)
    found = analyse_csv(table, data=data, draws=50)
    assert "groups" in next(p for p in found.pairs if p.truth == "BLA").share.method
    assert (
        "groups" not in next(p for p in analyse_csv(table, data=cells, draws=50).pairs if p.truth == "BLA").share.method
    )


def test_data_that_holds_none_of_the_pictures(table: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"None of the 32 pictures.*file not found"):
        analyse_csv(table, data=tmp_path / "empty")
    with pytest.raises(DataError, match="exists"):
        analyse_csv(table, data=tmp_path / "nothing")


def test_a_table_without_truth(table: Path, tmp_path: Path) -> None:
    p = Predictions.read(table)
    Predictions(p.paths, p.status, p.codes, p.probs_NC).write(tmp_path / "plain.csv")
    with pytest.raises(FileFormatError, match="truth"):
        analyse_csv(tmp_path / "plain.csv")


def test_pictures_are_found_by_the_names_of_predict(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(p for p in sorted(cells.rglob("*")) if p.suffix in {".jpg", ".png"}).relative_to(cells).as_posix()
    content = (cells / name).read_bytes()
    archive = Path(shutil.make_archive(str(tmp_path / "cells"), "zip", cells))
    monkeypatch.chdir(tmp_path)
    for data in (cells, archive, Path("cells.zip")):
        pictures = Pictures(data)
        for given in (name, f"{data}/{name}", f"{data.absolute()}/{name}"):
            assert pictures.read(given) == content
    (tmp_path / "secret.jpg").write_bytes(content)
    for outside in ("../secret.jpg", str(tmp_path / "secret.jpg"), f"{cells}/../secret.jpg"):
        with pytest.raises(ImageError, match="outside"):
            Pictures(cells).read(outside)


@pytest.fixture
def judged_run(tiny_run: Path, tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    from marrowscope.score import evaluate_run

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    evaluate_run(run)
    return run


def test_features_are_what_the_last_layer_decides_on(tiny_run: Path) -> None:
    torch = pytest.importorskip("torch")
    from marrowscope.features import run_features
    from marrowscope.models import load_run_model
    from marrowscope.schema import RunInfo, Split

    model, card = load_run_model(tiny_run)
    rows, data = Split.read(tiny_run / "split.csv").part("test"), Path(RunInfo.read(tiny_run / "run.json").data)
    found = run_features(tiny_run, rows, data=data)
    assert list(found) == [r.path for r in rows]
    backbone: Any = model.backbone
    with torch.inference_mode():
        logits = backbone.get_classifier()(torch.from_numpy(np.stack(list(found.values()))))
        pixels = np.stack([load_prepared(data / r.path, card.preprocessing) for r in rows])
        torch.testing.assert_close(logits, model(torch.from_numpy(pixels).permute(0, 3, 1, 2)), rtol=1e-4, atol=1e-5)


def test_a_run_is_analysed_and_reported(judged_run: Path, invoke: Any) -> None:
    assert invoke("analyse", judged_run).exit_code == 0
    found = Analysis.read(judged_run / "analysis.json")
    assert found.feature_map is not None
    assert found.part == "test"
    assert len(found.feature_map.points) == found.n
    assert found.quality
    first = hashlib.sha256((judged_run / "analysis.json").read_bytes()).hexdigest()
    assert invoke("analyse", judged_run).exit_code == 0
    assert hashlib.sha256((judged_run / "analysis.json").read_bytes()).hexdigest() == first
    assert invoke("report", judged_run, "--max-cells", 2).exit_code == 0
    assert 'id="map"' in (judged_run / "report.html").read_text(encoding="utf-8")
    assert invoke("report", judged_run, "--charts", judged_run / "charts").exit_code == 0
    assert (judged_run / "charts" / "map-truth.svg").is_file()


def test_a_run_without_a_map_needs_no_model(judged_run: Path, invoke: Any) -> None:
    (judged_run / "best.safetensors").unlink()
    assert invoke("analyse", judged_run, "--no-map").exit_code == 0
    assert Analysis.read(judged_run / "analysis.json").feature_map is None


def test_a_run_that_was_not_evaluated(tiny_run: Path) -> None:
    pytest.importorskip("torch")
    from marrowscope.features import analyse_run

    with pytest.raises(FileFormatError, match=r"marrowscope evaluate .* --part val"):
        analyse_run(tiny_run, "val")


def test_the_command_on_a_table(table: Path, cells: Path, invoke: Any) -> None:
    done = invoke("analyse", table, "--data", cells)
    assert done.exit_code == 0
    assert "2 pictures not measured: file not found" in done.output
    assert "taken for" in done.output
    assert (table.parent / "analysis.json").is_file()
