"""What `GET /metrics` tells, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server. Seconds of a request for masks are from the first byte to the last; stages are `read`,
    `prepare`, `queue`, `encode`, `model` and `write`; sizes of batches are seen from each request."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("litelvlm_requests", "Requests by status.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "litelvlm_request_seconds", "Time of a request for masks.", buckets=_SECONDS, registry=registry
        )
        self.stages = Histogram(
            "litelvlm_stage_seconds", "Time by stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram(
            "litelvlm_batch_size", "Requests that shared a call of the model.", buckets=_SIZES, registry=registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a number that is read when somebody asks for it."""
        Gauge(f"litelvlm_{name}", text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)
