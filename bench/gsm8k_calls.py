"""Every calculator call of GSM8K, evaluated by our calculator and compared with its output.

    python bench/gsm8k_calls.py train.jsonl test.jsonl          Parquet files, too
    python bench/gsm8k_calls.py train.jsonl --list              each call that differs in value

A call is `<<48/2=24>>`. Groups, the first that fits:

    the same text           24 for 24
    the same number         0.50 or .5 for 0.5
    rounded                 the output is the value to the decimals that it has
    cut                     the value's further decimals are left out
    fraction                3/4 for 0.75
    no output               nothing behind the last "="
    not read                the calculator refuses the call, with a reason
    another value           the data is wrong, or means something else
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path

from jaxchat.runs.tables import table
from jaxchat.tasks.gsm8k import GSM8K
from jaxchat.tools.calculator import CalculatorError, calculate, run_tool

SAME_TEXT, SAME_NUMBER, ROUNDED, CUT = "the same text", "the same number", "rounded", "cut"
FRACTION, NO_OUTPUT, NOT_READ, OTHER = "fraction", "no output", "not read", "another value"
GROUPS = (SAME_TEXT, SAME_NUMBER, ROUNDED, CUT, FRACTION, NO_OUTPUT, NOT_READ, OTHER)


def main() -> int:
    """Prints the calls per group, and with --list those that differ in value."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--list", action="store_true", help="all calls but those of equal numbers")
    args = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    problems = 0
    for path in args.files:
        for number, call, output in calls(path):
            if call is None:
                problems += 1
                continue
            found = group(call, output)
            counts[path.name, found] += 1
            if args.list and found not in (SAME_TEXT, SAME_NUMBER):
                said = run_tool(call)
                print(f"{found:14} {path.name} {number:>5}  {call} = {output!r}; ours: {said}")
    names = [path.name for path in args.files]
    rows = [("", *names, "together")]
    for name in GROUPS:
        each = [counts[file, name] for file in names]
        rows.append((name, *(f"{n:,}" for n in each), f"{sum(each):,}"))
    print(*table(rows), sep="\n")
    print(f"{problems:,} problems, {counts.total():,} calls")
    return 0


def calls(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """(row from 1, call, stated output) of every call; after each problem (row, None, "")."""
    for number, problem in enumerate(GSM8K([path]), 1):
        parts = problem.solution
        for part, following in pairwise(parts):
            if part["type"] == "python":
                yield number, part["text"], following["text"]
        yield number, None, ""


def group(call: str, output: str) -> str:
    """The group of a call."""
    if not output:
        return NO_OUTPUT
    try:
        ours = calculate(call)
    except CalculatorError:
        return NOT_READ
    if ours == output:
        return SAME_TEXT
    value = Decimal(ours)
    try:
        stated = Decimal(output.replace(",", ""))
    except InvalidOperation:
        return FRACTION if "/" in output and run_tool(output) == ours else OTHER
    if stated == value:
        return SAME_NUMBER
    unit = Decimal(1).scaleb(int(stated.as_tuple().exponent))
    if abs(stated - value) <= unit / 2:
        return ROUNDED
    return CUT if value.quantize(unit, ROUND_DOWN) == stated else OTHER


if __name__ == "__main__":
    raise SystemExit(main())
