"""Programs that try what a sandbox must prevent, and the mechanisms that stop them.

Should one get through all the same, it must do no worse than harm a canary: signals to many have
number 0, and nothing but canaries is removed. They are run only where the filter was seen to work.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxchat.tools.sandbox import levels, run
from jaxchat.tools.sandbox.process import Program

# In front of every program. REACHED is what must never be printed.
PRELUDE = """\
import ctypes, errno, os, platform, signal, sys, time

def attempt(what, call):
    try:
        got = call()
    except OSError as error:
        print("refused", errno.errorcode.get(error.errno, type(error).__name__), what, flush=True)
    except BaseException as error:
        print("refused", type(error).__name__, what, flush=True)
    else:
        print("REACHED", what, repr(got)[:200], flush=True)

def kernel(x86, arm, *arguments):
    number = x86 if platform.machine() == "x86_64" else arm
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *passed)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
"""

# What a refusal looks like, and who is behind it: each mechanism has an error of its own.
WHO = {
    "EPERM": "seccomp",
    "ENOSYS": "seccomp",
    "EACCES": "Landlock",
    "ENOENT": "private root",
    "EROFS": "private root",
    "ENOSPC": "size of its /tmp",
    "EFBIG": "rlimits (file)",
    "EMFILE": "rlimits (open files)",
    "ENOMEM": "rlimits (memory)",
    "MemoryError": "rlimits (memory)",
    "RuntimeError": "rlimits (tasks or memory)",
    "ValueError": "rlimits (hard)",
    "EBADF": "it has no such descriptor",
    "gaierror": "seccomp",  # no socket to ask with
    "URLError": "seccomp",
    "timeout": "deadline",
    "output": "output limit",
    "memory": "rlimits (memory)",
    "error": "counted as an error",
    "killed": "its own crash",
    "SIGSYS": "seccomp",
}


@dataclass(frozen=True)
class Hostile:
    """A program; `ends` are the statuses it may have. @NAMES@ are replaced by the canaries'.

    `tries` is what the table says, where that is not the list of its attempts.
    """

    name: str
    source: str
    ends: tuple[str, ...] = ("ok",)
    timeout: float = 60.0
    tries: str = ""


def _calls(*lines: str) -> str:
    """A program that makes attempts: "what: expression" each."""
    split = (line.partition(": ") for line in lines)
    return "\n".join(f"attempt({what!r}, lambda: {call})" for what, _, call in split)


_ENDLESS = ("timeout",)

PROGRAMS = (
    Hostile(
        "fork bomb",
        "while True:\n    attempt('fork', os.fork)",
        ("output",),
        tries="`os.fork()` without end",
    ),
    Hostile(
        "thread bomb",
        """
import threading
def more():
    for count in range(10_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
attempt("10,000 threads", more)
os._exit(0)
""",
    ),
    Hostile(
        "memory: a list that grows",
        "x = [0]\nwhile True: x += x",
        ("memory",),
        tries="a list doubled without end",
    ),
    Hostile(
        "memory: mmap, memfd, System V, /dev/shm",
        "import mmap\nfrom multiprocessing import shared_memory\n"
        + _calls(
            "mmap of 4 GB: mmap.mmap(-1, 1 << 32)",
            "memfd_create: os.memfd_create('x')",
            "shmget: kernel(29, 194, 0, 4096, 0o1600)",
            "/dev/shm: open('/dev/shm/jaxchat', 'w')",
            "shared_memory: shared_memory.SharedMemory(create=True, size=4096)",
        ),
    ),
    Hostile(
        "disk: one large file",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill():
    with open("large", "wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
attempt("a file without end", fill)
""",
    ),
    Hostile(
        "disk: many files",
        """
def fill():
    for n in range(100_000):
        with open(str(n), "wb", buffering=0) as file:
            file.write(bytes(4096))
attempt("100,000 files", fill)
""",
    ),
    Hostile("files left open", "attempt('1,000 pipes', lambda: [os.pipe() for _ in range(1_000)])"),
    Hostile(
        "endless output", "while True: print('x' * 1000)", ("output",), tries="lines without end"
    ),
    Hostile(
        "endless errors",
        "while True: os.write(2, b'x' * 1000)",
        ("output",),
        tries="the standard error, past Python",
    ),
    Hostile("busy for ever", "while True: pass", _ENDLESS, 1, tries="`while True: pass`"),
    Hostile(
        "ignores every signal",
        """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(60)
""",
        _ENDLESS,
        1,
        tries="`SIG_IGN` for all 64, then sleeps",
    ),
    Hostile(
        "stops itself",
        "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
        _ENDLESS,
        1,
        tries="`SIGSTOP` to itself, so that nobody may wait for it",
    ),
    Hostile(
        "closes its descriptors, keeps running",
        "os.closerange(0, 64)\ntime.sleep(60)",
        _ENDLESS,
        1,
        tries="0 to 63, then sleeps",
    ),
    Hostile("huge integers", "x = 9 ** 9 ** 9", ("timeout", "memory"), 1, tries="`9 ** 9 ** 9`"),
    Hostile(
        "a regex bomb",
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
        _ENDLESS,
        1,
        tries="`(a+)+$` against 60 letters",
    ),
    Hostile(
        "never leaves atexit",
        "import atexit\natexit.register(time.sleep, 60)",
        _ENDLESS,
        1,
        tries="ends, and sleeps in a handler",
    ),
    Hostile(
        "deep recursion",
        "sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(60_000): x = [x]\nrepr(x)",
        ("killed", "memory", "error"),
        tries="`repr` of a list 60,000 deep, the recursion limit raised",
    ),
    Hostile("a crash", "ctypes.string_at(0)", ("killed",), tries="reads address 0"),
    Hostile(
        "TCP, UDP and raw sockets",
        "import socket\n"
        + _calls(
            "connect to the loopback: socket.create_connection(('127.0.0.1', @PORT@), 5)",
            "listen: socket.create_server(('127.0.0.1', 0))",
            "UDP: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
            "raw: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "netlink: socket.socket(16, socket.SOCK_RAW, 0)",
            "a packet socket: socket.socket(17, socket.SOCK_RAW, 0)",
            "vsock: socket.socket(40, socket.SOCK_STREAM, 0)",
        ),
    ),
    Hostile(
        "Unix sockets",
        "import socket\nunix = lambda a: socket.socket(socket.AF_UNIX).connect(a)\n"
        + _calls(
            "a path: unix('@UNIX@')",
            "an abstract name: unix('\\0@ABSTRACT@')",
            "a pair: socket.socketpair()",
        ),
    ),
    Hostile(
        "the web, by name",
        "import urllib.request\n"
        + _calls(
            "urlopen: urllib.request.urlopen('http://localhost:@PORT@', timeout=5)",
            "a name: __import__('socket').getaddrinfo('example.com', 80)",
        ),
    ),
    Hostile(
        "reads the home and secrets",
        _calls(
            "a file: open('@FILE@').read()",
            "its folder: os.listdir(os.path.dirname('@FILE@'))",
            "the home: os.listdir('@HOME@')",
            "passwd: open('/etc/passwd').read()",
            "shadow: open('/etc/shadow').read()",
            "/: os.listdir('/')",
            "this program's launcher: open('@LAUNCHER@').read()",
        ),
    ),
    Hostile(
        "reads /proc",
        _calls(
            "another's environment: open('/proc/@PID@/environ').read()",
            "its own: open('/proc/self/environ').read()",
            "pid 1's: open('/proc/1/environ').read()",
            "the list of processes: os.listdir('/proc')",
            "another's memory: open('/proc/@PID@/mem', 'rb').read(1)",
            "/sys: os.listdir('/sys')",
        ),
    ),
    Hostile(
        "writes outside",
        _calls(
            "a file: open('@FILE@', 'w')",
            "a new file beside it: open('@FILE@.new', 'w')",
            "the root folder: open('/x', 'w')",
            "/etc: open('/etc/x', 'w')",
            "/dev: open('/dev/x', 'w')",
            "/var/tmp: open('/var/tmp/x', 'w')",
            "the standard library: open(os.__file__, 'a')",
            "a new module: open(os.path.dirname(os.__file__) + '/x.py', 'w')",
            "remove one: os.remove('@FILE@')",
            "rename one: os.rename('@FILE@', '@FILE@.old')",
        ),
    ),
    Hostile(
        "truncates without the right to write",
        _calls(
            "O_TRUNC when only reading: os.open('@FILE@', os.O_TRUNC)",
            "truncate: os.truncate('@FILE@', 0)",
        ),
    ),
    Hostile(
        "modes, owners, times",
        _calls(
            "chmod: os.chmod('@FILE@', 0o777)",
            "chown: os.chown('@FILE@', 0, 0)",
            "utime: os.utime('@FILE@')",
            "setxattr: os.setxattr('@FILE@', 'user.x', b'x')",
            "chmod of the library: os.chmod(os.__file__, 0o644)",
        ),
    ),
    Hostile(
        "symlinks, hard links, devices, pipes",
        _calls(
            "symlink: os.symlink('@FILE@', 'link')",
            "link: os.link('@FILE@', 'link')",
            "link to the library: os.link(os.__file__, 'link')",
            "mknod: os.mknod('device', 0o20600, os.makedev(1, 1))",
            "mkfifo: os.mkfifo('pipe')",
            "path by descriptors: os.open('../../..@FILE@', os.O_RDONLY)",
        ),
    ),
    Hostile(
        "signals to others",
        _calls(
            "its parent: os.kill(os.getppid() or 1 << 20, 0)",
            "everyone: os.kill(-1, 0)",
            "its group: os.killpg(0, 0)",
            "the canary: os.kill(@PID@, signal.SIGKILL)",
            "a thread of it: kernel(234, 131, @PID@, @PID@, signal.SIGKILL)",
            "tkill: kernel(200, 130, @PID@, signal.SIGKILL)",
            "queued: kernel(129, 138, @PID@, signal.SIGKILL, None)",
            "by pidfd: os.pidfd_open(@PID@)",
        ),
    ),
    Hostile(
        "signals by a back door",
        "import fcntl, termios\n"
        + _calls(
            "F_SETOWN: fcntl.fcntl(0, 8, @PID@)",
            "typing on a terminal: fcntl.ioctl(0, termios.TIOCSTI, b'x')",
            "outliving its parent: kernel(157, 167, 1, 0)",
            "a new session: os.setsid()",
            "a new group: os.setpgid(0, 0)",
        ),
    ),
    Hostile(
        "traces and reads other processes",
        _calls(
            "ptrace attach: kernel(101, 117, 16, @PID@, 0, 0)",
            "ptrace me: kernel(101, 117, 0, 0, 0, 0)",
            "process_vm_readv: kernel(310, 270, @PID@, None, 0, None, 0, 0)",
            "process_vm_writev: kernel(311, 271, @PID@, None, 0, None, 0, 0)",
            "pidfd_getfd: kernel(438, 438, 0, 0, 0)",
            "kcmp: kernel(312, 272, @PID@, @PID@, 0, 0, 0)",
            "its limits: __import__('resource').prlimit(@PID@, 0, (0, 0))",
        ),
    ),
    Hostile(
        "other programs",
        "import subprocess\n"
        + _calls(
            "system: subprocess.run(['/bin/sh', '-c', 'id'])",
            "posix_spawn: os.posix_spawn('/bin/sh', ['sh'], {})",
            "vfork: kernel(58, 220, 0x4111)",
            "exec: os.execv('/bin/sh', ['sh'])",
            "exec of Python: os.execv(sys.executable, ['python'])",
            "execveat: kernel(322, 281, -100, b'/bin/sh', None, None, 0)",
        ),
    ),
    Hostile(
        "zombies",
        """
def zombie():
    if os.fork() == 0:
        os._exit(0)
attempt("a zombie", zombie)
attempt("by multiprocessing", lambda: __import__("multiprocessing").Process().start())
attempt("by clone3", lambda: kernel(435, 435, bytes(88), 88))
""",
    ),
    Hostile(
        "a daemon that survives",
        """
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1)
            open("@FILE@", "w")
        os._exit(0)
attempt("a daemon", daemon)
""",
    ),
    Hostile(
        "system calls of another kind",
        _calls("x32's getpid: kernel(0x40000027, 1000)", "an unknown one: kernel(470, 470)"),
    ),
    Hostile(
        "32-bit system calls in machine code",
        """
import mmap
if platform.machine() != "x86_64":
    os.abort()
memory = mmap.mmap(-1, 4096, prot=7)
memory.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, getpid; int 0x80; ret
code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
print("REACHED", code())
""",
        ("killed",),
        tries="`int 0x80`, whose numbers differ",
    ),
    Hostile(
        "mount and chroot",
        _calls(
            "mount: kernel(165, 40, b'none', b'/tmp', b'tmpfs', 0, None)",
            "umount: kernel(166, 39, b'/tmp', 2)",
            "pivot_root: kernel(155, 41, b'.', b'.')",
            "chroot: os.chroot('.')",
            "open_tree: kernel(428, 428, -100, b'/', 1)",
            "open_by_handle: kernel(304, 265, 0, None, 0)",
        ),
    ),
    Hostile(
        "becomes somebody else",
        _calls(
            "setuid: os.setuid(0)",
            "setresuid: os.setresuid(0, 0, 0)",
            "setgid: os.setgid(0)",
            "setgroups: os.setgroups([0])",
            "capset: kernel(126, 91, bytes(8), bytes(24))",
            "a user namespace: kernel(272, 97, 0x10000000)",
            "clone into one: kernel(56, 220, 0x10000011, 0, 0, 0, 0)",
            "setns: kernel(308, 268, 0, 0)",
        ),
    ),
    Hostile(
        "the kernel's less trodden paths",
        _calls(
            "io_uring: kernel(425, 425, 8, bytes(120))",
            "bpf: kernel(321, 280, 0, None, 0)",
            "userfaultfd: kernel(323, 282, 0)",
            "perf_event_open: kernel(298, 241, None, 0, -1, -1, 0)",
            "keyctl: kernel(250, 219, 0, -3, 0)",
            "add_key: kernel(248, 217, b'user', b'x', b'x', 1, -3)",
            "init_module: kernel(175, 105, None, 0, None)",
            "kexec_load: kernel(246, 104, 0, 0, None, 0)",
            "reboot: kernel(169, 142, 0, 0, 0, None)",
            "swapon: kernel(167, 224, b'x', 0)",
            "settimeofday: kernel(164, 170, None, None)",
            "sethostname: kernel(170, 161, b'x', 1)",
            "syslog: kernel(103, 116, 3, None, 0)",
            "inotify: kernel(294, 26, 0)",
            "fanotify: kernel(300, 262, 0, 0)",
            "personality: kernel(135, 92, 0x0400000)",
            "modify_ldt: kernel(154, 1000, 0, None, 0)",
            "seccomp: kernel(317, 277, 0, 0, None)",
            "nice: os.nice(-5)",
            "a real-time scheduler: os.sched_setscheduler(0, 1, os.sched_param(1))",
        ),
    ),
    Hostile(
        "raises its limits",
        "import resource as r\n"
        + _calls(
            "memory: r.setrlimit(r.RLIMIT_AS, (-1, -1))",
            "processor: r.setrlimit(r.RLIMIT_CPU, (10**6, 10**6))",
            "tasks: r.setrlimit(r.RLIMIT_NPROC, (10**6, 10**6))",
        ),
    ),
    Hostile(
        "fresh copies of os",
        "import importlib, posix\nsys.modules.pop('os')\nimport os as again\n"
        + _calls(
            "posix.fork: posix.fork()",
            "the new os.fork: again.fork()",
            "reloaded: importlib.reload(posix).fork()",
            "builtin again: __import__('_imp').create_builtin(posix.__spec__).fork()",
        ),
    ),
    Hostile(
        "escapes by __subclasses__",
        """
import subprocess
del subprocess
(popen,) = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "Popen"]
attempt("Popen", lambda: popen(["/bin/sh", "-c", "id"]))
module = [c for c in object.__subclasses__() if c.__name__ == "_wrap_close"][0]
attempt("system", lambda: module.__init__.__globals__["fork"]())
""",
    ),
    Hostile(
        "reports its own success",
        """
report = b'["exit", 0, 0.0, ""]'
for descriptor in range(3, 64):
    attempt(f"descriptor {descriptor}", lambda: os.write(descriptor, report))
import gc
orders = [x for x in gc.get_objects() if type(x).__name__ == "Order"]
attempt("the launcher's pipe", lambda: [os.write(one.report, report) for one in orders][0])
os._exit(3)
""",
        ("error",),
        tries="the launcher's words into every descriptor, then exit code 3",
    ),
    Hostile(
        "a wild exit code",
        "os._exit(87)",
        ("error",),
        tries="the launcher's own, for a child that could not lock itself in",
    ),
    Hostile(
        "source that breaks the compiler",
        "(\n" * 100_000,
        ("error", "memory"),
        tries="100,000 open brackets",
    ),
)


def prepared(canaries: Mapping[str, str]) -> list[Program]:
    """The programs to run, with the canaries' names in them."""
    programs = []
    for program in PROGRAMS:
        source = re.sub("@([A-Z]+)@", lambda found: canaries[found[1]], program.source)
        programs.append(Program(f"{PRELUDE}\n{source}", timeout=program.timeout))
    return programs


def without_namespaces(level: levels.Level) -> levels.Level:
    """What is left where a container or a distribution forbids namespaces."""
    kept = tuple(n for n in level.mechanisms if "namespace" not in n and n != "private root")
    return dataclasses.replace(level, name=levels.name_of(kept), mechanisms=kept)


def refusals(outcome: run.Outcome) -> Iterator[tuple[str, str]]:
    """(error, what was tried) of every attempt that failed."""
    for line in outcome.stdout.splitlines():
        if line.startswith("refused "):
            _, error, what = line.split(" ", 2)
            yield error, what


def stopped_by(outcome: run.Outcome) -> str:
    """Who stopped a program, most of its attempts first; an unknown error as it is."""
    names = [WHO.get(error, error) for error, _ in refusals(outcome)]
    end = "SIGSYS" if "SIGSYS" in outcome.reason else outcome.status
    if end in WHO:
        names.append(WHO[end])
    return ", ".join(sorted(set(names), key=lambda name: (-names.count(name), name)))
