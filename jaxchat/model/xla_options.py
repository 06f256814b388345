"""XLA's compiler options for the step: tried on a tiny program, and those that work are kept.

Through `jit(compiler_options=...)` an unknown name is an error that can be caught; in XLA_FLAGS it
would end the process, and names change from one jaxlib to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxchat.errors import ConfigError

Value = bool | int | str
Option = tuple[str, Value]
MEBIBYTE = 1 << 20

# For several GPUs. Each row: an option's names, the newest first, and its value.
CANDIDATES: tuple[tuple[tuple[str, ...], Value], ...] = (
    (("xla_gpu_enable_latency_hiding_scheduler",), True),
    (("xla_gpu_pipeline_all_reduce", "xla_gpu_enable_pipelined_all_reduce"), True),
    (("xla_gpu_pipeline_all_gather", "xla_gpu_enable_pipelined_all_gather"), True),
    (("xla_gpu_pipeline_reduce_scatter", "xla_gpu_enable_pipelined_reduce_scatter"), True),
    (("xla_gpu_all_reduce_combine_threshold_bytes",), 256 * MEBIBYTE),
    (("xla_gpu_all_gather_combine_threshold_bytes",), 256 * MEBIBYTE),
    (("xla_gpu_reduce_scatter_combine_threshold_bytes",), 256 * MEBIBYTE),
)


def candidates(backend: str, devices: int) -> tuple[tuple[tuple[str, ...], Value], ...]:
    """What is tried without being asked for: on one device there is no communication to hide."""
    return CANDIDATES if backend == "gpu" and devices > 1 else ()


def choose_options(
    tried: Iterable[tuple[tuple[str, ...], Value]], wanted: Iterable[str] = ()
) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """(options that work here, names that do not), of those tried and those wanted ("name=value").

    What is wanted goes before what is tried. Raises ConfigError where XLA refuses what is wanted.
    """
    asked = [parse_option(text) for text in wanted]
    if asked and (failure := refusal(asked)) is not None:
        raise ConfigError(f"compute.compiler_options: {failure}; correct the option or leave it.")
    taken = {name for name, _ in asked}
    rows = [(names, value) for names, value in tried if not taken & set(names)]
    newest = [(names[0], value) for names, value in rows]
    if refusal([*asked, *newest]) is None:  # the usual case takes one compilation
        return (*asked, *newest), ()
    kept, dropped = list(asked), []
    for names, value in rows:
        works = next((name for name in names if refusal([*kept, (name, value)]) is None), None)
        if works is None:
            dropped.append(names[0])
        else:
            kept.append((works, value))
    return tuple(kept), tuple(dropped)


def parse_option(text: str) -> Option:
    """ "name=value", where the value is true, false, a whole number or text."""
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
