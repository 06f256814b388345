"""How a step is computed on this machine: found out once, at the start, and said in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxchat.config.machine import memory_bytes
from jaxchat.config.schema import ComputeConfig, ModelConfig
from jaxchat.errors import ConfigError
from jaxchat.model.attention import Implementation, choose_attention
from jaxchat.model.kernels import fp8
from jaxchat.model.kernels.matmul import Products, count_products, rounded_matmul
from jaxchat.model.loss import CHUNK_ROWS, default_chunk_rows
from jaxchat.model.xla_options import Option, candidates, choose_options

FP8_CAPABILITY = (8, 9)  # compute capability of the first GPUs that have it (Ada, Hopper)
# As Linux names them; processors without them multiply bfloat16 slower than float32.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Compute:
    """What the step is built from beside the model. The default runs anywhere."""

    dtype: DTypeLike = jnp.float32  # of activations; weights and their gradients are float32
    attention: Implementation = "blocked"
    chunk_rows: int = CHUNK_ROWS  # tokens whose logits are held at once
    products: Products = "plain"  # of large matrices; "plain": in `dtype`
    options: tuple[Option, ...] = ()  # XLA's
    dropped: tuple[str, ...] = ()  # names of XLA's options that were tried and do not work

    @property
    def muon_dtype(self) -> DTypeLike:
        """What is multiplied to make updates orthogonal."""
        return jnp.bfloat16 if self.products == "bfloat16" else self.dtype

    def unrounded(self) -> Compute:
        """The same for measuring a model: nothing is rounded to less than `dtype`."""
        attention = "blocked" if self.attention == "banded" else self.attention
        return replace(self, products="plain", attention=attention)

    def describe(self, devices: Sequence[jax.Device], axes: Mapping[str, int]) -> str:
        """One line, with the devices and the sizes of the mesh's axes."""
        kinds = [device.device_kind for device in devices]
        listed = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        sizes = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        name = jnp.dtype(self.dtype).name
        named = self.attention if isinstance(self.attention, str) else self.attention.__name__
        products = name if self.products == "plain" else self.products
        options = ", ".join(f"{key}={value}" for key, value in self.options) or "XLA's own"
        unknown = f"; not in this jaxlib: {', '.join(self.dropped)}" if self.dropped else ""
        return (
            f"{listed} ({sizes}){_memory(devices[0])}; "
            f"{name}{'' if name == 'float32' else ' over float32 weights'}; "
            f"attention {named}; loss in chunks of {self.chunk_rows:,} tokens; "
            f"large products {products}; compiler options: {options}{unknown}"
        )


PLAIN = Compute()


def _memory(device: jax.Device) -> str:
    """What JAX may take of a GPU; on a CPU there is no limit."""
    if device.platform == "cpu" or device not in jax.local_devices():
        return ""
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return f", {limit / 1e9:.1f} GB of each for JAX" if limit else ""


def choose_compute(
    config: ComputeConfig, model: ModelConfig, dtype: DTypeLike, devices: int = 1
) -> Compute:
    """Tries out what this machine can do for a step of this model over so many devices.

    What was tried and does not work is left out, with a RuntimeWarning where that makes it slower.
    Raises ConfigError where `config` asks for what the machine does not have.
    """
    backend = jax.default_backend()
    chosen = choose_products(config, model, dtype)
    options, dropped = choose_options(candidates(backend, devices), config.compiler_options)
    return Compute(
        dtype=dtype,
        attention=choose_attention(model.head_dim, dtype, chosen),
        chunk_rows=config.loss_chunk_rows or default_chunk_rows(backend),
        products=chosen,
        options=options,
        dropped=dropped,
    )


def choose_products(config: ComputeConfig, model: ModelConfig, dtype: DTypeLike) -> Products:
    """How large matrices are multiplied. "bfloat16" is for float32 activations alone.

    By itself that is taken on a CPU that is made for it, if XLA computes it there as it should.
    """
    if config.fp8:
        check_fp8(model)
        return "fp8"
    if jnp.dtype(dtype) != jnp.float32 or config.products == "plain":
        return "plain"
    if config.products == "bfloat16":
        return "bfloat16"
    able = jax.default_backend() == "cpu" and bool(processor_flags() & BFLOAT16_FLAGS)
    return "bfloat16" if able and _try_bfloat16() else "plain"


def processor_flags() -> set[str]:
    """What the processor can do, as Linux tells it; nothing elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _try_bfloat16() -> bool:
    """Whether XLA does a layer's three products in bfloat16; else a RuntimeWarning says why."""
    try:
        program = _layer_program(rounded_matmul, jnp.float32)
        done = count_products(program.as_text() or "")
        jax.block_until_ready(program(jnp.ones((1024, 512)), jnp.ones((512, 1024))))
        problem = "" if done == 3 else f"it does {done} of a layer's 3 products in bfloat16"
    except Exception as error:  # whatever the backend raises, training can go on without it
        problem = str(error)
    if problem:
        warnings.warn(
            "this processor multiplies bfloat16 faster than float32, but XLA does not make use of "
            f"it, so products are in float32, and slower: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
    return not problem


def check_fp8(model: ModelConfig) -> None:
    """Raises ConfigError where fp8 cannot be; warns where XLA would not do it in fp8.

    A CPU computes it with float32 products of the rounded values: slow, but the same.
    """
    if not fp8.takes(model.n_embd, 4 * model.n_embd):
        raise ConfigError(
            f"compute.fp8 is on, but takes matrices of sides of at least {fp8.SMALLEST}, multiples "
            f"of {fp8.MULTIPLE}, and model.n_embd is {model.n_embd}; turn it off."
        )
    device = jax.devices()[0]
    if device.platform == "cpu":
        return
    check_capability(device.device_kind, str(getattr(device, "compute_capability", "")))
    done = fp8.count_products(str(_layer_program(fp8.matmul, jnp.bfloat16).as_text()))
    if done < 3:
        warnings.warn(
            f"compute.fp8 is on, but of the 3 products of a layer XLA does {done} in fp8 on this "
            f"{device.device_kind}; the others are rounded to fp8 and not faster for it.",
            RuntimeWarning,
            stacklevel=2,
        )


def check_capability(kind: str, capability: str) -> None:
    """Raises ConfigError for a device without products of fp8; `capability` is like "9.0"."""
    numbers = tuple(int(part) for part in capability.split(".") if part.isdecimal())
    if numbers < FP8_CAPABILITY:
        least = ".".join(map(str, FP8_CAPABILITY))
        raise ConfigError(
            f"compute.fp8 is on, but {kind} has the compute capability {capability or 'none'}; fp8 "
            f"needs {least} or more (H100, H200, RTX 40 and newer). Turn it off."
        )


def _layer_program(matmul: Callable[[jax.Array, jax.Array], jax.Array], dtype: DTypeLike) -> Any:
    """A layer's three products, compiled here."""

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(matmul(x, kernel).astype(jnp.float32)))

    shapes = (
        jax.ShapeDtypeStruct((1024, 512), dtype),
        jax.ShapeDtypeStruct((512, 1024), jnp.float32),
    )
    return jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()


def compute_dtype() -> DTypeLike:
    """What activations are computed in: bf16 on a GPU, fp32 on a CPU; weights are always fp32."""
    dtype: DTypeLike = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    return dtype


def device_memory(device: jax.Device) -> int:
    """Bytes that a device may hold; a CPU's virtual devices share the machine's."""
    stats = device.memory_stats() or {}
    if limit := int(stats.get("bytes_limit", 0)):
        return limit
    return memory_bytes() // jax.local_device_count()
