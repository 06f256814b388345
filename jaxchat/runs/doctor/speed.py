"""How fast a small model's training step is here, as a share of what a matrix product reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config import loading
from jaxchat.config.derive import flops_per_token
from jaxchat.config.schema import DEFAULT_COMPUTE, MeshConfig
from jaxchat.model import gpt
from jaxchat.model.backend import backend
from jaxchat.model.capabilities import choose_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.runs.doctor.check import Check
from jaxchat.train.step import init_state, make_train_step

# A model small enough to compile in seconds and large enough that products take most of its time.
SMALL: dict[str, dict[str, Any]] = {
    "cpu": {
        "run": {"depth": 4},
        "model": {"sequence_len": 256, "n_embd": 256, "n_head": 4, "n_kv_head": 4},
        "tokenizer": {"vocab_size": 4_096},
    },
    "gpu": {
        "run": {"depth": 12},
        "model": {"sequence_len": 2_048},
        "tokenizer": {"vocab_size": 32_768},
    },
}
ROWS = {"cpu": 8, "gpu": 4}
# Side of the square matrices. On a CPU their product has as many operations as a step, so that
# other programs disturb both alike.
PRODUCT = {"cpu": 3_072, "gpu": 8_192}
SECONDS = 8.0  # for both together, in turns
TURN = 0.25  # seconds of a turn, at least
LEAST_TURNS = 3
# Share of the product's rate that is usual. Measured on 2 cores (50 to 54% of float32 by processor
# time, 36 and 37% of bfloat16), see docs/log.md (2026-11-24); not measured on a GPU.
USUAL: dict[str, tuple[float, float]] = {"cpu": (0.25, 0.6)}


@dataclass(frozen=True)
class Speed:
    """What was measured on one device. Rates are FLOP/s, in what training multiplies."""

    tokens_per_second: float
    model_flops: float  # by the model's own count
    matmul_flops: float  # of a square matrix product
    turns: int

    @property
    def share(self) -> float:
        """What of the product's rate the step reaches."""
        return self.model_flops / self.matmul_flops


def check_speed(platform: str) -> tuple[Check, Speed]:
    """Measures; a step that is slower than usual is a note."""
    speed = measure_speed(platform)
    usual = USUAL.get(platform)
    against = (
        f"{usual[0]:.0%} to {usual[1]:.0%} is usual" if usual else "what is usual is not known yet"
    )
    text = (
        f"{speed.tokens_per_second:,.0f} tokens/s with a depth of {SMALL[platform]['run']['depth']}"
        f": {speed.model_flops / 1e9:,.0f} GFLOP/s, {speed.share:.0%} of the "
        f"{speed.matmul_flops / 1e9:,.0f} of a matrix product; {against}"
    )
    notes: tuple[str, ...] = ()
    if usual and speed.share < usual[0]:
        notes = (
            f"a training step reaches {speed.share:.0%} of the rate of a matrix product, and "
            f"{usual[0]:.0%} or more is usual: does another program use this machine?",
        )
    facts = {**vars(speed), "share": speed.share, "usual": usual}
    return Check("speed", text, notes=notes, facts=facts), speed


def measure_speed(platform: str, seconds: float = SECONDS) -> Speed:
    """Compiles the small model's real step; runs it and a product on the first device in turns.

    It takes about `seconds` beside the compilation. Rates are medians over the turns.
    """
    tables, dtype = SMALL[platform], backend().dtype
    document = {**tables, "run": {"name": "doctor", **tables["run"]}}
    config = loading.from_document(document, "the doctor's model")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    compute = choose_compute(DEFAULT_COMPUTE, config.model, dtype)
    optimizer = make_optimizer(config.model, config.optim, 1_000, muon_dtype=compute.muon_dtype)
    step = make_train_step(config.model, optimizer, mesh, compute)
    shape = (1, ROWS[platform], config.model.sequence_len + 1)
    drawn = np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.int32)
    batch = put_batch(mesh, {"tokens": drawn, "mask": np.ones(shape, np.float32)})
    state = init_state(gpt.init_params(jax.random.key(0), config.model), optimizer, mesh)

    side = PRODUCT[platform]
    x = jnp.ones((side, side), compute.muon_dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))

    def train() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    steps, products = in_turns(train, lambda: product(x), seconds)
    tokens = steps * ROWS[platform] * config.model.sequence_len
    return Speed(
        tokens_per_second=float(np.median(tokens)),
        model_flops=float(np.median(tokens)) * flops_per_token(config.model),
        matmul_flops=float(np.median(products)) * 2 * side**3,
        turns=len(steps),
    )


def in_turns(
    one: Callable[[], Any], other: Callable[[], Any], seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """How often a second each can be done, in every turn, over about `seconds`."""
    rates: list[tuple[float, float]] = []
    for work in (one, other):
        jax.block_until_ready(work())  # compiles
    end = time.perf_counter() + seconds
    while len(rates) < LEAST_TURNS or time.perf_counter() < end:
        rates.append((_rate(one), _rate(other)))
    return np.array(rates)[:, 0], np.array(rates)[:, 1]


def _rate(work: Callable[[], Any]) -> float:
    """How often a second it is done, over a turn; one is dispatched ahead, as in training."""
    began, count, previous = time.perf_counter(), 1, work()
    while time.perf_counter() - began < TURN:
        current = work()
        jax.block_until_ready(previous)
        previous, count = current, count + 1
    jax.block_until_ready(previous)
    return count / (time.perf_counter() - began)
