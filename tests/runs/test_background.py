"""The process that prepares text: how it ends, and that it never outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxchat.runs.background import Preparer


def wait_for(condition: Callable[[], object], why: str) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + 60, why
        time.sleep(0.05)


def busy_run(home: Path) -> list[str]:
    """Arguments of a command that waits for ever: for a pipe without a writer."""
    run = home / "runs" / "busy"
    (run / "data").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    os.mkfifo(run / "data" / "inputs.json")
    return ["data", "--home", str(home), "prepare", "--run", "busy"]


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_a_failure_is_reported_with_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "text.log"
    preparer = Preparer(["data", "--home", str(tmp_path), "prepare", "--run", "none"], log)
    wait_for(preparer.ended, "it runs without a run")
    printed = preparer.ended()
    assert printed is not None
    assert printed.startswith("the process that prepares it ended with 1: ")
    assert "none" in printed
    assert printed.endswith(f"; see {log}")
    preparer.close()


def test_closing_ends_it(tmp_path: Path) -> None:
    preparer = Preparer(busy_run(tmp_path), tmp_path / "text.log")
    time.sleep(0.5)
    assert preparer.ended() is None
    preparer.close()
    assert preparer.ended() is not None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the child")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom jaxchat.runs.background import Preparer\n"
        f"kept = Preparer({busy_run(tmp_path)!r}, Path({str(tmp_path / 'log')!r}))\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: children_of(parent.pid), "it was not started")
    (child,) = children_of(parent.pid)
    time.sleep(0.5)
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "it outlives its parent")
