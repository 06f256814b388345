"""launch/local.py, with processes that are small programs."""

import importlib.util
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parent.parent.parent / "launch" / "local.py"
WAIT = "import os, sys, time\nme = os.environ['JAXCHAT_PROCESS']\n"


@pytest.fixture(scope="module")
def local():
    spec = importlib.util.spec_from_file_location("local", LOCAL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(tmp_path: Path, code: str, *options: str) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(WAIT + code)
    return [sys.executable, str(LOCAL), "-n", "2", "--script", str(script), *options]


def launch(tmp_path: Path, code: str, *options: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(tmp_path, code, *options),
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | env,
    )  # fmt: skip


def test_each_gets_its_number_and_its_lines_have_its_number(tmp_path):
    code = (
        "print(*(os.environ['JAXCHAT_' + n] for n in ('COORDINATOR', 'PROCESSES')), sys.argv[1:])"
    )
    done = launch(tmp_path, code, "--port", "7654", "--", "--tier", "cpu", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stderr) == (0, "")
    said = "127.0.0.1:7654 2 ['--tier', 'cpu']"
    assert sorted(done.stdout.splitlines()) == [f"[0] {said}", f"[1] {said}"]


def test_gpus_are_shared_out(tmp_path):
    code = "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    done = launch(tmp_path, code, CUDA_VISIBLE_DEVICES="3,5,6,GPU-7a")
    assert sorted(done.stdout.splitlines()) == ["[0] 3,5", "[1] 6,GPU-7a"]
    done = launch(tmp_path, code, CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 2
    assert done.stderr == "local.py: 3 GPUs do not divide by 2 processes.\n"


def test_the_end_of_one_ends_all_with_its_code(tmp_path, local, monkeypatch, capfd):
    """Let, then asked, then killed: process 0 hears nothing of SIGTERM. 1 ends when 0 listens."""
    monkeypatch.setattr(local, "LET_SECONDS", 0.5)
    listens = tmp_path / "listens"
    code = (
        "import pathlib, signal\n"
        f"listens = pathlib.Path({str(listens)!r})\n"
        "while me == '1' and not listens.exists(): time.sleep(0.01)\n"
        "if me == '1': sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "listens.touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    arguments = command(tmp_path, code, "--grace", "2")[2:]
    old = {number: signal.getsignal(number) for number in local.PASSED_ON}
    try:
        assert local.main(arguments) == 7
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert capfd.readouterr().out == "[0] asked\n"


def test_the_code_of_one_that_was_killed_is_a_shells(tmp_path):
    code = "os.kill(os.getpid(), 9) if me == '1' else time.sleep(1)"
    assert launch(tmp_path, code).returncode == 128 + 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_once(tmp_path, number):
    """They are waited for: a handler is not run where the signal comes just before a sleep."""
    code = (
        "import signal\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])\n"
        "print('ready', flush=True)\n"
        f"signal.sigwait([{int(number)}])\n"
        "print('signalled', flush=True)\n"
        "time.sleep(0.5)\n"
        "print('signalled again', flush=True) if signal.sigpending() else sys.exit(75)\n"
    )
    child = subprocess.Popen(command(tmp_path, code), stdout=subprocess.PIPE, text=True)
    assert {child.stdout.readline(), child.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] signalled", "[1] signalled"]
    assert child.returncode == 75


def test_none_outlives_a_launcher_that_is_killed(tmp_path):
    code = "print(os.getpid(), flush=True)\ntime.sleep(60)\n"
    child = subprocess.Popen(command(tmp_path, code), stdout=subprocess.PIPE, text=True)
    numbers = [int(child.stdout.readline().split()[1]) for _ in range(2)]
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 30
    while any(is_alive(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_numbers_are_coloured_on_a_terminal(tmp_path):
    main, terminal = pty.openpty()
    subprocess.run(command(tmp_path, "print('x')"), stdout=terminal, check=True)
    os.close(terminal)
    shown = os.read(main, 4096)
    os.close(main)
    assert b"\x1b[36m[0]\x1b[0m x" in shown
    assert b"\x1b[33m[1]\x1b[0m x" in shown


def test_a_port_is_free_with_the_one_above(local):
    assert 0 < local.free_port() < 65535
