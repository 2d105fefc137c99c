"""Health, metrics, models, and who is signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from marrowscope.cells import CLASSES
from marrowscope.serve import auth
from marrowscope.serve.api.common import MOST_NUMBER, Has, Reader, by_token, errors, identify
from marrowscope.serve.api.shapes import CellClassOut, Health, ModelOut, Models, Readiness, SessionOut, TokenIn
from marrowscope.serve.models import Model
from marrowscope.serve.problems import Problem, not_found
from marrowscope.serve.service import Service
from marrowscope.serve.store.casework import PROGRAM_VERSION
from marrowscope.serve.store.history import Person
from marrowscope.triage import conformal_entry

router = APIRouter(tags=["system"])

ModelDigest = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the ONNX file", examples=["0" * 64])
]
Place = Annotated[int, Path(ge=0, le=MOST_NUMBER, description="place in the reference set", examples=[0])]


@router.get("/healthz", responses=errors())
async def alive() -> Health:
    """Whether the process answers at all; needs no token."""
    return Health()


@router.get("/readyz", responses={**errors(), 503: {"model": Readiness, "description": "Not ready."}})
def ready(service: Has) -> Readiness:
    """Whether models, database and background work are there; needs no token."""
    parts = service.ready()
    body = Readiness(ready=all(parts.values()), parts=parts)
    if body.ready:
        return body
    return JSONResponse(body.model_dump(), 503)  # type: ignore[return-value]


@router.get("/metrics", response_class=PlainTextResponse, responses=errors())
def metrics(who: Reader, service: Has) -> Response:
    """Counters for Prometheus."""
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", responses=errors())
def models(who: Reader, service: Has) -> Models:
    """The loaded models, and all classes."""
    return Models(
        models=[_model(m, default=i == 0) for i, m in enumerate(service.models.values())],
        classes=[
            CellClassOut(
                code=c.code, name=c.name, lineage=c.lineage, colour=c.colour, order=c.order, nucleated=c.nucleated
            )
            for c in CLASSES
        ],
    )


@router.get(
    "/v1/models/{sha256}/reference/{place}",
    response_class=Response,
    responses={**errors(404), 200: {"content": {"image/webp": {}}, "description": "A picture without metadata."}},
)
def reference(who: Reader, service: Has, sha256: ModelDigest, place: Place) -> Response:
    """The picture of a cell of a model's reference set."""
    held = service.models.get(sha256)
    data = None if held is None or held.reference is None else held.reference.thumbnail(place)
    if data is None:
        raise not_found("cell in a reference set of this model", "/v1/models says how many there are.")
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(data, media_type="image/webp", headers=headers)


def _model(model: Model, *, default: bool) -> ModelOut:
    card = model.classifier.card
    sets = conformal_entry(card, model.classifier.alpha)
    return ModelOut(
        name=model.name,
        sha256=model.sha256,
        codes=list(card.codes),
        architecture=card.architecture,
        input_px=card.preprocessing.size,
        training_data=card.training_data.name,
        synthetic=card.training_data.synthetic,
        conformal_alpha=None if sets is None else sets.alpha,
        detects_ood=card.novelty is not None,
        reference_cells=None if model.reference is None else len(model.reference),
        default=default,
    )


@router.get("/v1/session", responses=errors())
def session(request: Request, who: Reader, service: Has) -> SessionOut:
    """Who you are, and what you need for changes."""
    cookie = request.cookies.get(auth.COOKIE)
    csrf = None
    if cookie is not None and "authorization" not in request.headers:
        with service.database.read() as db:
            found = auth.check_cookie(db, cookie)
        csrf = None if found is None else found[1]
    return _session(service, who, csrf)


@router.post("/v1/session", responses=errors())
def sign_in(body: TokenIn, request: Request, response: Response, service: Has) -> SessionOut:
    """Give a token once and get a cookie: for browsers."""
    by_token(request, service, body.token.strip())
    with service.database.write() as db:
        token = auth.check_token(db, body.token.strip())
        if token is None:  # revoked between the two
            raise Problem(401, "unauthorised", "The token is not valid.")
        who, entry = auth.person(token), auth.log_in(db, token)
    response.set_cookie(
        auth.COOKIE,
        entry.cookie,
        max_age=auth.LOGIN_HOURS * 3600,
        httponly=True,
        samesite="strict",
        secure=service.settings.secure,
    )
    return _session(service, who, entry.csrf)


@router.delete("/v1/session", status_code=204, responses=errors())
def sign_off(request: Request, response: Response, who: Annotated[Person, Depends(identify)], service: Has) -> None:
    """End the browser's login."""
    cookie = request.cookies.get(auth.COOKIE)
    if cookie is not None:
        with service.database.write() as db:
            auth.log_out(db, cookie, who)
    response.delete_cookie(auth.COOKIE, httponly=True, samesite="strict", secure=service.settings.secure)


def _session(service: Service, who: Person, csrf: str | None) -> SessionOut:
    limits = service.settings.limits
    return SessionOut(
        name=who.name,
        role=who.role,
        csrf=csrf,
        tokens_needed=service.settings.needs_tokens,
        program=PROGRAM_VERSION,
        limits={n: getattr(limits, n) for n in ("file_bytes", "request_bytes", "files", "cells")},
    )
