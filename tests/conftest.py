"""What every test runs under: 8 virtual devices, strict promotion, a home of its own."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from compilation import FAST_COMPILATION

# As `configure_jax` does, before there is anything to import: a third of collecting was this.
gc.set_threshold(50_000, 10, 10)

# Benchmarks whose arithmetic is tested
sys.path.append(str(Path(__file__).parents[1] / "bench"))

# Read when the first device is asked for; what XLA_FLAGS says already, comes last and wins.
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()

# What one process has compiled of Python, others need not: half of what collecting takes, and 0.3 s
# of each command.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

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
        # What one test compiled, the next need not, in whatever process or worker.
        shared = tmp_path_factory.getbasetemp()
        shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield folder


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small copies of all datasets, as the hub has them."""
    import hub_replica

    folder = tmp_path_factory.mktemp("replica")
    hub_replica.build(folder)
    return folder


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No name from bytes nobody reads: the clock in them (gzip's) differs between workers."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the tests that are marked so, too."""
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


# Files that take long come first, so that no worker is left with one when the others are done.
LONG = {
    *("test_resume.py", "test_real_tier.py", "test_fit.py", "test_mesh.py", "test_company.py"),
    *("test_engine.py", "test_notebooks.py", "test_rl.py", "test_rollouts.py", "test_step.py"),
    *("test_docs.py", "test_processes.py", "test_fit_warm.py", "test_mirror.py", "test_probes.py"),
    *("test_page_browser.py", "test_bpe_training.py", "test_answers.py", "test_loss_curve.py"),
    *("test_oom.py", "test_climb.py", "test_gpt.py", "test_fused.py", "test_changes.py"),
    *("test_grammar.py", "test_screen.py", "test_september_training.py", "test_fp8.py"),
    *("test_openapi.py", "test_page_faults.py", "test_process.py", "test_native.py"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, and says so, what was not asked for or cannot run here."""
    items.sort(key=lambda item: item.path.name not in LONG)  # else as they were
    gpu = any(device.platform == "gpu" for device in jax.devices())
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: pytest --slow runs it"))
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


def pytest_collection_finish() -> None:
    """Lets the garbage collector pass over what was imported and collected: it stays."""
    gc.freeze()


# Rooms whose modules share a tiny model, and so its programs. None counts what is compiled.
SHARING = {"cli", "serve"}


@pytest.fixture(autouse=True, scope="module")
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forgets the programs of a module: all of them together take gigabytes."""
    yield
    if request.path.parent.name not in SHARING:
        jax.clear_caches()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB (see `disk.remount`); skips where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if sys.platform != "linux" or os.getuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount the small file system that this test needs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def optax_promotion() -> Iterator[None]:
    """The usual dtype promotion, without which Optax's Adam (`decay**count`) cannot be traced."""
    with jax.numpy_dtype_promotion("standard"):
        yield
