"""What a gateway counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from certibox.serving.signature import Answer

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_QUERIES = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000)


class Metrics:
    """Counters of one gateway.

    Args:
        sigma: Standard deviation of the noise, which the classes of radii are multiples of.
        gauges: Functions that say how things stand, by the name of the gauge, each with its help text.
    """

    def __init__(self, sigma: float, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("certibox_requests", "Requests for an answer, by status.", ["code"], registry=registry)
        self._images = Counter("certibox_images", "Images, by what was answered.", ["answer"], registry=registry)
        self._errors = Counter("certibox_upstream_errors", "Batches that failed.", ["kind"], registry=registry)
        self._spent = Counter("certibox_queries", "Samples that the box answered.", registry=registry)
        radii = tuple(sigma * step / 2 for step in range(1, 9))
        self._radius = Histogram(
            "certibox_radius", "Certified l2 radii, in pixels on [0, 1].", buckets=radii, registry=registry
        )
        self._each = Histogram(
            "certibox_queries_per_image", "Queries that an image took.", buckets=_QUERIES, registry=registry
        )
        self._latency = Histogram(
            "certibox_request_seconds",
            "Seconds that a request for an answer took.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, (text, function) in gauges.items():
            Gauge(name, text, registry=registry).set_function(function)

    def request(self, code: int, seconds: float) -> None:
        """Count a request for an answer.

        Args:
            code: HTTP status of its answer.
            seconds: Seconds that it took.
        """
        self._requests.labels(str(code)).inc()
        self._latency.observe(seconds)

    def answers(self, answers: Sequence[Answer]) -> None:
        """Count what was answered.

        Args:
            answers: Answers to the images of a request.
        """
        for answer in answers:
            self._images.labels("abstained" if answer.label is None else "answered").inc()
            self._each.observe(answer.queries)
            if answer.radius > 0:
                self._radius.observe(answer.radius)

    def batch(self, error: BaseException | None, samples: int) -> None:
        """Count a batch.

        Args:
            error: Its error; None where it was answered.
            samples: Number of its samples.
        """
        if error is None:
            self._spent.inc(samples)
        else:
            self._errors.labels(type(error).__name__).inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
