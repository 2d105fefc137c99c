"""int8: weights per channel, activations by calibrated ranges, sensitive layers in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx

from marrowscope.errors import ModelError
from marrowscope.export.calibrate import Range
from marrowscope.export.graph import copied
from marrowscope.infer.classifier import OUTPUT

LAYERS = ("Conv", "MatMul", "Gemm")
"""Operators with weights; only these are quantised where a network has layer norms (transformers, ConvNeXt)."""

BETWEEN = ("Relu", "Clip", "Add", "MaxPool")
"""What stands between convolutions; kept in eight bits, so that nothing is converted to and fro."""


def with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with the shape and type of every tensor, and a name for every node."""
    out: onnx.ModelProto = onnx.shape_inference.infer_shapes(proto)
    for i, node in enumerate(out.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return out


class Layers:
    """The layers of a network that can be quantised.

    Attributes:
        names: Layers with weights, in the order of the graph, without the first convolution and the head.
        inputs: The activation that each reads.
        kept: Names of the first convolution and the head, which stay in float32: little work, and much depends on it.
        op_types: Operators that are quantised.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        weights = {i.name for i in proto.graph.initializer}
        self._nodes = list(proto.graph.node)
        layers = [n for n in self._nodes if n.op_type in LAYERS and n.input[1] in weights]
        first = [n.name for n in layers if n.op_type == "Conv"][:1]
        self.kept = (*first, *(n.name for n in layers[-1:] if n.name not in first))
        inside = [n for n in layers if n.name not in self.kept]
        self.names = tuple(n.name for n in inside)
        self.inputs = {n.name: str(n.input[0]) for n in inside}
        convolutional = not any(n.op_type in {"LayerNormalization", "Softmax"} for n in self._nodes)
        self.op_types = (*LAYERS, *BETWEEN) if convolutional else LAYERS
        self._between = [
            n for n in self._nodes if convolutional and n.op_type in BETWEEN and not set(n.input[:2]) & weights
        ]

    def nodes(self, in_float: Collection[str]) -> list[str]:
        """Names of the nodes to quantise where `in_float` of the layers stay in float32."""
        return [n for n in self.names if n not in in_float] + [n.name for n in self._between]

    def tensors(self) -> list[str]:
        """All activations that may need a range."""
        wanted = {*self.names, *(n.name for n in self._between)}
        found: dict[str, None] = {}
        for node in self._nodes:
            if node.name in wanted:
                found.update(dict.fromkeys([str(node.input[0])]))
                if node.op_type == "Add":
                    found.update(dict.fromkeys([str(node.input[1])]))
                if node.op_type == "Conv" or node.op_type in BETWEEN:
                    found.update(dict.fromkeys([str(node.output[0])]))
        found.pop(OUTPUT, None)
        return list(found)


def quantised(
    proto: onnx.ModelProto, layers: Layers, ranges: Mapping[str, Range], in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """The network with QuantizeLinear and DequantizeLinear around its layers.

    Weights are int8, symmetric, with a scale per output channel; activations are uint8 with one scale a tensor.

    Args:
        proto: A network, `with_shapes`.
        layers: Its layers.
        ranges: For each of `Layers.tensors`.
        in_float: Further layers that stay in float32.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data: dict[str, Any] = {name: tuple(np.float32(v) for v in r) for name, r in ranges.items()}
    try:
        quantiser = QDQQuantizer(
            copied(proto),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=layers.nodes(in_float),
            nodes_to_exclude=[],
            op_types_to_quantize=list(layers.op_types),
            # A matrix product gives float32 in any case; to quantise its result would only cost digits.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    except (ValueError, RuntimeError, KeyError) as e:
        raise ModelError(f"onnxruntime can't quantise this network: {' '.join(str(e).split())[:300]}") from e
    out: onnx.ModelProto = quantiser.model.model
    return out
