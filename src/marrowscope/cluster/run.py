"""A job on a cluster: listing, parts that are missing, check."""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from marrowscope.cluster.listing import Listing, list_sources
from marrowscope.cluster.packages import arrow, ray
from marrowscope.cluster.stores import Folder, first_line
from marrowscope.cluster.target import Manifest, check, open_target, summary_of
from marrowscope.cluster.worker import Attempts, Job, PartPredictor
from marrowscope.errors import ClusterError, ModelError, OutputError
from marrowscope.files import sha256_file
from marrowscope.infer import Classifier, Ensemble, Predictor, Summary, load_predictor
from marrowscope.infer.classifier import available_cores
from marrowscope.infer.predictor import BATCH_SIZE

Progress = Callable[[int, int], object]
"""Called after each part with the number of images done and of all."""

LOCAL = "local"
"""Address of a cluster that is started here, of this machine alone, and ends with the job."""

_FILE_ENDINGS = {".csv", ".jsonl"}

# An actor has one core: one thread of inference, and some that wait for the disk or the store.
_THREADS, _READERS = 1, 4

_OBJECT_STORE = 256 << 20
_CONNECT_SECONDS = 10.0


def predict_cluster(
    models: Sequence[str | Path],
    sources: Sequence[str],
    target: str,
    *,
    address: str = LOCAL,
    views: int = 1,
    device: str = "cpu",
    alpha: float | None = None,
    accuracy: float | None = None,
    batch_size: int = BATCH_SIZE,
    part_images: int | None = None,
    resume: bool = False,
    stdin: BinaryIO | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Predict as `infer.predict_files` does, on the machines of a Ray cluster.

    The target becomes a folder of Parquet files with the columns of predictions.parquet, in the order of their names
    that of the listing. Each is written whole or not at all, under a name that depends on nothing but the images, the
    model and the options; at the end every image of the listing is looked up in them. Names of files that begin with
    ``_`` are no rows; readers of Parquet folders pass them by.

    Args:
        models: ONNX files or bundled names, of which the answers are averaged; they need to lie on this machine only.
        sources: As `listing.list_sources`.
        target: A folder: local (and then shared by all machines) or ``s3://…`` or ``gs://…``.
        address: ``local`` to start a cluster of this machine; ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT`` to join
            one. Where this process is connected to Ray already, that connection is used, and kept.
        views, device, alpha, accuracy: As `infer.load_predictor`.
        batch_size: Pictures in one inference.
        part_images: Images in one file; None for a number that suits all.
        resume: Keep the parts that an interrupted job left in the target.
        stdin: Where the source ``-`` reads from; None for standard input.
        progress: Called after each part.

    Returns:
        What became of the images, as `infer.predict_files` counts it.

    Raises:
        ClusterError: The cluster can't be reached, or its machines can't do the work.
        StoreError: A store can't be reached.
        DataError: A source holds no image or is an archive, or an image is named twice.
        ModelError: The model can't be used.
        OutputError: The target can't be written, or holds something else.
        MissingExtraError: Ray or pyarrow is not installed.
    """
    start = time.perf_counter()
    # Without them nothing else matters.
    arrow("parquet")
    ray()
    if Path(target).suffix.lower() in _FILE_ENDINGS:
        raise OutputError(f"{target}: a cluster writes a folder of Parquet files. Give a folder, such as results/.")
    if part_images is not None and part_images < 1:
        raise OutputError(f"part_images is {part_images}; allowed are 1 and more, or None.")
    # On this machine it is only looked at, so on the CPU.
    predictor = load_predictor(models, views=views, threads=1, alpha=alpha, accuracy=accuracy)
    files = _files(predictor)
    folder = Folder(target)
    with _connected(address):
        with _workspace() as workspace:
            listing = list_sources(sources, workspace / "listing.parquet", stdin)
            hashes = [sha256_file(f) for f in files]
            manifest, done = open_target(
                folder, listing, predictor.identity, hashes, part_images=part_images, resume=resume
            )
        resumed = sum(manifest.rows_of(part) for part in done)
        missing = [part for part in range(manifest.parts) if part not in done]
        if missing:
            settings = _Settings(views, alpha, accuracy, device, batch_size)
            report = _Report(manifest.images, resumed, progress)
            for answer in _answers(_job(folder, manifest, listing, files, settings), missing):
                report(answer)
    ok, failed = _finish(folder, manifest)
    return Summary(manifest.images, ok, failed, time.perf_counter() - start, resumed)


class _Settings(NamedTuple):
    """How each worker predicts, as `infer.load_predictor` takes it."""

    views: int
    alpha: float | None
    accuracy: float | None
    device: str
    batch_size: int


def _job(folder: Folder, manifest: Manifest, listing: Listing, files: Sequence[Path], settings: _Settings) -> Job:
    """What each worker is told."""
    return Job(
        target=folder.absolute(),
        manifest=manifest,
        blobs=_shipped(files),
        threads=_THREADS,
        readers=_READERS,
        here=str(Path.cwd()),
        witness=listing.witness,
        attempts=ray().remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(),
        **settings._asdict(),
    )


@dataclass
class _Report:
    """Tells how far it is, and ends the job where a machine is in trouble."""

    images: int
    done: int
    progress: Progress | None

    def __post_init__(self) -> None:
        self._tell()

    def __call__(self, answer: dict[str, Any]) -> None:
        if answer["trouble"]:
            raise ClusterError(str(answer["trouble"]))
        self.done += int(answer["rows"])
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.images)


def _files(predictor: Predictor) -> list[Path]:
    members = predictor.members if isinstance(predictor, Ensemble) else (predictor,)
    return [m.path for m in members if isinstance(m, Classifier)]


def _shipped(files: Sequence[Path]) -> tuple[Any, ...]:
    """References to the models' bytes in the object store, from where each machine fetches them once."""
    try:
        return tuple(ray().put(f.read_bytes()) for f in files)
    except OSError as e:
        raise ModelError(f"Can't read the model {e.filename} any more: {e.strerror or e}.") from None


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for the listing, on this machine."""
    try:
        with tempfile.TemporaryDirectory(prefix="marrowscope-") as folder:
            yield Path(folder)
    except OSError as e:
        raise OutputError(
            f"Can't write in the folder for temporary files, {tempfile.gettempdir()}: {e.strerror or e}. Set TMPDIR to "
            "one that has free space."
        ) from e


def _finish(folder: Folder, manifest: Manifest) -> tuple[int, dict[str, int]]:
    ok, failed = summary_of(check(folder, manifest))
    manifest.model_copy(update={"finished": True, "ok": ok, "failed": failed}).put(folder)
    folder.clear_leftovers()
    return ok, failed


# ---------------------------------------------------------------------------------------------------------- the cluster


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Join or start a cluster for as long as the block lasts.

    Raises:
        ClusterError: It can't be reached; or, for all that goes wrong inside Ray later, what Ray says.
    """
    ours = not ray().is_initialized()
    if ours:
        _connect(address)
    try:
        yield
    except ray().exceptions.RayError as e:
        raise ClusterError(
            f"The cluster could not do the work: {first_line(e)}. The parts that are done stay; go on with --resume."
        ) from e
    finally:
        if ours:
            ray().shutdown()


def _connect(address: str) -> None:
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == LOCAL:
        settings |= {
            "num_cpus": available_cores(),
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
        }
    elif address.startswith("ray://") or (address != "auto" and ":" in address):
        _knock(address)
    elif address != "auto":
        raise ClusterError(
            f"{address!r} is no address of a cluster; allowed are local, auto, HOST:PORT, ray://HOST:PORT."
        )
    try:
        ray().init(address=address, **settings)
    except (OSError, RuntimeError, ValueError, ray().exceptions.RayError) as e:  # ConnectionError is an OSError
        raise ClusterError(
            f"Can't {'start' if address == LOCAL else 'join'} a Ray cluster at {address}: {first_line(e)}. Start one "
            "with 'ray start --head', see that this machine has the same versions of Python and Ray and the same "
            "RAY_AUTH_TOKEN, or use the address local."
        ) from e


def _knock(address: str) -> None:
    """Find out quickly that nobody is there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(
            f"{address!r} is no address of a cluster; allowed are local, auto, HOST:PORT, ray://HOST:PORT."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as e:
        raise ClusterError(
            f"Nobody answers at {address}: {e}. Start a cluster with 'ray start --head' there, check the port (6379 "
            "for HOST:PORT, 10001 for ray://HOST:PORT) and the network, or use the address local."
        ) from None


def _slots(device: str) -> tuple[int, dict[str, float]]:
    """How many actors the cluster has room for, and what each takes."""
    resources = ray().cluster_resources()
    cores = int(resources.get("CPU", 0))
    if device != "cuda":
        if cores < 1:
            raise ClusterError("The cluster has no CPU cores to work on. Start machines with 'ray start --num-cpus'.")
        return cores, {"num_cpus": 1}
    cards = int(resources.get("GPU", 0))
    if cards < 1:
        raise ClusterError(
            "The cluster has no GPU. Start machines with 'ray start --num-gpus', or take the device cpu."
        )
    return cards, {"num_gpus": 1, "num_cpus": max(1, cores // cards)}


def _answers(job: Job, missing: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the actors say of each part, in the order in which they finish."""
    if not _from_afar():
        yield from _conducted(job, missing)
        return
    # Over ray:// Ray Data does not work from afar, so it is run inside the cluster.
    conductor = ray().remote(Conductor).options(num_cpus=0).remote(job, tuple(missing))
    while (answer := ray().get(conductor.next.remote())) is not None:
        yield answer


def _from_afar() -> bool:
    """Whether this process reaches the cluster as a client, and is no part of it."""
    return bool(ray().util.client.ray.is_connected())


class Conductor:
    """Runs the actors from inside the cluster."""

    def __init__(self, job: Job, missing: Sequence[int]) -> None:
        self._answers = _conducted(job, missing)

    def next(self) -> dict[str, Any] | None:
        """The next answer; None when all have come."""
        return next(self._answers, None)


def _conducted(job: Job, missing: Sequence[int]) -> Iterator[dict[str, Any]]:
    slots, each = _slots(job.device)
    actors = min(slots, len(missing))
    with _quiet():
        parts = ray().data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing))
        pool = ray().data.ActorPoolStrategy(
            min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1
        )
        answers = parts.map(
            PartPredictor,
            fn_constructor_args=(job,),
            compute=pool,
            **each,
        )
        yield from answers.iter_rows()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own bars and reports; our caller has a bar."""
    context = ray().data.DataContext.get_current()
    names = ("enable_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in names}
    log = logging.getLogger("ray.data")
    level = log.level
    for name in names:
        setattr(context, name, False)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)
