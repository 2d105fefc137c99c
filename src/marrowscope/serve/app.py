"""The application: endpoints, guard, page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from marrowscope import __version__
from marrowscope.schema import NOT_A_MEDICAL_DEVICE
from marrowscope.serve import problems
from marrowscope.serve.api import cases, cells, exports, predict, system
from marrowscope.serve.guard import Guard
from marrowscope.serve.pages import page_router
from marrowscope.serve.problems import ErrorBody
from marrowscope.serve.service import Service

_DESCRIPTION = f"""Names single cells of bone-marrow smears, and keeps cases that people review and sign out.

{NOT_A_MEDICAL_DEVICE}

Every refusal has the same form: `code` for programs, `message` for people, `detail` for what the code calls for.
Where tokens are needed, send `Authorization: Bearer mrw_...`.
"""


def make_app(service: Service) -> FastAPI:
    """The application over an open service, which it closes when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="marrowscope reading room",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    problems.install(app)
    for part in (system.router, predict.router, cases.router, cells.router, exports.router, page_router()):
        app.include_router(part)
    app.add_middleware(Guard, settings=service.settings, observe=service.metrics.observe)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Add to the OpenAPI document what no single endpoint knows: the form of errors, and tokens."""
    schema = app.openapi()
    schema["components"]["schemas"][ErrorBody.__name__] = ErrorBody.model_json_schema()
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{}, {"token": []}]
