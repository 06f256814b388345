"""The platform a model runs on, and how it is computed there. The only place that asks for both.

A `Backend` is what follows from the platform alone; what has to be tried on the device first is
found by `model.capabilities`, and together they make a `Compute`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxchat.config.machine import memory_bytes
from jaxchat.config.memory import CHUNK_ROWS
from jaxchat.config.operations import Weights

# By name, or a function like `attention.causal_attention`
Implementation = (
    Literal["blocked", "banded", "native", "cudnn", "splash", "xla"] | Callable[..., Array]
)
# How large matrices are multiplied: in the dtype of the activations, or narrower; native is
# bfloat16 by kernels of our own.
MatmulPrecision = Literal["default", "bfloat16", "native", "fp8"]
Value = bool | int | str
Option = tuple[str, Value]  # XLA's, name and value
# A collective that one GPU never enters ends all processes with an error; XLA's default is to wait.
COLLECTIVE_TIMEOUT: Option = ("xla_gpu_nccl_termination_timeout_seconds", 600)
# Without command buffers, a trace has the instruction of each kernel.
NO_COMMAND_BUFFERS: Option = ("xla_gpu_enable_command_buffer", "")


@dataclass(frozen=True)
class Backend:
    """What follows from the platform alone."""

    dtype: DTypeLike  # of activations; weights are always float32
    attention: Implementation  # "cudnn" and "splash" only where a trial succeeds
    sizes: Literal["cpu", "gpu"]  # whose formulas of `config.memory`, and other sizes, fit it
    # Whether XLA makes one kernel of what `kernels.norms` and the loss's narrow form write;
    # elsewhere they would only be more arithmetic than the plain forms
    fused: bool = False
    decode_rows: int = 1  # that a step of decoding computes at least: see `gpt.decode`
    joined: bool = False  # whether an engine joins kernels: see `joined.join_kernels`
    options: tuple[Option, ...] = ()  # XLA's, for a step over several devices, where it takes them
    traced: tuple[Option, ...] = ()  # XLA's, beside the others for the steps that are recorded
    # A CPU's devices are virtual: they share its cores, its memory, and several engines use one.
    shares_host: bool = False
    eval_tokens: int = 65_536  # of an evaluation's batch, on each device
    letter_tokens: int = 131_072  # of a batch of which only the last token's logits are computed

    @property
    def chunk_rows(self) -> int:
        """Tokens whose logits the loss holds at once."""
        return CHUNK_ROWS[self.sizes]


BACKENDS = {
    "cpu": Backend(
        jnp.float32, "blocked", "cpu",
        shares_host=True, eval_tokens=4_096, letter_tokens=4_096,
    ),
    "gpu": Backend(
        jnp.bfloat16, "cudnn", "gpu", fused=True, decode_rows=8, joined=True,
        options=(COLLECTIVE_TIMEOUT,), traced=(NO_COMMAND_BUFFERS,),
    ),
    "tpu": Backend(jnp.bfloat16, "splash", "gpu"),
}  # fmt: skip


def platform() -> str:
    """The platform JAX computes on: "cpu", "gpu" or "tpu". Starts JAX."""
    return jax.default_backend()


def backend(name: str | None = None) -> Backend:
    """The row of a platform, by default of `platform`. An unknown one is treated as a CPU."""
    return BACKENDS.get(name or platform(), BACKENDS["cpu"])


@dataclass(frozen=True)
class Compute:
    """How a model is computed. The default runs anywhere."""

    dtype: DTypeLike = jnp.float32  # of activations; weights and their gradients are float32
    attention: Implementation = "blocked"
    chunk_rows: int = CHUNK_ROWS["cpu"]  # tokens whose logits are held at once
    matmul: MatmulPrecision = "default"  # of large matrices; "default": `dtype`
    options: tuple[Option, ...] = ()  # XLA's
    refused: tuple[tuple[str, str], ...] = ()  # options of ours, and what XLA says against each
    fused: bool = False  # norms, rotations and losses in the forms that move the fewest bytes
    lean_relu2: bool = False  # the gradient of relu^2 comes from its result
    decode_rows: int = 1  # that a step of decoding computes at least
    joined: bool = False  # an engine's kernels of queries, keys and values are one
    weights: Weights = "auto"  # how an engine holds large kernels

    @property
    def muon_dtype(self) -> DTypeLike:
        """The dtype in which updates are orthogonalised."""
        return jnp.bfloat16 if self.matmul == "bfloat16" else self.dtype

    @property
    def scalars(self) -> DTypeLike:
        """The dtype of parameters that scale the whole residual stream, whose gradients are sums
        over all of it.
        """
        return jnp.float32 if self.fused else self.dtype

    @property
    def fused_fp8(self) -> bool:
        """Whether products of fp8 are in the forms that move the fewest bytes, too."""
        return self.fused and self.matmul == "fp8"

    @property
    def native(self) -> bool:
        """Whether other parts have kernels of our own, too: where no head is on another device."""
        rounded = self.matmul == "bfloat16" and self.dtype == jnp.float32
        return rounded and self.attention == "native"

    @property
    def products(self) -> MatmulPrecision:
        """How a layer's large matrices are multiplied, by `kernels.matmul.matmul`."""
        return "native" if self.native else self.matmul

    def unrounded(self) -> Compute:
        """The same for evaluating a model: nothing is rounded to less than `dtype`, and without
        the forms that pay for gradients.
        """
        attention = "blocked" if self.attention in ("banded", "native") else self.attention
        return replace(self, matmul="default", attention=attention, fused=False)

    def refusals(self) -> str:
        """Which options of ours this XLA refuses, and why, to end a line with; "" for none."""
        return "".join(f"; XLA refuses {name}: {reason}" for name, reason in self.refused)

    def describe(self, devices: Sequence[jax.Device], axes: Mapping[str, int]) -> str:
        """One line, with the devices and the sizes of the mesh's axes."""
        kinds = [device.device_kind for device in devices]
        listed = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        sizes = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        limit = memory_limit(devices[0]) if devices[0] in jax.local_devices() else 0
        memory = f", {limit / 1e9:.1f} GB of each for JAX" if limit else ""
        name = jnp.dtype(self.dtype).name
        named = self.attention if isinstance(self.attention, str) else self.attention.__name__
        matmul = name if self.matmul == "default" else self.matmul
        options = ", ".join(f"{key}={value}" for key, value in self.options) or "XLA's own"
        return (
            f"{listed} ({sizes}){memory}; "
            f"{name}{'' if name == 'float32' else ' over float32 weights'}; "
            f"attention {named}; loss in chunks of {self.chunk_rows:,} tokens; "
            f"large products {matmul}; compiler options: {options}{self.refusals()}"
        )


PLAIN = Compute()


def memory_limit(device: jax.Device) -> int:
    """Bytes that JAX may take of a device's own memory; 0 where it shares the machine's."""
    if backend(device.platform).shares_host:
        return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


def device_memory(device: jax.Device) -> int:
    """Bytes that a device may hold; a CPU's virtual devices share the machine's."""
    return memory_limit(device) or memory_bytes() // jax.local_device_count()


def memory_used(device: jax.Device) -> int:
    """Bytes that arrays take of a device now; 0 where it does not say."""
    return int((device.memory_stats() or {}).get("bytes_in_use", 0))


def bucket(size: int, least: int, most: int | None = None, steps: int = 1) -> int:
    """`size` rounded up to one of few, so that few shapes are compiled.

    The sizes are powers of two from `least`, one itself, and `steps` - 1 even ones between two of
    them (with steps=2 and least=32: 32, 48, 64, 96, 128, 192, ...); none is above `most`.
    """
    if size > least:
        step = (1 << ((size - 1).bit_length() - 1)) // steps
        least = -(-size // step) * step
    return least if most is None else min(least, most)
