"""What /metrics tells, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Watched(Protocol):
    """What is asked when somebody looks."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""

    @property
    def active(self) -> int:
        """Samples being decoded."""

    @property
    def slots(self) -> int:
        """Samples that could be."""


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"jaxchat_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"jaxchat_{name}", text, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "Answers, by path and status", "path", "status")
        self.cancelled = counter("cancelled", "Requests whose client left before the end")
        self.rejected = counter("rejected", "Requests sent away, or that waited too long")
        self.tokens = counter("generated_tokens", "Tokens generated, those of tools included")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were accepted")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From acceptance to the first token", SECONDS
        )
        self.between_tokens = histogram(
            "inter_token_seconds", "Mean time between the tokens of a request", TOKEN_SECONDS
        )

    def watch(self, scheduler: Watched) -> None:
        """Adds what the scheduler tells of itself."""
        self.registry.register(_Gauges(scheduler))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, scheduler: Watched) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        told = {
            "queue_depth": ("Requests that wait", scheduler.waiting),
            "active": ("Completions being decoded", scheduler.active),
            "slots": ("Completions that can be decoded at once", scheduler.slots),
        }
        for name, (text, value) in told.items():
            yield GaugeMetricFamily(f"jaxchat_{name}", text, value=value)
