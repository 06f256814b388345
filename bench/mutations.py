"""Mutation testing: lines broken at random, a seed deciding which, against the tests of their room.

    python bench/mutations.py --count 40 --seed 0 --tree COPY

COPY is a checkout of its own (`git worktree add COPY`, with the built extension); its files are
changed and restored. Each mutation is one change of one expression: a comparison, an operator, a
boolean, a number, a condition. A mutation survives when all tests of its room pass. The tests of
the module run first, then those of the room, up to the first failure. They must pass without a
mutation: look at that first. --first N resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOMS = (
    *("config", "model", "parallel", "optim", "tokenizer", "tools", "checkpoints", "tasks"),
    *("data", "inference", "evals", "train", "runs", "serve", "cli"),
)
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATE = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
}  # fmt: skip


def changes(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(expression, what takes its place) for all that may be broken."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(ops=[op]) if type(op) in COMPARE:
                new = ast.Compare(node.left, [COMPARE[type(op)]()], node.comparators)
            case ast.BinOp(op=op) if type(op) in OPERATE:
                new = ast.BinOp(node.left, OPERATE[type(op)](), node.right)
            case ast.BoolOp(op=ast.And()):
                new = ast.BoolOp(ast.Or(), node.values)
            case ast.BoolOp(op=ast.Or()):
                new = ast.BoolOp(ast.And(), node.values)
            case ast.UnaryOp(op=ast.Not()):
                new = node.operand
            case ast.Constant(value=bool(value)):
                new = ast.Constant(not value)
            case ast.Constant(value=int(value)):
                new = ast.Constant(value + 1)
            case ast.IfExp():
                new = ast.IfExp(node.test, node.orelse, node.body)
            case _:
                continue
        yield node, new


def in_text(tree: ast.Module) -> set[ast.AST]:
    """Nodes within f-strings (they have no place of their own) and annotations."""
    roots = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    for node in ast.walk(tree):
        roots += [
            a for a in (getattr(node, "annotation", None), getattr(node, "returns", None)) if a
        ]
    return {inner for root in roots for inner in ast.walk(root)}


def mutate(source: str, rng: random.Random) -> tuple[str, int, str, str] | None:
    """(source with one change, its line, the expression before, and after); None without one."""
    tree = ast.parse(source)
    hidden = in_text(tree)
    found = [pair for pair in changes(tree) if pair[0] not in hidden]
    if not found:
        return None
    node, new = rng.choice(found)
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    data = source.encode()
    text = ast.unparse(new)
    changed = (data[:start] + f"({text})".encode() + data[end:]).decode()
    return changed, node.lineno, data[start:end].decode(), text


def batches(tree: Path, module: Path) -> Iterator[list[str]]:
    """The room's test files, the likeliest to notice first: the module's own, those that name it,
    the rest.
    """
    *package, stem = module.with_suffix("").parts
    name = re.compile(
        rf"{re.escape('.'.join([*package, stem]).removesuffix('.__init__'))}\b"
        rf"|from {re.escape('.'.join(package))} import [^\n]*\b{stem}\b"
    )
    left = sorted((tree / "tests" / package[1]).rglob("test_*.py"))
    own = [path for path in left if path.name == f"test_{stem}.py"]
    near = [path for path in left if name.search(path.read_text(encoding="utf-8"))]
    for paths in (own, near, left):
        if now := [str(path.relative_to(tree)) for path in paths if path in left]:
            yield now
        left = [path for path in left if path not in paths]


def failure(tree: Path, tests: list[str], seconds: int) -> str:
    """The first test that fails, or ""; one that takes longer than `seconds` has failed, too."""
    limit = ["-o", f"faulthandler_timeout={seconds}", "-o", "faulthandler_exit_on_timeout=true"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *limit, *tests]
    # What the tests start imports the changed files, too, wherever it runs.
    paths = os.pathsep.join(filter(None, [str(tree.resolve()), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as out:  # a file: children left behind hold no pipe open
        child = subprocess.Popen(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        out.seek(0)
        lines = out.read().splitlines()
    if code == 0:
        return ""
    said = [line for line in lines if line.startswith(("FAILED ", "ERROR ", "Timeout "))]
    return (said or lines or ["no output"])[-1][:120]


def verdict(tree: Path, module: Path, seconds: int) -> str:
    """The first test that fails, or "survived"."""
    failures = (failure(tree, tests, seconds) for tests in batches(tree, module))
    return next(filter(None, failures), "survived")


def draw(
    tree: Path, rooms: Sequence[str], seed: int, number: int
) -> tuple[Path, str, tuple[str, int, str, str]]:
    """(file, its source, the mutation): rooms in turn, files by their size."""
    rng = random.Random(f"{seed} {number}")
    files = sorted((tree / "jaxchat" / rooms[number % len(rooms)]).rglob("*.py"))
    lengths = [path.stat().st_size for path in files]
    while True:
        [path] = rng.choices(files, lengths)
        source = path.read_text(encoding="utf-8")
        if made := mutate(source, rng):
            return path, source, made


def main() -> None:
    """Breaks, runs, restores, prints a line for each mutation and the survivors at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="skip the mutations before this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--seconds", type=int, default=900, help="the limit of one test")
    parser.add_argument("--tree", type=Path, required=True)
    args = parser.parse_args()
    if subprocess.run(["git", "diff", "--quiet"], cwd=args.tree, check=False).returncode:
        sys.exit(f"{args.tree} has changes: restore it (`git checkout jaxchat`), or make another")
    survivors = []
    for number in range(args.first, args.count):
        path, source, (changed, line, before, after) = draw(
            args.tree, args.rooms, args.seed, number
        )
        where = path.relative_to(args.tree)
        began = time.monotonic()
        path.write_text(changed, encoding="utf-8")
        try:
            result = verdict(args.tree, where, args.seconds)
        finally:
            path.write_text(source, encoding="utf-8")
        report = f"{number:3d} {where}:{line}: {before!r} -> {after!r}: {result}"
        print(f"{report} ({time.monotonic() - began:.0f} s)", flush=True)
        survivors += [report] if result == "survived" else []
    print(f"\n{len(survivors)} of {args.count - args.first} survived")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
