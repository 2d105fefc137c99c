"""Every refusal of the service has one form: ``{"code": ..., "message": ..., "detail": ...}``.

`code` is for programs and never changes its meaning; `message` is for people and says what to do; `detail` is empty or
holds what the code calls for (the present state on a conflict, the mistakes of a body, the reasons of each file).
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from marrowscope.errors import ModelError

log = logging.getLogger("marrowscope.serve")


class ErrorBody(BaseModel):
    """What every response with a status from 400 on holds."""

    model_config = ConfigDict(
        title="Error",
        json_schema_extra={
            "examples": [
                {"code": "not_found", "message": "There is no such case. GET /v1/cases lists them.", "detail": None}
            ]
        },
    )

    code: str = Field(description="for programs: never changes its meaning")
    message: str = Field(description="for people: what is wrong, what is allowed, what to do")
    detail: Any = Field(default=None, description="what the code calls for; null where there is nothing")


class Problem(HTTPException):
    """A refusal, raised anywhere below an endpoint."""

    def __init__(
        self, status: int, code: str, message: str, detail: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.message = message
        self.extra = detail

    def response(self) -> JSONResponse:
        """As it goes to the client."""
        body = ErrorBody(code=self.code, message=self.message, detail=jsonable_encoder(self.extra))
        return JSONResponse(body.model_dump(), self.status_code, self.headers)


def not_found(what: str, hint: str) -> Problem:
    return Problem(404, "not_found", f"There is no such {what}. {hint}")


def conflict(message: str, present: Any = None, code: str = "conflict") -> Problem:
    """The state has moved on; `present` tells how it is now."""
    return Problem(409, code, message, present)


def busy(seconds: int, message: str) -> Problem:
    return Problem(503, "busy", message, headers={"Retry-After": str(seconds)})


def invalid(message: str, detail: Any = None) -> Problem:
    return Problem(422, "invalid", message, detail)


_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def install(app: FastAPI) -> None:
    """Make every error of the app take the form of `ErrorBody`."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Problem):
            return error.response()
        code = _CODES.get(error.status_code, "refused")
        headers = dict(error.headers) if error.headers else None
        return Problem(error.status_code, code, str(error.detail), headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def misformed(request: Request, error: RequestValidationError) -> JSONResponse:
        mistakes = [
            {"where": ".".join(str(p) for p in e["loc"]), "message": str(e["msg"]).removeprefix("Value error, ")}
            for e in error.errors()
        ]
        first = f"{mistakes[0]['where']}: {mistakes[0]['message']}" if mistakes else "unknown mistake"
        return invalid(f"The request is not as /openapi.json describes it: {first}.", mistakes).response()

    @app.exception_handler(ModelError)
    async def model_failed(request: Request, error: ModelError) -> JSONResponse:
        log.error("the model failed: %s", error)
        return Problem(500, "model_failed", "The model could not be run; the service's log says why.").response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
        return Problem(500, "internal", "An error of the service itself; its log has the details.").response()
