"""Mutation testing: lines broken at random, a seed deciding which, against the tests of their room.

    python bench/mutations.py --count 40 --seed 0 --tree COPY

COPY is a checkout of its own (`git worktree add COPY`, with the built extension); its files are
changed and restored. Each mutation is one change of one expression: a comparison, an operator, a
boolean, a number, a condition. A mutation survives when all tests of its room pass. The tests of
the module run first, then those of the room, up to the first failure.
"""

from __future__ import annotations

import argparse
import ast
import random
import subprocess
import sys
import time
from collections.abc import Iterator
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


def verdict(tree: Path, module: Path, seconds: float) -> str:
    """The first test that fails, "timeout", or "survived"."""
    room = module.parts[1]
    folder = Path("tests") / room
    own = sorted(tree.glob(f"{folder}/**/test_{module.stem}.py"))
    for tests in ([str(path) for path in own], [str(folder)]):
        if not tests:
            continue
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command, cwd=tree, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        if done.returncode:
            lines = done.stdout.splitlines()
            said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            return said[0][:100] if said else "the tests did not start"
    return "survived"


def main() -> None:
    """Breaks, runs, restores, prints a line for each mutation and the survivors at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="skip the mutations before this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900, help="for the tests of one mutation")
    parser.add_argument("--tree", type=Path, required=True)
    args = parser.parse_args()
    survivors = []
    for number in range(args.first, args.count):
        rng = random.Random(f"{args.seed} {number}")
        room = ROOMS[number % len(ROOMS)]
        files = sorted((args.tree / "jaxchat" / room).rglob("*.py"))
        lengths = [path.stat().st_size for path in files]
        made, path = None, files[0]
        while made is None:
            path = rng.choices(files, lengths)[0]
            made = mutate(source := path.read_text(encoding="utf-8"), rng)
        changed, line, before, after = made
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
