"""A service in a process of its own, which can be killed. Starts fast: it is forked from one that has all imported."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from marrowscope.serve.settings import Settings

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["marrowscope.serve.run", "marrowscope.serve.service", "alembic.command", "onnxruntime", "live"]
)


def _serve(settings: Settings, ready: Connection) -> None:
    from marrowscope.serve.run import serve
    from marrowscope.serve.service import open_service

    serve(open_service(settings), ready.send)


class Live:
    """Start, stop and kill a service."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: Any = None
        self.address = ""

    def start(self) -> Self:
        here, there = _FORKS.Pipe(duplex=False)
        self.process = _FORKS.Process(target=_serve, args=(self.settings, there), daemon=True)
        self.process.start()
        there.close()
        if not here.poll(60):
            raise AssertionError("the service did not start")
        self.address = here.recv().rstrip("/")
        return self

    def kill(self) -> None:
        """SIGKILL: no clean-up of any kind."""
        self.process.kill()
        self.process.join(30)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        self.process.join(30)
        return int(self.process.exitcode)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError):
            self.kill()
