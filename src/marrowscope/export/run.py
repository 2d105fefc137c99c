"""From a run folder to an ONNX file that was checked."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx

from marrowscope.data.split import check_split
from marrowscope.datasets import CellImages, unreadable
from marrowscope.errors import DataError, ImageError, ModelError, SplitError
from marrowscope.evaluate.intervals import number_groups
from marrowscope.evaluate.thresholds import with_thresholds
from marrowscope.export.calibrate import METHODS, Range, coarseness, observe
from marrowscope.export.graph import to_onnx, with_byte_weights, with_half_weights, with_novelty, write_onnx
from marrowscope.export.parity import (
    SCORE_TOLERANCE,
    TOLERANCE,
    Parity,
    Probabilities,
    Truth,
    compare_answers,
    explain,
    file_outputs,
    speed_ratio,
)
from marrowscope.export.quantise import Layers, quantised, with_shapes
from marrowscope.files import atomic_path
from marrowscope.fit import Fitted, Progress, data_folder, fit_card, load_fitted
from marrowscope.images import Pixels
from marrowscope.infer.classifier import Classifier, available_cores
from marrowscope.outputs import picture_outputs
from marrowscope.schema import Card, Split
from marrowscope.triage import calibrated, energy

Precision = Literal["fp32", "fp16", "int8-weights", "int8"]

CALIBRATION = 128
"""Training cells whose activations set the ranges of int8."""

CHOICE = 256
"""Validation cells, at most, on which the rules for the ranges are compared."""

IN_FLOAT = (0.0, 0.1, 0.25, 0.5)
"""Shares of the layers that stay in float32, tried in this order until the gate opens."""

CACHE = 500_000_000
"""Bytes of prepared pictures that may be held in memory."""

_CHUNK = 16

Chunks = Callable[[], Iterator[Pixels]]


def export_onnx(
    run: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
    data: Path | None = None,
    pictures: int = 100,
    progress: Progress | None = None,
) -> Parity:
    """Write a run's best model as ONNX, if it answers like the checkpoint.

    The file holds the normalisation, and in its metadata the model card: classes, preprocessing, data, licence,
    calibration and thresholds. A card that lacks the latter is fitted first (`fit.fit_card`); where the data are not at
    hand the file goes without, and `Parity.note` says so. Outputs beside the logits: ``features`` (N, D), and
    ``ood_score`` (N,) where the card's score of novelty is made of them.

    ``fp32``: every calibrated probability within `TOLERANCE` of the checkpoint's, every ood_score within
    `SCORE_TOLERANCE`.

    ``fp16``: weights stored as float16, computed in float32. onnxruntime has next to no float16 kernels for x86
    processors, and would convert to and fro at each layer; so the weights are converted once, when the file is opened.
    Half the size, and the speed of fp32.

    ``int8-weights``: weights stored as int8, computed in float32; a quarter to a third of the size, at the speed
    of fp32. Unlike int8 it rounds no activations, and so suits networks that int8 spoils.

    ``int8``: matrix products and convolutions in eight bits, static: weights per channel, activations by ranges from
    training cells (`CALIBRATION`), so that an answer doesn't depend on the other pictures of a batch, as it would with
    dynamic ranges. Of three rules for the ranges the one nearest to fp32 on validation cells is taken. The first
    convolution, the head, norms, softmax and the normalisation stay in float32; further layers as well, those first
    whose steps are coarsest, where the gate would stay shut. What stays has its weights stored as in fp16. On
    processors without VNNI (before about 2019) onnxruntime's sums of int8 products can saturate: check accuracy there.

    Calibration and thresholds of all but fp32 files are fitted anew on their own answers for the validation part. They
    must give the fp32 file's answer on at least 99 % of the whole validation part and lose no more than
    0.5 points of accuracy there.

    Args:
        run: Run folder.
        output: The ONNX file.
        precision: ``fp32``, ``fp16``, ``int8-weights`` or ``int8``.
        data: Folder of images for the comparison; without it, the one that the run was trained on.
        pictures: How many cells of the validation part to compare checkpoint and fp32 on (noise where the data are not
            at hand).
        progress: Called with (done, total) cells while the card is fitted.

    Raises:
        ModelError: The run has no model, a precision that is not allowed, or a file that would answer otherwise;
            nothing is written then.
        SplitError: The validation part is empty, or its pictures are not at hand (not for fp32).
        DataError: There is no folder of images, or a picture can't be read any more (likewise).
        OutputError: The file can't be written.
    """
    if precision not in get_args(Precision):
        raise ModelError(f"Unknown precision {precision!r}; allowed: {', '.join(get_args(Precision))}.")
    fitted, note = _fitted(run, data, progress)
    card = fitted.card.model_copy(update={"precision": precision})
    validation = None if precision == "fp32" else _validation(run, card, data)
    proto = to_onnx(fitted.model, card)
    samples, real = _samples(run, card, data, pictures)
    with atomic_path(output) as temporary, tempfile.TemporaryDirectory() as folder:
        exact = temporary if validation is None else Path(folder) / "fp32.onnx"
        write_onnx(_scored(proto, fitted), card, exact)
        difference, score = _gate(run, fitted, exact, samples)
        if validation is None:
            return Parity(len(samples), real, difference, score_difference=score, note=note)
        work = _Work(proto, fitted, card, exact, temporary, validation)
        if precision == "int8":
            parity = work.int8(_calibration(run, card, data))
        else:
            parity = work.smaller(with_half_weights if precision == "fp16" else with_byte_weights)
        speed = speed_ratio(exact, temporary, samples)
        size = temporary.stat().st_size / exact.stat().st_size
        return replace(parity, speed=speed, size=size, score_difference=score, note=note)


def _gate(run: Path, fitted: Fitted, exact: Path, samples: Pixels) -> tuple[float, float | None]:
    """Largest differences of the fp32 file from its checkpoint: of a probability, and of an ood_score where it has one.

    Raises:
        ModelError: One of them is not below what is allowed.
    """
    difference, score = _max_differences(fitted, exact, samples)
    if not difference < TOLERANCE or not (score or 0.0) < SCORE_TOLERANCE:
        raise ModelError(
            f"The ONNX file of {run} would differ from its checkpoint by {difference:.2g} in a probability "
            f"(allowed: below {TOLERANCE:g}, on {len(samples)} pictures)"
            + ("" if score is None else f" and {score:.2g} in an ood_score (below {SCORE_TOLERANCE:g})")
            + ". Nothing was written."
        )
    return difference, score


def _fitted(run: Path, data: Path | None, progress: Progress | None) -> tuple[Fitted, str]:
    """The run with a fitted card, if that can be had; else as it is, and what to tell of it."""
    try:
        return fit_card(run, data=data, progress=progress), ""
    except (DataError, SplitError) as e:
        fitted = load_fitted(run)
        if fitted.card.scaling is not None:
            return fitted, ""
        first = str(e).splitlines()[0]
        return fitted, (
            "the file has no calibration, conformal sets, novelty or thresholds of acceptance, since these could not "
            f"be fitted on validation cells: {first}"
        )


def _scored(proto: onnx.ModelProto, fitted: Fitted) -> onnx.ModelProto:
    """The network with the output that its card's score of novelty needs."""
    about = fitted.card.novelty
    if about is None or fitted.known is None or about.method == "energy":
        return proto
    return with_novelty(proto, fitted.known.statistics, about.method)


@dataclass(frozen=True)
class _Cells:
    """Cells of a part, chunk by chunk; and what they are."""

    images: CellImages
    truth: Truth

    def chunks(self, most: int | None = None) -> Iterator[Pixels]:
        """All cells, or `most` of them spread over the part: uint8 (N, size, size, 3) each time."""
        places = self.places(most)
        for start in range(0, len(places), _CHUNK):
            yield np.stack([self._load(int(i)) for i in places[start : start + _CHUNK]])

    def places(self, most: int | None = None) -> Sequence[int]:
        """Their places."""
        n = len(self.images)
        return [int(i) for i in _spread(n, n if most is None else most)]

    def _load(self, place: int) -> Pixels:
        try:
            return self.images.load(place)
        except ImageError as e:
            raise unreadable([f"{self.images.rows[place].path}: {e}"]) from None


@dataclass(frozen=True)
class _Work:
    """What is known when a smaller file is to be made: the fp32 network and file, and the validation cells."""

    proto: onnx.ModelProto
    fitted: Fitted
    card: Card
    exact: Path
    target: Path
    validation: _Cells

    def smaller(self, stored: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Parity:
        """The network with its weights stored otherwise, and computed in float32."""
        network = _scored(stored(self.proto), self.fitted)
        write_onnx(network, self.card, self.target)
        expected, answered = self._answers(self.exact), self._answers(self.target)
        parity = compare_answers(self.card.precision, expected, answered, self.validation.truth)
        if not parity.passes:
            raise self._refused(explain(parity, expected, answered, self.card.codes))
        self._refit(network)
        return parity

    def _refit(self, network: onnx.ModelProto) -> None:
        """Write the file again with a card whose calibration and thresholds rest on the file's own answers."""
        if self.card.scaling is None:
            return
        logits_NC, found = file_outputs(self.target, self.validation.chunks())
        about = self.card.novelty
        score_N = energy(logits_NC) if found is None else found.astype(np.float64)
        card = with_thresholds(
            self.card,
            self.validation.truth.labels_N,
            logits_NC,
            novelty_method=None if about is None else about.method,
            ood_score_N=score_N,
            scaling=self.card.scaling.method,
        )
        write_onnx(network, card, self.target)

    def int8(self, calibration: _Cells) -> Parity:
        proto = with_shapes(self.proto)
        layers = Layers(proto)
        if not layers.names:
            raise ModelError(f"{self.card.architecture} has no layer that int8 could speed up. Take fp32 or fp16.")
        histograms = observe(proto, layers.tensors(), lambda: calibration.chunks(CALIBRATION))
        ranges = {m: {name: rule(h) for name, h in histograms.items()} for m, rule in METHODS.items()}
        expected = self._answers(self.exact)
        method = self._best_method(proto, layers, ranges, expected)
        scores = {n: coarseness(histograms[layers.inputs[n]], ranges[method][layers.inputs[n]]) for n in layers.names}
        worst_first = sorted(layers.names, key=lambda n: -scores[n])
        reason = ""
        for share in IN_FLOAT:
            in_float = worst_first[: round(share * len(worst_first))]
            network = _scored(with_half_weights(quantised(proto, layers, ranges[method], in_float)), self.fitted)
            write_onnx(network, self.card, self.target)
            answered = self._answers(self.target)
            parity = compare_answers("int8", expected, answered, self.validation.truth)
            if parity.passes:
                self._refit(network)
                return replace(parity, method=method, in_float=(*layers.kept, *in_float))
            # Told of the first try: more layers in float32 make a file slower, but need not make it better.
            reason = reason or explain(parity, expected, answered, self.card.codes)
        raise self._refused(f"{reason}. With {IN_FLOAT[-1]:.0%} of the layers in float32 it is no better")

    def _best_method(
        self,
        proto: onnx.ModelProto,
        layers: Layers,
        ranges: dict[str, dict[str, Range]],
        expected: Probabilities,
    ) -> str:
        """The rule whose answers are nearest to those of fp32 on validation cells: mean distance of probabilities."""
        places = self.validation.places(CHOICE)
        distance = {}
        for method, chosen in ranges.items():
            write_onnx(_scored(quantised(proto, layers, chosen), self.fitted), self.card, self.target)
            distance[method] = float(np.abs(self._answers(self.target, CHOICE) - expected[places]).mean())
        return min(distance, key=lambda m: distance[m])

    def _answers(self, file: Path, most: int | None = None) -> Probabilities:
        served = Classifier.load(file)
        return np.concatenate([served.probabilities(chunk) for chunk in self.validation.chunks(most)])

    def _refused(self, reason: str) -> ModelError:
        precision = self.card.precision
        return ModelError(
            f"The {precision} file of {self.card.name} would answer otherwise than fp32: {reason}. Nothing was "
            f"written. Export {'fp32' if precision == 'fp16' else 'fp16'} instead."
        )


def _validation(run: Path, card: Card, data: Path | None) -> _Cells:
    """The whole validation part, in memory where it is small."""
    root, split = data_folder(run, data), Split.read(run / "split.csv")
    rows = split.part("val")
    if not rows:
        raise SplitError(f"{run / 'split.csv'} has no image in the part 'val', which {card.precision} is judged on.")
    check_split(split, root)
    images = CellImages(root, rows, card.codes, card.preprocessing)
    if len(rows) * card.preprocessing.size**2 * 3 <= CACHE:
        images.fill_cache(workers=available_cores())
    try:
        groups = number_groups([hashlib.sha256(images.source.read(r.path)).hexdigest() for r in rows])
    except ImageError as e:
        raise unreadable([str(e)]) from None
    return _Cells(images, Truth(images.labels, groups, card.codes))


def _calibration(run: Path, card: Card, data: Path | None) -> _Cells:
    """Cells spread over the training part, by path, and so over the classes."""
    rows = Split.read(run / "split.csv").part("train")
    chosen = [rows[i] for i in _spread(len(rows), CALIBRATION)]
    images = CellImages(data_folder(run, data), chosen, card.codes, card.preprocessing)
    return _Cells(images, Truth(images.labels, np.arange(len(chosen)), card.codes))


def _spread(n: int, most: int) -> Sequence[int]:
    """At most `most` places out of n, evenly spread."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))]


def _samples(run: Path, card: Card, data: Path | None, n: int) -> tuple[Pixels, bool]:
    """Prepared pictures (N, size, size, 3): spread over the validation part, or noise."""
    rows = Split.read(run / "split.csv").part("val")
    chosen = [rows[i] for i in _spread(len(rows), n)]
    with contextlib.suppress(DataError):  # no such folder or archive
        images = CellImages(data_folder(run, data), chosen, card.codes, card.preprocessing)
        if chosen and all(images.source.has(r.path) for r in chosen):
            return np.stack([images.load(i) for i in range(len(chosen))]), True
    size = card.preprocessing.size
    return np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8), False


def _max_differences(fitted: Fitted, file: Path, samples: Pixels) -> tuple[float, float | None]:
    """Largest difference of a calibrated probability, and of an ood_score as a share of it (of 1, if that is more)."""
    card = fitted.card
    ours = picture_outputs(fitted.model, samples, len(samples))
    logits_NC, score_N = file_outputs(file, (samples[i : i + _CHUNK] for i in range(0, len(samples), _CHUNK)))
    difference = float(np.abs(calibrated(card, ours.logits_NC) - calibrated(card, logits_NC)).max())
    expected = fitted.score(ours)
    if score_N is None or expected is None:
        return difference, None
    return difference, float((np.abs(score_N - expected) / np.maximum(np.abs(expected), 1.0)).max())
