"""Averages over models and over views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from PIL import Image

from marrowscope.errors import ModelError
from marrowscope.infer import Classifier, Ensemble, predict_files
from marrowscope.infer.ensemble import views_of
from marrowscope.schema import Predictions
from tiny_onnx import CODES, card, graph, write_model

RNG = np.random.default_rng(4)


def corner_model(path: Path, size: int = 32, seed: int = 0) -> Classifier:
    """A model that looks at the picture's upper left quarter only, so that turning it matters."""
    model = graph(size=size, seed=seed)
    model.graph.node[1].input[0] = "quarter"
    starts, ends, axes = (helper.make_tensor(n, onnx.TensorProto.INT64, [2], v) for n, v in
                          (("starts", [0, 0]), ("ends", [size // 2] * 2), ("quarter_axes", [1, 2])))  # fmt: skip
    model.graph.initializer.extend([starts, ends, axes])
    model.graph.node.insert(1, helper.make_node("Slice", ["x", "starts", "ends", "quarter_axes"], ["quarter"]))
    helper.set_model_props(model, {"marrowscope.card": card(size=size, name=f"corner{seed}").model_dump_json()})
    onnx.save(model, path)
    return Classifier.load(path, threads=1)


def pictures(n: int = 6, side: int = 32) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side]
    ramp = (x * 3 + y * 4)[None, :, :, None] * np.array([1, 0.5, 0.2])
    return np.clip(ramp + RNG.integers(0, 90, (n, 1, 1, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Classifier]:
    folder = tmp_path_factory.mktemp("models")
    return [corner_model(folder / f"{i}.onnx", seed=i) for i in range(3)]


def test_mean_of_models(models: list[Classifier]) -> None:
    pixels = pictures()
    want = np.mean([m.predict_proba(pixels) for m in models], axis=0)
    ensemble = Ensemble(models)
    np.testing.assert_allclose(ensemble.predict_proba(pixels), want, atol=1e-12)
    assert ensemble.predict(pixels) == [CODES[i] for i in want.argmax(1)]
    np.testing.assert_allclose(Ensemble(models[:1]).predict_proba(pixels), models[0].predict_proba(pixels), atol=1e-12)


def test_models_of_different_sizes(models: list[Classifier], tmp_path: Path) -> None:
    large = corner_model(tmp_path / "large.onnx", size=48, seed=5)
    ensemble = Ensemble([models[0], large, models[1]])
    assert [s.size for s in ensemble.specs] == [32, 48]
    pixels = pictures(side=60)
    want = np.mean([m.predict_proba(pixels) for m in (models[0], large, models[1])], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(pixels), want, atol=1e-12)


def test_views_are_all_different_and_start_with_the_picture() -> None:
    pixels = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for number in (1, 2, 4, 8):
        views = views_of(pixels, number)
        assert len({v.tobytes() for v in views}) == len(views) == number
        np.testing.assert_array_equal(views[0], pixels)


def test_eight_views_do_not_depend_on_how_the_cell_lies(models: list[Classifier]) -> None:
    pixels = pictures()
    one, eight = Ensemble(models[:1]), Ensemble(models[:1], views=8)
    want = eight.predict_proba(pixels)
    for turned in views_of(pixels, 8)[1:]:
        np.testing.assert_allclose(eight.predict_proba(turned), want, atol=1e-6)
    assert np.abs(one.predict_proba(views_of(pixels, 8)[5]) - one.predict_proba(pixels)).max() > 0.05
    np.testing.assert_allclose(
        want, np.mean([models[0].predict_proba(v) for v in views_of(pixels, 8)], axis=0), atol=1e-12
    )


def test_files(models: list[Classifier], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = pictures(5)
    for i, p in enumerate(pixels):
        Image.fromarray(p).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_text("text")
    ensemble = Ensemble(models, views=8)
    summary = predict_files(ensemble, [tmp_path / "in"], tmp_path / "out.csv", batch_size=2)
    assert (summary.ok, summary.failed) == (5, {"not a known picture format": 1})
    got = Predictions.read(tmp_path / "out.csv")
    np.testing.assert_allclose(got.probs_NC[got.ok], ensemble.predict_proba(pixels), atol=2e-6)


def test_identity(models: list[Classifier]) -> None:
    all_of_them = [*models, Ensemble(models), Ensemble(models, 8), Ensemble(models[:2]), Ensemble(models[:1])]
    assert len({p.identity for p in all_of_them}) == len(all_of_them)
    assert Ensemble(models).identity == Ensemble(models).identity


def test_what_is_refused(models: list[Classifier], tmp_path: Path) -> None:
    other = Classifier.load(write_model(tmp_path / "other.onnx", codes=("BLA", "LYT"), name="other"))
    with pytest.raises(ModelError, match=r"'corner0' and 'other' have different classes \(BLA EOS LYT NGS; BLA LYT\)"):
        Ensemble([models[0], other])
    with pytest.raises(ModelError, match="views is 3; allowed are 1, 2, 4, 8"):
        Ensemble(models, views=3)
    with pytest.raises(ModelError, match="at least one"):
        Ensemble([])
