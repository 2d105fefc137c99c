"""Smaller ONNX files: int8, fp16 and int8 weights, and the gate that they pass."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import marrowscope.export.run as run_module
from marrowscope.cli import app
from marrowscope.config import Recipe
from marrowscope.errors import DataError, MarrowscopeError, ModelError, SplitError
from marrowscope.export import Parity, Precision, export_onnx
from marrowscope.export.calibrate import Range
from marrowscope.export.graph import FEW, with_byte_weights, with_half_weights
from marrowscope.export.quantise import Layers, quantised, with_shapes
from marrowscope.images import Pixels, load_prepared
from marrowscope.infer import Classifier
from marrowscope.schema import Split
from marrowscope.train import train

Made = tuple[Path, Parity]
Make = Callable[[str, Precision], Made]


@pytest.fixture(scope="module")
def vit_run(cells: Path, tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "vit"
    train(tiny_recipe(model__name="test_vit"), data=cells, out=out, quiet=True)
    return out


@pytest.fixture(scope="module")
def made(tiny_run: Path, vit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Export a run once a module, however often it is asked for."""
    folder, done = tmp_path_factory.mktemp("onnx"), {}

    def make(network: str, precision: Precision) -> Made:
        if (network, precision) not in done:
            path = folder / f"{network}-{precision}.onnx"
            run = {"resnet": tiny_run, "vit": vit_run}[network]
            done[network, precision] = (path, export_onnx(run, path, precision=precision))
        return done[network, precision]

    return make


@pytest.fixture(scope="module")
def prepared(cells: Path, made: Make) -> Pixels:
    spec = Classifier.load(made("resnet", "fp32")[0]).card.preprocessing
    return np.stack([load_prepared(p, spec) for p in sorted(cells.rglob("*.jpg"))])


def _ops(path: Path) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(path).graph.node)


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_fp16_is_half_the_size_and_answers_alike(made: Make, prepared: Pixels, network: str) -> None:
    exact, _ = made(network, "fp32")
    path, parity = made(network, "fp16")
    onnx.checker.check_model(str(path), full_check=True)
    served = Classifier.load(path)
    assert (served.card.precision, parity.precision) == ("fp16", "fp16")
    assert np.abs(served.probabilities(prepared) - Classifier.load(exact).probabilities(prepared)).max() < 2e-3
    assert parity.size is not None
    assert parity.size == path.stat().st_size / exact.stat().st_size
    assert parity.size < 0.75  # a tiny network is half graph
    # The statistics behind the ood_score stay in float32.
    stored = [i for i in onnx.load(path).graph.initializer if len(i.dims) > 1 and not i.name.startswith("ood_score.")]
    assert {i.data_type for i in stored} == {TensorProto.FLOAT16}


def test_float16_takes_no_vectors_and_nothing_too_large() -> None:
    arrays = {"w": np.full((2, 2), 0.1, np.float32), "big": np.full((2, 2), 7e4, np.float32), "v": np.ones(2, "f4")}
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "big"], ["b"]),
            helper.make_node("Add", ["b", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])
    half = with_half_weights(proto)
    onnx.checker.check_model(half, full_check=True)
    kinds = {i.name: i.data_type for i in half.graph.initializer}
    assert kinds == {"w.fp16": TensorProto.FLOAT16, "big": TensorProto.FLOAT, "v": TensorProto.FLOAT}
    assert {i.data_type for i in proto.graph.initializer} == {TensorProto.FLOAT}, "the network itself is not changed"


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_int8_weights_are_smaller_than_fp16_and_answer_alike(made: Make, prepared: Pixels, network: str) -> None:
    exact, _ = made(network, "fp32")
    path, parity = made(network, "int8-weights")
    onnx.checker.check_model(str(path), full_check=True)
    served = Classifier.load(path)
    assert (served.card.precision, parity.precision) == ("int8-weights", "int8-weights")
    assert np.abs(served.probabilities(prepared) - Classifier.load(exact).probabilities(prepared)).max() < 0.02
    assert path.stat().st_size < made(network, "fp16")[0].stat().st_size
    stored = [i for i in onnx.load(path).graph.initializer if len(i.dims) > 1 and not i.name.startswith("ood_score.")]
    assert {i.data_type for i in stored if not i.name.endswith(".scale")} <= {TensorProto.INT8, TensorProto.FLOAT16}
    assert any(i.data_type == TensorProto.INT8 for i in stored)
    assert "QuantizeLinear" not in _ops(path), "activations are not rounded"


def test_each_output_channel_has_the_scale_of_its_largest_weight() -> None:
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(3, FEW, 1, 1)).astype(np.float32) * np.array([1, 100, 0], "f4")[:, None, None, None]
    matrix = rng.normal(size=(FEW, 2)).astype(np.float32) * np.array([1, 1e-3], "f4")
    depthwise = rng.normal(size=(2, 1, 5, 5)).astype(np.float32)
    arrays = {"conv": conv, "matrix": matrix, "depthwise": depthwise}
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv"], ["a"]),
            helper.make_node("MatMul", ["m", "matrix"], ["b"]),
            helper.make_node("Conv", ["d", "depthwise"], ["c"], group=2),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, FEW, 1, 1]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, [FEW, FEW]),
            helper.make_tensor_value_info("d", TensorProto.FLOAT, [1, 2, 5, 5]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3, 1, 1]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [FEW, 2]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 2, 1, 1]),
        ],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    small = with_byte_weights(helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]))
    onnx.checker.check_model(small, full_check=True)
    kinds = {i.name: i.data_type for i in small.graph.initializer}
    assert kinds["conv.int8"] == kinds["matrix.int8"] == TensorProto.INT8
    assert kinds["depthwise.fp16"] == TensorProto.FLOAT16, "too few weights a channel"
    session = ort.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"x": np.ones((1, FEW, 1, 1), "f4"), "m": np.eye(FEW, dtype="f4"), "d": np.ones((1, 2, 5, 5), "f4")}
    sums, matrix_again, _ = session.run(None, given)
    # Half a step of each weight is the most that rounding can change it by.
    largest = np.abs(conv).max(axis=(1, 2, 3))
    assert (np.abs(sums[0, :, 0, 0] - conv.sum(axis=(1, 2, 3))) <= FEW * largest / 254 * 1.01).all()
    assert sums[0, 2, 0, 0] == 0
    assert (np.abs(matrix_again - matrix) <= np.abs(matrix).max(0) / 254 * 1.01).all()


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_int8_passes_the_gate_and_says_what_it_did(made: Make, prepared: Pixels, network: str) -> None:
    path, parity = made(network, "int8")
    onnx.checker.check_model(str(path), full_check=True)
    assert Classifier.load(path).card.precision == "int8"
    assert parity.passes
    assert parity.agreement is not None
    assert parity.accuracy_change is not None
    assert parity.agreement.n == parity.pictures
    assert parity.agreement.low is not None
    assert parity.method in {"MinMax", "Percentile", "Entropy"}
    assert parity.speed is not None
    assert parity.pays == (parity.speed > 1.3)
    text = "\n".join(parity.lines())
    assert "the same answers as fp32: " in text
    assert ("int8 does not pay" in text) == (not parity.pays)
    # Ranges are fixed, so a picture's answer doesn't depend on its neighbours in the batch.
    served = Classifier.load(path)
    together = served.probabilities(prepared)
    alone = np.concatenate([served.probabilities(prepared[i : i + 1]) for i in range(6)])
    assert np.abs(alone - together[:6]).max() < 1e-6
    exact = Classifier.load(made(network, "fp32")[0]).probabilities(prepared)
    assert 0 < np.abs(together - exact).max() < 0.1


def test_what_is_in_eight_bits(made: Make) -> None:
    for network, weighted in (("resnet", "Conv"), ("vit", "MatMul")):
        graph = onnx.load(made(network, "int8")[0]).graph
        maker = {o: n for n in graph.node for o in n.output}
        stored = {i.name: i for i in graph.initializer}
        layers = [n for n in graph.node if n.op_type in {"Conv", "Gemm"} or n.op_type == weighted]
        behind = [maker[n.input[1]].op_type if n.input[1] in maker else "" for n in layers]
        eight = [n for n, b in zip(layers, behind, strict=True) if b == "DequantizeLinear"]
        assert len(eight) > 2
        weights = [maker[n.input[1]] for n in eight if maker[n.input[1]].input[0] in stored]
        assert {stored[w.input[0]].data_type for w in weights} == {TensorProto.INT8}
        assert all(stored[w.input[1]].dims == [stored[w.input[0]].dims[_axis(w)]] for w in weights), "a scale a channel"
        assert not {maker[i].op_type for i in layers[0].input if i in maker} & {"DequantizeLinear"}, "first convolution"
        assert not {maker[i].op_type for i in layers[-1].input if i in maker} & {"DequantizeLinear"}, "head"
        for node in graph.node:
            if node.op_type in {"LayerNormalization", "Softmax", "Gelu", "Sub", "Div", "Cast"}:
                assert not {maker[i].op_type for i in node.input if i in maker} & {"DequantizeLinear"}


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 1)


def test_int8_is_deterministic(tiny_run: Path, made: Make, tmp_path: Path) -> None:
    path = tmp_path / "again.onnx"
    export_onnx(tiny_run, path, precision="int8")
    assert path.read_bytes() == made("resnet", "int8")[0].read_bytes()


# ---------------------------------------------------------------------------------------------------------- the gate


def _spoilt(spoil: Callable[[Collection[str]], bool]) -> Callable[..., onnx.ModelProto]:
    """As `quantised`, but where `spoil` says so the answer is the first class, whatever the picture."""

    def spoilt(
        proto: onnx.ModelProto, layers: Layers, ranges: Mapping[str, Range], in_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        out = quantised(proto, layers, ranges, in_float)
        if spoil(in_float):
            bias = next(i for i in out.graph.initializer if i.name.endswith("fc.bias"))
            values = np.array([-99.0, -99.0, 99.0], np.float32)
            bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        return out

    return spoilt


def test_int8_that_answers_otherwise_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "quantised", _spoilt(lambda in_float: True))
    out = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match=r"int8 file of tiny would answer otherwise") as e:
        export_onnx(tiny_run, out, precision="int8")
    for part in (" to NGS ", "validation cells", "Nothing was written", "Export fp16 instead", "accuracy changed by"):
        assert part in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_further_layers_stay_in_float_where_the_gate_stays_shut(
    tiny_run: Path, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "quantised", _spoilt(lambda in_float: len(in_float) < 3))
    out = tmp_path / "m.onnx"
    parity = export_onnx(tiny_run, out, precision="int8")
    assert parity.passes
    assert len(parity.in_float) >= len(made("resnet", "int8")[1].in_float) + 3
    assert _ops(out)["QuantizeLinear"] <= _ops(made("resnet", "int8")[0])["QuantizeLinear"]


def test_a_spoilt_fp16_file_is_not_written(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(proto: onnx.ModelProto) -> onnx.ModelProto:
        out = with_half_weights(proto)
        bias = next(i for i in out.graph.initializer if i.name.endswith("fc.bias"))
        bias.CopyFrom(numpy_helper.from_array(np.array([-99.0, -99.0, 99.0], np.float32), bias.name))
        return out

    monkeypatch.setattr(run_module, "with_half_weights", zeros)
    with pytest.raises(ModelError, match=r"fp16 file of tiny would answer otherwise.*Export fp32 instead"):
        export_onnx(tiny_run, tmp_path / "m.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_small_files_need_the_validation_cells(tiny_run: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    moved = tmp_path / "moved"
    shutil.copytree(cells, moved)
    missing = Split.read(tiny_run / "split.csv").part("val")[0].path
    (moved / missing).unlink()
    with pytest.raises(SplitError, match=missing):
        export_onnx(tiny_run, out, precision="fp16", data=moved)
    (moved / missing).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"can't be read any more"):
        export_onnx(tiny_run, out, precision="int8", data=moved)
    with pytest.raises(MarrowscopeError, match="nowhere"):
        export_onnx(tiny_run, out, precision="int8", data=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="allowed: fp32, fp16, int8-weights, int8"):
        export_onnx(tiny_run, out, precision="int4")  # type: ignore[arg-type]
    assert not out.exists()


def test_a_network_without_layers_between_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.ones((2, 2), np.float32), "w")],
    )
    layers = Layers(with_shapes(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])))
    assert layers.names == ()
    assert len(layers.kept) == 1


# ---------------------------------------------------------------------------------------------------------- OpenVINO


@pytest.mark.parametrize("network", ["resnet", "vit"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-weights", "int8"])
def test_openvino_answers_alike(made: Make, prepared: Pixels, network: str, precision: Precision) -> None:
    openvino: Any = pytest.importorskip("openvino", reason="openvino is not installed: its answers are not compared")
    path, _ = made(network, precision)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ours = Classifier.load(path).logits(prepared[:8])
    theirs = compiled(prepared[:8])[0]
    # Sums of eight-bit numbers are exact in both; rounding at a step's edge may fall to the other side. OpenVINO keeps
    # weights of eight bits as they are stored, with scales that it rounds.
    assert np.abs(ours - theirs).max() < {"int8": 0.1, "int8-weights": 5e-3}.get(precision, 1e-3)
    assert (ours.argmax(1) == theirs.argmax(1)).all()


def test_the_command_takes_one_precision(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    both = CliRunner().invoke(app, ["export", str(tiny_run), "-o", str(out), "--int8", "--fp16"])
    assert both.exit_code == 2
    assert "Give one of --int8 and --fp16" in both.output
    done = CliRunner().invoke(app, ["export", str(tiny_run), "-o", str(out), "--fp16"])
    assert done.exit_code == 0, done.output
    assert "the same answers as fp32: " in done.output
    assert Classifier.load(out).card.precision == "fp16"
