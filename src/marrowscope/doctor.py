"""A first-run check: what this machine has, what marrowscope finds on it, and what to do about what is wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from marrowscope import __version__, images
from marrowscope.cells import CLASS_SETS
from marrowscope.data.phantom import draw
from marrowscope.data.sources import label_of, open_source
from marrowscope.errors import MarrowscopeError, ModelError
from marrowscope.infer import Classifier, bundled
from marrowscope.infer.classifier import available_cores
from marrowscope.schema import Preprocessing

State = Literal["good", "note", "bad"]

SELF_TEST_SECONDS = 5.0
LEAST_MEMORY_GIB = 2.0
LEAST_DISK_GIB = 1.0
OLDEST_PYTHON = (3, 11)
CHECKSUMS = "SHA256SUMS"
"""File beside the bundled models, as ``sha256sum`` writes it."""

_PLAIN = (
    "numpy", "pillow", "onnxruntime", "pydantic", "typer", "rich", "jinja2", "fastapi", "uvicorn", "sqlalchemy",
    "alembic", "fpdf2", "prometheus-client", "python-multipart",
)  # fmt: skip
"""What the plain install brings: it predicts, counts and serves."""

_TRAINING = ("torch", "timm", "lightning-fabric", "safetensors", "onnx", "onnxscript")


@dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        name: What was looked at.
        state: ``good``; ``note``: works, but something could be better or is not there; ``bad``: must be mended.
        found: What was found.
        advice: What to do about it; empty where it is good.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(
    *, data: Path | None = None, model: str | None = None, seconds: float = SELF_TEST_SECONDS
) -> Iterator[Check]:
    """Look at everything, one check after the other.

    Args:
        data: Folder or archive of images; None: the one that ``MARROWSCOPE_DATA`` names, if it names one.
        model: An ONNX file or a bundled name for the self-test; None: the first bundled model.
        seconds: Longest time of the self-test.
    """
    yield from _program()
    yield _packages("packages", _PLAIN, "bad", "pip install --upgrade marrowscope")
    yield _packages("training", _TRAINING, "note", "to train, evaluate and export: pip install 'marrowscope[train]'")
    yield _processor()
    yield _accelerator()
    yield _memory()
    yield from _disk()
    yield from _models()
    yield _data(data)
    yield _self_test(model, seconds)


def to_dicts(checks: list[Check]) -> list[dict[str, str]]:
    """As plain dictionaries, for JSON."""
    return [asdict(c) for c in checks]


# ----------------------------------------------------------------------------------------------------- the software


def _program() -> Iterator[Check]:
    where = Path(sys.modules["marrowscope"].__file__ or "").parent
    yield Check("marrowscope", "good", f"{__version__}, in {where}")
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        yield Check("Python", "bad", python, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    else:
        yield Check("Python", "good", python)


def _packages(name: str, wanted: tuple[str, ...], missing_is: State, advice: str) -> Check:
    found, missing = [], []
    for package in wanted:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    text = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check(name, missing_is if missing else "good", text.removeprefix("; "), advice if missing else "")


# ------------------------------------------------------------------------------------------------------ the machine

_FAST_INT8 = ("avx512_vnni", "avx_vnni", "asimddp")
_FAST_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_flags() -> set[str]:
    """Instruction sets of the processor as Linux names them; empty where it doesn't say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return {flag for key, _, value in lines if key.strip() in {"flags", "Features"} for flag in value.split()}


def _processor() -> Check:
    cores, flags = available_cores(), cpu_flags()
    found = f"{cores} {'core' if cores == 1 else 'cores'} for this process"
    if not flags:
        return Check("processor", "note", f"{found}; instruction sets unknown", "nothing; int8 may bring less speed")
    int8 = next((f for f in _FAST_INT8 if f in flags), None)
    bf16 = next((f for f in _FAST_BF16 if f in flags), None)
    found += f"; int8: {int8 or 'no fast instructions'}; bf16: {bf16 or 'no'}"
    if int8 is None:
        return Check("processor", "note", found, "int8 models are slower and less exact here; use fp32 or fp16 ones")
    return Check("processor", "good", found)


def _accelerator() -> Check:
    import onnxruntime as ort

    providers = [p.removesuffix("ExecutionProvider") for p in ort.get_available_providers()]
    found = f"onnxruntime: {', '.join(providers)}"
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
            return Check("GPU", "good", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}; {found}")
        found += "; PyTorch sees no GPU"
    if shutil.which("nvidia-smi") is not None:
        return Check("GPU", "note", found, "there is an NVIDIA driver: install a CUDA build of PyTorch to train on it")
    return Check("GPU", "good", f"none ({found}); all works on the CPU, training is slower")


def memory_gib() -> tuple[float, float] | None:
    """Memory of the machine, total and available, GiB; None where it can't be told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        values = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest.split()}
        return values["MemTotal"] / 2**20, values["MemAvailable"] / 2**20
    except (OSError, KeyError, ValueError):
        return None


def _memory() -> Check:
    memory = memory_gib()
    if memory is None:
        return Check("memory", "note", "unknown on this system", f"have at least {LEAST_MEMORY_GIB:g} GiB free")
    found = f"{memory[1]:.1f} of {memory[0]:.1f} GiB free"
    if memory[1] < LEAST_MEMORY_GIB:
        return Check("memory", "bad", found, f"end other programs until {LEAST_MEMORY_GIB:g} GiB are free")
    return Check("memory", "good", found)


def _disk() -> Iterator[Check]:
    for name, folder in (("disk, here", Path.cwd()), ("disk, temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / 2**30
        found = f"{free:.1f} GiB free in {folder}"
        if not os.access(folder, os.W_OK):
            yield Check(name, "note", f"{folder} can't be written", "give outputs another folder")
        elif free < LEAST_DISK_GIB:
            yield Check(name, "bad", found, f"free at least {LEAST_DISK_GIB:g} GiB, or work in another folder")
        else:
            yield Check(name, "good", found)


# ------------------------------------------------------------------------------------------------- models and data


def _models() -> Iterator[Check]:
    names = bundled()
    if not names:
        yield Check("bundled models", "note", "none", "train one, or give predict an ONNX file of your own")
    folder = resources.files("marrowscope") / "models_onnx"
    recorded = read_checksums(folder / CHECKSUMS)
    for name in names:
        content = (folder / f"{name}.onnx").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        found = f"{len(content) / 1e6:.1f} MB, SHA-256 {digest[:16]}..."
        if recorded.get(f"{name}.onnx") == digest:
            yield Check(f"model {name}", "good", f"{found}, as published")
        else:
            yield Check(f"model {name}", "bad", f"{found}, not as published", "install marrowscope again")


def read_checksums(file: Traversable) -> dict[str, str]:
    """Names with their SHA-256, from a file as ``sha256sum`` writes it; empty where there is none."""
    if not file.is_file():
        return {}
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {parts[1].lstrip("*"): parts[0] for parts in lines if len(parts) == 2}


def _data(data: Path | None) -> Check:
    named = os.environ.get("MARROWSCOPE_DATA", "")
    if data is None and not named:
        return Check(
            "data", "note", "MARROWSCOPE_DATA is not set", "for real cells, let it name the folder of the collection"
        )
    path = Path(data if data is not None else named)
    try:
        source = open_source(path)
        labels = [source.label(name) or label_of(name) for name in source.names]
    except MarrowscopeError as e:
        return Check("data", "bad", f"{path}: {e}", "name the folder or archive that holds a folder for each class")
    known = {c for s in CLASS_SETS.values() for c in s.codes}
    classes = {label for label in labels if label in known}
    if not classes:
        return Check("data", "bad", f"{path}: no folder is named by a class code", "see: marrowscope index --help")
    return Check("data", "good", f"{len(labels)} images, {len(classes)} classes in {path}")


# -------------------------------------------------------------------------------------------------------- self-test


def _self_test(model: str | None, seconds: float) -> Check:
    """Draw cells, write and read them as JPEG, prepare them, and let a model answer for them."""
    name = model or next(iter(bundled()), None)
    try:
        classifier = None if name is None else Classifier.load(name)
        spec = Preprocessing(size=224) if classifier is None else classifier.card.preprocessing
        files = [_jpeg(code) for code in ("BLA", "EOS", "LYT", "NGS")]
        started = time.perf_counter()
        n = 0
        while n < len(files) or (time.perf_counter() - started < seconds / 2 and n < 2000):
            pixels = images.decode(files[n % len(files)])
            if classifier is None:
                images.prepare(pixels, spec)
            else:
                _check_answer(classifier, pixels)
            n += 1
        rate = n / (time.perf_counter() - started)
    except MarrowscopeError as e:
        again = "install marrowscope again; if it stays, report it with this output"
        advice = again if model is None else "give --model a bundled name, or a file that 'marrowscope export' wrote"
        return Check("self-test", "bad", str(e), advice)
    if classifier is None:
        return Check(
            "self-test", "note", f"{rate:.0f} pictures/s decoded and prepared, no model to answer", "give one: --model"
        )
    return Check("self-test", "good", f"{name} answered for {n} synthetic cells one by one, {rate:.0f} a second")


def _jpeg(code: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(code, seed=0).image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _check_answer(classifier: Classifier, pixels: images.Pixels) -> None:
    probs = classifier.predict_proba(pixels)
    if not (np.isfinite(probs).all() and np.isclose(probs.sum(), 1.0, atol=1e-4)):
        raise ModelError(f"the model {classifier.card.name!r} gave probabilities that do not sum to 1")


def print_checks(checks: Iterator[Check], echo: Callable[[str], Any]) -> list[Check]:
    """Print each check as it comes; gives them all."""
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    done = []
    for check in checks:
        echo(f"{marks[check.state]}  {check.name}: {check.found}")
        if check.advice:
            echo(f"      what to do: {check.advice}")
        done.append(check)
    return done
