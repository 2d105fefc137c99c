"""From files to predictions.csv: decoding overlaps inference, memory is bounded, rows keep the order of the inputs."""

from __future__ import annotations

import csv
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marrowscope import images
from marrowscope.errors import ImageError, OutputError
from marrowscope.files import atomic_open
from marrowscope.infer.classifier import BATCH_SIZE, Classifier, available_cores, batches
from marrowscope.infer.inputs import Item, check_inputs, find_images
from marrowscope.schema import OK, Predictions, Preprocessing

Progress = Callable[[int, int], object]
"""Called after each batch with the number of rows done and of those without an answer."""


@dataclass(frozen=True)
class Summary:
    """What became of the files.

    Attributes:
        total: Rows written.
        ok: Rows with an answer.
        failed: Rows without, by cause.
        seconds: From the first file to the finished output.
    """

    total: int
    ok: int
    failed: dict[str, int]
    seconds: float


def predict_files(
    model: Classifier,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Predict every file that `inputs` stand for (see `find_images`) and write predictions.csv, whole or not at all.

    Args:
        model: The model.
        inputs: Files and folders.
        output: The table to write, ending in .csv.
        batch_size: Pictures in one inference.
        workers: Threads that read and decode; None for one a core.
        progress: Called after each batch.

    Raises:
        DataError: A folder holds no image.
        ModelError: The model can't be run.
        OutputError: The output can't be written.
    """
    output = Path(output)
    if output.suffix.lower() != ".csv":
        raise OutputError(f"Can't write {output}: the ending must be .csv.")
    check_inputs(inputs)
    start = time.perf_counter()
    counts: Counter[str] = Counter()
    with atomic_open(output) as f:
        out = csv.writer(f, lineterminator="\n")
        for n, rows in enumerate(_predict(model, inputs, batch_size, workers)):
            if n == 0:
                out.writerow(rows.header())
            out.writerows(rows.rows())
            counts.update(images.cause(s) for s in rows.status)
            if progress is not None:
                progress(counts.total(), counts.total() - counts[OK])
    ok = counts.pop(OK, 0)
    failed = dict(counts.most_common())
    return Summary(ok + sum(failed.values()), ok, failed, time.perf_counter() - start)


def predict_to_predictions(
    model: Classifier,
    inputs: Sequence[str | Path],
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Predictions:
    """As `predict_files`, but in memory."""
    check_inputs(inputs)
    parts = list(_predict(model, inputs, batch_size, workers))
    return Predictions(
        paths=tuple(p for part in parts for p in part.paths),
        status=tuple(s for part in parts for s in part.status),
        codes=model.codes,
        probs_NC=np.concatenate([part.probs_NC for part in parts]),
    )


def _predict(
    model: Classifier, inputs: Sequence[str | Path], batch_size: int, workers: int | None
) -> Iterator[Predictions]:
    """Predictions batch by batch."""
    loaded = _load_ahead(find_images(inputs), model.card.preprocessing, workers or available_cores(), 3 * batch_size)
    for batch in batches(loaded, batch_size):
        yield _answer(model, batch)


def _answer(model: Classifier, batch: Sequence[tuple[str, images.Pixels | ImageError]]) -> Predictions:
    good = [i for i, (_, pixels) in enumerate(batch) if isinstance(pixels, np.ndarray)]
    probs = np.full((len(batch), len(model.codes)), np.nan)
    if good:
        probs[good] = model.probabilities(np.stack([np.asarray(batch[i][1]) for i in good]))
    return Predictions(
        paths=tuple(name for name, _ in batch),
        status=tuple(str(x) if isinstance(x, ImageError) else OK for _, x in batch),
        codes=model.codes,
        probs_NC=probs,
    )


def _load_ahead(
    items: Iterable[Item], spec: Preprocessing, workers: int, ahead: int
) -> Iterator[tuple[str, images.Pixels | ImageError]]:
    """Read, decode and prepare in threads; yields in order, at most `ahead` pictures wait."""
    waiting: deque[tuple[str, Future[images.Pixels | ImageError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item.name, pool.submit(_load, item, spec)))
            if len(waiting) >= ahead:
                name, future = waiting.popleft()
                yield name, future.result()
        while waiting:
            name, future = waiting.popleft()
            yield name, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(item: Item, spec: Preprocessing) -> images.Pixels | ImageError:
    try:
        return images.prepare(images.decode(item.read()), spec)
    except ImageError as e:
        return e
