"""How much of a GPU a command takes: decided before JAX starts, and never against the user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxchat.cli import main
from jaxchat.config import memory
from jaxchat.config.schema import MeshConfig
from jaxchat.parallel import launch_env
from jaxchat.parallel.launch_env import MEMORY_VARIABLES, memory_notice, memory_settings, start_jax

# What JAX's GPU plugin would receive, read when the backend starts: no GPU is needed to see it.
CODE = """
import json, os, sys
from pathlib import Path
from jaxchat.config.schema import MeshConfig
from jaxchat.parallel.launch_env import configure_jax
configure_jax(MeshConfig(), None, whole_gpu=sys.argv[1] == "train")
from jaxlib.xla_client import generate_pjrt_gpu_plugin_options
options = generate_pjrt_gpu_plugin_options()
print(json.dumps({name: options.get(name) for name in ("memory_fraction", "preallocate")}))
"""


def options(purpose: str, **variables: str) -> dict[str, object]:
    clean = {k: v for k, v in os.environ.items() if k not in MEMORY_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", CODE, purpose], env={**clean, **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_training_takes_most_of_a_gpu_and_others_what_they_need():
    fraction = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    assert memory_settings(whole_gpu=True) == fraction
    assert memory_settings(whole_gpu=False) == {
        **fraction,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    assert float(fraction["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == 1 - memory.MARGIN


def test_jax_is_configured_before_it_starts():
    assert options("train") == {"memory_fraction": 0.92, "preallocate": None}
    assert options("serve") == {"memory_fraction": 0.92, "preallocate": False}


def test_what_the_user_has_set_stays():
    assert options("serve", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == {
        "memory_fraction": 0.5,
        "preallocate": None,
    }
    # both names at once would be an error of jaxlib's
    assert options("train", XLA_CLIENT_MEM_FRACTION="0.25")["memory_fraction"] == 0.25


def test_on_a_cpu_there_is_nothing_to_tell():
    assert memory_notice() == ""


class Card:
    """A GPU as JAX shows it."""

    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 73_600_000_000}


def test_of_a_gpu_the_limit_is_said_beside_what_a_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(launch_env, "configure_jax", lambda mesh, cache: None)
    monkeypatch.setattr("jax.local_devices", lambda: [Card()])
    start_jax(MeshConfig(), None)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "jaxchat: JAX may take 73.6 GB of each NVIDIA H100 80GB HBM3, as it needs it.\n"
    )


def test_a_single_answer_has_nothing_above_it(monkeypatch, capsys):
    monkeypatch.setattr(launch_env, "configure_jax", lambda mesh, cache: None)
    monkeypatch.setattr("jax.local_devices", lambda: [Card()])
    start_jax(MeshConfig(), None, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("theirs", [None, "INFO"])
def test_a_collective_that_is_aborted_is_reported_by_nccl(theirs):
    code = (
        "import os\nfrom jaxchat.config.schema import MeshConfig\n"
        "from jaxchat.parallel.launch_env import configure_jax\n"
        "configure_jax(MeshConfig(), None)\nprint(os.environ['NCCL_DEBUG'])"
    )
    clean = {k: v for k, v in os.environ.items() if k != "NCCL_DEBUG"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **({"NCCL_DEBUG": theirs} if theirs else {})},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == (theirs or "WARN")


def test_garbage_is_looked_for_more_rarely_from_then_on():
    code = (
        "import gc\nfrom jaxchat.config.schema import MeshConfig\n"
        "from jaxchat.parallel.launch_env import GARBAGE, configure_jax\n"
        "assert gc.get_threshold() != GARBAGE\nconfigure_jax(MeshConfig(), None)\n"
        "assert gc.get_threshold() == GARBAGE"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_command_starts_jax_without_saying_it():
    """A run says it with each stage, the doctor with the devices."""
    commands = Path(main.__file__).parent.glob("*.py")
    silent = [path.stem for path in commands if "configure_jax(" in path.read_text()]
    assert silent == ["doctor"]


def test_compiled_programs_are_cached_where_the_user_says():
    code = (
        "import sys\nfrom pathlib import Path\nimport jax\n"
        "from jaxchat.config.schema import MeshConfig\n"
        "from jaxchat.parallel.launch_env import configure_jax\n"
        "configure_jax(MeshConfig(), Path('ours'))\nprint(jax.config.jax_compilation_cache_dir)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for variables, folder in (({}, "ours"), ({"JAX_COMPILATION_CACHE_DIR": "theirs"}, "theirs")):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**clean, **variables}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == folder, f"with {variables}"
