"""Answers for pictures that nobody keeps."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from marrowscope import images
from marrowscope.errors import ImageError
from marrowscope.schema import OK
from marrowscope.serve import pictures
from marrowscope.serve.annotator import as_answer
from marrowscope.serve.api.common import FILES_BODY, Files, Has, Reader, Uploaded, errors
from marrowscope.serve.api.shapes import PredictionOut, PredictOut
from marrowscope.serve.batcher import Prepared, QueueFullError
from marrowscope.serve.models import Model
from marrowscope.serve.problems import busy, invalid
from marrowscope.serve.service import Service
from marrowscope.triage import Answers

router = APIRouter(tags=["predict"])

Named = Annotated[
    str | None, Query(max_length=200, description="name or SHA-256 of a loaded model; the default one otherwise")
]


@router.post("/v1/predict", openapi_extra=FILES_BODY, responses=errors(404, 503))
async def predict(who: Reader, service: Has, uploaded: Uploaded, model: Named = None) -> PredictOut:
    """Name the cells on one or many pictures.

    A picture that can't be used has the reason as its `status`; where none can be used, the answer is 422. Requests of
    several clients go through the model together.
    """
    chosen = service.model(model)
    n = len(uploaded.parts)
    try:
        chosen.batcher.reserve(n)
    except QueueFullError as e:
        raise busy(e.seconds, f"{chosen.batcher.waiting} pictures wait already. Try again later.") from None
    held = n
    try:
        prepared = await run_in_threadpool(_prepare, service, chosen, uploaded)
        good = [p for p in prepared if not isinstance(p, str)]
        chosen.batcher.release(n - len(good))
        held = len(good)
        if not good:
            raise invalid("None of the pictures can be used; `detail` has the reasons.", prepared)
        future = chosen.batcher.submit(good)
        held = 0
    finally:
        if held:
            chosen.batcher.release(held)
    answers = await asyncio.wrap_future(future)
    return PredictOut(model=chosen.name, sha256=chosen.sha256, predictions=_answered(chosen, prepared, answers))


def _prepare(service: Service, model: Model, uploaded: Files) -> list[Prepared | str]:
    most = service.settings.limits.file_bytes
    out: list[Prepared | str] = []
    for data in uploaded.read(most):
        try:
            out.append(model.classifier.prepare(pictures.checked(data, most)))
        except ImageError as e:
            service.metrics.refused.labels(images.cause(str(e))).inc()
            out.append(str(e))
    return out


def _answered(model: Model, prepared: list[Prepared | str], answers: Answers) -> list[PredictionOut]:
    codes = model.classifier.codes
    out, i = [], 0
    for p in prepared:
        if isinstance(p, str):
            out.append(PredictionOut(status=p))
            continue
        a = as_answer(0, codes, answers, i)
        best = int(answers.probs_NC[i].argmax())
        out.append(
            PredictionOut(
                status=OK,
                predicted=codes[best],
                confidence=round(float(answers.probs_NC[i, best]), 6),
                probabilities=dict(zip(codes, a.probabilities or [], strict=True)),
                conformal_set=a.conformal_set,
                ood=a.ood,
                ood_score=a.ood_score,
                accepted=a.accepted,
            )
        )
        i += 1
    return out
