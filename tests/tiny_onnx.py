"""Models of three weights: the mean colour of the picture, normalised, through one linear layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from marrowscope.schema import Card, Preprocessing, TrainingData

CODES = ("BLA", "EOS", "LYT", "NGS")
SIZE = 32


def card(codes: tuple[str, ...] = CODES, size: int = SIZE, name: str = "tiny") -> Card:
    return Card(
        name=name,
        program="marrowscope 0",
        architecture="mean colour",
        parameters=4 * len(codes),
        pretrained="none",
        class_set="test",
        codes=codes,
        preprocessing=Preprocessing(size=size, interpolation="bilinear"),
        training_data=TrainingData(
            name="phantoms", licence="MIT", citation="", synthetic=True, index_sha256="0" * 64, counts={}
        ),
        seed=0,
        epochs=1,
        best_epoch=1,
        validation={},
        weights_sha256="0" * 64,
    )


def weights(codes: tuple[str, ...] = CODES, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shape = (3, len(codes))
    return rng.normal(0, 2, shape).astype(np.float32), rng.normal(0, 1, shape[1]).astype(np.float32)


def logits(prepared_NHWC: npt.NDArray[np.uint8], seed: int = 0) -> npt.NDArray[np.float64]:
    """What the model should answer, in float64."""
    w, b = weights(seed=seed)
    spec = card().preprocessing
    x = (prepared_NHWC.astype(np.float64).mean((1, 2)) / 255 - spec.mean) / spec.std
    out: npt.NDArray[np.float64] = x @ w.astype(np.float64) + b
    return out


def graph(codes: tuple[str, ...] = CODES, size: int = SIZE, seed: int = 0) -> onnx.ModelProto:
    spec = card(codes, size).preprocessing
    w, b = weights(codes, seed)
    constants = {
        "w": w,
        "b": b,
        "mean": np.array(spec.mean, np.float32) * 255,
        "std": np.array(spec.std, np.float32) * 255,
        "axes": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("Sub", ["m", "mean"], ["c"]),
        helper.make_node("Div", ["c", "std"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["logits"]),
    ]
    body = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(codes)])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def write_model(path: Path, *, codes: tuple[str, ...] = CODES, seed: int = 0, name: str = "tiny") -> Path:
    model = graph(codes, seed=seed)
    helper.set_model_props(model, {"marrowscope.card": card(codes, name=name).model_dump_json()})
    onnx.save(model, path)
    return path
