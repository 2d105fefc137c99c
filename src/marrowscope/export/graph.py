"""From torch to ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from marrowscope.errors import ModelError
from marrowscope.infer.classifier import CARD_KEY, INPUT, OUTPUT
from marrowscope.models import CellClassifier
from marrowscope.schema import Card

_HALF_MAX = float(np.finfo(np.float16).max)


class _Served(nn.Module):
    """The graph of the ONNX file: pictures as `images.prepare` gives them, uint8 (N, H, W, 3), to logits."""

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.permute(0, 3, 1, 2).float())
        return logits


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
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    if program is None:
        raise ModelError(f"torch could not export {card.architecture} to ONNX.")
    proto: onnx.ModelProto = program.model_proto
    return proto


def write_onnx(proto: onnx.ModelProto, card: Card, path: Path) -> None:
    """Check a network, put the card in its metadata, and write it."""
    proto = copied(proto)
    del proto.metadata_props[:]
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
    casts = []
    for tensor in out.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.ndim < 2 or not np.abs(values).max() <= _HALF_MAX:
            continue
        name, stored = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *out.graph.node]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    return out


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    out: onnx.ModelProto = onnx.ModelProto()
    out.CopyFrom(proto)
    return out
