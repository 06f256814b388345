"""What every test runs under: 8 virtual devices, strict promotion, a home of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# Tests compile much and compute little: half the time goes without LLVM's optimizations. Read when
# the first device is asked for; what XLA_FLAGS says already, comes last and wins.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()

# Before the first device is asked for, too: afterwards it would be an error.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# How long an example takes says nothing: the first one compiles.
hypothesis.settings.register_profile("jaxchat", deadline=None)
hypothesis.settings.load_profile("jaxchat")


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary home, so that no test touches the user's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCHAT_HOME", str(folder))
        # as the command line does: what one test compiled, the next need not
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        yield folder


@pytest.fixture
def optax_promotion() -> Iterator[None]:
    """The usual dtype promotion, without which Optax's Adam (`decay**count`) cannot be traced."""
    with jax.numpy_dtype_promotion("standard"):
        yield
