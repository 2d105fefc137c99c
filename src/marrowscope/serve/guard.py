"""What stands before every endpoint: host names, origins, sizes, patience, rates; and the headers of every response.

Plain ASGI, so that bodies are judged while they come in, before anything is made of them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marrowscope.serve.problems import Problem
from marrowscope.serve.settings import Settings

CSP = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:", "connect-src 'self'",
        "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
JSON_BYTES = 1_000_000
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PROBED = frozenset({"/healthz", "/readyz"})
"""What watchers ask for under an address of their own; it tells nothing that a page elsewhere could use."""
Observe = Callable[[Scope, int, float], object]
"""Called after each request with its scope, status and seconds."""


class Buckets:
    """How many requests each client may still make; the clients longest unseen are forgotten."""

    def __init__(self, rate: float, burst: float, clients: int = 10_000) -> None:
        """`rate` a second come back, up to `burst`."""
        self.rate, self.burst, self.clients = rate, burst, clients
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._turn = threading.Lock()

    def take(self, client: str) -> float:
        """Take one; 0 where it was there, else the seconds until there is one."""
        with self._turn:
            left = self.left(client)
            wait = 0.0 if left >= 1 else (1 - left) / self.rate
            self._left[client] = (left - 1 if left >= 1 else left, time.monotonic())
            self._left.move_to_end(client)
            while len(self._left) > self.clients:
                self._left.popitem(last=False)
        return wait

    def left(self, client: str) -> float:
        """How many there are at this moment."""
        left, at = self._left.get(client, (self.burst, 0.0))
        return min(self.burst, left + (time.monotonic() - at) * self.rate)


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: Settings, observe: Observe) -> None:
        self.app = app
        self.settings = settings
        self.observe = observe
        self.buckets = Buckets(settings.limits.rate, settings.limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if self.settings.tls_certificate is not None:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        try:
            try:
                self._check(scope)
            except Problem as e:
                await e.response()(scope, receive, sent)
                return
            await self.app(scope, _Body(receive, self.settings, most_bytes(Headers(scope=scope), self.settings)), sent)
        finally:
            self.observe(scope, status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["path"] not in PROBED:
            self._check_host(headers)
        if scope["method"] not in SAFE:
            _check_origin(headers)
        client = scope["client"][0] if scope.get("client") else ""
        wait = self.buckets.take(client)
        if wait:
            raise Problem(
                429,
                "too_many_requests",
                "Too many requests; wait as long as Retry-After says.",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        most = most_bytes(headers, self.settings)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length[:20]) > most:
            raise too_large(most)

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that are not ours: a page elsewhere could have its name point here (DNS rebinding)."""
        name = host_name(headers.get("host", ""))
        if name not in self.settings.allowed_hosts:
            raise Problem(
                421,
                "wrong_host",
                "The service is not reached under this name. Use the address that it printed when it started, or "
                "start it with --host-name.",
            )


class _Body:
    """The body of a request as it comes in: never more than allowed, and never slower."""

    def __init__(self, receive: Receive, settings: Settings, most: int) -> None:
        self.receive = receive
        self.most = most
        self.limits = settings.limits
        self.bytes = 0
        self.done = False
        self.until = time.monotonic() + settings.limits.body_seconds

    async def __call__(self) -> Message:
        if self.done:  # only the end of the connection can follow; that may take its time
            return await self.receive()
        left = min(self.limits.chunk_seconds, self.until - time.monotonic())
        try:
            message = await asyncio.wait_for(self.receive(), max(left, 0.001))
        except TimeoutError:
            self.done = True
            raise Problem(
                408,
                "too_slow",
                f"The body came too slowly: at least a byte every {self.limits.chunk_seconds:g} s and all of it "
                f"within {self.limits.body_seconds:g} s are needed.",
                headers={"Connection": "close"},
            ) from None
        self.done = message["type"] != "http.request" or not message.get("more_body", False)
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.most:
            raise too_large(self.most)
        return message


def most_bytes(headers: Headers, settings: Settings) -> int:
    """How much a body may have: pictures much, anything else little."""
    multipart = headers.get("content-type", "").lower().startswith("multipart/")
    return settings.limits.request_bytes if multipart else JSON_BYTES


def too_large(most: int) -> Problem:
    return Problem(
        413,
        "too_large",
        f"The request is larger than the {most:,} bytes that are allowed. Send less at a time.",
        headers={"Connection": "close"},
    )


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if "@" not in host else ""
    except ValueError:
        return ""


def _check_origin(headers: Headers) -> None:
    """Refuse changes that a page of another site asks for: browsers say so, and other programs say nothing."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site is not None:
        same = site in {"same-origin", "none"}
    elif origin is not None:
        same = _netloc(origin) == headers.get("host", "")
    else:
        same = True
    if not same:
        raise Problem(403, "cross_origin", "Changes can't be asked for by a page of another site.")


def _netloc(origin: str) -> Any:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
