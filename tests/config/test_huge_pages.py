"""Commands that compute start themselves again with huge pages, once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jaxchat
from jaxchat.config import huge_pages

ROOT = Path(jaxchat.__file__).resolve().parents[1]
NAME, VALUE = huge_pages.SETTING
PROGRAM = """
import os, signal, sys
from jaxchat.config import huge_pages
print("begins", flush=True)
huge_pages.restart_with_huge_pages(skip=["--plan"], among=["chat", "eval"])
ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], ignored, sys.stdin.read())
print(huge_pages.state())
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path):
    """Runs a program that asks for huge pages: its lines, and its process id."""
    if not huge_pages.is_useful():
        pytest.skip("no huge pages here")
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)

    def run(*arguments, started=(), **options):
        env = {k: v for k, v in os.environ.items() if k != NAME}
        env |= {"PYTHONPATH": str(ROOT), **options.pop("more", {})}
        # ignored where the tests run in the background
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process = subprocess.Popen(
            [sys.executable, *(started or [str(file)]), *arguments], text=True, env=env,
            cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options,
        )  # fmt: skip
        out, _ = process.communicate("input")
        assert process.returncode == 7
        return out.splitlines(), process.pid

    return run


def test_it_starts_again_as_the_same_process(program):
    lines, number = program("chat", "-p", "a b", "")
    assert lines[:2] == ["begins", "begins"]
    assert lines[2] == f"{VALUE} {number} ['chat', '-p', 'a b', ''] False input"
    assert lines[3] == "huge pages"


def test_a_relative_path_is_started_again_too(program):
    assert program("eval", started=["./program.py"])[0][:2] == ["begins", "begins"]


def test_ignored_signals_stay_ignored(program):
    lines, _ = program("chat", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert "True" in lines[2]


@pytest.mark.parametrize("value", ["", "glibc.malloc.check=3"])
def test_what_the_user_has_set_stays(program, value):
    lines, _ = program("chat", more={NAME: value})
    assert lines.count("begins") == 1
    assert lines[1].startswith(value)
    assert lines[2] == f"no huge pages: {NAME} is {value!r}"


@pytest.mark.parametrize("arguments", [(), ("runs",), ("chat", "--help"), ("chat", "--plan")])
def test_commands_that_do_not_compute_run_at_once(program, arguments):
    lines, _ = program(*arguments)
    assert lines.count("begins") == 1
    assert lines[1].startswith("None")


def test_a_notebook_and_code_of_a_command_line_are_not_started_again(program, tmp_path):
    code = "import sys, runpy; sys.argv = ['program.py', 'chat']; runpy.run_path('program.py')"
    assert program(started=["-c", code])[0].count("begins") == 1


def test_the_command_line_asks_for_them(tmp_path):
    if not huge_pages.is_useful():
        pytest.skip("no huge pages here")
    code = "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:2])"
    (tmp_path / "sitecustomize.py").write_text(f"{code}; sys.stdout.flush()\n")
    env = {k: v for k, v in os.environ.items() if k != NAME} | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for arguments, count in ((["chat", "--home", str(tmp_path)], 2), (["runs"], 1)):
        command = [sys.executable, "-m", "jaxchat", *arguments]
        out = subprocess.run(command, env=env, text=True, capture_output=True, cwd=tmp_path).stdout
        assert [line.split()[0] for line in out.splitlines()[:2]][:count] == ["None", VALUE][:count]


@pytest.mark.parametrize(
    ("text", "useful"),
    [("always [madvise] never\n", True), ("always madvise [never]\n", False), (None, False)],
)
def test_where_they_are_of_use(monkeypatch, tmp_path, text, useful):
    modes = tmp_path / "enabled"
    if text is not None:
        modes.write_text(text)
    monkeypatch.setattr(huge_pages, "MODES", modes)
    monkeypatch.setattr(huge_pages, "ACCELERATORS", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert huge_pages.is_useful() == useful
    for other in ("glibc 2.31", "musl 1.2.5", None):
        monkeypatch.setattr(os, "confstr", lambda name, other=other: other)
        assert not huge_pages.is_useful()
