"""The Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The Prometheus metrics of one server."""

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
        self.cached_tokens = counter(
            "cached_prompt_tokens", "Tokens of prompts that an earlier prompt had read"
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From acceptance to the first token", SECONDS
        )
        self.between_tokens = histogram(
            "inter_token_seconds", "Mean time between the tokens of a request", TOKEN_SECONDS
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is read whenever the metrics are."""
        Gauge(f"jaxchat_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
