"""What a service is told when it starts: where it keeps things, where it listens, what it lets in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from marrowscope.errors import ServiceError


@dataclass(frozen=True)
class Limits:
    """How much one request may bring, and how many may come. Pixels are limited by `images.MAX_PIXELS`.

    Attributes:
        file_bytes: Of one picture's file.
        request_bytes: Of a request's whole body.
        files: Pictures in one request.
        cells: Pictures in one case.
        queue: Pictures that wait for a model; beyond it requests are refused with 503.
        batch: Pictures in one run of a model.
        chunk_seconds: A client that sends no byte of its body for so long is dropped.
        body_seconds: Time for a whole body.
        connections: Open connections, all clients together.
        rate: Requests a second that one client address may make in the long run.
        burst: Requests that it may make at once.
        failed_logins: Wrong tokens a minute from one client address.
    """

    file_bytes: int = 20_000_000
    request_bytes: int = 64_000_000
    files: int = 100
    cells: int = 20_000
    queue: int = 512
    batch: int = 32
    chunk_seconds: float = 20.0
    body_seconds: float = 300.0
    connections: int = 512
    rate: float = 200.0
    burst: int = 2_000
    failed_logins: int = 10

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value <= 0]
        if wrong or self.queue < self.files:
            raise ServiceError(
                f"Limits out of range: {', '.join(wrong) or 'queue'}. All must be above 0, and queue at least files "
                f"({self.files}), or a request for so many pictures would never be answered."
            )


@dataclass(frozen=True)
class Settings:
    """All that a service needs to know.

    Attributes:
        data: Folder of the pictures, and of the database where `database` is None.
        models: ONNX files or bundled names; the first is the one that new cases take.
        references: Reference sets (`reference`) beside those that lie with a model.
        database: SQLAlchemy URL (``postgresql+psycopg://...``); None for SQLite in `data`.
        host: Address to listen on.
        port: 0 for any free one.
        tokens: Whether every request needs a token. Always so where `host` is not loopback.
        tls_certificate, tls_key: PEM files; both or neither.
        behind_proxy: A proxy on the same machine or network ends TLS; the service itself speaks plain HTTP.
        host_names: Names under which the service is reached, beside the loopback's own.
        threads: CPU threads of one inference; None for one a core.
        device: As `infer.Classifier.load`.
        limits: See `Limits`.
    """

    data: Path
    models: tuple[str, ...]
    references: tuple[Path, ...] = ()
    database: str | None = None
    host: str = "127.0.0.1"
    port: int = 8321
    tokens: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    host_names: tuple[str, ...] = ()
    threads: int | None = None
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ServiceError(f"Port {self.port} is out of range; allowed are 0 (any free one) to 65535.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ServiceError("TLS needs both --tls-certificate and --tls-key; only one of them was given.")
        if self.loopback:
            return
        if self.tls_certificate is None and not self.behind_proxy:
            raise ServiceError(
                f"Listening on {self.host}, which other machines can reach, would send tokens and pictures in the "
                "clear. Give --tls-certificate and --tls-key; or --behind-proxy where a proxy ends TLS."
            )
        if not self.host_names:
            raise ServiceError(
                f"Listening on {self.host} needs --host-name: the name that stands in the browser's address bar, for "
                "example --host-name marrow.example.org. Requests for other names are refused."
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def needs_tokens(self) -> bool:
        """Whether a request without a token is refused."""
        return self.tokens or not self.loopback

    @property
    def secure(self) -> bool:
        """Whether browsers speak TLS with it."""
        return self.tls_certificate is not None or self.behind_proxy

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names, without a port, that the Host header may have."""
        own = {"localhost", "127.0.0.1", "::1"} if self.loopback else set()
        return frozenset(own | {n.lower() for n in self.host_names})

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database or f"sqlite:///{(self.data / 'reading-room.sqlite').absolute()}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
