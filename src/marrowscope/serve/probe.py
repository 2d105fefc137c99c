"""Whether a service answers: for watchers such as a container's health check."""

from __future__ import annotations

import json
import ssl
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener

from marrowscope.errors import ServiceError
from marrowscope.serve.settings import is_loopback


def probe(address: str, *, seconds: float = 5.0) -> dict[str, bool]:
    """Ask a service whether it is ready: its parts, and whether each works.

    Args:
        address: ``http://127.0.0.1:8321``. On this machine itself a certificate is not checked, for it is made out to
            another name.
        seconds: How long to wait.

    Raises:
        ServiceError: Not an address, nothing answers there, or something else does.
    """
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ServiceError(f"{address!r} is no address of a service; an example: http://127.0.0.1:8321")
    url = f"{parts.scheme}://{parts.netloc}/readyz"
    try:
        with _opener(parts.hostname).open(url, timeout=seconds) as answer:
            body = answer.read(100_000)
    except HTTPError as e:
        body = e.read(100_000)
    except (URLError, OSError) as e:
        raise ServiceError(f"Nothing answers at {address}: {getattr(e, 'reason', None) or e}.") from None
    try:
        found: dict[str, Any] = json.loads(body)["parts"]
        return {str(name): works is True for name, works in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ServiceError(f"What answers at {address} is no reading room.") from None


def _opener(host: str) -> OpenerDirector:
    context = ssl.create_default_context()
    if is_loopback(host):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))
