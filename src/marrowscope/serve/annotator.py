"""The model's answers for uploaded cells, in the background.

What waits stands in the database, not in memory: it grows with the disk alone, and after a crash the work goes on
where it was. Requests of clients come first: the annotator waits while the model's queue is more than half full.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from sqlalchemy.exc import SQLAlchemyError

from marrowscope.errors import ImageError, MarrowscopeError
from marrowscope.serve import pictures
from marrowscope.serve.batcher import Batcher, Prepared, QueueFullError
from marrowscope.serve.store import cellwork
from marrowscope.serve.store.blobs import Blobs
from marrowscope.serve.store.cellwork import Answer
from marrowscope.serve.store.database import Database
from marrowscope.serve.store.tables import Case, Cell
from marrowscope.triage import Answers

log = logging.getLogger("marrowscope.serve")

_RETRY_SECONDS = 5.0


class Annotator:
    """A thread that answers for cells that wait."""

    def __init__(self, database: Database, blobs: Blobs, models: Mapping[str, Batcher], file_bytes: int) -> None:
        """Start the thread; `models` by the SHA-256 of their files."""
        self._database = database
        self._blobs = blobs
        self._models = models
        self._file_bytes = file_bytes
        self._wake = threading.Event()
        self._wake.set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="annotator", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """There are new cells."""
        self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=30)

    # -------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                while not self._closing.is_set() and self._some():
                    pass
            except (SQLAlchemyError, MarrowscopeError, OSError):
                if not self._closing.is_set():
                    log.exception("cells could not be answered for; trying again in %.0f s", _RETRY_SECONDS)
                    self._closing.wait(_RETRY_SECONDS)
                    self._wake.set()

    def _some(self) -> bool:
        """Answer for some cells; False when none waits."""
        batch = min(b.batch for b in self._models.values())
        with self._database.read() as session:
            rows = cellwork.waiting(session, self._models, batch)
        by_case: dict[str, list[tuple[Case, Cell]]] = {}
        for case, cell in rows:
            by_case.setdefault(case.id, []).append((case, cell))
        for case_id, cells in by_case.items():
            answers = self._answers(cells[0][0], [cell for _, cell in cells])
            if answers:
                with self._database.write() as session:
                    cellwork.answer(session, case_id, answers)
        return bool(rows)

    def _answers(self, case: Case, cells: Sequence[Cell]) -> list[Answer]:
        batcher = self._models[case.model_sha256]
        out, good, prepared = [], [], []
        for cell in cells:
            data = self._blobs.get(case.id, cell.sha256)
            try:
                if data is None:
                    raise ImageError("missing: the picture is not in the store")
                prepared.append(batcher.model.prepare(pictures.checked(data, max(self._file_bytes, cell.bytes))))
                good.append(cell)
            except ImageError as e:
                out.append(Answer(cell.number, reason=str(e)))
        if prepared:
            answers = self._ask(batcher, prepared).result()
            out += [as_answer(cell.number, case.codes, answers, i) for i, cell in enumerate(good)]
        return out

    def _ask(self, batcher: Batcher, prepared: list[Prepared]) -> Future[Answers]:
        while True:
            batcher.wait_for_room(len(prepared), 1.0)
            try:
                batcher.reserve(len(prepared))
            except QueueFullError:
                if self._closing.wait(0.05):
                    raise MarrowscopeError("The service is stopping.") from None
                continue
            return batcher.submit(prepared)


def as_answer(number: int, codes: Sequence[str], answers: Answers, i: int) -> Answer:
    """Picture `i` of some answers, as it is written down; probabilities to six digits."""
    return Answer(
        number,
        probabilities=[round(float(p), 6) for p in answers.probs_NC[i]],
        conformal_set=None
        if answers.sets_NC is None
        else [c for c, inside in zip(codes, answers.sets_NC[i], strict=True) if inside],
        ood_score=None if answers.ood_score_N is None else float(answers.ood_score_N[i]),
        ood=None if answers.ood_N is None else bool(answers.ood_N[i]),
        accepted=None if answers.accepted_N is None else bool(answers.accepted_N[i]),
    )
