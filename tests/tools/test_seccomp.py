"""The filter, run by an interpreter of classic BPF: what it says for both processors."""

import os
import re
from pathlib import Path

import pytest

from jaxchat.tools.sandbox import seccomp

PID = 7
KILL, EPERM, ENOSYS, ALLOW = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
NAMES = {KILL: "kill", EPERM: "EPERM", ENOSYS: "ENOSYS", ALLOW: "allow"}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}


def verdict(processor: str, number: int, *arguments: int, called_as: str = "") -> str:
    """What the filter for a processor answers to a call, word by word as the kernel runs it."""
    data = {0: number, 4: ARCHITECTURES[called_as or processor]}
    for place, argument in enumerate(arguments):
        data[16 + 8 * place] = argument & 0xFFFFFFFF
    program = seccomp.program(processor, PID)
    at, value = 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x20:
            value = data.get(operand, 0)
        elif code == 0x54:
            value &= operand
        elif code == 0x15:
            at += yes if value == operand else no
        elif code == 0x25:
            at += yes if value > operand else no
        else:
            assert code == 0x06
            return NAMES[operand]


PROCESSORS = pytest.mark.parametrize(("processor", "column"), [("x86_64", 0), ("aarch64", 1)])


@PROCESSORS
def test_what_is_listed_is_allowed_and_nothing_else(processor: str, column: int) -> None:
    decided = {rule[0][column] for rule in seccomp.rules(PID).values()} - {seccomp.NONE}
    allowed = {numbers[column] for numbers in seccomp.ALLOWED.values()}
    missing = {numbers[column] for numbers in seccomp.MISSING.values()}
    assert not decided & (allowed | missing)
    for number in set(range(600)) - decided:
        expected = "allow" if number in allowed else "EPERM"
        if number in missing or number > seccomp.NEWEST:
            expected = "ENOSYS"
        assert verdict(processor, number) == expected, number


@PROCESSORS
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("socket", (41, 198)), ("connect", (42, 203)), ("socketpair", (53, 199)),
        ("execve", (59, 221)), ("execveat", (322, 281)), ("ptrace", (101, 117)),
        ("process_vm_readv", (310, 270)), ("mount", (165, 40)), ("bpf", (321, 280)),
        ("unshare", (272, 97)), ("setns", (308, 268)), ("io_uring_setup", (425, 425)),
        ("keyctl", (250, 219)), ("userfaultfd", (323, 282)), ("perf_event_open", (298, 241)),
        ("memfd_create", (319, 279)), ("pidfd_open", (434, 434)), ("chroot", (161, 51)),
        ("setuid", (105, 146)), ("symlinkat", (266, 36)), ("linkat", (265, 37)),
        ("fchmodat", (268, 53)), ("truncate", (76, 45)), ("tkill", (200, 130)),
        ("setsid", (112, 157)), ("shmget", (29, 194)), ("landlock_create_ruleset", (444, 444)),
    ],
)  # fmt: skip
def test_attacks_are_refused(
    processor: str, column: int, name: str, numbers: tuple[int, int]
) -> None:
    assert verdict(processor, numbers[column]) == "EPERM", name


@PROCESSORS
def test_arguments_decide(processor: str, column: int) -> None:
    def says(name: str, *arguments: int) -> str:
        return verdict(processor, seccomp.rules(PID)[name][0][column], *arguments)

    thread = 0x3D0F00  # what the C library's pthread_create passes
    assert says("clone", thread) == "allow"
    assert says("clone", 17) == "EPERM"  # fork
    assert says("clone", 0x4111) == "EPERM"  # vfork
    assert says("clone", thread | 0x10000000) == "EPERM"  # and a user namespace
    assert says("kill", PID, 9) == "allow"
    assert [says("kill", pid, 9) for pid in (0, -1, -PID, 1)] == ["EPERM"] * 4
    assert says("tgkill", PID, 12, 6) == "allow"
    assert says("tgkill", 1, 1, 6) == "EPERM"
    assert says("prlimit64", 0, 7) == "allow"
    assert says("prlimit64", 1, 7) == "EPERM"
    assert says("prctl", 15) == "allow"
    assert [says("prctl", option) for option in (1, 4, 22, 36, 38)] == ["EPERM"] * 5
    assert says("fcntl", 3, 1030) == "allow"
    assert [says("fcntl", 3, command) for command in (8, 10, 15, 1031)] == ["EPERM"] * 4
    assert says("ioctl", 0, 0x5401) == "allow"
    assert says("ioctl", 0, 0x5412) == "EPERM"  # TIOCSTI
    assert says("openat", 0, 0, os.O_RDONLY) == "allow"
    assert says("openat", 0, 0, os.O_WRONLY | os.O_TRUNC | os.O_CREAT) == "allow"
    assert says("openat", 0, 0, os.O_RDONLY | os.O_TRUNC | os.O_CLOEXEC) == "EPERM"


@PROCESSORS
def test_another_architectures_calls_kill(processor: str, column: int) -> None:
    del column
    assert verdict(processor, 20, called_as="i386") == "kill"
    other = "aarch64" if processor == "x86_64" else "x86_64"
    assert verdict(processor, 20, called_as=other) == "kill"


def test_x32_is_refused() -> None:
    assert verdict("x86_64", 0x40000000 | 39) == "ENOSYS"


@pytest.mark.parametrize(
    ("column", "pattern", "headers"),
    [
        (0, r"#define __NR_(\w+)\s+(\d+)", "x86_64-linux-gnu/asm/unistd_64.h"),
        (1, r"#define __NR(?:3264)?_(\w+)\s+(\d+)", "asm-generic/unistd.h"),
    ],
    ids=["x86_64", "aarch64"],
)
def test_numbers_are_the_kernels(column: int, pattern: str, headers: str) -> None:
    path = Path("/usr/include") / headers
    if not path.exists():
        pytest.skip(f"the kernel's headers are not installed: {path}")
    known = {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    known.setdefault("newfstatat", known.get("fstatat", seccomp.NONE))
    ours = {name: rule[0] for name, rule in seccomp.rules(PID).items()}
    ours |= seccomp.ALLOWED | seccomp.MISSING
    for name, numbers in ours.items():
        if name in known or numbers[column] == seccomp.NONE:
            assert numbers[column] == known.get(name, seccomp.NONE), name
