"""Settings on which no result depends: hardware, trackers, mirror, server."""
# annotations are not postponed: `config.fields` reads them

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from jaxchat.config import numbers
from jaxchat.config.fields import Count, Form, NotNegative, OneOf, Positive, Settings

# How an engine holds large matrices; "auto": float32, or bf16 where compute.products rounds them
Weights = Literal["auto", "float32", "bf16", "int8"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
TRACKERS = ("tensorboard", "wandb", "trackio")
Timeout = Annotated[float, numbers.Range(0, numbers.SECONDS.most, whole=False, open=True)]


@dataclass(frozen=True)
class HardwareConfig(Settings):
    """The machine of `--plan`'s estimates; nothing else reads it."""

    table = "hardware"
    name: str = "NVIDIA H100 80GB"
    devices: Count = 8
    peak_flops: Positive = 989e12  # per device, dense bf16
    utilization: Positive = 0.45  # share of the peak that training reaches (MFU)
    memory_bytes: Positive = 80e9  # per device
    compute_bytes: Count = 2  # of an activation: 2 in bf16, 4 in fp32
    dollars_per_hour: NotNegative = 24.0  # for all devices together; 0: one's own machine


@dataclass(frozen=True)
class About(Settings):
    """What a tier's file says of its results, for `--tier list`; no run reads it."""

    table = "about"
    expected: str = "not known"
    evidence: str = "nobody has published this model's figures"


@dataclass(frozen=True)
class TrackConfig(Settings):
    """Trackers of metrics beside metrics.jsonl; results do not depend on them."""

    table = "track"
    trackers: tuple[Annotated[str, OneOf(TRACKERS)], ...] = ()

    def faults(self) -> Iterator[str]:
        if len(set(self.trackers)) < len(self.trackers):
            yield f"track.trackers is {', '.join(self.trackers)}; name each once."


@dataclass(frozen=True)
class MirrorConfig(Settings):
    """A copy of the run, from which another machine resumes it; results do not depend on it."""

    table = "mirror"
    url: Annotated[  # "": there is none
        str, Form("|/.*|.*://.*", "like s3://BUCKET/PREFIX, or a folder's absolute path")
    ] = ""
    every: Count = 60  # seconds between two looks for what is new


LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeConfig(Settings):
    """`jaxchat serve`: its address and its limits."""

    table = "serve"
    host: Annotated[str, Form(".+", "an address, such as 127.0.0.1")] = "127.0.0.1"
    port: Annotated[int, numbers.PORT] = 8_000  # 0: any that is free
    # answers of a model decoded at once, on each device; 0: suits the device
    slots: Annotated[int, numbers.WHOLE] = 0
    weights: Annotated[str, OneOf(WEIGHTS)] = "auto"  # large ones, in the engine
    # megabytes on each device for what prompts began with, so that others read only what is new
    prefix_mb: Annotated[int, numbers.WHOLE] = 512
    queue: Annotated[int, numbers.COUNT] = 256  # requests that may wait
    queue_seconds: Timeout = 60.0  # that a request may wait
    # for answers under way when the server shuts down
    grace_seconds: Annotated[float, numbers.SECONDS] = 10.0
    messages: Count = 256  # of one request
    prompts: Count = 256  # of one request, to be completed or scored
    characters: Count = 400_000  # of all its messages or prompts; of prompts as ids, their number
    body_bytes: Count = 4_000_000
    body_seconds: Timeout = 20.0  # in which a request must have arrived
    samples: Count = 8  # n
    max_tokens: Annotated[int, numbers.WHOLE] = 0  # of an answer; 0: what the context leaves
    temperature: Annotated[float, numbers.API_TEMPERATURE] = 0.8  # where a request names none
    top_k: Annotated[int, numbers.TOP_K] = 0  # likewise; 0: all
    any_name: bool = False  # the one model answers to any name
    connections: Count = 1_024
    warm_up: bool = True  # compiles what plain answers need before it is ready
    hosts: tuple[str, ...] = ()  # names in the Host header that are accepted beside its own
    # of other sites whose pages may ask (CORS)
    origins: tuple[
        Annotated[str, Form("https?://.*[^/]", "of the form https://example.org")], ...
    ] = ()
    behind_proxy: bool = False  # clients' addresses are those that a local proxy reports

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
