"""What the endpoints share: the service, who asks, documented errors, uploaded files."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from marrowscope.serve import auth
from marrowscope.serve.guard import SAFE
from marrowscope.serve.problems import ErrorBody, Problem, invalid
from marrowscope.serve.service import Service
from marrowscope.serve.store.history import Person, Role

MOST_NUMBER = 2**31 - 1
UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

CaseId = Annotated[
    str, Path(pattern=UUID, description="the case's id", examples=["3f2b8c1e-5d0a-4f6b-9c77-1b2a3c4d5e6f"])
]
CellNumber = Annotated[int, Path(ge=1, le=MOST_NUMBER, description="the cell's number in its case", examples=[1])]

_MEANINGS = {
    400: "The request can't be read.",
    401: "A token is needed, or the given one is not valid.",
    403: "Your role does not allow this, or the request comes from another site's page.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "The state has moved on: `code` says how, `detail` has the present state.",
    413: "Too many bytes or pictures.",
    421: "The service is not reached under this host name.",
    422: "The request is not as described here, or no picture of it can be used; `detail` has the reasons.",
    429: "Too many requests; see Retry-After.",
    500: "An error of the service itself.",
    503: "Too much waits already; see Retry-After.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of these statuses and of those that every endpoint may answer with."""
    always = {400, 401, 403, 408, 413, 421, 422, 429, 500}
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    return {s: {"content": body, "description": _MEANINGS[s]} for s in sorted(always | set(statuses))}


async def get_service(request: Request) -> Service:  # async: a plain function would be sent to another thread
    service: Service = request.app.state.service
    return service


Has = Annotated[Service, Depends(get_service)]


async def identify(request: Request, service: Has) -> Person:
    """Who asks.

    Raises:
        Problem: 401 without a valid token where one is needed; 403 without the secret for changes; 429 after too many
            wrong tokens.
    """
    if "authorization" in request.headers or auth.COOKIE in request.cookies:
        return await run_in_threadpool(_look_up, request, service)  # the database may let us wait
    return _anybody(service)


def _look_up(request: Request, service: Service) -> Person:
    header = request.headers.get("authorization")
    cookie = request.cookies.get(auth.COOKIE)
    if header is not None:
        scheme, _, text = header.partition(" ")
        return by_token(request, service, text.strip() if scheme.lower() == "bearer" else "")
    if cookie is not None:
        with service.database.read() as session:
            found = auth.check_cookie(session, cookie)
        if found is not None:
            token, csrf = found
            given = request.headers.get(auth.CSRF_HEADER, "")
            if request.method not in SAFE and not hmac.compare_digest(given.encode(), csrf.encode()):
                raise Problem(403, "csrf", f"The header {auth.CSRF_HEADER} is missing or wrong; reload the page.")
            return auth.person(token)
    return _anybody(service)


def _anybody(service: Service) -> Person:
    """Who comes without a token or a login."""
    if service.settings.needs_tokens:
        raise _unknown("Give a token: Authorization: Bearer mrw_..., or sign in on the page.")
    return auth.LOCAL


def by_token(request: Request, service: Service, text: str) -> Person:
    """The person of this token; errors as `identify`."""
    client = request.client.host if request.client else ""
    if service.failed_logins.left(client) < 1:
        raise Problem(
            429,
            "too_many_requests",
            "Too many wrong tokens; wait as long as Retry-After says.",
            headers={"Retry-After": str(max(1, round(1 / service.failed_logins.rate)))},
        )
    with service.database.read() as session:
        token = auth.check_token(session, text)
        if token is not None:
            return auth.person(token)
    service.failed_logins.take(client)
    raise _unknown("The token is not valid; perhaps it was revoked.")


def _unknown(message: str) -> Problem:
    return Problem(401, "unauthorised", message, headers={"WWW-Authenticate": 'Bearer realm="marrowscope"'})


def needs(role: Role) -> Callable[[Person], Awaitable[Person]]:
    """A dependency: who asks, if they may do what this role may."""

    async def check(who: Annotated[Person, Depends(identify)]) -> Person:
        if not who.may(role):
            raise Problem(403, "forbidden", f"This needs the role {role}; yours is {who.role}.")
        return who

    return check


Reader = Annotated[Person, Depends(needs("reader"))]
Reviewer = Annotated[Person, Depends(needs("reviewer"))]
Admin = Annotated[Person, Depends(needs("admin"))]


# ----------------------------------------------------------------------------------------------------- uploaded files

FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "one part a picture, each named `files`: JPEG, PNG, TIFF, BMP or WebP",
                        }
                    },
                },
                "encoding": {"files": {"contentType": "image/*, application/octet-stream"}},
            }
        },
    }
}


@dataclass(frozen=True)
class Files:
    """The pictures of one request, still as bytes."""

    parts: tuple[UploadFile, ...]

    def names(self) -> list[str | None]:
        """Names as the client gave them: for showing to that client, never for the file system."""
        return [_plain(p.filename) for p in self.parts]

    def read(self, most: int) -> list[bytes]:
        """Their bytes, of each one more than `most` at the most, so that one too large can be told."""
        return [p.file.read(most + 1) for p in self.parts]


def _plain(name: str | None) -> str | None:
    if not name:
        return None
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:255] or None


async def files(request: Request, service: Has) -> AsyncIterator[Files]:
    """Read the multipart body of a request.

    Raises:
        Problem: 413 with too many files; 422 where there is none or the body is something else.
    """
    most = service.settings.limits.files
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise invalid("Send the pictures as multipart/form-data, one part a picture, each named 'files'.")
    form = await request.form(max_files=most + 1, max_fields=16, max_part_size=10_000)
    try:
        parts = tuple(v for k, v in form.multi_items() if k == "files" and isinstance(v, UploadFile))
        if len(parts) > most:
            raise Problem(413, "too_many_files", f"At most {most} pictures go in one request; send more requests.")
        if not parts:
            raise invalid("The request has no picture: name each part 'files' and give it a file name.")
        yield Files(parts)
    finally:
        await form.close()


Uploaded = Annotated[Files, Depends(files)]
