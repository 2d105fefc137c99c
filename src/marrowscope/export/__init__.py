"""A run's best model as one ONNX file that carries all that serving needs."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from marrowscope.errors import ModelError
from marrowscope.files import atomic_path
from marrowscope.images import Pixels, load_prepared
from marrowscope.infer.classifier import CARD_KEY, INPUT, OUTPUT, Classifier, softmax
from marrowscope.models import CellClassifier, load_run_model
from marrowscope.schema import Card, Preprocessing, RunInfo, Split

TOLERANCE = 1e-4
"""Largest difference of a probability between the checkpoint and its ONNX file."""


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file is from its checkpoint.

    Attributes:
        pictures: Number of pictures compared.
        real: Whether they were cells of the run's data (or noise, where the data are not at hand).
        max_difference: Largest absolute difference of a probability.
    """

    pictures: int
    real: bool
    max_difference: float


class _Served(nn.Module):
    """The graph of the ONNX file: pictures as `images.prepare` gives them, uint8 (N, H, W, 3), to logits."""

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.permute(0, 3, 1, 2).float())
        return logits


def export_onnx(run: Path, output: Path, *, data: Path | None = None, pictures: int = 100) -> Parity:
    """Write a run's best model as fp32 ONNX, if it answers like the checkpoint.

    The file holds the normalisation, and in its metadata the model card: classes, preprocessing, data and licence.

    Args:
        run: Run folder.
        output: The ONNX file.
        data: Folder of images for the comparison; without it, the one that the run was trained on.
        pictures: How many cells of the validation part to compare on (noise where the data are not at hand).

    Raises:
        ModelError: The run has no model, or the file would differ by `TOLERANCE` or more; nothing is written then.
        OutputError: The file can't be written.
    """
    model, card = load_run_model(run)
    content = _to_onnx(model, card)
    samples, real = _samples(run, card.preprocessing, data, pictures)
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
        difference = _max_difference(model, temporary, samples)
        if not difference < TOLERANCE:
            raise ModelError(
                f"The ONNX file of {run} would differ from its checkpoint by {difference:.2g} in a probability "
                f"(allowed: below {TOLERANCE:g}, on {len(samples)} pictures). Nothing was written."
            )
    return Parity(len(samples), real, difference)


def _to_onnx(model: CellClassifier, card: Card) -> bytes:
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
    proto = program.model_proto
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card.model_dump_json()
    proto.producer_name, proto.doc_string = card.program, f"{card.name}. {card.intended_use}"
    onnx.checker.check_model(proto, full_check=True)
    buffer = io.BytesIO()
    onnx.save(proto, buffer)
    return buffer.getvalue()


def _samples(run: Path, spec: Preprocessing, data: Path | None, n: int) -> tuple[Pixels, bool]:
    """Prepared pictures (N, size, size, 3): spread over the validation part, or noise."""
    root = Path(RunInfo.read(run / "run.json").data) if data is None else data
    rows = Split.read(run / "split.csv").part("val")
    places = np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int))
    paths = [root / rows[i].path for i in places]
    if paths and all(p.is_file() for p in paths):
        return np.stack([load_prepared(p, spec) for p in paths]), True
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (16, spec.size, spec.size, 3), dtype=np.uint8), False


def _max_difference(model: CellClassifier, file: Path, samples: Pixels) -> float:
    served = Classifier.load(file)
    worst = 0.0
    for chunk in _chunks(samples, 16):
        with torch.inference_mode():
            ours = model(torch.from_numpy(chunk).permute(0, 3, 1, 2)).numpy()
        worst = max(worst, float(np.abs(softmax(ours) - served.probabilities(chunk)).max()))
    return worst


def _chunks(items: Pixels, size: int) -> Sequence[Pixels]:
    return [items[i : i + size] for i in range(0, len(items), size)]
