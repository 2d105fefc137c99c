"""Dynamic batching: full batches under load, no waiting alone, bounded, and everybody gets his own answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from rooms import MakeRoom, parts, picture, until

from marrowscope.errors import ModelError, ServiceError
from marrowscope.infer.predictor import Predictor
from marrowscope.schema import Preprocessing
from marrowscope.serve.batcher import Batcher, QueueFullError
from marrowscope.triage import Answers


class Held(Predictor):
    """A model that answers with a picture's first pixel, and only when it is let."""

    codes = ("BLA", "LYT")
    specs = (Preprocessing(size=16),)
    identity = "held"

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.runs: list[int] = []
        self.error: Exception | None = None

    def answer(self, prepared):
        assert self.go.acquire(timeout=20)
        self.runs.append(len(prepared[0]))
        if self.error is not None:
            raise self.error
        first = prepared[0][:, 0, 0, 0] / 255
        return Answers(np.stack([first, 1 - first], 1), ood_N=first > 0.5)


def _job(*values: int):
    return [(np.full((16, 16, 3), v, np.uint8),) for v in values]


@pytest.fixture
def held() -> Iterator[tuple[Held, Batcher]]:
    model = Held()
    batcher = Batcher(model, batch=8, queue=40)
    yield model, batcher
    for _ in range(50):
        model.go.release()
    batcher.close()


def _submit(batcher: Batcher, *values: int):
    batcher.reserve(len(values))
    return batcher.submit(_job(*values))


def test_what_gathers_while_the_model_runs_goes_together_in_order(held) -> None:
    model, batcher = held
    futures = [_submit(batcher, 1)]
    until(lambda: batcher.waiting == 0)
    futures += [_submit(batcher, *range(i, i + 3)) for i in range(10, 100, 10)]
    for _ in range(6):
        model.go.release()
    answers = [f.result(20) for f in futures]
    assert model.runs == [1, 6, 6, 6, 6, 3]
    first = [round(float(p) * 255) for a in answers for p in a.probs_NC[:, 0]]
    assert first == [1, *(i + k for i in range(10, 100, 10) for k in range(3))]
    assert all(a.ood_N is not None and a.sets_NC is None for a in answers)


def test_more_than_may_wait_is_refused_at_once_and_places_come_back(held) -> None:
    model, batcher = held
    running = _submit(batcher, 0)
    until(lambda: batcher.waiting == 0)
    batcher.reserve(38)
    with pytest.raises(QueueFullError) as refused:
        batcher.reserve(3)
    assert refused.value.seconds >= 1
    assert not batcher.wait_for_room(8, 0.01)
    batcher.release(30)
    more = batcher.submit(_job(*range(8)))
    model.go.release()
    model.go.release()
    assert len(running.result(20)) == 1
    assert len(more.result(20)) == 8
    assert batcher.wait_for_room(8, 5)
    assert batcher.waiting == 0


def test_a_job_larger_than_a_batch_is_run_all_the_same(held) -> None:
    model, batcher = held
    future = _submit(batcher, *range(20))
    model.go.release()
    assert len(future.result(20)) == 20


def test_an_error_of_the_model_reaches_those_it_concerns_and_the_next_goes_on(held) -> None:
    model, batcher = held
    for error in (ModelError("broken"), ValueError("unforeseen")):
        model.error = error
        future = _submit(batcher, 1)
        model.go.release()
        with pytest.raises(type(error)):
            future.result(20)
    model.error = None
    future = _submit(batcher, 1)
    model.go.release()
    assert len(future.result(20)) == 1


def test_jobs_whose_client_has_gone_are_not_run_and_closing_refuses_the_rest() -> None:
    model = Held()
    batcher = Batcher(model, batch=8, queue=40)
    running = _submit(batcher, 1)
    until(lambda: batcher.waiting == 0)
    gone, waiting = _submit(batcher, *range(8)), _submit(batcher, 2)
    assert gone.cancel()
    closer = threading.Thread(target=batcher.close)
    closer.start()
    until(lambda: not batcher.alive)
    model.go.release()
    assert len(running.result(20)) == 1
    with pytest.raises(ServiceError, match="stopping"):
        waiting.result(20)
    closer.join(20)
    batcher.reserve(1)
    with pytest.raises(ServiceError, match="stopping"):
        batcher.submit(_job(1))
    assert model.runs == [1]


def test_clients_are_told_to_come_back_when_too_much_waits(make_room: MakeRoom) -> None:
    room = make_room()
    client = room.client()
    batcher = next(iter(room.service.models.values())).batcher
    batcher.reserve(batcher.queue - 1)
    refused = client.post("/v1/predict", files=parts([picture(0), picture(1)]))
    assert (refused.status_code, refused.json()["code"]) == (503, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert client.post("/v1/predict", files=parts([picture(0)])).status_code == 200
    assert client.post("/v1/predict", files=parts([b"no picture"])).status_code == 422
    assert batcher.waiting == batcher.queue - 1, "refused pictures give their places back"
    batcher.release(batcher.queue - 1)
    assert client.post("/v1/predict", files=parts([picture(0), picture(1)])).status_code == 200


def test_a_run_goes_through_the_model_in_small_parts() -> None:
    model = Held()
    batcher = Batcher(model, batch=8, queue=40, at_once=3)
    values = (200, 3, 77, 130, 255, 0, 90, 128)
    future = _submit(batcher, *values)
    for _ in range(3):
        model.go.release()
    answers = future.result(timeout=20)
    batcher.close()
    assert model.runs == [3, 3, 2]
    np.testing.assert_allclose(answers.probs_NC[:, 0], np.array(values) / 255)
    assert answers.ood_N.tolist() == [v > 127 for v in values]
