"""A seccomp filter for Python programs: a list of what they may call, all else is refused.

An allow list, because the kernel grows: a list of what is forbidden would be out of date with the
next release. It has what CPython needs to compute, to start threads, and to read and write files
(Landlock says which); nothing that makes a process, a socket or a mapping shared with others, or
that looks at or signals another process. Refused calls fail with EPERM, and with ENOSYS where the
C library then takes an older one.

Numbers: (x86_64, aarch64), from the kernel's syscall tables; NONE where a processor lacks the call.
The filter is classic BPF over `struct seccomp_data` (linux/seccomp.h, linux/filter.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from jaxchat.tools.sandbox import kernel

NONE = -1  # the call does not exist on that processor

ALLOWED: dict[str, tuple[int, int]] = {
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "madvise": (28, 233), "membarrier": (324, 283),
    # open files
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "dup": (32, 23), "dup2": (33, NONE), "dup3": (292, 24), "flock": (73, 32), "fsync": (74, 82),
    "fdatasync": (75, 83), "ftruncate": (77, 46), "getdents": (78, NONE), "getdents64": (217, 61),
    "fstatfs": (138, 44), "fadvise64": (221, 223), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "close_range": (436, 436), "pipe": (22, NONE),
    "pipe2": (293, 59), "eventfd2": (290, 19),
    # paths, guarded by Landlock
    "stat": (4, NONE), "lstat": (6, NONE), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, NONE), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, NONE), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "mkdir": (83, NONE), "mkdirat": (258, 34), "rmdir": (84, NONE),
    "unlink": (87, NONE), "unlinkat": (263, 35), "rename": (82, NONE), "renameat": (264, 38),
    "renameat2": (316, 276), "creat": (85, NONE), "statfs": (137, 43), "umask": (95, 166),
    # waiting
    "poll": (7, NONE), "ppoll": (271, 73), "select": (23, NONE), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, NONE),
    "epoll_pwait": (281, 22), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "futex": (202, 98), "sched_yield": (24, 124), "wait4": (61, 260), "waitid": (247, 95),
    # its own signals and timers
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "alarm": (37, NONE),
    "getitimer": (36, 102), "setitimer": (38, 103),
    # the clock, chance, and what it is
    "gettimeofday": (96, 169), "time": (201, NONE), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "times": (100, 153), "getrandom": (318, 278),
    "uname": (63, 160), "sysinfo": (99, 179), "getcpu": (309, 168), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sched_getaffinity": (204, 123), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, NONE),
    "getpgid": (121, 155), "getsid": (124, 156), "getresuid": (118, 148), "getresgid": (120, 150),
    # threads and the end
    "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# clone3 hides its flags from the filter; the C library falls back to clone.
MISSING: dict[str, tuple[int, int]] = {"clone3": (435, 435), "openat2": (437, 437)}
NEWEST = 462  # what lies above was unknown when this list was written


_THREAD = 0x00010000  # CLONE_THREAD
_NAMESPACES = 0x7E020080  # every CLONE_NEW...
_DESCRIPTORS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # F_DUPFD ... F_SETLKW, F_DUPFD_CLOEXEC
_TERMINAL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIO...


# A call that depends on an argument: its numbers, which argument, a mask, and the values of the
# masked argument for which it is allowed (True) or for which alone it is refused (False).
Rule = tuple[tuple[int, int], int, int, tuple[int, ...], bool]
_ALL = 0xFFFFFFFF


def rules(pid: int) -> dict[str, Rule]:
    """The calls whose arguments decide, for the process `pid`, its number in its namespace."""
    # Without write access, O_TRUNC slips through the first versions of Landlock.
    truncate = (os.O_TRUNC | os.O_ACCMODE, (os.O_TRUNC,), False)
    return {
        "open": ((2, NONE), 1, *truncate),
        "openat": ((257, 56), 2, *truncate),
        "clone": ((56, 220), 0, _THREAD | _NAMESPACES, (_THREAD,), True),
        "kill": ((62, 129), 0, _ALL, (pid,), True),
        "tgkill": ((234, 131), 0, _ALL, (pid,), True),
        "prlimit64": ((302, 261), 0, _ALL, (0, pid), True),
        "prctl": ((157, 167), 0, _ALL, (15, 16), True),  # the name of a thread
        "fcntl": ((72, 25), 1, _ALL, _DESCRIPTORS, True),  # not F_SETOWN, which sends signals
        "ioctl": ((16, 29), 1, _ALL, _TERMINAL, True),
    }


_ARCHITECTURES = (0xC000003E, 0xC00000B7)  # AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, ALU|AND|K, RET|K
_EQUAL, _GREATER = 0x15, 0x25  # JMP|JEQ|K, JMP|JGT|K
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data, little-endian

_REFUSE = _ERRNO | errno.EPERM
_UNKNOWN = _ERRNO | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def program(processor: str, pid: int) -> list[Instruction]:
    """The filter's instructions for "x86_64" or "aarch64"."""
    column = ("x86_64", "aarch64").index(processor)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[column]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for numbers in ALLOWED.values():
        code += _when(numbers[column], [(_RETURN, 0, 0, _ALLOW)])
    for numbers in MISSING.values():
        code += _when(numbers[column], [(_RETURN, 0, 0, _UNKNOWN)])
    for rule in rules(pid).values():
        code += _when(rule[0][column], _decide(rule))
    # Above NEWEST lie x32's numbers (0x40000000 and up) too.
    code += [(_GREATER, 0, 1, NEWEST), (_RETURN, 0, 0, _UNKNOWN), (_RETURN, 0, 0, _REFUSE)]
    return code


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """`block`, which returns, if the call is `number`; what follows otherwise."""
    return [] if number == NONE else [(_EQUAL, 0, len(block), number), *block]


def _decide(rule: Rule) -> list[Instruction]:
    _, argument, mask, values, allow = rule
    yes, no = (_ALLOW, _REFUSE) if allow else (_REFUSE, _ALLOW)
    # The low half of the argument: the kernel takes these as ints, and clone's flags end there.
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_AND, 0, 0, mask),
    ]
    for value in values:
        code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, yes)]
    return [*code, (_RETURN, 0, 0, no)]


def install() -> None:
    """Puts the calling thread, and what it will start, under the filter for good.

    Needs no_new_privs. Raises OSError where the kernel or the processor cannot.
    """
    processor = kernel.processor()
    if processor is None:
        raise OSError(errno.ENOSYS, "seccomp: no filter is known for this processor")
    code = program(processor, os.getpid())
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    # struct sock_fprog: a length and a pointer, aligned
    head = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.c_char_p(head))
