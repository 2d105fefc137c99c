"""The page: files of the package, read once and served from memory, so that no path of a client meets the disk."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

from marrowscope.serve.problems import not_found

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """``/`` and ``/page/NAME``, for every file of `serve/page/`."""
    router = APIRouter(include_in_schema=False)
    files = {}
    for f in (resources.files("marrowscope.serve") / "page").iterdir():
        kind = _TYPES.get(f.name.rpartition(".")[2])
        if kind is not None:
            data = f.read_bytes()
            files[f.name] = (data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')

    @router.get("/")
    async def index(request: Request) -> Response:
        return await file("index.html", request)

    @router.get("/favicon.ico")
    async def icon(request: Request) -> Response:
        return await file("icon.svg", request)

    @router.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise not_found("page", "The reading room is at /.")
        data, kind, tag = files[name]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return router
