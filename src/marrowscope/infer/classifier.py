"""One ONNX file and its card: pictures in, answers out."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marrowscope import images
from marrowscope.errors import FileFormatError, ModelError
from marrowscope.files import sha256_file
from marrowscope.infer.predictor import ImageLike, Predictor
from marrowscope.schema import Card
from marrowscope.triage import ACCURACY, ALPHA, Answers, acceptance_entry, conformal_entry, judge

CARD_KEY = "marrowscope.card"
"""Key of the model card in the metadata of an ONNX file."""

INPUT, OUTPUT = "images", "logits"
"""Names of a model's input, uint8 (N, size, size, 3) RGB, and of its output, float32 (N, C)."""

SCORE, FEATURES = "ood_score", "features"
"""Further outputs that a model may have: float32 (N,), higher for a stranger picture; float32 (N, D)."""

# device: (execution provider of onnxruntime, package that brings it)
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime (on macOS)"),
}
DEVICES = tuple(_PROVIDERS)

# What a provider is told. OpenVINO would compute in bfloat16 where the processor has it, with other answers.
_PROVIDER_OPTIONS = {
    "openvino": {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'},
}

_EXPORT = "Make one with: marrowscope export RUN -o model.onnx"


class Classifier(Predictor):
    """A trained model that answers for pictures of single cells.

    Attributes:
        card: What the model is: classes, preprocessing, training data, scores.
        codes: The C class codes, in the order of the probabilities.
        device: Where it runs.
        alpha: Share of misses of the conformal sets.
        accuracy: That accepted answers should have.
    """

    def __init__(
        self,
        session: Any,
        card: Card,
        path: Path,
        device: str = "cpu",
        *,
        threads: int = 1,
        alpha: float = ALPHA,
        accuracy: float = ACCURACY,
    ) -> None:
        """Use `Classifier.load`."""
        self.threads = threads
        self.alpha, self.accuracy = alpha, accuracy
        self._session = session
        self._outputs = frozenset(o.name for o in session.get_outputs())
        self._path = path
        self.card = card
        self.codes = card.codes
        self.specs = (card.preprocessing,)
        self.device = device

    def __repr__(self) -> str:
        return f"<Classifier {self.card.name!r}: {len(self.codes)} classes, {self.card.preprocessing.size} px>"

    @property
    def path(self) -> Path:
        """The model's file."""
        return self._path

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the model's file, and what of the card's thresholds is used."""
        try:
            return f"{sha256_file(self._path)} {self.alpha:g} {self.accuracy:g}"
        except OSError as e:
            raise ModelError(f"Can't read the model {self._path} any more: {e.strerror or e}.") from None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        threads: int | None = None,
        device: str = "cpu",
        alpha: float | None = None,
        accuracy: float | None = None,
    ) -> Classifier:
        """Open an ONNX file that `marrowscope export` wrote, or a bundled model by its name.

        Args:
            model: Path of the file, or a name out of `bundled()`.
            threads: CPU threads of one inference; None for one a core that this process may use.
            device: One of `DEVICES`.
            alpha: Share of misses of the conformal sets, one that the card has thresholds for; None for
                `triage.ALPHA`, or for no sets where the card has none.
            accuracy: That accepted answers should have, one that the card has a threshold for; None for
                `triage.ACCURACY`, or for no such judgement where the card has none.

        Raises:
            ModelError: No such file or name, a file of something else, a device that is not there, or an `alpha` or
                `accuracy` that the card has no thresholds for.
        """
        with _model_path(model) as path:
            session = _open_session(path, threads, device)
            card = _read_card(session, path)
            _check_session(session, card, path)
        _check_choice(card, alpha, accuracy)
        return cls(
            session,
            card,
            path,
            device,
            threads=threads or available_cores(),
            alpha=ALPHA if alpha is None else alpha,
            accuracy=ACCURACY if accuracy is None else accuracy,
        )

    @property
    def has_features(self) -> bool:
        """Whether the file has the output that `predict_features` gives."""
        return FEATURES in self._outputs

    def logits(self, prepared_NHWC: images.Pixels) -> npt.NDArray[np.float32]:
        """Run the network: uint8 (N, size, size, 3) as `images.prepare` gives it -> float32 (N, C).

        Raises:
            ModelError: Another shape or type, or onnxruntime can't run the network.
        """
        return self._run([OUTPUT], prepared_NHWC)[0]

    def probabilities(self, prepared_NHWC: images.Pixels) -> npt.NDArray[np.float64]:
        """Calibrated probabilities: uint8 (N, size, size, 3) -> float64 (N, C), rows sum to 1."""
        return self.answer([prepared_NHWC]).probs_NC

    def answer(self, prepared: Sequence[images.Pixels]) -> Answers:
        """As `Predictor.answer`."""
        wanted = [OUTPUT, SCORE] if SCORE in self._outputs and self.card.novelty is not None else [OUTPUT]
        logits, *score = self._run(wanted, prepared[0])
        return judge(self.card, logits, score[0] if score else None, alpha=self.alpha, accuracy=self.accuracy)

    def features(self, prepared_NHWC: images.Pixels) -> npt.NDArray[np.float32]:
        """What the network sees before its last layer: uint8 (N, size, size, 3) -> float32 (N, D).

        Raises:
            ModelError: As `logits`; or the file has no such output.
        """
        if not self.has_features:
            raise ModelError(f"The model {self.card.name!r} has no output {FEATURES!r}. Export it anew.")
        return self._run([FEATURES], prepared_NHWC)[0]

    def predict_features(self, pictures: ImageLike | Iterable[ImageLike]) -> npt.NDArray[np.float32]:
        """As `features`, of pictures of any kind: float32 (N, D); errors as `predict_answers` too."""
        size = self.card.preprocessing.size
        parts = [self.features(np.empty((0, size, size, 3), dtype=np.uint8))]
        parts += [self.features(np.stack([way for (way,) in batch])) for batch in self._batches(pictures)]
        return np.concatenate(parts)

    def _run(self, outputs: Sequence[str], prepared_NHWC: images.Pixels) -> list[npt.NDArray[np.float32]]:
        """The outputs of these names, float32, each with N as its first axis."""
        size = self.card.preprocessing.size
        if prepared_NHWC.dtype != np.uint8 or prepared_NHWC.shape[1:] != (size, size, 3):
            raise ModelError(
                f"The model's input is uint8 (N, {size}, {size}, 3), not {prepared_NHWC.dtype} {prepared_NHWC.shape}. "
                "Pass pictures through marrowscope.images.prepare, or call predict_proba."
            )
        n = len(prepared_NHWC)
        tails = {OUTPUT: (len(self.codes),), SCORE: (), FEATURES: (self._feature_size,)}
        if n == 0:
            return [np.empty((0, *tails[name]), dtype=np.float32) for name in outputs]
        try:
            results = self._session.run(list(outputs), {INPUT: prepared_NHWC})
        except Exception as e:  # onnxruntime's exceptions have no common base but Exception
            raise ModelError(f"onnxruntime can't run the model {self.card.name!r}: {_first_line(e)}") from None
        found = [np.asarray(r, dtype=np.float32) for r in results]
        for name, array in zip(outputs, found, strict=True):
            wanted = (n, *tails[name])
            if array.shape != wanted:
                raise ModelError(
                    f"The model {self.card.name!r} gave {name} of shape {array.shape} where {wanted} was expected. "
                    f"{_EXPORT}"
                )
            if not np.isfinite(array).all():
                raise ModelError(f"The model {self.card.name!r} gave {name} that are not finite numbers. {_EXPORT}")
        return found

    @functools.cached_property
    def _feature_size(self) -> int:
        return next((int(o.shape[1]) for o in self._session.get_outputs() if o.name == FEATURES), 0)


def read_card(model: str | Path) -> Card:
    """The card of an ONNX file, of a bundled model by its name, or in a card.json.

    Raises:
        ModelError: As `Classifier.load`.
        FileFormatError: A card.json that is none.
    """
    return Card.read(Path(model)) if str(model).endswith(".json") else Classifier.load(model).card


# ------------------------------------------------------------------------------------------------- opening a model


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(_bundled_files())


def _bundled_files() -> dict[str, Any]:
    folder = resources.files("marrowscope") / "models_onnx"
    if not folder.is_dir():
        return {}
    return {f.name.removesuffix(".onnx"): f for f in folder.iterdir() if f.name.endswith(".onnx")}


@contextlib.contextmanager
def _model_path(model: str | Path) -> Iterator[Path]:
    """Where the model lies on the disk: a file of this path, or else the bundled model of this name."""
    path = Path(model)
    files = _bundled_files()
    if not path.exists() and str(model) in files:
        with resources.as_file(files[str(model)]) as unpacked:
            yield unpacked
        return
    names = f"Bundled models: {', '.join(sorted(files)) or 'none'}."
    if path.is_dir():
        run = any((path / name).exists() for name in ("config.toml", "card.json", "best.safetensors"))
        export = f"marrowscope export {path} -o model.onnx"
        hint = f"It looks like a run folder; export it first: {export}" if run else _EXPORT
        raise ModelError(f"The model {path} is a folder; an ONNX file or a bundled name is needed. {hint}")
    if not path.exists():
        raise ModelError(f"No model {str(model)!r}: neither a file nor a bundled name. {names} {_EXPORT}")
    yield path


def _open_session(path: Path, threads: int | None, device: str) -> Any:
    if threads is not None and threads < 1:
        raise ModelError(f"threads is {threads}; allowed are 1 and more, or None for one a core.")
    if device not in _PROVIDERS:
        raise ModelError(f"Unknown device {device!r}; allowed: {', '.join(DEVICES)}.")
    import onnxruntime as ort  # here, so that importing this module stays cheap

    provider, package = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ModelError(
            f"This onnxruntime can't run on the device {device!r}: it has no {provider}. Install {package} in place of "
            f"onnxruntime, or take the device 'cpu'."
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: everything else comes to us as an exception
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    # Waiting threads must not spin: the cores are needed for decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"The model {path} is an empty file. {_EXPORT}")
        session = ort.InferenceSession(str(path), options, providers=[(provider, _PROVIDER_OPTIONS.get(device, {}))])
    except OSError as e:
        raise ModelError(f"Can't read the model {path}: {e.strerror or e}.") from None
    except ModelError:
        raise
    except Exception as e:  # onnxruntime's exceptions have no common base but Exception
        raise ModelError(
            f"{path} is not a whole ONNX file that onnxruntime can open ({_first_line(e)}). {_EXPORT}"
        ) from None
    if session.get_providers()[0] != provider:  # onnxruntime falls back to the CPU without a word
        raise ModelError(f"onnxruntime can't start the device {device!r} here; check its drivers, or take 'cpu'.")
    return session


def _read_card(session: Any, path: Path) -> Card:
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if text is None:
        raise ModelError(f"{path} is an ONNX file of something else: it has no {CARD_KEY!r} in its metadata. {_EXPORT}")
    try:
        return Card.parse(text, f"The card in {path}")
    except FileFormatError as e:
        raise ModelError(f"{e}\n{_EXPORT}") from None


def _check_session(session: Any, card: Card, path: Path) -> None:
    size = card.preprocessing.size
    got = {i.name: (i.type, i.shape[1:]) for i in session.get_inputs()}
    if got != {INPUT: ("tensor(uint8)", [size, size, 3])}:
        raise ModelError(f"{path}: the input must be {INPUT!r}, uint8 (N, {size}, {size}, 3), and is {got}. {_EXPORT}")
    outputs = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    kind, shape = outputs.get(OUTPUT, ("", []))
    if kind != "tensor(float)" or len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != len(card.codes)):
        raise ModelError(
            f"{path}: the output must be {OUTPUT!r}, float (N, {len(card.codes)}), and the outputs are {outputs}. "
            f"{_EXPORT}"
        )
    for name, axes, what in ((SCORE, 1, "(N,)"), (FEATURES, 2, "(N, D)")):
        kind, shape = outputs.get(name, ("tensor(float)", [None, 1][:axes]))
        # Of one axis there is only N; of two, the second must be a known number.
        if kind != "tensor(float)" or len(shape) != axes or not all(isinstance(d, int) for d in shape[1:]):
            raise ModelError(f"{path}: the output {name!r} must be float {what}, and is {kind} {shape}. {_EXPORT}")
    if card.novelty is not None and card.novelty.method != "energy" and SCORE not in outputs:
        raise ModelError(f"{path}: its card tells of a score {card.novelty.method!r}, and it has no output {SCORE!r}.")


def _check_choice(card: Card, alpha: float | None, accuracy: float | None) -> None:
    """Find out at once what would fail at the first picture, and what was asked for in vain."""
    conformal = conformal_entry(card, ALPHA if alpha is None else alpha)
    if alpha is not None and conformal is None:
        raise ModelError(f"The model {card.name!r} has no conformal sets, so none for alpha {alpha:g}.")
    acceptance = acceptance_entry(card, ACCURACY if accuracy is None else accuracy)
    if accuracy is not None and acceptance is None:
        raise ModelError(f"The model {card.name!r} has no threshold of acceptance, so none for {accuracy:g}.")


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
