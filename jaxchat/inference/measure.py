"""How fast the engine is, and how near to what the device's memory allows .

Decoding reads all weights and what the rows see of the cache for every step, so the device's memory
bandwidth is its limit. MBU is the share of it that is used (Databricks, "LLM Inference Performance
Engineering", 2023).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config.derive import windows
from jaxchat.config.machine import memory_bandwidth
from jaxchat.config.schema import ModelConfig
from jaxchat.inference.engine import Engine, Request
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.tokenizer import Tokenizer

MEASURED_BYTES = 2**28  # read to find a memory bandwidth that is not known
LOOKED_UP = ("wte", "value_embeds")  # tables of which a token reads a row


@dataclass(frozen=True)
class Reading:
    """What was measured with `batch` requests at once: seconds, bytes; the best of the repeats."""

    batch: int
    prefill_tokens_per_second: float
    first_token_seconds: float  # from the request to its first token, alone in the engine
    decode_tokens_per_second: float  # of all rows together
    weight_bytes: int  # read by every step
    cache_bytes: int  # read by every step, of all rows, in the middle of the answer
    mbu: float  # share of the memory bandwidth

    @property
    def bytes_per_token(self) -> float:
        """Bytes that are read for one token."""
        return (self.weight_bytes + self.cache_bytes) / self.batch

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what is derived."""
        return {**asdict(self), "bytes_per_token": self.bytes_per_token}


def measure(
    params: Any,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    batch: int,
    prompt: int,
    tokens: int,
    compute: Compute = PLAIN,
    bandwidth: float,
    repeats: int = 3,
) -> Reading:
    """Reads and continues `batch` random prompts of `prompt` tokens by `tokens` each.

    `bandwidth` is the device's, in bytes a second.
    """
    length = prompt + tokens
    engine = Engine(params, config, tokenizer, slots=batch, max_len=length, compute=compute)
    rng = np.random.default_rng(0)

    def requests(count: int) -> list[Request]:
        drawn = rng.integers(0, config.vocab_size, (count, prompt)).tolist()
        return [
            Request(tuple(row), max_tokens=tokens, temperature=1.0, seed=seed)
            for seed, row in enumerate(drawn)
        ]

    _answer(engine, requests(batch))  # compiles
    alone = min(_answer(engine, requests(1))[0] for _ in range(repeats))
    read = min(_read(engine, requests(batch)) for _ in range(repeats))
    rate = max(_answer(engine, requests(batch))[1] for _ in range(repeats))
    weights = weight_bytes(engine.params)
    held = batch * cache_bytes(config, prompt + tokens // 2, jnp.dtype(compute.dtype).itemsize)
    return Reading(
        batch=batch,
        prefill_tokens_per_second=batch * (prompt - 1) / read,
        first_token_seconds=alone,
        decode_tokens_per_second=rate,
        weight_bytes=weights,
        cache_bytes=held,
        mbu=(weights + held) * rate / batch / bandwidth,
    )


def _answer(engine: Engine, requests: Sequence[Request]) -> tuple[float, float]:
    """Seconds to the first tokens; tokens a second of the steps after them."""
    began = time.perf_counter()
    jobs = [engine.submit(request) for request in requests]
    engine.step()
    first = time.perf_counter()
    early = sum(len(row.tokens) for job in jobs for row in job.rows)
    while engine.step():
        pass
    ended = time.perf_counter()
    total = sum(len(row.tokens) for job in jobs for row in job.rows)
    return first - began, (total - early) / (ended - first)


def _read(engine: Engine, requests: Sequence[Request]) -> float:
    """Seconds to read the prompts, one after the other as the engine does."""
    began = time.perf_counter()
    for request in requests:
        last = engine.prefill(request.tokens[:-1])
    jax.block_until_ready(last)
    return time.perf_counter() - began


def weight_bytes(params: Any) -> int:
    """Bytes of weights that a step of decoding reads, whatever the number of rows."""
    return sum(
        leaf.nbytes
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if not str(path[0].key).startswith(LOOKED_UP)
    )


def cache_bytes(config: ModelConfig, position: int, itemsize: int) -> int:
    """Bytes of keys and values that a row sees at a position."""
    seen = sum(min(position, window) + 1 for window in windows(config))
    return 2 * seen * config.n_kv_head * config.head_dim * itemsize


def device_bandwidth() -> tuple[float, str]:
    """Bytes a second that the first device's memory gives, and where that number is from."""
    kind = jax.devices()[0].device_kind
    known = memory_bandwidth(kind)
    return (known, f"{kind}'s data sheet") if known else (_measured(), "measured by a sum")


def _measured(repeats: int = 5) -> float:
    values = jnp.ones((256, MEASURED_BYTES // 4 // 256), jnp.float32)
    add_up = jax.jit(lambda x: jnp.sum(x, axis=1))
    add_up(values).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        add_up(values).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return values.nbytes / min(seconds)
