"""From files to predictions: decoding overlaps inference, memory is bounded, rows keep the order of the inputs."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marrowscope import images
from marrowscope.errors import DataError, ImageError
from marrowscope.infer.classifier import available_cores
from marrowscope.infer.inputs import find_images
from marrowscope.infer.items import Item
from marrowscope.infer.outputs import Journal
from marrowscope.infer.predictor import BATCH_SIZE, Predictor, batches
from marrowscope.schema import OK, Predictions
from marrowscope.triage import Answers

Progress = Callable[[int, int], object]
"""Called after each batch with the number of rows done and of those without an answer."""

Prepared = tuple[images.Pixels, ...]
"""A picture in each of the ways that the predictor needs."""

AHEAD = 32
"""Pictures that are read before they are needed, at the least."""

MAX_HELD = 256_000_000
"""Bytes of files read out of an archive and not decoded yet."""


@dataclass(frozen=True)
class Summary:
    """What became of the files.

    Attributes:
        total: Rows written.
        ok: Rows with an answer.
        failed: Rows without, by cause.
        seconds: From the first file to the finished output.
        resumed: Rows out of `total` that an interrupted run had written.
    """

    total: int
    ok: int
    failed: dict[str, int]
    seconds: float
    resumed: int = 0


def predict_files(
    model: Predictor,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    lanes: int | None = None,
) -> Summary:
    """Predict every file that `inputs` stand for (see `find_images`), and write a row for each.

    While it goes on, the rows stand in ``OUTPUT.partial`` (see `outputs`); the output appears whole or not at all.

    Args:
        model: A `Classifier` or an `Ensemble`.
        inputs: Files, folders, archives, patterns, or ``-``.
        output: The table to write, ending in .csv, .jsonl or .parquet.
        batch_size: Pictures in one inference.
        workers: Threads that read and decode; None for one a core.
        resume: Go on from the rows that an interrupted run left; no row is repeated or lost.
        progress: Called after each batch.
        lanes: Inferences at a time; None for as many as the model's threads leave cores for. Many small inferences of
            one thread each are faster than large ones of many threads: their data stay in a core's cache, and no
            thread waits for another. So open a model for this with ``threads=1``.

    Raises:
        DataError: A folder holds no image, or with `resume` the inputs are not those of the interrupted run.
        ModelError: The model can't be run.
        OutputError: The output can't be written, or another process is writing it.
    """
    items = find_images(inputs)
    return predict_items(
        model,
        items,
        output,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        progress=progress,
        lanes=lanes_of(model) if lanes is None else lanes,
    )


def predict_items(
    model: Predictor,
    items: Iterator[Item],
    output: Path,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    lanes: int = 1,
) -> Summary:
    """As `predict_files`, of items wherever they lie; one inference at a time if not told otherwise."""
    start = time.perf_counter()
    counts: Counter[str] = Counter()
    header = to_predictions(model.codes, (), (), model.no_answers()).header()
    with Journal(output, model.identity, header, resume=resume) as journal:
        counts.update(_skip_done(items, journal))
        resumed = counts.total()
        with closing(_predict(model, items, batch_size, workers, lanes)) as answers:
            for rows in answers:
                journal.append(rows.rows())
                counts.update(images.cause(s) for s in rows.status)
                if progress is not None:
                    progress(counts.total(), counts.total() - counts[OK])
        journal.finish()
    ok = counts.pop(OK, 0)
    failed = dict(counts.most_common())
    return Summary(ok + sum(failed.values()), ok, failed, time.perf_counter() - start, resumed)


def predict_to_predictions(
    model: Predictor,
    inputs: Sequence[str | Path],
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Predictions:
    """As `predict_files`, but in memory."""
    none = to_predictions(model.codes, (), (), model.no_answers())
    return Predictions.joined([none, *_predict(model, find_images(inputs), batch_size, workers, lanes_of(model))])


def lanes_of(model: Predictor) -> int:
    """How many inferences at a time leave no core idle, and ask for none twice."""
    return max(1, available_cores() // model.threads)


def _skip_done(items: Iterator[Item], journal: Journal) -> Iterator[str]:
    """Pass by the items that have a row already; yields their causes."""
    for name, status, *_ in journal.rows():
        item = next(items, None)
        if item is None or item.name != name:
            raise DataError(
                f"Can't go on with {journal.path}: the inputs are not those of the interrupted run (it has a row for "
                f"{name} where {item.name if item else 'no file'} follows now). Start anew without --resume."
            )
        yield images.cause(status)


def _predict(
    model: Predictor, items: Iterable[Item], batch_size: int, workers: int | None, lanes: int
) -> Generator[Predictions]:
    """Predictions batch by batch, in order."""
    workers = workers or available_cores()
    ahead = _load_ahead(items, model, workers, max(3 * batch_size, AHEAD))
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="infer")
    waiting: deque[Future[Predictions]] = deque()
    try:
        with closing(ahead) as loaded:  # or its threads would live as long as the traceback of an error
            for batch in batches(loaded, batch_size):
                waiting.append(pool.submit(_answer, model, batch))
                if len(waiting) > lanes:  # one more than are worked on, so that no lane waits for the disk
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _answer(model: Predictor, batch: Sequence[tuple[str, Prepared | str]]) -> Predictions:
    good = [prepared for _, prepared in batch if not isinstance(prepared, str)]
    status = [x if isinstance(x, str) else OK for _, x in batch]
    answers = model.answer_each(good) if good else model.no_answers()
    return to_predictions(model.codes, [name for name, _ in batch], status, answers)


def to_predictions(
    codes: tuple[str, ...], paths: Sequence[str], status: Sequence[str], answers: Answers
) -> Predictions:
    """A row for each file: those that are ``ok`` have the answers, in their order; the others have none."""
    ok = np.array([s == OK for s in status], dtype=bool)

    def spread(values: npt.NDArray[Any] | None, nothing: float | bool) -> npt.NDArray[Any] | None:
        if values is None:
            return None
        out = np.full((len(ok), *values.shape[1:]), nothing, dtype=values.dtype)
        out[ok] = values
        return out

    probs = spread(answers.probs_NC, np.nan)
    assert probs is not None
    return Predictions(
        paths=tuple(paths),
        status=tuple(status),
        codes=codes,
        probs_NC=probs,
        sets_NC=spread(answers.sets_NC, False),
        ood_score_N=spread(answers.ood_score_N, np.nan),
        ood_N=spread(answers.ood_N, False),
        accepted_N=spread(answers.accepted_N, False),
    )


def _load_ahead(
    items: Iterable[Item], model: Predictor, workers: int, ahead: int
) -> Generator[tuple[str, Prepared | str]]:
    """Read, decode and prepare in threads; yields in order.

    At most `ahead` pictures wait, and fewer where the items hold more than `MAX_HELD` bytes.
    """
    waiting: deque[tuple[Item, Future[Prepared | str]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item, pool.submit(_load, item, model)))
            held += item.held
            while len(waiting) >= ahead or (held > MAX_HELD and waiting):
                done, future = waiting.popleft()
                held -= done.held
                yield done.name, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done.name, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(item: Item, model: Predictor) -> Prepared | str:
    try:
        return model.prepare_file(item.read())
    except ImageError as e:
        return str(e)  # the exception itself would keep the bytes of the file alive
