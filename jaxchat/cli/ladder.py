"""`jaxchat ladder`: depths trained with one recipe, and recipes compared by compute multipliers.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from jaxchat import paths
from jaxchat.cli import args as arguments
from jaxchat.cli.args import Parser, positive
from jaxchat.config import loading
from jaxchat.config.numbers import Range
from jaxchat.progress import duration
from jaxchat.runs import run_dir
from jaxchat.runs.ladder.recipe import RECORD, TEXT_BYTES, Recipe, folder
from jaxchat.runs.plan import checks
from jaxchat.runs.tables import count, dollars, plain, table


def add_commands(parser: Parser) -> None:
    """Adds run, list, show and compare to the parser of `jaxchat ladder`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="train what is missing of a ladder"))
    listed = commands.add_parser("list", help="the ladders of the home")
    listed.switch("--json", "as JSON")
    listed.set_defaults(run_command=list_command)
    show = commands.add_parser(
        "show",
        help="the rungs of a ladder",
        description="Prints the rungs of a ladder, and writes its report.html and report.md.",
    )
    show.add_argument("name", metavar="NAME")
    show.switch("--json", "as JSON, and write no report")
    show.set_defaults(run_command=show_command)
    compare = commands.add_parser(
        "compare",
        help="compute multipliers of recipes against a baseline",
        description="Prints the FLOPs that A needs over those of each other ladder at equal bits "
        "per byte, with intervals from the seeds, and writes a report.",
    )
    compare.add_argument("baseline", metavar="A")
    compare.add_argument("others", metavar="B", nargs="+")
    degree = "of A's frontier in logarithms: 1, a line (default), or 2, a parabola"
    compare.option("--degree", arguments.number(Range(1, 2)), "N", degree, 1)
    compare.option("--out", Path, "FOLDER", "of the report (default: the last ladder's)")
    compare.switch("--json", "as JSON, and write no report")
    compare.set_defaults(run_command=compare_command)


def _add_run(run: Parser) -> None:
    run.description = (
        "Trains the base model of a tier at several depths with several seeds, each an ordinary "
        "run called NAME-dD-sS, and measures all on one held-out text. Complete rungs are skipped "
        "and an interrupted one resumes: give the same command again. What the tier fixes of steps "
        "and width is derived from the depth, unless it is --set."
    )
    run.add_argument("name", metavar="NAME")
    run.option("--tier", metavar="TIER", text=f"one of {', '.join(loading.tiers())}", required=True)
    run.option("--depths", numbers(arguments.depth), "D,D", "for example 1,2,3", required=True)
    run.option("--seeds", numbers(arguments.seed), "S,S", "2 or more give intervals", required=True)
    once = "of the depths, those that only the first seed is trained at: the deepest costs most"
    run.option("--once", numbers(arguments.depth), "D,D", once, ())
    run.option("--set", metavar="KEY=VALUE", default=[], action="append")
    run.option("--data-dir", metavar="FOLDER", text="train on your text: a folder, or a file")
    text = "measure bits per byte on it (default: on text that the run holds out)"
    run.option("--text", Path, "FILE", text)
    size = f"of the held-out text ({TEXT_BYTES:,}, or all that there is)"
    run.option("--text-bytes", positive, "N", size, TEXT_BYTES)
    run.switch("--offline", "ask no server for datasets")
    run.option("--base-url", str, "URL", "datasets from here instead of the hub")
    run.switch("--plan", "only print what it would take")
    run.set_defaults(run_command=run_command)


def numbers(read: Callable[[str], float]) -> Callable[[str], tuple[int, ...]]:
    """The reader of several different numbers, with commas between them; ordered."""

    def several(text: str) -> tuple[int, ...]:
        found = [int(read(part)) for part in text.split(",")]
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} has a number twice")
        return tuple(sorted(found))

    return several


def run_command(args: argparse.Namespace) -> int:
    """Trains a ladder, or plans it; prints its rungs and where its report is."""
    own = [] if args.data_dir is None else loading.own_text(args.data_dir)
    text = "" if args.text is None else str(args.text.expanduser().absolute())
    overrides = (*args.set, *own)
    recipe = Recipe(
        args.name, args.tier, overrides, args.depths, args.seeds, text, args.text_bytes, args.once
    )
    root = paths.home(args.home)
    configs = recipe.configs()  # what is wrong with it is said before anything is written
    if args.plan:
        place = folder(root, recipe.name)
        if not (place / RECORD).exists():  # else they were read
            checks.check_files(configs[0])
        print(_plan(recipe))
        if done := sum(1 for _ in place.glob("rungs/*.json")):
            print(f"  Complete are {done} of its runs.")
        return 0
    from jaxchat.runs.ladder import climb
    from jaxchat.runs.runner import Network

    run_dir.check_writable(root)
    climb.climb(root, recipe, Network(args.base_url, args.offline))
    args.json = False
    return show_command(args)


def _plan(recipe: Recipe) -> str:
    """What the rungs would take, a line each depth, and all together."""
    from jaxchat.config.derive import count_params
    from jaxchat.runs.ladder.tables import scientific
    from jaxchat.runs.plan.plan import make_plan

    configs = {config.depth: config for config in recipe.configs()}
    bases = {depth: make_plan(config).stages[0] for depth, config in configs.items()}
    hardware = configs[recipe.depths[0]].hardware
    runs = Counter(depth for depth, _ in recipe.rungs)
    rows = [("depth", "parameters", "steps", "tokens", "FLOPs", "runs", "time", "cost")]
    for depth, base in bases.items():
        size = count(count_params(configs[depth].model)["total"])
        work = f"{base.steps:,}", count(base.tokens), scientific(base.flops)
        seeds = runs[depth]
        cost = str(seeds), duration(base.seconds * seeds), dollars(base.dollars * seeds)
        rows.append((str(depth), size, *work, *cost))
    flops, seconds, price = (
        sum(runs[depth] * getattr(base, name) for depth, base in bases.items())
        for name in ("flops", "seconds", "dollars")
    )
    number = str(len(recipe.rungs))
    last = scientific(flops), number, duration(seconds), dollars(price)
    return "\n".join(
        [
            f"{recipe.name}: {number} runs of tier {recipe.tier} on {hardware.devices} x "
            f"{hardware.name}",
            *table([*rows, ("all", "", "", "", *last)]),
            f"  Time is FLOPs / (devices x {hardware.peak_flops:.3g} FLOP/s x "
            f"{hardware.utilization:.0%}). Not in it: text, compiling, evaluation.",
        ]
    )


def list_command(args: argparse.Namespace) -> int:
    """Prints the ladders of the home, and how far each has come."""
    from jaxchat.runs.ladder import recipe, results

    root = paths.home(args.home)
    shown = [results.progress(results.read_ladder(root, name)) for name in recipe.names(root)]
    if args.json:
        print(json.dumps(shown, indent=1))
    elif shown:
        rows = [tuple(map(plain, ladder.values())) for ladder in shown]
        print("\n".join(table([tuple(shown[0]), *rows], left=4)))
    else:
        print(f"There is no ladder in {root}. Make one with: jaxchat ladder run")
    return 0


def show_command(args: argparse.Namespace) -> int:
    """Prints the rungs of a ladder, and where its report is."""
    from jaxchat.runs.ladder import document, results, tables

    ladder = results.read_ladder(paths.home(args.home), args.name)
    shown = results.to_json(ladder)
    if args.json:
        print(json.dumps(shown, indent=1))
        return 0
    if ladder.runs:
        print("\n".join(table(tables.rung_rows(shown))) + "\n")
    print("\n".join([*shown["notes"], *map(str, document.write_ladder(ladder))]))
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """Prints the multipliers of ladders against a baseline, and where the report is."""
    from jaxchat.runs.ladder import document, results, tables

    paths.check_folder(args.out, "--out")
    root = paths.home(args.home)
    ladders = [results.read_ladder(root, name) for name in (args.baseline, *args.others)]
    compared = results.compare(ladders[0], ladders[1:], args.degree)
    if args.json:
        print(json.dumps(compared, indent=1))
        return 0
    print("\n".join(table(tables.multiplier_rows(compared), left=2)) + "\n")
    for variant in compared["variants"]:
        print(tables.conclusion(args.baseline, variant))
    for shown in (compared["baseline"], *compared["variants"]):
        print("\n".join(tables.notes_of(shown)), end="\n" if shown["notes"] else "")
    folder = args.out or ladders[-1].place
    print("\n".join(["", *map(str, document.write_comparison(ladders, compared, folder))]))
    return 0
