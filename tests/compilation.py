"""How tests compile: they compile much and compute little."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.monitoring

# Half the time goes without LLVM's optimizations.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Of the rest, two thirds go with one LLVM module a program and without MLIR's emitters, whose place
# XLA's plain ones take. Newer versions have no others, and end where a flag is unknown to them.
if jax.__version_info__ < (0, 11):
    FAST_COMPILATION += (
        " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
    )


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """Counts what XLA compiles meanwhile."""
    found: list[float] = []

    def listen(event: str, duration: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(found)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
