"""From torch to ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from marrowscope.errors import ModelError
from marrowscope.evaluate.novelty import Statistics
from marrowscope.infer.classifier import CARD_KEY, FEATURES, INPUT, OUTPUT, SCORE
from marrowscope.models import CellClassifier
from marrowscope.outputs import logits_and_features
from marrowscope.schema import Card

FEW = 64
"""An output channel with fewer weights than this has none stored as int8."""

_HALF_MAX = float(np.finfo(np.float16).max)


class _Served(nn.Module):
    """The graph of the ONNX file: pictures of `images.prepare`, uint8 (N, H, W, 3), to logits and features."""

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return logits_and_features(self.model, images.permute(0, 3, 1, 2).float())


def to_onnx(model: CellClassifier, card: Card) -> onnx.ModelProto:
    """The network as float32 ONNX, with the normalisation inside; without a card.

    Raises:
        ModelError: torch can't export it.
    """
    size = card.preprocessing.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    # The exporter reports its steps on the log and as warnings of libraries below it; failures raise.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Served(model).eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT, FEATURES],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    if program is None:
        raise ModelError(f"torch could not export {card.architecture} to ONNX.")
    proto: onnx.ModelProto = program.model_proto
    return proto


def without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what the exporter notes of the Python code behind each node: paths of the machine that made the file."""
    graph = proto.graph
    members = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    inner = (node for function in proto.functions for node in function.node)
    for part in (proto, graph, *members, *proto.functions, *inner):
        part.doc_string = ""
        del part.metadata_props[:]
    return proto


def write_onnx(proto: onnx.ModelProto, card: Card, path: Path) -> None:
    """Check a network, put the card in its metadata, and write it."""
    proto = without_traces(copied(proto))
    entry = proto.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.model_dump_json()
    proto.producer_name, proto.doc_string = card.program, f"{card.name}. {card.intended_use}"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def with_half_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its weights stored as float16, and computed in float32.

    A weight is followed by a cast, which onnxruntime carries out once, when it opens the file. Tensors that float16
    can't hold (above 65,504) stay as they are, and so do vectors: norms, biases and the scales of int8 take no room,
    and need the digits.
    """
    out = copied(proto)
    nodes = [node for tensor in out.graph.initializer for node in _halved(tensor)]
    return _led_by(out, nodes)


def with_byte_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its weights stored as int8, each output channel with a scale, and computed in float32.

    As `with_half_weights`: onnxruntime makes them float32 again once, when it opens the file, so that the network is as
    quick as before, and nothing but the weights is rounded (symmetric, to 255 steps; Krishnamoorthi 2018,
    arXiv:1806.08342, section 2.2). Where an output channel has few weights (`FEW`), as in depthwise convolutions, they
    are stored as float16: a scale for so few saves next to nothing.
    """
    out = copied(proto)
    by_column = {node.input[1] for node in out.graph.node if node.op_type == "MatMul"}
    nodes, scales = [], []
    for tensor in out.graph.initializer:
        values = numpy_helper.to_array(tensor)
        axis = values.ndim - 1 if tensor.name in by_column else 0
        if tensor.data_type != TensorProto.FLOAT or values.ndim < 2 or values.size < FEW * values.shape[axis]:
            nodes += _halved(tensor)
            continue
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
        name = tensor.name
        rounded = np.rint(values / scale).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(rounded, f"{name}.int8"))
        scales.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
        nodes += [
            helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], f"{name}.cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], f"{name}.scaled"),
        ]
    out.graph.initializer.extend(scales)
    return _led_by(out, nodes)


def _halved(tensor: TensorProto) -> list[onnx.NodeProto]:
    """Store a weight as float16, in place; the node that gives it back under its name, or none where it stays."""
    if tensor.data_type != TensorProto.FLOAT:
        return []
    values = numpy_helper.to_array(tensor)
    if values.ndim < 2 or not np.abs(values).max() <= _HALF_MAX:
        return []
    name, stored = tensor.name, f"{tensor.name}.fp16"
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
    return [helper.make_node("Cast", [stored], [name], f"{name}.cast", to=TensorProto.FLOAT)]


def _led_by(proto: onnx.ModelProto, first: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The network with these nodes before its own."""
    nodes = [*first, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def with_novelty(proto: onnx.ModelProto, statistics: Statistics, method: str) -> onnx.ModelProto:
    """The same network with the output ``ood_score``, float32 (N,), made of its features.

    What `evaluate.novelty.mahalanobis` and `relative_mahalanobis` do, in float32. The statistics are added last, so
    that they stay in float32 whatever is done to the network's own weights. `method`: one of those two.
    """
    out = copied(proto)
    n_features = len(statistics.mean_D)
    constants = {
        "mean": statistics.mean_D,
        "axes": statistics.axes_DK,
        "whiten": statistics.whiten_KK,
        "centres": statistics.centres_CK[None],
        "spread": statistics.spread_K,
        "rest": np.array(statistics.rest),
        "share": np.array(1.0 / n_features),
        "middle": np.array([1], dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
    }

    def add(op: str, inputs: str, output: str, **attributes: Any) -> None:
        names = [i if i == FEATURES else f"{SCORE}.{i}" for i in inputs.split()]
        result = output if output == SCORE else f"{SCORE}.{output}"
        out.graph.node.append(helper.make_node(op, names, [result], f"{SCORE}.{output}_{op}", **attributes))

    add("Sub", f"{FEATURES} mean", "centred")
    add("MatMul", "centred axes", "components")
    add("MatMul", "components whiten", "white")
    add("Unsqueeze", "white middle", "white_1")
    add("Sub", "white_1 centres", "from_centres")
    add("Mul", "from_centres from_centres", "squares")
    add("ReduceSum", "squares last", "distances", keepdims=0)
    add("ReduceMin", "distances last", "nearest", keepdims=0)
    if method == "relative-mahalanobis":
        add("Div", "components spread", "scaled")
        add("Mul", "scaled scaled", "scaled_squares")
        add("ReduceSum", "scaled_squares last", "background", keepdims=0)
        add("Sub", "nearest background", SCORE)
    else:
        add("Gemm", "components axes", "inside", transB=1)
        add("Sub", "centred inside", "outside")
        add("Mul", "outside outside", "outside_squares")
        add("ReduceSum", "outside_squares last", "outside_distance", keepdims=0)
        add("Mul", "outside_distance rest", "outside_scaled")
        add("Add", "nearest outside_scaled", "total")
        add("Mul", "total share", SCORE)
    used = {i for node in out.graph.node for i in node.input}
    for name, array in constants.items():
        stored = array if array.dtype == np.int64 else array.astype(np.float32)
        if f"{SCORE}.{name}" in used:  # ONNX Runtime warns of what no node takes
            out.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(stored), f"{SCORE}.{name}"))
    batch = next(o for o in out.graph.output if o.name == FEATURES).type.tensor_type.shape.dim[0].dim_param
    out.graph.output.append(helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [batch or "batch"]))
    return out


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    out: onnx.ModelProto = onnx.ModelProto()
    out.CopyFrom(proto)
    return out
