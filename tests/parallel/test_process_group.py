"""Processes that find each other, talk, and end together: real ones, over real connections."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxchat.parallel.process_group import ALONE
from jaxchat.signals import REQUEUE

# what each process runs: its place, then what the test adds
START = """
import os, signal, sys, time
from jaxchat.parallel.process_group import GroupError, ProcessSpec, end, join
index, size, port = map(int, sys.argv[1:4])
place = ProcessSpec("127.0.0.1", port, size, index)
"""
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def port() -> int:
    sys.path.insert(0, str(ROOT / "launch"))
    try:
        from local import free_port
    finally:
        sys.path.pop(0)
    return free_port()


def run(code: str, port: int, size: int = 3, started: int = 0) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each of `started` processes."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", START + code, str(index), str(size), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for index in reversed(range(started or size))
    ]  # fmt: skip
    ended = [(child, child.communicate(timeout=300)) for child in reversed(children)]
    return [(child.returncode, out, errors) for child, (out, errors) in ended]


def test_all_get_what_each_gave(port: int) -> None:
    code = """
group = join(place)
print(group.gather([index, 0.1 + index]), group.gather(index)[-1], group.broadcast(str(index)))
group.close()
"""
    for exit_code, out, errors in run(code, port):
        assert (exit_code, errors) == (0, "")
        assert out == "[[0, 0.1], [1, 1.1], [2, 2.1]] 2 0\n"


def test_one_alone_needs_no_other() -> None:
    assert ALONE.leads
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast("x") == "x"
    ALONE.close()


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_is_reported_once_and_ends_all_with_its_code(port: int, failing: int) -> None:
    code = f"""
group = join(place)
group.gather(None)
if index == {failing}:
    end(group, "the disk is full", 7, certain=True)
group.gather(None)
"""
    ended = run(code, port)
    assert [code for code, _, _ in ended] == [7, 7, 7]
    of = f"process {failing} on " if failing else ""
    assert ended[0][2].startswith(of)
    assert ended[0][2].endswith("the disk is full\n")
    assert ended[1][2] == ended[2][2] == ""


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_where_one_is_killed_the_others_end_at_once(port: int, killed: int) -> None:
    code = f"""
group = join(place)
group.gather(None)
if index == {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
while True: time.sleep(1)  # as if a device did not answer
"""
    began = time.monotonic()
    ended = run(code, port)
    assert time.monotonic() - began < 60
    assert [code for code, _, _ in ended] == [-9 if i == killed else REQUEUE for i in range(3)]
    errors = "".join(errors for _, _, errors in ended)
    assert errors.count("\n") == 1
    assert f"process {killed} on " in errors
    assert "killed or with its machine" in errors


def test_an_echo_gives_way_to_what_made_it(port: int) -> None:
    code = """
group = join(place)
group.gather(None)
if index == 1:
    end(group, "Traceback: connection reset", 1, certain=False)
if index == 2:
    time.sleep(0.5)
    end(group, "the disk is full", 7, certain=True)
group.gather(None)
"""
    ended = run(code, port)
    assert [code for code, _, _ in ended] == [7, 7, 7]
    assert ended[0][2].endswith("the disk is full\n")
    assert "Traceback" not in ended[0][2]


def test_an_unexplained_error_is_reported_after_a_moment(port: int) -> None:
    code = """
group = join(place)
if index == 1:
    end(group, "Traceback: a bug", 1, certain=False)
group.gather(None)
"""
    ended = run(code, port, size=2)
    assert [code for code, _, _ in ended] == [1, 1]
    assert ended[0][2].endswith("Traceback: a bug\n")


@pytest.mark.parametrize(
    ("size", "started", "said"),
    [
        (3, 1, "of 3 processes, numbers 1, 2 did not come to 127.0.0.1:"),
        (3, 2, "of 3 processes, number 2 did not come to 127.0.0.1:"),
    ],
)
def test_who_does_not_come_is_named(port: int, size: int, started: int, said: str) -> None:
    code = """
try: join(place, 1.0)
except GroupError as error: sys.exit(str(error))
"""
    assert said in run(code, port, size, started)[0][2]


@pytest.mark.parametrize(
    ("started", "change", "said"),
    [
        (3, "index = min(index, 1)", "both say they are process 1"),
        (2, "size = 2 + index", "says there are 3 processes, and process 0 that there are 2"),
    ],
)
def test_places_that_do_not_fit_are_refused(
    port: int, started: int, change: str, said: str
) -> None:
    code = f"""
{change}
place = ProcessSpec("127.0.0.1", port, size, index)
try: join(place, 20.0)
except GroupError as error: sys.exit(str(error))
"""
    assert said in run(code, port, size=3, started=started)[0][2]
