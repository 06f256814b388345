"""Runs Python programs that a model wrote.

    outcome = run_python("print(6 * 7)", timeout=5)
    outcome.status, outcome.stdout         # "ok", "42\\n"

Each runs in a process that has sandboxed itself (`confine`), watched by another (`launcher`). A
program can compute, start threads, and read Python's standard library; it can write into an empty
/tmp of its own that is deleted with it. It has no network, no other processes, no other files.
docs/sandbox.md lists what hostile programs tried. Where the machine cannot sandbox a program,
nothing is run, unless the caller says `unsafe=True`.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Literal

from jaxchat.tools.sandbox import confine, launcher, levels, process
from jaxchat.tools.sandbox.process import MEMORY_BYTES, OUTPUT_BYTES, TIMEOUT, Program

Status = Literal["ok", "error", "timeout", "memory", "output", "killed", "refused"]

REFUSAL = (
    "this machine cannot sandbox a program (jaxchat doctor says what is missing), so none is run; "
    "--unsafe-exec runs it all the same"
)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    ok        it ran to its end, or left by exit code 0
    error     an exception or another exit code
    timeout   killed at the deadline, or when it had used the processor for that long
    memory    it asked for more memory than it was given
    output    killed because it wrote too much; the first of it is here
    killed    by a signal, such as that of a crash
    refused   not run: this machine cannot sandbox it
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float  # wall-clock time, the start of the interpreter included
    reason: str  # a sentence; empty for ok


def run_python(
    source: str,
    *,
    timeout: float = TIMEOUT,
    memory_bytes: int = MEMORY_BYTES,
    output_bytes: int = OUTPUT_BYTES,
    stdin: str = "",
    unsafe: bool = False,
) -> Outcome:
    """Runs a program to its end, or to the first of its bounds (those of `Program`).

    `unsafe` runs it even where it cannot be sandboxed. Never raises for what the program does;
    ValueError for bounds that are not above 0.
    """
    program = Program(source, timeout, memory_bytes, output_bytes, stdin)
    return run_program(program, unsafe=unsafe)


def run_program(
    program: Program, *, unsafe: bool = False, level: levels.Level | None = None
) -> Outcome:
    """`run_python` of a Program; `level` is for tests, which try those of other machines."""
    level = level or levels.detect()
    if level.name == "none" and not unsafe:
        process.close(program.channel)
        return Outcome("refused", "", "", 0.0, REFUSAL)
    began = time.monotonic()
    ending, *streams = process.run(program, level.mechanisms, level.as_user)
    seconds = time.monotonic() - began
    out, err = (stream.decode(errors="replace") for stream in streams)
    status, reason = _explain(ending, err, program)
    return Outcome(status, out, err, seconds, reason)


def _explain(ending: process.Ending, err: str, program: Program) -> tuple[Status, str]:
    """The status and the reason of an ending."""
    last = err.strip().rpartition("\n")[2].strip()
    exhausted = ending.cpu_seconds > confine.cpu_seconds(program.timeout) - 0.5
    if ending.kind == "signal" and exhausted:
        ending = ending._replace(kind="timeout")
    match ending.kind, ending.number:
        case "output", _:
            return "output", f"it wrote more than {program.output_bytes:,} bytes"
        case "timeout", _:
            return "timeout", f"it was not done after {program.timeout:g} seconds"
        case "refused", _:
            return "refused", f"it could not be sandboxed ({ending.message}), so it was not run"
        case "exit", launcher.MEMORY_EXIT:
            return "memory", f"it asked for more than its {program.memory_bytes:,} bytes of memory"
        case "exit", 0:
            return "ok", ""
        case "exit", number:
            return "error", last or f"it ended with exit code {number}"
        case "signal", number:
            return "killed", f"it was killed by signal {number} ({_signal(number)})"
    return "killed", "the process that watched it is gone"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"
