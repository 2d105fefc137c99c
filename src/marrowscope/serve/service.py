"""All that a running service holds: models, database, pictures, counters."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import IO

from sqlalchemy import select

from marrowscope.errors import ServiceError
from marrowscope.files import make_folder
from marrowscope.infer import Classifier, batch_size_for
from marrowscope.schema import Card
from marrowscope.serve.adjusting import Adjuster
from marrowscope.serve.annotator import Annotator
from marrowscope.serve.auth import tokens
from marrowscope.serve.batcher import Batcher
from marrowscope.serve.counting import DEFAULT_RATIO, CaseDifferential, differential
from marrowscope.serve.explaining import Explainer
from marrowscope.serve.exporting import CaseExport, collect
from marrowscope.serve.guard import Buckets
from marrowscope.serve.metrics import Metrics
from marrowscope.serve.models import Model
from marrowscope.serve.problems import Problem, not_found
from marrowscope.serve.reference import Neighbours, ReferenceSet, digest_of, find_references
from marrowscope.serve.settings import Settings
from marrowscope.serve.store import casework
from marrowscope.serve.store.blobs import Blobs
from marrowscope.serve.store.database import Database
from marrowscope.serve.store.history import Person
from marrowscope.serve.store.tables import Case

log = logging.getLogger("marrowscope.serve")


class Service:
    """Opened by `open_service`; `close` ends its threads."""

    def __init__(
        self,
        settings: Settings,
        models: list[Classifier],
        references: dict[str, ReferenceSet],
        database: Database,
        lock: IO[bytes],
    ) -> None:
        self.settings = settings
        self.database = database
        self.blobs = Blobs(settings.data)
        self.metrics = Metrics()
        self.failed_logins = Buckets(settings.limits.failed_logins / 60, settings.limits.failed_logins)
        limits = settings.limits
        at_once = batch_size_for(settings.device)
        loaded = [
            Model(
                m,
                Batcher(m, batch=limits.batch, queue=limits.queue, at_once=at_once, ran=self.metrics.ran),
                references.get(digest_of(m)),
            )
            for m in models
        ]
        self.models = {m.sha256: m for m in loaded}
        self.metrics.watch_queue(lambda: float(sum(m.batcher.waiting for m in self.models.values())))
        with database.read() as session:
            self.blobs.drop_unknown(session.scalars(select(Case.id)))
        batchers = {sha256: m.batcher for sha256, m in self.models.items()}
        self.annotator = Annotator(database, self.blobs, batchers, limits.file_bytes)
        self.explainer = Explainer()
        self.adjuster = Adjuster()
        self.neighbours = Neighbours()
        self._lock = lock

    def model(self, name: str | None) -> Model:
        """The model of this name or SHA-256; the first one where it is None.

        Raises:
            Problem: 404.
        """
        if name is None:
            return next(iter(self.models.values()))
        for m in self.models.values():
            if name in {m.name, m.sha256}:
                return m
        raise not_found(f"model {name!r}", f"Loaded are: {', '.join(m.name for m in self.models.values())}.")

    def model_of(self, case: Case) -> Model:
        """The model that a case was made for.

        Raises:
            Problem: 409, it is not loaded.
        """
        model = self.models.get(case.model_sha256)
        if model is None:
            raise Problem(
                409,
                "model_not_loaded",
                f"The case's model {case.model_name!r} is not loaded. Start the service with it.",
                {"model": case.model_name, "sha256": case.model_sha256},
            )
        return model

    def card_of(self, case: Case) -> Card | None:
        """The card of the model that a case was made for; None where that is not loaded."""
        model = self.models.get(case.model_sha256)
        return None if model is None else model.classifier.card

    def differential(self, case: str, ratio: str = DEFAULT_RATIO, *, adjusted: bool = True) -> CaseDifferential:
        """The differential of a case at this moment.

        Args:
            ratio: One of `marrowscope.differential.RATIOS`.
            adjusted: With adjusted counts, or the reason why there are none; they may take seconds.

        Raises:
            Problem: 404, there is no such case; 503, too many adjusted counts are being made.
        """
        with self.database.read() as session:
            found = casework.find(session, case)
            summary = differential(session, found, ratio)
            if not adjusted:
                return summary
            wanted = self.adjuster.look(session, found, ratio)
        return self.adjuster.add(summary, wanted, self.card_of(found))

    def collected(self, case: str, who: Person, *, names: bool) -> CaseExport:
        """Everything of a case at one moment, adjusted counts included; errors as `differential`."""
        with self.database.read() as session:
            found = casework.find(session, case)
            content = collect(session, found, who, names=names)
            if content.signed is not None:
                return content
            wanted = self.adjuster.look(session, found, DEFAULT_RATIO)
        return content.model_copy(update={"summary": self.adjuster.add(content.summary, wanted, self.card_of(found))})

    def ready(self) -> dict[str, bool]:
        """What must work for requests to be answered, and whether it does."""
        return {
            "models": all(m.batcher.alive for m in self.models.values()),
            "annotator": self.annotator.alive,
            "database": self.database.answers(),
        }

    def close(self) -> None:
        for m in self.models.values():
            m.batcher.close()
        self.annotator.close()
        self.database.close()
        self._lock.close()


def open_service(settings: Settings) -> Service:
    """Load the models, open the database and bring it up to date.

    Raises:
        ModelError: A model can't be loaded.
        FileFormatError: A reference set can't be read, or belongs to none of the models.
        ServiceError: The database can't be used, another service has the folder, or a token is needed and there is
            none.
    """
    if not settings.models:
        raise ServiceError("No model was given. Name an ONNX file of 'marrowscope export' with --model.")
    make_folder(settings.data)
    lock = _lock(settings.data)
    database = None
    try:
        database = open_database(settings)
        with database.read() as session:
            if settings.needs_tokens and not tokens(session):
                raise ServiceError(
                    "The service was told to let nobody in without a token, and there is none. Make one with: "
                    "marrowscope serve token add NAME --role admin"
                )
        models = [Classifier.load(m, threads=settings.threads, device=settings.device) for m in settings.models]
        names = [m.card.name for m in models]
        if len(set(names)) < len(names) or len({m.identity for m in models}) < len(models):
            raise ServiceError(f"Two models are the same or have the same name: {', '.join(names)}. Name each once.")
        references = find_references(models, settings.references)
        return Service(settings, models, references, database, lock)
    except BaseException:
        if database is not None:
            database.close()
        lock.close()
        raise


def open_database(settings: Settings) -> Database:
    """The database, with its tables of this version; errors as `open_service`."""
    make_folder(settings.data)
    database = Database(settings.database_url)
    database.migrate()
    if settings.database is None:
        _only_for_owner(settings.data)
    return database


def _lock(folder: Path) -> IO[bytes]:
    """Keep a second service out of the folder; the lock goes with the process, however that ends."""
    import fcntl

    file = (folder / ".lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.close()
        if e.errno not in {errno.EAGAIN, errno.EACCES}:
            raise ServiceError(f"Can't lock {folder}: {e.strerror}.") from e
        raise ServiceError(
            f"Another service is using {folder} at this time. Stop it, or give another folder with --data."
        ) from None
    return file


def _only_for_owner(folder: Path) -> None:
    try:
        folder.chmod(0o700)
    except PermissionError:
        log.warning("%s belongs to somebody else: see to it that others can't read it", folder)
