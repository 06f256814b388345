"""What this machine can do for a model: tried once, at the start, on tiny programs.

XLA's options are tried through `jit(compiler_options=...)`, where an unknown name is an error that
can be caught; in XLA_FLAGS it would end the process, and names change from one jaxlib to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxchat.config.operations import Weights
from jaxchat.config.schema import ComputeConfig, ModelConfig
from jaxchat.errors import ConfigError
from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import (
    Backend,
    Compute,
    Implementation,
    MatmulPrecision,
    Option,
    backend,
    platform,
)
from jaxchat.model.kernels import fp8, native, splash
from jaxchat.model.kernels.matmul import count_products, rounded_matmul

# Attention that is tried first: tokens of a trial's row, and what is used where it fails
TRIALS: dict[str, tuple[int, Implementation]] = {
    "cudnn": (64, "blocked"),
    "splash": (splash.MAX_BLOCK, "xla"),
}
FP8_CAPABILITY = (8, 9)  # compute capability of the first GPUs that have it (Ada, Hopper)
# As Linux names them; processors without them multiply bfloat16 slower than float32.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
CPUINFO = Path("/proc/cpuinfo")


def choose_compute(
    config: ComputeConfig,
    model: ModelConfig,
    dtype: DTypeLike | None = None,
    devices: int = 1,
    *,
    on: Backend | None = None,
) -> Compute:
    """The fastest way to compute a step of this model over `devices` that works on this machine.

    `dtype` of activations is by default that of the backend `on`, and this the one JAX runs on.
    What was tried and does not work is left out, with a RuntimeWarning where that makes it slower.
    Raises ConfigError where `config` asks for what the machine does not have.
    """
    on = on or backend()
    dtype = on.dtype if dtype is None else dtype
    matmul = choose_matmul(config, model, dtype, on)
    ours = on.options if devices > 1 else ()
    options, refused = choose_options(ours, config.compiler_options)
    return Compute(
        dtype=dtype,
        attention=choose_attention(model.head_dim, dtype, matmul, on),
        chunk_rows=config.loss_chunk_rows or on.chunk_rows,
        matmul=matmul,
        options=options,
        refused=refused,
        fused=on.fused,
        lean_relu2=config.lean_relu2,
        decode_rows=on.decode_rows,
        joined=on.joined,
    )


def assumed_compute(config: ComputeConfig, on: Backend, devices: int = 1) -> Compute:
    """`choose_compute` where all that it tries works: nothing is run, so a device of the backend
    need not exist. Whether it has products of fp8 is the caller's to know. Raises ConfigError where
    XLA refuses an option of `config`, which it does here as there.
    """
    options, refused = choose_options(on.options if devices > 1 else (), config.compiler_options)
    return Compute(
        dtype=on.dtype,
        attention=on.attention,
        chunk_rows=config.loss_chunk_rows or on.chunk_rows,
        matmul="fp8" if config.fp8 else "default",
        options=options,
        refused=refused,
        fused=on.fused,
        lean_relu2=config.lean_relu2,
        decode_rows=on.decode_rows,
        joined=on.joined,
    )


def inference_compute(
    config: ComputeConfig, model: ModelConfig, *, on: Backend | None = None
) -> Compute:
    """`choose_compute` for an engine: never in fp8, without the step's compiler options, and with
    the plain forms, as the others pay for gradients.
    """
    plain = replace(config, fp8=False, compiler_options=())
    compute = choose_compute(plain, model, on=on)
    attention = "banded" if compute.attention == "native" else compute.attention
    return replace(compute, attention=attention, fused=False)


def assumed_inference(config: ComputeConfig, on: Backend) -> Compute:
    """`inference_compute` where all that it tries works: nothing is run."""
    plain = replace(config, fp8=False, compiler_options=())
    return replace(assumed_compute(plain, on), fused=False)


def with_weights(compute: Compute, weights: Weights) -> Compute:
    """`compute` for an engine that holds large kernels so, whatever its slots.

    Raises ConfigError where the device has no product that takes them as they are.
    """
    if weights == "auto":
        return compute
    if platform() != "cpu":
        raise ConfigError(
            f"--weights {weights} is for a CPU, and this machine computes on a {platform()}, whose "
            "engine holds weights in bfloat16; leave it out."
        )
    if weights == "bf16":
        if not processor_flags() & BFLOAT16_FLAGS:
            raise ConfigError(
                "--weights bf16 needs a processor that multiplies bfloat16 (AVX-512 BF16, AMX), "
                "and this one does not; use int8, which is for all."
            )
        # XLA has such products of two rows and more
        return replace(compute, matmul="bfloat16", decode_rows=2, weights=weights)
    return replace(compute.unrounded(), weights=weights)


def evaluation_compute(
    config: ComputeConfig, model: ModelConfig, dtype: DTypeLike | None = None
) -> Compute:
    """`choose_compute` for an evaluation: in full precision, whatever the model was trained in."""
    plain = replace(config, fp8=False, products="plain")
    return choose_compute(plain, model, dtype).unrounded()


def choose_attention(
    head_dim: int, dtype: DTypeLike, matmul: MatmulPrecision, on: Backend
) -> Implementation:
    """The fastest implementation that works here: the backend's, or "native" or "banded" for
    bfloat16 matmuls.

    "cudnn" needs half precision, "splash" heads of a multiple of 128; both are tried on a small
    case, and where that fails, a RuntimeWarning says why.
    """
    if matmul == "bfloat16":
        return "native" if on.shares_host and native.takes(head_dim) else "banded"
    if on.attention == "cudnn":
        able = jnp.dtype(dtype).itemsize == 2
    elif on.attention == "splash":
        able = head_dim % splash.MULTIPLE == 0
    else:
        return on.attention
    time, instead = TRIALS[on.attention]
    works = able and _attention_works(on.attention, instead, time, head_dim, dtype)
    return on.attention if works else instead


def choose_matmul(
    config: ComputeConfig, model: ModelConfig, dtype: DTypeLike, on: Backend
) -> MatmulPrecision:
    """How large matrices are multiplied. "bfloat16" is for float32 activations alone.

    By default it is chosen on a CPU that is made for it, if XLA computes it there as it should.
    """
    if config.fp8:
        check_fp8(model, on)
        return "fp8"
    if jnp.dtype(dtype) != jnp.float32 or config.products == "plain":
        return "default"
    if config.products == "bfloat16":
        return "bfloat16"
    able = on.shares_host and bool(processor_flags() & BFLOAT16_FLAGS)
    return "bfloat16" if able and _bfloat16_works() else "default"


def processor_flags() -> set[str]:
    """What the processor can do, as Linux reports it; nothing elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _works(trial: Callable[[], str], message: str) -> bool:
    """Whether a trial finds no problem; else a RuntimeWarning says `message` and the problem."""
    try:
        problem = trial()
    except Exception as error:  # whatever the backend raises, training can do without it
        problem = str(error) or type(error).__name__
    if problem:
        warnings.warn(f"{message}: {problem}", RuntimeWarning, stacklevel=4)
    return not problem


def _attention_works(
    implementation: Implementation, instead: Implementation, time: int, size: int, dtype: DTypeLike
) -> bool:
    """Whether rows of `time` tokens are attended to here, forward and backward."""
    x = jnp.ones((1, time, 1, size), dtype)

    def total(q: Array) -> Array:
        y = causal_attention(q, x, x, window=16, implementation=implementation)
        return jnp.sum(y.astype(jnp.float32))

    def trial() -> str:
        jax.jit(jax.grad(total))(x).block_until_ready()
        return ""

    message = (
        f"{implementation} attention does not work on this machine, so the slower {instead} one is "
        "used"
    )
    return _works(trial, message)


def _bfloat16_works() -> bool:
    """Whether XLA does a layer's three products in bfloat16."""

    def trial() -> str:
        program = _layer_program(rounded_matmul, jnp.float32)
        done = count_products(program.as_text() or "")
        jax.block_until_ready(program(jnp.ones((1024, 512)), jnp.ones((512, 1024))))
        return "" if done == 3 else f"it does {done} of a layer's 3 products in bfloat16"

    return _works(
        trial,
        "this processor multiplies bfloat16 faster than float32, but XLA does not make use of it, "
        "so products are in float32, and slower",
    )


def check_fp8(model: ModelConfig, on: Backend) -> None:
    """Raises ConfigError where fp8 cannot be; warns where XLA would not do it in fp8.

    A CPU computes it with float32 products of the rounded values: slow, but the same.
    """
    if not fp8.takes(model.n_embd, 4 * model.n_embd):
        raise ConfigError(
            f"compute.fp8 is on, but takes matrices of sides of at least {fp8.SMALLEST}, multiples "
            f"of {fp8.MULTIPLE}, and model.n_embd is {model.n_embd}; turn it off."
        )
    if on.shares_host:
        return
    device = jax.devices()[0]
    check_capability(device.device_kind, str(getattr(device, "compute_capability", "")))
    done = count_products(str(_layer_program(fp8.matmul, jnp.bfloat16).as_text()), "f8")
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


def _layer_program(matmul: Callable[[Array, Array], Array], dtype: DTypeLike) -> Any:
    """A layer's three products, compiled here."""

    def total(x: Array, kernel: Array) -> Array:
        return jnp.sum(jnp.square(matmul(x, kernel).astype(jnp.float32)))

    shapes = (
        jax.ShapeDtypeStruct((1024, 512), dtype),
        jax.ShapeDtypeStruct((512, 1024), jnp.float32),
    )
    return jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()


def choose_options(
    ours: Iterable[Option], wanted: Iterable[str] = ()
) -> tuple[tuple[Option, ...], tuple[tuple[str, str], ...]]:
    """The options wanted ("name=value") and those of ours that work, and (name, reason) of others.

    What is wanted replaces ours. Raises ConfigError where XLA refuses what is wanted.
    """
    chosen, refused = [parse_option(text) for text in wanted], []
    if (reason := refusal(chosen)) is not None:
        raise ConfigError(f"compute.compiler_options: {reason}; correct the option or leave it.")
    taken = {name for name, _ in chosen}
    for option in ours:
        if option[0] in taken:
            continue
        if (reason := refusal([option])) is None:
            chosen.append(option)
        else:
            refused.append((option[0], reason))
    return tuple(chosen), tuple(refused)


def parse_option(text: str) -> Option:
    """ "name=value", where the value is true, false, a whole number or text, which may be empty."""
    name, _, value = text.partition("=")
    if value in ("true", "false"):
        return name, value == "true"
    return name, int(value) if value.lstrip("-").isdecimal() else value


def refusal(options: Iterable[Option]) -> str | None:
    """What XLA says against compiling with these options; None when it does."""
    chosen: dict[str, Any] = dict(options)
    if not chosen:
        return None
    try:
        program = jax.jit(lambda x: x + 1.0, compiler_options=chosen)
        program.lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return None
