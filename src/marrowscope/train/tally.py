"""Running sums of an epoch, kept on the device so that no step waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from marrowscope.errors import DivergedError

STEPS_BETWEEN_LOOKS = 20
"""On a GPU the sums are fetched, and checked to be finite, so often; on a CPU at each step, where it costs nothing."""


def not_finite(what: str, steps: str) -> DivergedError:
    """The error for a loss or gradient that is nan or infinite."""
    return DivergedError(
        f"The {what} at {steps}; nothing of it was saved. The last checkpoint is good: lower "
        "optimizer.learning_rate, set optimizer.clip, or use engine.precision = 'fp32', and train again."
    )


class Tally:
    """Sums of loss, right answers and pictures seen of the epoch under way, over all processes in the end.

    The sums so far are carried by the first process alone, so that adding up the processes counts them once.
    """

    def __init__(self, fabric: Fabric, sums: Mapping[str, float], every: int | None = None) -> None:
        self._fabric = fabric
        self._every = every or (1 if fabric.device.type == "cpu" else STEPS_BETWEEN_LOOKS)
        first = fabric.global_rank == 0
        start = [sums["loss"], sums["correct"], sums["seen"]] if first else [0.0, 0.0, 0.0]
        self._sums = torch.tensor(start, dtype=torch.float64, device=fabric.device)
        self._norms = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self._seconds, self._begin = sums["seconds"], time.perf_counter()
        self._steps = 0
        self._seen: dict[str, float] = dict(sums)

    def add(self, loss: Tensor, correct: Tensor, pictures: int, norm: Tensor | None) -> None:
        """Add a step: its mean loss, its right answers, how many pictures, and the norm of its gradient."""
        self._sums[:2] += torch.stack([loss.double() * pictures, correct.double()])
        self._sums[2] += pictures
        if norm is not None:
            self._norms += norm
        self._steps += 1

    def look(self, step: int) -> dict[str, float]:
        """The sums after `step` steps of the run, of this process; on a GPU as they were a few steps ago.

        Raises:
            DivergedError: The loss or its gradient was not finite.
        """
        if self._steps % self._every == 0:
            self._fetch(self._sums, step)
        return self._seen

    def total(self, step: int) -> dict[str, float]:
        """The sums of all processes after `step` steps of the run.

        Raises:
            DivergedError: As `look`.
        """
        sums = self._sums
        if self._fabric.world_size > 1:
            sums = torch.as_tensor(self._fabric.all_reduce(sums.clone(), reduce_op="sum"))
        return self._fetch(sums, step)

    def _fetch(self, sums: Tensor, step: int) -> dict[str, float]:
        *values, norms = torch.cat([sums, self._norms[None]]).tolist()
        if not (math.isfinite(values[0]) and math.isfinite(norms)):
            what = f"loss is {values[0]}" if not math.isfinite(values[0]) else "gradient is not finite"
            raise not_finite(what, f"one of the steps {max(0, step - self._every)} to {step - 1}")
        seconds = self._seconds + time.perf_counter() - self._begin
        self._seen = {**dict(zip(("loss", "correct", "seen"), values, strict=True)), "seconds": seconds}
        return self._seen
