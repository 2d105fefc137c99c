"""Pictures of many clients through one model, as many at a time as are there.

One thread runs the model. While it does, further pictures gather, and go together in its next run: so a lone client
waits for nobody, and a crowd shares full batches. What may wait is bounded; beyond it `QueueFullError` is raised at
once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from marrowscope.errors import MarrowscopeError, ServiceError
from marrowscope.images import Pixels
from marrowscope.infer import Predictor
from marrowscope.infer.predictor import batches, joined
from marrowscope.triage import Answers

log = logging.getLogger("marrowscope.serve")

Prepared = tuple[Pixels, ...]
"""A picture in each of the ways that a predictor needs."""


class QueueFullError(Exception):
    """As many pictures wait as may; `seconds` is when it is worth trying again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class _Job:
    pictures: Sequence[Prepared]
    future: Future[Answers]
    since: float


class Batcher:
    """A model, its queue and the thread that runs it."""

    def __init__(
        self,
        model: Predictor,
        *,
        batch: int,
        queue: int,
        at_once: int | None = None,
        ran: Callable[[int, float], object] = lambda n, seconds: None,
    ) -> None:
        """Start the thread.

        Args:
            batch: Pictures in one run at the most; a job of more is still run at once.
            queue: Pictures that may wait.
            at_once: Pictures in one inference; None for all of a run. Few are quicker on a CPU, for what a network
                passes on between its layers then stays in the cache.
            ran: Called after each run with its pictures and seconds.
        """
        self.model = model
        self.batch = batch
        self.queue = queue
        self._at_once = at_once
        self._ran = ran
        self._jobs: deque[_Job] = deque()
        self._held = 0
        self._reserved = 0
        self._rate = 50.0  # pictures a second, learnt from the runs
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that wait or were promised a place."""
        return self._held + self._reserved

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def reserve(self, pictures: int) -> None:
        """Promise places, before the work of decoding; `submit` or `release` them afterwards.

        Raises:
            QueueFullError: There are not so many.
        """
        with self._changed:
            if self.waiting + pictures > self.queue:
                raise QueueFullError(max(1, round(self.waiting / self._rate)))
            self._reserved += pictures

    def release(self, pictures: int) -> None:
        """Give back places that are not needed."""
        with self._changed:
            self._reserved -= pictures
            self._changed.notify_all()

    def submit(self, pictures: Sequence[Prepared]) -> Future[Answers]:
        """Hand in pictures, at least one, whose places were reserved; the future gives their answers in order."""
        future: Future[Answers] = Future()
        with self._changed:
            self._reserved -= len(pictures)
            if self._closing:
                raise ServiceError("The service is stopping.")
            self._jobs.append(_Job(pictures, future, time.monotonic()))
            self._held += len(pictures)
            self._changed.notify_all()
        return future

    def wait_for_room(self, pictures: int, seconds: float) -> bool:
        """Wait until the queue is so empty that clients would not notice so many more; False when time is over."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or self.waiting + pictures <= max(pictures, self.queue // 2), seconds
            )

    def close(self) -> None:
        """Stop after the present run; jobs that wait are refused."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    # -------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while jobs := self._next():
            pictures = [p for job in jobs for p in job.pictures]
            start = time.monotonic()
            try:
                answers = self._answer(pictures)
            except MarrowscopeError as e:
                _fail(jobs, e)
            except Exception as e:
                log.exception("the model failed")
                _fail(jobs, e)
            else:
                _share(jobs, answers)
                seconds = time.monotonic() - start
                self._rate += 0.2 * (len(pictures) / max(seconds, 1e-6) - self._rate)
                self._ran(len(pictures), seconds)

    def _answer(self, pictures: Sequence[Prepared]) -> Answers:
        size = self._at_once or len(pictures)
        return joined([self.model.answer_each(some) for some in batches(pictures, size)])

    def _next(self) -> list[_Job]:
        """The jobs of the next run, whole ones; none when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            if self._closing:
                _fail(self._jobs, ServiceError("The service is stopping."))
                self._jobs.clear()
                return []
            jobs: list[_Job] = []
            size = 0
            while self._jobs and (not jobs or size + len(self._jobs[0].pictures) <= self.batch):
                job = self._jobs.popleft()
                self._held -= len(job.pictures)
                if job.future.set_running_or_notify_cancel():  # its client may have gone
                    jobs.append(job)
                    size += len(job.pictures)
            self._changed.notify_all()
        return jobs or self._next()


def _fail(jobs: Sequence[_Job] | deque[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)


def _share(jobs: Sequence[_Job], answers: Answers) -> None:
    start = 0
    for job in jobs:
        end = start + len(job.pictures)
        job.future.set_result(part(answers, start, end))
        start = end


def part(answers: Answers, start: int, end: int) -> Answers:
    """Answers of some of the pictures."""
    return Answers(
        answers.probs_NC[start:end],
        None if answers.sets_NC is None else answers.sets_NC[start:end],
        None if answers.ood_score_N is None else answers.ood_score_N[start:end],
        None if answers.ood_N is None else answers.ood_N[start:end],
        None if answers.accepted_N is None else answers.accepted_N[start:end],
    )
