"""Device, precision, processes, and the wish to stop."""

from __future__ import annotations

import atexit
import gc
import os
import platform
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import torch
from lightning_fabric import Fabric
from torch import nn

import marrowscope
from marrowscope.config import EngineConfig
from marrowscope.errors import TrainingError
from marrowscope.models import CellClassifier

FabricPrecision = Literal["32-true", "bf16-mixed"]


def has_bf16() -> bool:
    """Whether the device at hand computes in bfloat16 faster than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_flags() & {"avx512_bf16", "amx_bf16"} != set()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:  # noqa: PTH123  (a kernel file, not a path of ours)
            return next((set(line.split()) for line in f if line.startswith("flags")), set())
    except OSError:
        return set()


def make_fabric(config: EngineConfig) -> Fabric:
    """Set up Lightning Fabric: one process, or those that `torchrun` started."""
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16())
    precision: FabricPrecision = "bf16-mixed" if bf16 else "32-true"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy="ddp",
        precision=precision,
    )
    fabric.launch()
    atexit.unregister(_leave_group)  # once, however many trainings this process does
    atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """End the threads of the group of processes before Python ends.

    Fabric does so for NCCL only. A thread of gloo that lets go of a tensor while the interpreter goes down needs a lock
    that is no longer there, which now and then ended a finished process with SIGABRT.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # what still holds the group, such as a wrapped network
        torch.distributed.destroy_process_group()


def synchronised(module: CellClassifier, fabric: Fabric) -> CellClassifier:
    """Let batch norm take its statistics over all processes, where there are several and the device can (CUDA)."""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return module
    import timm.layers

    # timm's own, for torch's loses the activation that timm's norms carry.
    converted: CellClassifier = timm.layers.convert_sync_batchnorm(module)  # type: ignore[attr-defined,no-untyped-call]
    return converted


def choose_attention(module: CellClassifier, config: EngineConfig, fabric: Fabric) -> None:
    """Let the network's attention layers (those of timm that leave a choice) work as the recipe says, in place.

    In bfloat16 on a CPU without tile instructions (AMX), training through matrix products is faster than through
    torch's fused attention; in float32 it is slower (benchmarks/attention.py).
    """
    slow_fused = (
        fabric.device.type == "cpu" and fabric._precision.precision == "bf16-mixed" and "amx_bf16" not in _cpu_flags()
    )
    if config.attention == "plain" or (config.attention == "auto" and slow_fused):
        for layer in module.modules():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False  # type: ignore[assignment]


def compiled(module: CellClassifier, fabric: Fabric) -> nn.Module:
    """The same network, which torch.compile turns into code of its own at the first step.

    Raises:
        TrainingError: torch.compile does not work here, mostly for want of a C++ compiler (CPU) or of Triton (GPU).
    """
    try:
        probe = torch.compile(lambda x: (2 * x + 1).relu())(torch.ones(16, device=fabric.device))
        working = bool((probe == 3).all())
    except Exception as e:  # torch raises many types here, with pages of advice
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise TrainingError(
            f"engine.compile: torch.compile does not work here: {reason}. It needs a C++ compiler on a CPU (g++ or "
            "clang++, or one that CXX names) and Triton on a GPU; install it, or leave engine.compile out."
        ) from e
    if not working:
        raise TrainingError("engine.compile: the code that torch.compile makes here is wrong; leave it out.")
    network: nn.Module = torch.compile(module)  # type: ignore[assignment]
    return network


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    import timm

    return {
        "marrowscope": marrowscope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


class StopWish:
    """Becomes true at the first Ctrl-C or SIGTERM, or when the time is up; a second Ctrl-C interrupts at once.

    Use as a context manager; handlers are put back afterwards.
    """

    def __init__(self, limit_seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if limit_seconds is None else clock() + limit_seconds
        self.reason: str | None = None
        self._old: dict[int, Any] = {}

    def __bool__(self) -> bool:
        if self.reason is None and self._deadline is not None and self._clock() >= self._deadline:
            self.reason = "the time limit"
        return self.reason is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the caller keeps its own handlers
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
