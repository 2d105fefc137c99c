"""What values tensors take on real cells, and which range eight bits should cover.

The wider the range, the coarser the 255 steps; what lies outside is cut off. Three rules for where to cut are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from marrowscope.export.graph import copied
from marrowscope.images import Pixels
from marrowscope.infer.classifier import INPUT, available_cores

BINS = 8192
LEVELS = 256
PERCENTILE = 99.999

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """How often a tensor's values fall into `BINS` equal bins from `low` to `high`, its smallest and largest value."""

    low: float
    high: float
    counts: Floats

    @property
    def edges(self) -> Floats:
        """The BINS + 1 ends of the bins."""
        return np.linspace(self.low, self.high, BINS + 1)

    def quantile(self, share: float) -> float:
        """The value below which this share of the values lies, to the width of a bin."""
        total = np.cumsum(self.counts)
        place = int(np.searchsorted(total, share * total[-1]))
        return float(self.edges[min(place + (share > 0.5), BINS)])


def observe(
    proto: onnx.ModelProto, tensors: Sequence[str], chunks: Callable[[], Iterable[Pixels]]
) -> dict[str, Histogram]:
    """Run cells through a network and count the values of some of its tensors.

    Args:
        proto: The float32 network.
        tensors: Names of tensors in it.
        chunks: Gives the cells, uint8 (N, size, size, 3) each time; called twice.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = available_cores()
    content = with_outputs(proto, tensors).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(tensors, np.inf), dict.fromkeys(tensors, -np.inf)
    for chunk in chunks():
        for name, array in zip(tensors, session.run(list(tensors), {INPUT: chunk}), strict=True):
            low[name] = min(low[name], float(array.min()))
            high[name] = max(high[name], float(array.max()))
    counts = {name: np.zeros(BINS) for name in tensors}
    for chunk in chunks():
        for name, array in zip(tensors, session.run(list(tensors), {INPUT: chunk}), strict=True):
            width = max(high[name] - low[name], 1e-12)
            bins = ((array.ravel() - np.float32(low[name])) * np.float32(BINS / width)).astype(np.int32)
            counts[name] += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return {name: Histogram(low[name], high[name], counts[name]) for name in tensors}


def with_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The same network, which also gives these tensors."""
    out = copied(proto)
    have = {o.name for o in out.graph.output}
    for name in tensors:
        if name not in have and name != INPUT:
            out.graph.output.add().name = name
    return out


# ----------------------------------------------------------------------------------------------------------- ranges


def min_max(histogram: Histogram) -> Range:
    """All values that were seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram) -> Range:
    """The middle `PERCENTILE` per cent of the values."""
    tail = (1 - PERCENTILE / 100) / 2
    return histogram.quantile(tail), histogram.quantile(1 - tail)


def entropy(histogram: Histogram) -> Range:
    """The cut at which the quantised values tell most about the true ones (least Kullback-Leibler divergence).

    Values beyond the threshold T are cut to it, on either side of 0 (Migacz 2017, 8-bit Inference with TensorRT).
    """
    largest = max(abs(histogram.low), abs(histogram.high))
    candidates = [
        (max(histogram.low, -largest * share), min(histogram.high, largest * share))
        for share in map(float, np.geomspace(LEVELS / BINS, 1.0, 48))
    ]
    candidates = [c for c in candidates if c[1] > c[0]]
    losses = [_divergence(histogram, low, high) for low, high in candidates]
    return candidates[int(np.argmin(losses))] if candidates else min_max(histogram)


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    """Divergence of the values quantised to `LEVELS` steps from low to high from the values cut to that range."""
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    inside = (centres >= low) & (centres <= high)
    if inside.sum() < LEVELS:
        return float("inf")
    p = histogram.counts[inside].copy()
    level = ((centres[inside] - low) * (LEVELS / (high - low))).astype(int).clip(0, LEVELS - 1)
    used = p > 0
    mass = np.bincount(level, weights=p, minlength=LEVELS)
    bins = np.bincount(level, weights=used.astype(float), minlength=LEVELS)
    q = np.where(used, (mass / np.maximum(bins, 1.0))[level], 0.0)
    p[0] += histogram.counts[centres < low].sum()
    p[-1] += histogram.counts[centres > high].sum()
    p, q = p / p.sum(), q / max(q.sum(), 1e-12)
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())


METHODS: dict[str, Callable[[Histogram], Range]] = {"MinMax": min_max, "Percentile": percentile, "Entropy": entropy}


def coarseness(histogram: Histogram, chosen: Range) -> float:
    """One step of the quantised values against where most values (98 %) lie; the larger, the more is lost.

    Measured against the bulk: a few huge values (as in the residual stream of transformers) would hide the loss in
    any mean of squares.
    """
    low, high = min(chosen[0], 0.0), max(chosen[1], 0.0)
    bulk = histogram.quantile(0.99) - histogram.quantile(0.01)
    return (high - low) / (LEVELS - 1) / max(bulk, 1e-12)
