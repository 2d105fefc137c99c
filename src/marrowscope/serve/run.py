"""Starting a server with the application."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from marrowscope.errors import ServiceError
from marrowscope.serve.app import make_app
from marrowscope.serve.service import Service
from marrowscope.serve.settings import Settings

HEADER_SECONDS = 15.0
"""A connection that has not sent the whole head of its first request by then is closed."""


class PatientProtocol(H11Protocol):
    """As uvicorn's, but a client that opens a connection and says nothing is not waited for.

    The body has its own limits of time (`guard`), and a connection between requests uvicorn's keep-alive.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        first = getattr(self, "cycle", None)  # the request under way, or the last one
        if first is None and not self.transport.is_closing():
            self.transport.close()


def serve(service: Service, ready: Callable[[str], object] = lambda address: None) -> None:
    """Serve until a signal (SIGINT, SIGTERM) says to stop; requests under way are ended first.

    Args:
        ready: Called with the address once the service can be reached.

    Raises:
        ServiceError: The address can't be listened on.
    """
    settings = service.settings
    listening = _listen(settings)
    port = listening.getsockname()[1]
    scheme = "http" if settings.tls_certificate is None else "https"
    host = settings.host_names[0] if settings.host_names else settings.host
    ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/")
    options: dict[str, Any] = {}
    if settings.tls_certificate is not None:
        options = {"ssl_certfile": str(settings.tls_certificate), "ssl_keyfile": str(settings.tls_key)}
    config = uvicorn.Config(
        make_app(service),
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=20,
        **options,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def _listen(settings: Settings) -> socket.socket:
    listening = None
    try:
        kind, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(min(settings.limits.connections, 1024))
    except OSError as e:
        if listening is not None:
            listening.close()
        raise ServiceError(
            f"Can't listen on {settings.host} port {settings.port}: {e.strerror or e}. Choose another with --port."
        ) from None
    return listening


def log_to_stderr(level: int = logging.INFO) -> None:
    """What the service has to say goes to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
