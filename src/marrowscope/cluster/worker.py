"""What an actor does: it loads the model once, and turns one part of the listing after another into a file of rows."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marrowscope import __version__
from marrowscope.cluster.listing import LISTING, Entry, read_part
from marrowscope.cluster.packages import arrow, ray
from marrowscope.cluster.stores import DENIED, Folder, errors, first_line, is_remote
from marrowscope.cluster.target import Manifest
from marrowscope.errors import ClusterError, MarrowscopeError, ModelError
from marrowscope.infer import Predictor, load_predictor, predict_items

MOST_ATTEMPTS = 5
"""Times that a part is begun. Ray gives a part whose actor died to another; one that kills its actor would go round."""

_MANY = 16


@dataclass(frozen=True)
class Job:
    """All that an actor has to know.

    Attributes:
        target: Name of the folder of results.
        manifest: What is in it.
        blobs: References to the bytes of each model's file, in Ray's object store.
        views, alpha, accuracy: Options of the predictor.
        device: Where the models run.
        threads: CPU threads of one inference.
        readers: Threads that read and decode.
        batch_size: Pictures in one inference.
        here: Folder that relative names start from.
        witness: A local file that every machine must see; empty where there is none.
        attempts: Handle of the job's `Attempts`.
    """

    target: str
    manifest: Manifest
    blobs: tuple[Any, ...]
    views: int
    alpha: float | None
    accuracy: float | None
    device: str
    threads: int
    readers: int
    batch_size: int
    here: str
    witness: str
    attempts: Any


class Attempts:
    """An actor that counts how often each part was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, part: int) -> int:
        """Count a part; gives how often it was begun by now."""
        self._begun[part] += 1
        return self._begun[part]


class PartPredictor:
    """An actor. What goes wrong comes back as text: Ray would wrap an exception in pages of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._listing: Any = None
        self._trouble = ""
        try:
            self._check_machine()
            self._predictor = _load(job)
            self._target = Folder(job.target)
        except MarrowscopeError as e:
            self._trouble = str(e)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the part ``row["part"]``; gives ``part``, ``rows``, ``ok``, and ``trouble``, empty if all is well."""
        part = int(row["part"])
        rows, ok, trouble = 0, 0, self._trouble
        if not trouble:
            try:
                rows, ok = self._predict(part)
            except MarrowscopeError as e:
                trouble = str(e)
        machine = f"The machine {platform.node()}: " if trouble else ""
        return {"part": part, "rows": rows, "ok": ok, "trouble": machine + trouble}

    def _check_machine(self) -> None:
        job = self._job
        if job.manifest.program != f"marrowscope {__version__}":
            raise ClusterError(
                f"it has marrowscope {__version__}, and the job is of {job.manifest.program}. Install the same version "
                "on all machines."
            )
        if job.witness and not Path(job.witness).is_file():
            raise ClusterError(
                f"it does not see {job.witness}. Paths on a disk must be the same on all machines; or put the images "
                "into a store (s3://, gs://)."
            )

    def _predict(self, part: int) -> tuple[int, int]:
        job = self._job
        if ray().get(job.attempts.begin.remote(part)) > MOST_ATTEMPTS:
            raise ClusterError(
                f"{MOST_ATTEMPTS} workers ended in the middle of part {part} of the listing, which begins at image "
                f"{part * job.manifest.part_images:,}. See whether the machines have enough memory, "
                "and Ray's logs; then go on with --resume."
            )
        items = iter([entry.item(job.here) for entry in self._entries(part)])
        with tempfile.TemporaryDirectory(prefix="marrowscope-") as folder:
            file = Path(folder) / "part.parquet"
            summary = predict_items(self._predictor, items, file, batch_size=job.batch_size, workers=job.readers)
            if summary.ok == 0:
                _refuse_if_locked_out(file)
            # An atomic write under a name that only this content has: done twice, it is there once.
            self._target.put(file, job.manifest.part_name(part))
        return summary.total, summary.ok

    def _entries(self, part: int) -> list[Entry]:
        manifest = self._job.manifest
        try:
            self._listing = self._listing or self._target.parquet(LISTING)
            entries = read_part(self._listing, part)
        except errors() as e:
            raise ClusterError(
                f"it can't read {self._job.target}/{LISTING}: {first_line(e)}. The target must be a folder that all "
                "machines share, or lie in a store (s3://, gs://)."
            ) from None
        if len(entries) != manifest.rows_of(part):
            raise ClusterError(f"{self._job.target}/{LISTING} there is not the one of this job.")
        return entries


def _load(job: Job) -> Predictor:
    blobs: list[bytes] = ray().get(list(job.blobs))
    with tempfile.TemporaryDirectory(prefix="marrowscope-") as folder:
        files = []
        for n, (blob, digest) in enumerate(zip(blobs, job.manifest.models, strict=True)):
            if hashlib.sha256(blob).hexdigest() != digest:
                raise ModelError("the model that arrived is not the one that was sent. Start the job again.")
            files.append(Path(folder) / f"{n}.onnx")
            files[-1].write_bytes(blob)
        predictor = load_predictor(
            files, views=job.views, threads=job.threads, device=job.device, alpha=job.alpha, accuracy=job.accuracy
        )
        if predictor.identity != job.manifest.predictor:  # read here, while the files are there
            raise ModelError("the model that was loaded is not the one that was sent. Start the job again.")
    return predictor


def _refuse_if_locked_out(file: Path) -> None:
    """One image that may not be read has a row that says so; when none may be read, the credentials are wrong.

    Raises:
        ClusterError: Every one of many images of a store was denied.
    """
    table = arrow("parquet").read_table(file, columns=["path", "status"])
    rows = list(zip(table.column("path").to_pylist(), table.column("status").to_pylist(), strict=True))
    if len(rows) >= _MANY and all(status == DENIED and is_remote(path) for path, status in rows):
        raise ClusterError(
            f"the store denies access to all {len(rows)} images of a part, the first is {rows[0][0]}. Check the "
            "credentials on this machine, and that they have not expired; then go on with --resume."
        )
