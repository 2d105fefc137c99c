"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "marrowscope_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "marrowscope_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "marrowscope_batch_pictures", "Pictures in a run of a model", buckets=_SIZES, registry=self.registry
        )
        self.model_seconds = Counter("marrowscope_model_seconds", "Time in models", registry=self.registry)
        self.refused = Counter(
            "marrowscope_pictures_refused", "Pictures refused, by cause", ["cause"], registry=self.registry
        )
        self.labels = Counter("marrowscope_changes", "Changes of cells by people", registry=self.registry)
        self.uploads = Counter("marrowscope_uploads", "Cells added to cases", registry=self.registry)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request under its route's template, so that ids make no new series."""
        route = scope.get("route")
        path = getattr(route, "path", "other")
        method = scope["method"] if scope["method"] in {"GET", "POST", "PATCH", "DELETE"} else "other"
        self.requests.labels(method, path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def ran(self, pictures: int, seconds: float) -> None:
        """Count one run of a model."""
        self.batch.observe(pictures)
        self.model_seconds.inc(seconds)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """Tell how many pictures wait whenever somebody asks."""
        Gauge("marrowscope_queue_pictures", "Pictures that wait for a model", registry=self.registry).set_function(
            waiting
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
