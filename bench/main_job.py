"""The main job, `run_speedrun.py --tier cpu`, of two checkouts in turns, stage by stage.

    python bench/main_job.py --before CHECKOUT --work FOLDER
    python bench/main_job.py --before CHECKOUT --work FOLDER --reuse       # only what is missing

Each checkout runs in its own folder with the same Python, so the text that this machine carries is
the same for both (`--text` names a folder instead). After every timed run, its models answer
--problems problems a task; that is not timed. Seconds are a stage's own, processor seconds those
of the process (user and system), memory is the most that the stage held.

Intervals are of 95%, for the difference of two means: of problems (Newcombe's would be the same
here: the counts are large), and of seeds (Student's, pooled).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
LABEL = re.compile(r"\[\d+/\d+\] ([^:]+)(:.*)?$")
SIDES = ("before", "now")
# Student's quantiles of 97.5%, by degrees of freedom
STUDENT = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as bootstrap.py sets it, for both


def main() -> int:
    """Runs what is missing and prints the tables."""
    args = parse()
    checkouts = dict(zip(SIDES, (args.before.resolve(), args.now.resolve()), strict=True))
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number, seed in enumerate(args.seeds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            runs[side].append(measure(args, checkouts[side], side, seed))
    if len({run["text"] for each in runs.values() for run in each}) > 1:
        print("The text of the runs differs: name one with --text.", file=sys.stderr)
        return 1
    print(times(runs), figures(runs), sep="\n\n")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--now", type=Path, default=HERE, help="this one")
    parser.add_argument("--work", type=Path, required=True, help="where runs and records go")
    parser.add_argument("--seeds", type=lambda s: list(map(int, s.split(","))), default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=1_000, help="a task, for the figures")
    parser.add_argument("--text", type=Path, help="train on this folder instead")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both")
    parser.add_argument("--reuse", action="store_true", help="keep finished runs in --work")
    return parser.parse_args()


def measure(args: argparse.Namespace, checkout: Path, side: str, seed: int) -> dict[str, Any]:
    """A run's record; runs it, unless a finished one is to be reused."""
    home = args.work.resolve() / f"{side}-{seed}"
    path = home.with_suffix(".json")
    if args.reuse and path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    if home.exists():
        unfinished = "give --reuse" if path.exists() else "it is unfinished: delete it"
        sys.exit(f"{home} exists; {unfinished}, or name another --work.")
    command = [str(args.python), "run_speedrun.py", "--tier", "cpu", "--home", str(home)]
    command += ["--set", f"run.seed={seed}", *(part for one in args.set for part in ("--set", one))]
    command += ["--data-dir", str(args.text.resolve())] if args.text else []
    print(f"{side}, seed {seed}: {checkout}", file=sys.stderr, flush=True)
    stages = watch(command, checkout)
    watch([*command, "--set", f"eval.problems={args.problems}"], checkout)
    run = home / "runs" / "cpu"
    record = {
        "stages": stages,
        "models": read(run, "eval")["models"],
        "text": read(run, "data")["parts"]["text"],
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    return record


def read(run: Path, stage: str) -> dict[str, Any]:
    """The results of a complete stage."""
    return dict(json.loads((run / stage / "done.json").read_text(encoding="utf-8"))["results"])


def watch(command: list[str], checkout: Path) -> dict[str, dict[str, float]]:
    """Runs the stages; stage -> `seconds`, processor seconds `cpu`, and bytes `memory` at most.

    Starting Python and importing JAX is the stage `start`; `end` is the summary, ending, and what
    lies between stages.
    """
    environment = {**os.environ, **HUGE_PAGES, "PYTHONPATH": str(checkout)}
    began, used, between = time.monotonic(), 0.0, [0.0, 0.0]
    found: dict[str, dict[str, float]] = {}
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        stage, memory = "start", 0.0
        for line in process.stdout:
            match = LABEL.match(line.strip())
            if not match:
                continue
            now, cpu, memory = time.monotonic(), *usage(process.pid)
            if stage == "end":
                between = [between[0] + now - began, between[1] + cpu - used]
            else:
                found[stage] = {"seconds": now - began, "cpu": cpu - used, "memory": memory}
            began, used = now, cpu
            stage = "end" if match[2] else match[1]
        _, status, total = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = between[0] + time.monotonic() - began
    cpu = between[1] + total.ru_utime + total.ru_stime - used
    found["end"] = {"seconds": seconds, "cpu": cpu, "memory": memory}
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return found


def usage(pid: int) -> tuple[float, float]:
    """(processor seconds, most bytes held since the last call) of a process, on Linux."""
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # its own and its ended children's, user and system
    status = (process / "status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    (process / "clear_refs").write_text("5", encoding="ascii")  # resets the peak
    return ticks / os.sysconf("SC_CLK_TCK"), float(peak[1]) * 1024 if peak else 0.0


def times(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The table of stages: means over the seeds, and now over before."""
    lines = [
        "| stage | seconds | now | ratio | processor s | now | ratio | MB | now |",
        "|" + "---|" * 9,
    ]
    stages = list(runs["before"][0]["stages"])
    sums = {side: {"seconds": 0.0, "cpu": 0.0, "memory": 0.0} for side in SIDES}
    for stage in stages:
        row = {}
        for side in SIDES:
            each = [run["stages"].get(stage) for run in runs[side]]
            row[side] = {
                name: statistics.mean(one[name] for one in each if one)
                for name in ("seconds", "cpu", "memory")
            }
            sums[side]["seconds"] += row[side]["seconds"]
            sums[side]["cpu"] += row[side]["cpu"]
            sums[side]["memory"] = max(sums[side]["memory"], row[side]["memory"])
        lines.append(time_row(stage, row))
    lines.append(time_row("**all**", sums))
    return "\n".join(lines)


def time_row(stage: str, row: dict[str, dict[str, float]]) -> str:
    """A stage's line."""
    cells = []
    for name in ("seconds", "cpu"):
        old, new = (row[side][name] for side in SIDES)
        cells += [f"{old:.1f}", f"{new:.1f}", f"{new / old:.2f}" if old else "-"]
    cells += [f"{row[side]['memory'] / 1e6:,.0f}" for side in SIDES]
    return f"| {stage} | {' | '.join(cells)} |"


def figures(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The table of what the models reach, with the intervals of the differences."""
    lines = [
        "| model | figure | before | now | difference | +- of problems | +- of seeds |",
        "|" + "---|" * 7,
    ]
    for model, found in runs["before"][0]["models"].items():
        for name in ("bits_per_byte", *found.get("tasks", {}), "mean_reward"):
            values, counts = {}, {}
            for side in SIDES:
                one = [figure(run["models"][model], name) for run in runs[side]]
                values[side] = [value for value, _ in one if value is not None]
                counts[side] = sum(count for _, count in one)
            if all(values.values()):
                lines.append(figure_row(model, name, values, counts))
    return "\n".join(lines)


def figure(found: dict[str, Any], name: str) -> tuple[float | None, int]:
    """A model's figure, shares in percent, and how many problems it is of (0: not of problems)."""
    if name == "bits_per_byte":
        return found.get(name), 0
    if name == "mean_reward" and "reward" not in found:
        return None, 0
    task = found["reward"] if name == "mean_reward" else found["tasks"][name]
    return 100 * task["right"] / task["total"], task["total"]


def figure_row(
    model: str, name: str, values: dict[str, list[float]], counts: dict[str, int]
) -> str:
    """A figure's line."""
    means = {side: statistics.mean(values[side]) for side in SIDES}
    form = ".4f" if name == "bits_per_byte" else ".2f"
    spread = 0.0
    if all(counts.values()):
        shares = {side: means[side] / 100 for side in SIDES}
        spread = sum(shares[side] * (1 - shares[side]) / counts[side] for side in SIDES)
    problems = f"{196 * math.sqrt(spread):.2f}" if spread else "-"
    seeds, many = "-", min(map(len, values.values()))
    if many > 1:
        pooled = statistics.mean(statistics.variance(values[side]) for side in SIDES)
        freedom = 2 * (many - 1)
        quantile = STUDENT.get(freedom, 2.0)
        seeds = format(quantile * math.sqrt(2 * pooled / many), form)
    cells = [format(means[side], form) for side in SIDES]
    cells += [format(means["now"] - means["before"], f"+{form}"), problems, seeds]
    return f"| {model} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
