"""The folder of heat maps, the tests of a run, and the command, on a tiny run and an ONNX file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marrowscope.cli import main
from marrowscope.errors import DataError, ModelError, OutputError
from marrowscope.explain import Settings, explain, judge_run, open_subject, part_pictures
from marrowscope.explain.drawing import RIGHT, WRONG, Tile, colours, grid, overlay, pair
from marrowscope.explain.heat import CONTROLS
from marrowscope.explain.selection import some_of_each
from marrowscope.infer import Classifier, find_images
from marrowscope.schema import Explanations, ExplanationTests, Split, SplitRow
from tiny_onnx import write_model

CAMS = ("gradcam", "hirescam", "layercam")


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explained") / "maps"
    chosen = part_pictures(tiny_run, "train", per_class=2)
    explain(open_subject(tiny_run, steps=6), chosen.items, out, truth=chosen.truth)
    return out


def test_the_folder_holds_what_its_document_says(folder: Path, tiny_run: Path) -> None:
    found = Explanations.read(folder / "explanations.json")
    assert [m.name for m in found.methods] == [*CAMS, "occlusion"]
    assert set(found.not_fitting) == {"rollout", "relevance"}
    assert found.synthetic
    assert len(found.pictures) == 6
    truth = {r.path: r.label for r in Split.read(tiny_run / "split.csv").rows}
    for p in found.pictures:
        assert p.truth == truth[p.path]
        assert p.explained == p.predicted
        assert p.arrays is not None
        with np.load(folder / p.arrays) as arrays:
            assert set(arrays) == {*CAMS, "occlusion"}
            for heat in arrays.values():
                assert heat.shape == (found.size, found.size)
                assert heat.dtype == np.float32
                assert heat.min() >= 0
        assert set(p.overlays) == {*CAMS, "occlusion"}
        for name in p.overlays.values():
            with Image.open(folder / name) as image:
                assert image.width > 2 * image.height * 0.8
    assert {(g.code, g.method) for g in found.grids} == {(p.truth, m) for p in found.pictures for m in p.overlays}
    for g in found.grids:
        mine = [p for p in found.pictures if p.truth == g.code]
        assert (g.n, g.right) == (len(mine), sum(p.predicted == p.truth for p in mine))
        assert (folder / g.file).is_file()
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    named = {f for p in found.pictures for f in (p.arrays, *p.overlays.values())} | {g.file for g in found.grids}
    assert files == named | {"explanations.json"}


def test_the_answers_are_those_of_the_run(folder: Path, tiny_run: Path) -> None:
    from marrowscope.score import predict_part

    predictions = predict_part(tiny_run, "train")
    by_path = dict(zip(predictions.paths, predictions.probs_NC, strict=True))
    for p in Explanations.read(folder / "explanations.json").pictures:
        assert p.confidence == pytest.approx(by_path[p.path].max(), abs=1e-5)
        assert p.predicted == predictions.codes[by_path[p.path].argmax()]


def test_an_onnx_file_is_explained_as_by_a_prediction(cells: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    subject = open_subject(path, steps=6)
    found = explain(subject, find_images(sorted((cells / "LYT").glob("*.jpg"))[:3]), tmp_path / "out", target="EOS")
    assert [m.name for m in found.methods] == ["occlusion"]
    names = [p.path for p in found.pictures]
    model = Classifier.load(path)
    for p, probs in zip(found.pictures, model.predict_proba(names), strict=True):
        assert (p.truth, p.explained) == ("LYT", "EOS")
        assert p.confidence == pytest.approx(probs.max())
        assert p.predicted == model.codes[probs.argmax()]
    with pytest.raises(ModelError, match="gives answers but no gradients") as e:
        explain(subject, find_images([cells / "LYT"]), tmp_path / "other", methods=["gradcam"])
    assert "Methods that fit: occlusion" in str(e.value)


def test_broken_pictures_keep_their_place_and_their_reason(cells: Path, tmp_path: Path) -> None:
    good = sorted((cells / "BLA").glob("*.jpg"))[:2]
    broken = tmp_path / "NGS" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(good[0].read_bytes()[:300])
    names = [good[0], broken, tmp_path / "absent.jpg", good[1]]
    found = explain(open_subject(write_model(tmp_path / "m.onnx"), steps=6), find_images(names), tmp_path / "out")
    assert [p.path for p in found.pictures] == [str(n) for n in names]
    assert [p.status.partition(":")[0] for p in found.pictures] == ["ok", "damaged or truncated", "missing", "ok"]
    assert found.pictures[1].arrays is None
    assert found.pictures[1].truth == "NGS"
    assert {g.code: g.n for g in found.grids} == {"BLA": 2}


def test_a_folder_of_something_else_is_left_alone(cells: Path, tmp_path: Path) -> None:
    subject = open_subject(write_model(tmp_path / "m.onnx"), steps=6)
    out = tmp_path / "out"
    (out / "arrays").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds something else \(notes.txt\)"):
        explain(subject, find_images([cells / "LYT"]), out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    pictures = sorted((cells / "LYT").glob("*.jpg"))
    explain(subject, find_images(pictures[:2]), out)
    again = explain(subject, find_images(pictures[2:3]), out)
    assert [p.name for p in (out / "arrays").iterdir()] == [Path(again.pictures[0].arrays or "").name]


def test_what_can_not_be_explained_is_refused_by_name(tiny_run: Path, cells: Path, tmp_path: Path) -> None:
    subject = open_subject(tiny_run, steps=6)
    for options, says in [
        ({"methods": ["magic"]}, "Unknown method: 'magic'. Allowed: gradcam, hirescam"),
        ({"methods": ["rollout"]}, "doesn't fit the network test_resnet: .* plain transformer"),
        ({"target": "EOS"}, "no class 'EOS'; allowed: "),
    ]:
        with pytest.raises(ModelError, match=says):
            explain(subject, find_images([cells]), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="per_class is 0"):
        part_pictures(tiny_run, "test", per_class=0)


# ------------------------------------------------------------------------------------------------------------- drawing


def _tile(right: bool | None, heat: float = 1.0) -> Tile:
    picture = np.full((32, 32, 3), 200, dtype=np.uint8)
    map_ = np.zeros((32, 32), dtype=np.float32)
    map_[8:16, 8:16] = heat
    return Tile(picture, map_, right, "BLA 0.98")


def test_right_and_wrong_differ_in_colour_and_in_a_letter() -> None:
    right, wrong, unknown = (np.asarray(pair(_tile(r)).convert("RGB")) for r in (True, False, None))
    for image, colour in ((right, RIGHT), (wrong, WRONG)):
        assert tuple(image[8, 7]) == tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    # In grey, where the two frames could be taken for each other, the letter remains.
    letter = np.s_[-22:-6, 6:22]
    assert np.abs(right.mean(2)[letter] - wrong.mean(2)[letter]).max() > 60
    assert not np.array_equal(unknown, right)


def test_an_overlay_changes_hot_places_alone() -> None:
    tile = _tile(True)
    found = overlay(tile.picture_HWC, tile.heat_HW)
    changed = (found != tile.picture_HWC).any(2)
    np.testing.assert_array_equal(changed, tile.heat_HW > 0)
    np.testing.assert_array_equal(overlay(tile.picture_HWC, 1e-5 * tile.heat_HW), found)  # faint heat is scaled
    np.testing.assert_array_equal(overlay(tile.picture_HWC, np.ones((32, 32), np.float32)), tile.picture_HWC)  # flat


def test_hotter_is_lighter() -> None:
    lightness = colours(np.linspace(0, 1, 50)[None])[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_a_grid_has_a_place_for_each_tile_and_long_text_stays_in_it() -> None:
    tiles = [_tile(True)] * 4 + [Tile(_tile(False).picture_HWC, _tile(False).heat_HW, False, "x" * 500)]
    image = grid(tiles, columns=4, title="BLA", side=64)
    assert image.width > 4 * 2 * 64
    assert image.height > 2 * 64


# --------------------------------------------------------------------------------------------------------------- judge


def test_the_tests_of_a_run_are_written_and_no_control_passes(tiny_run: Path, tmp_path: Path) -> None:
    settings = Settings(cells=6, phantoms=3, sanity_cells=2, steps=3, occlusion_steps=6)
    done: list[tuple[int, int]] = []
    found, path = judge_run(
        tiny_run, part="train", settings=settings, output=tmp_path / "t.json", progress=lambda a, b: done.append((a, b))
    )
    assert ExplanationTests.read(path) == found
    assert done == [(i, 7) for i in range(7)]
    assert [m.method for m in found.methods] == [*CAMS, "occlusion", *CONTROLS]
    assert not any(m.passed for m in found.methods if m.control)
    assert (found.n, found.phantoms, found.synthetic) == (6, 3, True)
    for m in found.methods:
        assert {c.name for c in m.checks} == {"answers", "faithful", "sanity", "where"}
        assert len(m.deletion) == len(m.insertion) == 4
        assert m.deletion[0] == pytest.approx(m.insertion[-1], abs=1e-6)  # the whole picture
        assert [s.randomised for s in m.cascade] == sorted(s.randomised for s in m.cascade)
        for name, f in m.figures.items():
            assert f.value is not None
            assert f.low is not None
            assert f.high is not None
            assert f.low - 1e-9 <= f.value <= f.high + 1e-9, name
    again, _ = judge_run(tiny_run, part="train", settings=settings, methods=["occlusion"], output=tmp_path / "u.json")
    assert again.methods[0] == next(m for m in found.methods if m.method == "occlusion")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ModelError, match="cells is 1; allowed are 2 and more"):
        Settings(cells=1)


def test_as_many_of_each_class_as_can_be() -> None:
    rows = [SplitRow(f"{c}/{i}.jpg", c, "test") for c, n in (("BLA", 9), ("LYT", 2), ("NGS", 9)) for i in range(n)]
    chosen = some_of_each(rows, 10, seed=0)
    counts = {c: sum(r.label == c for r in chosen) for c in ("BLA", "LYT", "NGS")}
    assert counts == {"BLA": 4, "LYT": 2, "NGS": 4}
    assert chosen == some_of_each(rows[::-1], 10, seed=0)
    assert chosen != some_of_each(rows, 10, seed=1)


# ------------------------------------------------------------------------------------------------------------- command


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of `marrowscope explain`."""
    monkeypatch.setattr("sys.argv", ["marrowscope", "explain", *map(str, args)])
    with pytest.raises(SystemExit) as e:
        main()
    out = capsys.readouterr()
    return int(e.value.code or 0), out.out, out.err


def test_the_command_explains_a_part(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--part", "val", "--per-class", 1, "--method", "layercam", "--method", "gradcam", "-o", out]
    status, text, _ = run(monkeypatch, capsys, tiny_run, *options)
    assert status == 0
    assert "images explained by gradcam, layercam" in text
    assert "Not a medical device" in text
    assert {m.name for m in Explanations.read(out / "explanations.json").methods} == {"gradcam", "layercam"}


def test_the_command_tells_of_broken_pictures(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "m.onnx")
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(cells / "LYT" / "LYT_00001.jpg", given)
    (given / "broken.jpg").write_bytes(b"no picture")
    status, text, errors = run(monkeypatch, capsys, model, given, "-o", tmp_path / "out", "--steps", 6)
    assert status == 3
    assert "1 images explained by occlusion" in text
    assert "without gradcam, hirescam, layercam, rollout, relevance: an ONNX file" in text
    assert "broken.jpg: not a known picture format" in errors


def test_the_command_refuses_bad_input(
    tiny_run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "m.onnx")
    for args, says in [
        ([model], "Give images to explain"),
        ([tiny_run, cells, "--part", "test"], "Give either images"),
        ([model, "--part", "test"], "Give images to explain"),
        ([model, "--test"], "--test takes a run folder"),
        ([tiny_run, cells, "--test"], "--test takes a run folder"),
        ([model, cells, "--method", "gradcam"], "no gradients"),
        ([tiny_run, "--test", "--method", "nothing"], "Unknown method: 'nothing'"),
        ([model, cells, "--fill", "noise"], "allowed: background, mean, blur"),
        ([model, cells, "--window", "0.05"], "leave gaps"),
        ([tmp_path / "absent.onnx", cells], "No model"),
        ([tmp_path, cells], "no run folder"),
        ([model, tmp_path / "given"], "could not be read"),
    ]:
        status, _, errors = run(monkeypatch, capsys, *args, "-o", tmp_path / "out")
        assert says in errors, (args, errors)
        assert status == (3 if says == "could not be read" else 2)


def test_the_command_tests_a_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--test", "--part", "train", "--cells", 3, "--method", "gradcam", "--bf16", "-o", tmp_path / "t.json"]
    status, text, _ = run(monkeypatch, capsys, tiny_run, *options)
    assert status == 0
    assert "Grad-CAM (gradcam): " in text
    assert "Control: edges of the picture (edges): failed" in text
    found = ExplanationTests.read(tmp_path / "t.json")
    assert (found.n, found.settings["precision"]) == (3, "bf16")
