"""launch/slurm.sh on a real SLURM cluster: two nodes, both on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_processes import TINY

ROOT = Path(__file__).resolve().parent.parent.parent
CLUSTER = Path(__file__).resolve().parent / "slurm_cluster.sh"
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.getuid() != 0 or not all(map(shutil.which, TOOLS)),
        reason="needs root and apt-get install slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which the cluster's commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "start", folder], check=True)
    patience = "--xla_cpu_collective_timeout_seconds=600"
    patience += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    yield os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "JAXCHAT_PYTHON": sys.executable,
        # the name node1 is known to SLURM alone
        "JAXCHAT_COORDINATOR": "127.0.0.1:27600",
        "XLA_FLAGS": f"{patience} {os.environ.get('XLA_FLAGS', '')}",
    }
    subprocess.run([CLUSTER, "stop", folder], check=True)


def ask(cluster: dict[str, str], *command: object) -> str:
    """What a command of SLURM's says."""
    done = subprocess.run(
        list(map(str, command)), env=cluster, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip() + done.stderr.strip()


def state(cluster: dict[str, str], job: str) -> tuple[str, int]:
    """The job's state, and how often it was started again."""
    shown = ask(cluster, "scontrol", "show", "job", job)
    found = re.search(r"JobState=(\w+).*Restarts=(\d+)", shown, re.DOTALL)
    assert found, shown
    return found[1], int(found[2])


def wait_for_steps(cluster: dict[str, str], job: str, log: Path, count: int) -> None:
    while not (log.exists() and log.read_text().count('"loss"') >= count):
        assert state(cluster, job)[0] in ("RUNNING", "PENDING", "CONFIGURING")
        time.sleep(0.2)


def wait_until_queued_again(cluster: dict[str, str], job: str, restarts: int) -> None:
    deadline = time.monotonic() + 300
    while state(cluster, job) != ("PENDING", restarts):
        assert time.monotonic() < deadline, state(cluster, job)
        time.sleep(0.5)
    time.sleep(5)  # started in the second in which it was ended, SLURM refuses its own credential
    ask(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else in two minutes


def test_sbatch_takes_the_script(cluster: dict[str, str]) -> None:
    printed = ask(cluster, "sbatch", "--test-only", "--nodes=2", "launch/slurm.sh", "--tier", "cpu")
    assert "to start at" in printed
    assert "on nodes node[1-2]" in printed


def test_a_run_on_two_nodes_is_queued_again_and_resumes(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """A process is killed in pretraining, and the job is requeued in midtraining."""
    home, log = tmp_path / "home", tmp_path / "job.log"
    settings = [*TINY, "mesh.host_devices=2"]
    job = ask(
        cluster, "sbatch", "--parsable", "--nodes=2", f"--output={log}", "launch/slurm.sh",
        "--tier", "cpu", "--home", home, *(p for s in settings for p in ("--set", s)),
    )  # fmt: skip
    run = home / "runs" / "cpu"

    wait_for_steps(cluster, job, run / "base" / "metrics.jsonl", 3)
    task = subprocess.run(
        ["pgrep", "-f", f"run_speedrun.py.*{home} "], capture_output=True, text=True, check=True
    )
    os.kill(max(map(int, task.stdout.split())), signal.SIGKILL)
    wait_until_queued_again(cluster, job, 1)

    wait_for_steps(cluster, job, run / "mid" / "metrics.jsonl", 3)
    ask(cluster, "scontrol", "requeue", job)
    wait_until_queued_again(cluster, job, 2)

    deadline = time.monotonic() + 1200
    while state(cluster, job)[0] != "COMPLETED":
        assert state(cluster, job)[0] in ("RUNNING", "COMPLETING", "PENDING"), log.read_text()
        assert time.monotonic() < deadline
        time.sleep(1)
    printed = log.read_text()
    assert printed.count("slurm.sh: start ") == 3
    assert printed.count("the run was stopped; it is requeued") == 1
    assert "Traceback" not in printed
    assert json.loads((run / "report" / "done.json").read_text())["stage"] == "report"
