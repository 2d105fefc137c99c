"""Opening a model and asking it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from PIL import Image

from marrowscope import images, triage
from marrowscope.errors import ImageError, ModelError
from marrowscope.infer import Classifier, bundled, classifier
from tiny_onnx import CODES, SIZE, card, graph, logits, write_model

RNG = np.random.default_rng(1)


def pictures(n: int = 5, side: int = 48) -> npt.NDArray[np.uint8]:
    tint = RNG.integers(0, 200, (n, 1, 1, 3))
    return (tint + RNG.integers(0, 56, (n, side, side, 3))).astype(np.uint8)


def expected(pixels_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    prepared = np.stack([images.prepare(p, card().preprocessing) for p in pixels_NHWC])
    e = np.exp(logits(prepared))
    out: npt.NDArray[np.float64] = e / e.sum(1, keepdims=True)
    return out


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def model(path: Path) -> Classifier:
    return Classifier.load(path, threads=1)


def test_card_and_codes(model: Classifier, path: Path) -> None:
    assert model.card == card()
    assert model.codes == CODES
    assert Classifier.load(str(path)).codes == CODES
    assert repr(model) == "<Classifier 'tiny': 4 classes, 32 px>"


def test_probabilities_are_numpys(model: Classifier) -> None:
    pixels = pictures()
    got = model.predict_proba(pixels)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected(pixels), atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-12)
    assert model.predict(pixels) == [CODES[i] for i in expected(pixels).argmax(1)]


def test_golden_probabilities(model: Classifier) -> None:
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    want = [0.030939, 0.219018, 0.223842, 0.526201]
    np.testing.assert_allclose(model.predict_proba(grey)[0], want, atol=1e-5)


def test_every_kind_of_picture(model: Classifier, tmp_path: Path) -> None:
    pixel = pictures(1)[0]
    file = tmp_path / "x.png"
    Image.fromarray(pixel).save(file)
    want = expected(pixel[None])
    for one in (file, str(file), file.read_bytes(), Image.fromarray(pixel), pixel):
        np.testing.assert_allclose(model.predict_proba(one), want, atol=1e-6)
        np.testing.assert_allclose(model.predict_proba([one, one]), np.repeat(want, 2, 0), atol=1e-6)
    assert model.predict(iter([file, pixel])) == model.predict([file, pixel])
    assert model.predict_proba(pixel[:, :, 0]).shape == (1, 4)


def test_no_picture_at_all(model: Classifier) -> None:
    assert model.predict_proba([]).shape == (0, 4)
    assert model.predict([]) == []
    assert model.logits(np.empty((0, SIZE, SIZE, 3), np.uint8)).shape == (0, 4)


def test_batching_changes_nothing(model: Classifier) -> None:
    pixels = pictures(70)
    together = model.predict_proba(pixels)
    np.testing.assert_allclose(together, np.concatenate([model.predict_proba(p) for p in pixels]), atol=1e-6)
    np.testing.assert_allclose(together[::-1], model.predict_proba(pixels[::-1]), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ("gone.jpg", r"Picture 1 \(gone.jpg\): missing"),
        (b"text", "Picture 1: not a known picture format"),
        (np.zeros((48, 48, 3), np.float32), "Picture 1: pixel type"),
        (Image.new("RGB", (1, 1)), "Picture 1: too small"),
        (7, "Picture 1: not a picture: int"),
    ],
)
def test_a_bad_picture_is_named(model: Classifier, bad: object, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        model.predict_proba([pictures(1)[0], bad])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", [np.zeros((1, 31, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)])
def test_logits_checks_its_input(model: Classifier, bad: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ModelError, match=r"uint8 \(N, 32, 32, 3\)"):
        model.logits(bad)


def test_softmax_does_not_overflow() -> None:
    out = triage.softmax(np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]]))
    np.testing.assert_allclose(out, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


# ------------------------------------------------------------------------------------------------- not a model file


def edited(tmp_path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = graph()
    helper.set_model_props(proto, {"marrowscope.card": card().model_dump_json()})
    edit(proto)
    path = tmp_path / "edited.onnx"
    onnx.save(proto, path)
    return path


def fails(model: str | Path, match: str, capfd: pytest.CaptureFixture[str], **options: object) -> None:
    with pytest.raises(ModelError, match=match):
        Classifier.load(model, **options)  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"just text\n", b"\0" * 100, b"\x89PNG\r\n\x1a\n" + b"x" * 100])
def test_file_of_something_else(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    fails(path, "x.onnx.* marrowscope export RUN -o model.onnx", capfd)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
def test_truncated_file(tmp_path: Path, path: Path, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = path.read_bytes()
    (tmp_path / "x.onnx").write_bytes(data[: int(len(data) * share)])
    fails(tmp_path / "x.onnx", "marrowscope export", capfd)


def test_missing_file_and_unknown_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fails(tmp_path / "gone.onnx", "neither a file nor a bundled name", capfd)
    fails("marrow99", "No model 'marrow99'.*Bundled models: ", capfd)
    fails("nul\0", "No model", capfd)


def test_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fails(tmp_path, "is a folder", capfd)
    (tmp_path / "card.json").touch()
    fails(tmp_path, f"looks like a run folder.*marrowscope export {tmp_path} -o model.onnx", capfd)


def test_onnx_file_of_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(graph(), tmp_path / "x.onnx")
    fails(tmp_path / "x.onnx", "ONNX file of something else", capfd)


@pytest.mark.parametrize("text", ["{}", "no json", '{"format": "marrowscope card 99"}'])
def test_card_that_is_none(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = edited(tmp_path, lambda m: helper.set_model_props(m, {"marrowscope.card": text}))
    fails(path, "not a valid model card", capfd)


def test_card_of_another_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = card(size=64).model_dump_json()
    fails(edited(tmp_path, lambda m: helper.set_model_props(m, {"marrowscope.card": other})), "uint8.*64, 64", capfd)
    other = card(codes=("BLA", "LYT")).model_dump_json()
    fails(edited(tmp_path, lambda m: helper.set_model_props(m, {"marrowscope.card": other})), "N, 2", capfd)


def test_network_with_other_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def rename(m: onnx.ModelProto) -> None:
        m.graph.output[0].name = m.graph.node[-1].output[0] = "scores"

    fails(edited(tmp_path, rename), "output must be 'logits'", capfd)


def test_second_output_is_left_alone(tmp_path: Path) -> None:
    def add(m: onnx.ModelProto) -> None:
        m.graph.output.insert(0, helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, ["N", 3]))

    pixels = pictures(3)
    np.testing.assert_allclose(
        Classifier.load(edited(tmp_path, add)).predict_proba(pixels), expected(pixels), atol=1e-6
    )


def test_network_that_gives_nonsense(tmp_path: Path) -> None:
    def divide_by_zero(m: onnx.ModelProto) -> None:
        std = next(t for t in m.graph.initializer if t.name == "std")
        std.raw_data = np.zeros(3, np.float32).tobytes()

    with pytest.raises(ModelError, match="not finite"):
        Classifier.load(edited(tmp_path, divide_by_zero)).predict_proba(pictures(1))


def test_fixed_batch_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Classifier.load(
        edited(tmp_path, lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 7))
    )
    with pytest.raises(ModelError, match="can't run the model 'tiny'"):
        model.predict_proba(pictures(2))
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------ devices, bundled models


def test_devices(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fails(path, "Unknown device 'tpu'; allowed: cpu, cuda, openvino, coreml", capfd, device="tpu")
    fails(path, "threads is 0", capfd, threads=0)


@pytest.mark.parametrize("device", ["cuda", "openvino", "coreml"])
def test_device_that_is_not_there(
    path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    fails(path, f"device '{device}'.* Install onnxruntime.*'cpu'", capfd, device=device)


def test_device_that_does_not_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    class Fallen(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: str, options: object, providers: object) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    fails(path, "can't start the device 'cuda'", capfd, device="cuda")


def test_bundled_names(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_onnx").mkdir()
    (tmp_path / "models_onnx" / "marrowX.onnx").write_bytes(path.read_bytes())
    (tmp_path / "models_onnx" / "README.md").touch()
    monkeypatch.setattr(classifier.resources, "files", lambda _: tmp_path)
    assert bundled() == ["marrowX"]
    assert Classifier.load("marrowX").codes == CODES
    with pytest.raises(ModelError, match="Bundled models: marrowX"):
        Classifier.load("marrowY")


def test_no_bundled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier.resources, "files", lambda _: tmp_path)
    assert bundled() == []
    with pytest.raises(ModelError, match="Bundled models: none"):
        Classifier.load("marrowY")


def test_jpeg_bytes(model: Classifier) -> None:
    f = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(f, "JPEG")
    assert model.predict(f.getvalue())[0] in CODES
