"""From the start of `jaxchat chat -p` and `jaxchat serve` to the last byte of the first answer.

    python bench/first_answer.py --other CHECKOUT

Measures this build and, with --other, another checkout of jaxchat in turns: cold, with an empty
folder of compiled programs, and warm, with what the cold start left there. A server then answers
--answers more questions of each of three lengths, one after the other. The model has the CPU tier's
shapes and random weights that never end an answer, written by each build itself. Both builds use
this Python and inherit the same allocator settings. Processor seconds are the process's, up to the
end of the first answer; on a busy machine they say more than seconds do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

from serve import ended, free_port, wait_until_ready

from jaxchat.config.huge_pages import restart_with_huge_pages, state
from jaxchat.config.machine import cores, processor

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What is the capital of France?"
LENGTHS = {"short": 0, "middle": 12, "long": 30}  # words before the question
# Run by each build: its own bench/serve.py writes the run.
MAKE_HOME = """
import argparse, dataclasses, pathlib, sys
import serve
derive, serve.CONTEXT = serve.derive_model, 256
serve.derive_model = lambda *a: dataclasses.replace(derive(*a), n_embd=128, n_head=2, n_kv_head=2)
made = serve.make_weights(argparse.Namespace(depth=4, vocab=1024))
serve.make_home(pathlib.Path(sys.argv[1]), *made)
"""
Found = defaultdict[tuple[str, ...], list[float]]


def main() -> int:
    """Measures in turns, and prints a table."""
    args = parse()
    builds = {"this": ROOT} | ({"other": args.other.resolve()} if args.other else {})
    print(f"{processor()}, {cores()} cores, {state()}; {args.turns} turns", flush=True)
    found: Found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        homes = {name: Path(folder) / name for name in builds}
        for name, build in builds.items():
            path = f"{build}{os.pathsep}{build / 'bench'}"
            command = [sys.executable, "-c", MAKE_HOME, str(homes[name])]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, cwd=build)
        for turn in range(args.turns):
            order = list(builds.items())[:: -1 if turn % 2 else 1]
            for what in args.what:
                for temperature in ("cold", "warm"):
                    for name, build in order:
                        if temperature == "cold":
                            shutil.rmtree(homes[name] / "xla", ignore_errors=True)
                        key = (what, temperature, name)
                        (chat if what == "chat" else serve)(build, homes[name], key, found, args)
            print(f"turn {turn + 1} is over", file=sys.stderr, flush=True)
    report(found, list(builds))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--other", type=Path, metavar="CHECKOUT", help="another build of jaxchat")
    parser.add_argument("--what", nargs="+", choices=("chat", "serve"), default=["chat", "serve"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--answers", type=int, default=20, help="after the first, of each length")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    return parser.parse_args()


def start(build: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a command of a build; its errors, and a server's output, go to `log`."""
    command = [sys.executable, "-m", "jaxchat", *arguments]
    out = subprocess.PIPE if arguments[0] == "chat" else log.open("ab")
    env = {**os.environ, "PYTHONPATH": str(build)}
    return subprocess.Popen(command, cwd=build, env=env, stdout=out, stderr=log.open("ab"))


def chat(
    build: Path, home: Path, key: tuple[str, ...], found: Found, args: argparse.Namespace
) -> None:
    """One `jaxchat chat -p`."""
    began, log = time.perf_counter(), home / "log"
    tokens = ("--max-tokens", str(args.tokens))
    process = start(build, log, "chat", "-p", QUESTION, "--home", str(home), *tokens)
    assert process.stdout is not None
    last = began
    while process.stdout.read1():  # type: ignore[attr-defined]
        last = time.perf_counter()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{build} did not answer:\n{log.read_text()[-2000:]}")
    found[(*key, "first answer s")].append(last - began)
    found[(*key, "processor s")].append(used.ru_utime + used.ru_stime)


def serve(
    build: Path, home: Path, key: tuple[str, ...], found: Found, args: argparse.Namespace
) -> None:
    """One `jaxchat serve`, from its start to its answers."""
    began, log, port = time.perf_counter(), home / "log", free_port()
    process = start(build, log, "serve", "--home", str(home), "--port", str(port), "--quiet")
    with ended(process):
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{url}/ready", process, f"jaxchat of {build}", log)
        found[(*key, "ready s")].append(time.perf_counter() - began)
        ask(url, QUESTION, args.tokens)
        found[(*key, "first answer s")].append(time.perf_counter() - began)
        found[(*key, "processor s")].append(processor_seconds(process.pid))
        for _ in range(args.answers):
            for name, words in LENGTHS.items():
                asked = time.perf_counter()
                ask(url, "word " * words + QUESTION, args.tokens)
                found[(*key, f"next {name} ms")].append(1e3 * (time.perf_counter() - asked))


def ask(url: str, question: str, tokens: int) -> None:
    """One answer, without a stream."""
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0.0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.load(response)
    assert answer["usage"]["completion_tokens"] == tokens, answer


def processor_seconds(pid: int) -> float:
    """The processor's time of a process so far; 0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def report(found: Found, builds: list[str]) -> None:
    """A line for each figure: median and spread of every build, and their ratio."""
    head = "".join(f"{f'{name}: median (range), p95':>38}" for name in builds)
    print(f"{'':<28}{head}{'ratio' if builds[1:] else '':>8}{'of p95' if builds[1:] else '':>8}")
    for what, temperature, name, figure in list(found):
        if name != builds[0]:
            continue
        each = [sorted(found[what, temperature, build, figure]) for build in builds]
        medians = [statistics.median(values) for values in each]
        highest = [values[int(0.95 * (len(values) - 1) + 0.5)] for values in each]
        cells = [
            f"{middle:.2f} ({values[0]:.2f} to {values[-1]:.2f}), {high:.2f}"
            for middle, values, high in zip(medians, each, highest, strict=True)
        ]
        line = f"{what} {temperature} {figure}".ljust(28) + "".join(f"{c:>38}" for c in cells)
        if builds[1:]:
            line += f"{medians[0] / medians[1]:8.2f}{highest[0] / highest[1]:8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
