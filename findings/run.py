"""Runs the findings, one after the other, and brings docs/behaviour.md up to date.

    python findings/run.py [NAME ...]            exit 0 expected: the behaviour is as stated
    python findings/run.py --counter [NAME ...]  exit 1 expected: with the corrected input, or the
                                                 other version, of "# Counter:" in its head

A script prints "versions: PACKAGE VERSION"; that and the date go into the column "last seen with"
of the rows that name it. A row that names a test gets the version of its package in the environment
of this Python, if the test passes (--tests runs them). Rows of what has changed stay as they are,
and the exit code is 1. Needs a network, Python 3.12 as python3.12 for some, and half an hour.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = FOLDER.parent / "docs" / "behaviour.md"
SCRIPT = re.compile(r"`findings/([\w-]+)\.sh`")
TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")
COUNTER = re.compile(r"^# Counter: (.*)$", re.MULTILINE)


def cells(line: str) -> list[str]:
    """The cells of a row of the table; none for other lines."""
    return line.strip()[2:-2].split(" | ") if line.startswith("| ") else []


def run_script(name: str, *, counter: bool) -> tuple[bool, str]:
    """Whether a script ends as it should, and the versions that it has seen."""
    path = FOLDER / f"{name}.sh"
    settings = {}
    if counter:
        [given] = COUNTER.findall(path.read_text(encoding="utf-8"))
        settings = dict(pair.partition("=")[::2] for pair in given.split(" "))
    began = time.monotonic()
    done = subprocess.run(
        ["bash", str(path)], env={**os.environ, **settings}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    right = done.returncode == (1 if counter else 0)
    versions = re.findall(r"^versions: (.*)$", done.stdout, re.MULTILINE)
    how = " ".join(f"{key}={value}" for key, value in settings.items())
    took = time.monotonic() - began
    print(f"{name} {how}: exit {done.returncode}, {took:.0f} s, {', '.join(versions)}", flush=True)
    if not right or not versions:
        print(done.stdout[-2_000:] + done.stderr[-2_000:], flush=True)
    return right and bool(versions), next(iter(versions), "")


def run_test(test: str, package: str) -> tuple[bool, str]:
    """Whether a test passes here, and the version of the package."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    passed = done.returncode == 0 and " passed" in done.stdout
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = ""  # the test holds our side; the package is not here
    print(f"{test}: {'passed' if passed else 'not passed'}, {package} {version}", flush=True)
    return passed, f"{package} {version}" if version else ""


def rewritten(text: str, seen: dict[str, str]) -> str:
    """The table with new versions and the date, in the rows that name what was seen."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        row = cells(line)
        names = {*SCRIPT.findall(row[-1]), *TEST.findall(row[-1])} if row else set[str]()
        for name in names & seen.keys():
            row[1] = f"{seen[name]} ({datetime.date.today()})"
            lines[number] = f"| {' | '.join(row)} |\n"
    return "".join(lines)


def main() -> None:
    """Runs what is asked for, and rewrites the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="findings, without .sh; all of them by default")
    parser.add_argument("--counter", action="store_true", help="with the counter-example of each")
    parser.add_argument("--tests", action="store_true", help="the tests that rows name, instead")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in FOLDER.glob("*.sh"))
    right, seen = True, dict[str, str]()
    if args.tests:
        rows = filter(None, map(cells, TABLE.read_text(encoding="utf-8").splitlines()))
        tests = {test: row[0] for row in rows for test in TEST.findall(row[-1])}
        results = {test: run_test(test, package) for test, package in tests.items()}
    else:
        results = {name: run_script(name, counter=args.counter) for name in names}
    for name, (good, versions) in results.items():
        right &= good
        if good and versions and not args.counter:
            seen[name] = versions
    text = TABLE.read_text(encoding="utf-8")  # only now: others may have edited it meanwhile
    TABLE.write_text(rewritten(text, seen), encoding="utf-8")
    sys.exit(not right)


if __name__ == "__main__":
    main()
