"""Programs that behave, programs that do not, and what is left of either."""

import concurrent.futures
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import canaries
import hostile_programs
import pytest
from hostile_programs import PROGRAMS, Hostile

from jaxchat.tools.sandbox import levels, process
from jaxchat.tools.sandbox.levels import Level
from jaxchat.tools.sandbox.process import Program
from jaxchat.tools.sandbox.run import Outcome, run_program, run_python

HERE = levels.detect()
DOCS = Path(__file__).parents[2] / "docs" / "sandbox.md"

TOO_MUCH_MEMORY = "it asked for more than its 268,435,456 bytes of memory"

needs_sandbox = pytest.mark.skipif(
    HERE.name == "none", reason=f"this machine cannot sandbox a program:\n{HERE}"
)


def launchers() -> list[int]:
    """The processes that this checkout's launchers are or have made."""
    mark = process.command()[-2].encode()  # what they were started with; a fork keeps it
    root = process.command()[-1].encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in words and root in words and not is_of_another_worker(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def is_of_another_worker(process_id: int) -> bool:
    """Whether another process that runs tests beside this one (pytest-xdist) made a process."""
    try:
        while process_id > 1:
            parent = parent_of(process_id)
            if parent == os.getppid():
                return process_id != os.getpid()
            process_id = parent
    except OSError:  # it has ended meanwhile
        pass
    return False


def wait_until_gone(seconds: float = 10) -> list[int]:
    """The launchers and programs still there after a while."""
    deadline = time.monotonic() + seconds
    while (left := launchers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@dataclasses.dataclass
class Assault:
    """All hostile programs at one level, and the canaries afterwards."""

    level: Level
    outcomes: dict[str, Outcome]
    harmed: list[str]
    left: list[int]


LEVELS = {
    "as detected": HERE,
    "without namespaces": hostile_programs.without_namespaces(HERE),
    "in a user namespace": dataclasses.replace(HERE, as_user=True),
}


@pytest.fixture(
    scope="module",
    params=[
        "as detected",
        "without namespaces",
        pytest.param("in a user namespace", marks=pytest.mark.slow),
    ],
)
def assault(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Assault:
    level = LEVELS[request.param]
    if level.name == "none":
        pytest.skip(f"no such level on this machine:\n{HERE}")
    if request.param == "in a user namespace":
        outcome = run_program(Program("pass"), level=level)
        if outcome.status == "refused":
            pytest.skip(f"no user namespaces here: {outcome.reason}")
    with (
        canaries.set_out(tmp_path_factory.mktemp("canaries")) as birds,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        programs = hostile_programs.prepared(birds.names)
        outcomes = pool.map(lambda one: run_program(one, level=level), programs)
        named = dict(zip((program.name for program in PROGRAMS), outcomes, strict=True))
        left = wait_until_gone()
        return Assault(level, named, birds.harmed(), left)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_hostile_programs_are_stopped(program: Hostile, assault: Assault) -> None:
    outcome = assault.outcomes[program.name]
    shown = f"{outcome.status}: {outcome.reason}\n{outcome.stdout[:3000]}\n{outcome.stderr[:3000]}"
    assert "REACHED" not in outcome.stdout, shown
    assert outcome.status in program.ends, shown
    assert outcome.status == "timeout" or outcome.seconds < program.timeout, "killed at once"
    tried = program.source.count("attempt(")
    assert len(list(hostile_programs.refusals(outcome))) >= tried, f"not all was tried\n{shown}"


def test_nothing_reaches_the_parent(assault: Assault) -> None:
    assert not assault.harmed


def test_nothing_is_left_running(assault: Assault) -> None:
    assert not assault.left


def table(found: Assault) -> list[str]:
    """The table of docs/sandbox.md: a line for each program."""
    lines = ["| program | tried | stopped by |", "|---|---|---|"]
    for program in PROGRAMS:
        outcome = found.outcomes[program.name]
        tried = (what for _, what in hostile_programs.refusals(outcome))
        text = program.tries or ", ".join(tried)
        lines.append(f"| {program.name} | {text} | {hostile_programs.stopped_by(outcome)} |")
    return lines


@needs_sandbox
def test_the_table_of_the_documentation_is_true(assault: Assault) -> None:
    if assault.level is not HERE or HERE.name != "full":
        pytest.skip("the table is of a machine with every mechanism")
    new = "\n".join(table(assault))
    assert new in DOCS.read_text(encoding="utf-8"), (
        f"if you meant to change what stops a program, put this into {DOCS}:\n{new}"
    )


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "status", "stdout", "reason"),
    [
        ("print(6 * 7)", "ok", "42\n", ""),
        ("print('ä€😀')", "ok", "ä€😀\n", ""),
        ("if __name__ == '__main__': print('main')", "ok", "main\n", ""),
        ("import sys\nprint(sys.argv)\nsys.exit()", "ok", "['<program>']\n", ""),
        ("raise SystemExit(3)", "error", "", "it ended with exit code 3"),
        ("import sys\nsys.exit('no more')", "error", "", "no more"),
        ("print(1)\n1 / 0", "error", "1\n", "ZeroDivisionError: division by zero"),
        ("x = (", "error", "", "SyntaxError: '(' was never closed"),
        ("import numpy", "error", "", "ModuleNotFoundError: No module named 'numpy'"),
        ("x = bytearray(1 << 30)", "memory", "", TOO_MUCH_MEMORY),
        ("import os\nos.abort()", "killed", "", None),
    ],
)  # fmt: skip
def test_outcomes(source: str, status: str, stdout: str, reason: str | None) -> None:
    outcome = run_python(source, timeout=30)
    assert (outcome.status, outcome.stdout) == (status, stdout)
    assert reason is None or outcome.reason == reason


@needs_sandbox
def test_a_traceback_shows_the_program_alone() -> None:
    outcome = run_python("def f():\n    return 1 / 0\nf()", timeout=30)
    assert "<program>" in outcome.stderr
    assert "launcher" not in outcome.stderr


@needs_sandbox
def test_standard_input_and_output_limits() -> None:
    assert run_python("print(input() + '!')", stdin="hi\n", timeout=30).stdout == "hi!\n"
    assert run_python("print(input())", timeout=30).reason == "EOFError: EOF when reading a line"
    large = "x" * 300_000  # more than a pipe holds, both ways
    outcome = run_python("print(input())", stdin=large, output_bytes=400_000, timeout=30)
    assert (outcome.status, outcome.stdout) == ("ok", large + "\n")
    outcome = run_python("print('y' * 1000)", output_bytes=100, timeout=30)
    assert (outcome.status, outcome.stdout) == ("output", "y" * 100)
    exact = run_python("print('z' * 99)", output_bytes=100, timeout=30)
    assert exact.status == "ok", "as much as is allowed is not too much"


@needs_sandbox
def test_threads_and_the_standard_library_work() -> None:
    source = """
import asyncio, collections, concurrent.futures, csv, datetime, decimal, fractions, hashlib
import itertools, json, math, random, re, statistics, string, tempfile, typing, zoneinfo
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(math.factorial, range(10))))
print(hashlib.sha256(b"").hexdigest()[:8], random.random() < 1, datetime.datetime.now().year > 2000)
"""
    outcome = run_python(source, timeout=30)
    assert outcome.status == "ok", outcome.stderr
    assert outcome.stdout.splitlines() == ["409114", "e3b0c442 True True"]


@needs_sandbox
def test_each_program_has_a_folder_of_its_own_that_goes_with_it() -> None:
    if "private root" not in HERE.mechanisms:
        pytest.skip(f"nothing can be written without a private root:\n{HERE}")
    before = set(os.listdir("/tmp"))
    source = """
import os, tempfile
print(os.listdir("/tmp"), os.getcwd())
with tempfile.TemporaryDirectory() as folder, open(folder + "/x", "w") as file:
    file.write("text")
open("left-behind-by-a-program", "w").write("text")
"""
    for _ in range(2):
        outcome = run_python(source, timeout=30)
        assert (outcome.status, outcome.stdout) == ("ok", "[] /tmp\n")
    assert "left-behind-by-a-program" not in set(os.listdir("/tmp")) - before


@needs_sandbox
def test_the_environment_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", canaries.SECRET)
    outcome = run_python("import os\nprint(sorted(os.environ))", timeout=30)
    assert set(outcome.stdout.strip("[]\n").replace("'", "").split(", ")) <= {
        *process.ENVIRONMENT, "LC_CTYPE",
    }  # fmt: skip


@needs_sandbox
def test_root_is_nobody_inside() -> None:
    outcome = run_python("import os\nprint(os.getuid(), os.geteuid(), os.getgroups())", timeout=30)
    user, effective, groups = outcome.stdout.split(maxsplit=2)
    assert user == effective
    if "private root" in HERE.mechanisms:
        assert int(user) != 0
    if os.getuid() == 0 and not HERE.as_user and int(user):
        assert groups.strip() == "[]"


def test_nothing_is_run_where_it_cannot_be_sandboxed() -> None:
    nothing = Level("none", (), False)
    outcome = run_program(Program("print(1)"), level=nothing)
    assert (outcome.status, outcome.stdout) == ("refused", "")
    assert "--unsafe-exec" in outcome.reason
    assert run_program(Program("print(1)", timeout=30), level=nothing, unsafe=True).stdout == "1\n"


@pytest.mark.parametrize(
    "mechanisms", [("no such thing",), ("no capabilities", "seccomp")], ids=["unknown", "fails"]
)
def test_a_program_is_refused_if_its_sandbox_fails(mechanisms: tuple[str, ...]) -> None:
    """A filter without no_new_privs is root's alone, and root it is no more."""
    if sys.platform != "linux":
        pytest.skip("Linux only")
    outcome = run_program(
        Program("print(1)", timeout=30), level=Level("partial", mechanisms, False)
    )
    assert (outcome.status, outcome.stdout) == ("refused", "")
    assert "could not be sandboxed" in outcome.reason


@needs_sandbox
def test_many_at_once_keep_their_order() -> None:
    programs = [Program(f"print({n})", timeout=30) for n in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(run_program, programs))
    assert [outcome.stdout for outcome in outcomes] == [f"{n}\n" for n in range(12)]


def wait_for_two() -> list[int]:
    """A launcher and its program, once both are there."""
    deadline = time.monotonic() + 60
    while len(found := launchers()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == 2, found
    return found


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])


@needs_sandbox
def test_programs_go_when_their_parent_is_killed() -> None:
    script = """
from jaxchat.tools.sandbox import levels, run
print(levels.detect().name, flush=True)  # which starts processes of its own
run.run_python("while True: pass", timeout=100)
"""
    assert not wait_until_gone()
    parent = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().decode().strip() == HERE.name
        wait_for_two()
    finally:
        parent.kill()
        parent.communicate()
    assert not wait_until_gone()


@needs_sandbox
def test_programs_go_when_their_launcher_is_killed() -> None:
    assert not wait_until_gone()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_python, "while True: pass", timeout=100)
        (launcher,) = (one for one in wait_for_two() if parent_of(one) == os.getpid())
        os.kill(launcher, signal.SIGKILL)
        outcome = waiting.result()
    assert (outcome.status, outcome.reason) == ("killed", "the process that watched it is gone")
    assert not wait_until_gone()


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"memory_bytes": -1}, {"output_bytes": 0}])
def test_bounds_that_are_none(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="of a program is above 0"):
        run_python("pass", **bad)  # type: ignore[arg-type]


def test_descriptors_are_not_leaked() -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    run_python("pass", timeout=30)
    before = count()
    for _ in range(3):
        run_python("print(1)", timeout=30)
    run_program(Program("pass"), level=Level("none", (), False))
    assert count() == before
