"""`jaxchat runs` and `jaxchat watch`: the runs of a home and their state."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

from jaxchat import paths
from jaxchat.cli.args import Parser, seconds
from jaxchat.progress import duration
from jaxchat.runs import run_dir
from jaxchat.runs.tables import table

if TYPE_CHECKING:
    from jaxchat.runs.status import RunState


def add_runs(parser: Parser) -> None:
    """The options of `jaxchat runs`."""
    parser.switch("--json", "as JSON")
    parser.set_defaults(run_command=runs_command)


def add_watch(parser: Parser) -> None:
    """The options of `jaxchat watch`."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="default: the last")
    parser.switch("--once", "show its present state and exit")
    parser.option("--interval", seconds, "SECONDS", "between looks (2)", 2.0)
    parser.set_defaults(run_command=watch_command)


def runs_command(args: argparse.Namespace) -> int:
    """Lists the runs of the home, the newest first."""
    from jaxchat.runs.status import read_states

    root = paths.home(args.home)
    states, wrong = read_states(root)
    for sentence in wrong:
        print(f"jaxchat: {sentence}", file=sys.stderr)
    if args.json:
        print(json.dumps([_record(state) for state in states], indent=1))
    elif states:
        print(_table(states))
    else:
        print(f"There is no run in {root}. Make one with: python run_speedrun.py --tier cpu")
    return 1 if wrong else 0


def watch_command(args: argparse.Namespace) -> int:
    """Shows a run while it works; Ctrl-C leaves, and the run continues."""
    from jaxchat.runs.watch import watch

    run = run_dir.find(paths.home(args.home), args.run)
    try:
        watch(run, interval=max(args.interval, 0.1), once=args.once, sleep=time.sleep)
    except KeyboardInterrupt:
        print()
    return 0


def _record(state: RunState) -> dict[str, Any]:
    return {
        "name": state.name,
        "state": state.state,
        "stage": state.stage,
        "complete": list(state.complete),
        "logged": state.logged or None,
        "step": state.step,
        "steps": state.steps or None,
        "loss": state.last("loss"),
        "bits_per_byte": state.last("bits_per_byte"),
        "reward": state.last("reward"),
        "age_seconds": round(max(0.0, time.time() - state.changed), 1),
        "folder": str(state.folder),
    }


def _table(states: list[RunState]) -> str:
    rows = [("run", "state", "stage", "step", "loss", "bits/byte", "reward", "age")]
    for state in states:
        loss, bits, reward = (
            "-" if value is None else f"{value:.3f}"
            for value in map(state.last, ("loss", "bits_per_byte", "reward"))
        )
        step = state.progress if state.records else "-"
        age = duration(max(0.0, time.time() - state.changed))
        rows.append((state.name, state.state, state.stage, step, loss, bits, reward, age))
    return textwrap.dedent("\n".join(table(rows, left=3)))
