"""`jaxchat doctor`: whether a tier can run on this machine.

Nothing heavy is imported before it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchat import paths
from jaxchat.cli.args import Parser, add_hub
from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.parallel.launch_env import configure_compiling, configure_jax
from jaxchat.runs import run_dir
from jaxchat.train.compiled.targets import TARGETS, USERS

if TYPE_CHECKING:
    from jaxchat.runs.doctor.check import Check


def add_doctor(parser: Parser) -> None:
    """The options of `jaxchat doctor`."""
    parser.description = (
        "Looks at this machine, and ends with 1 when a tier cannot run on it. It asks for the "
        "datasets of the tier, downloads nothing, and times a training step for about 10 seconds."
    )
    parser.option("--tier", text="which is to run here (cpu)", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of it")
    add_hub(parser, "ask no server for datasets", "datasets from here instead of the hub")
    compiled = "instead: compile its programs for a kind of device without one, and count (minutes)"
    parser.option("--compile", str, "KIND", compiled, choices=TARGETS)
    parser.option("--stages", str, "A,B", f"of --compile: only these of {', '.join(USERS)}", "")
    parser.switch("-n --no-bench", "time no training step")
    parser.switch("--json", "for programs")
    parser.set_defaults(run_command=doctor_command)


def doctor_command(args: argparse.Namespace) -> int:
    """Prints the checks; 1 when the tier cannot run here."""
    root = paths.home(args.home)
    config = run_dir.configure(root, loading.find_tier(args.tier), args.set)
    if args.compile:
        return _compile(args, config)

    from jaxchat.runs.doctor.check import problems, render, to_json

    checks = find(args, root, config)
    if args.json:
        print(json.dumps(to_json(checks, args.tier), indent=1))
    else:
        print(render(checks, args.tier))
    return 1 if problems(checks) else 0


def _compile(args: argparse.Namespace, config: RunConfig) -> int:
    """Prints what the step does on devices that are not here; 1 when it does not fit."""
    configure_compiling(config.mesh)
    from jaxchat.runs.doctor import compiled, compiled_text

    stages = args.stages.split(",") if args.stages else ()
    found = compiled.compile_all(
        config, args.tier, args.compile, stages, both_forms=True, say=compiled.say
    )
    if args.json:
        print(json.dumps(compiled.all_to_json(found), indent=1))
    else:
        print(compiled_text.render(found))
    return 0 if all(one.fits for one in found) else 1


def find(args: argparse.Namespace, root: Path, config: RunConfig) -> list[Check]:
    """All checks, in order."""
    from jaxchat.runs.doctor import here

    checks = [here.check_python(), here.check_packages(), here.check_tokenizer()]
    at_home = here.check_home(root)
    if any(check.problems for check in checks[:2]):
        return [*checks, at_home]  # the rest needs them
    configure_jax(config.mesh, None if at_home.problems else root / "xla")
    devices = here.check_devices()
    checks += [here.check_cuda(), devices, here.check_processor()]
    if not devices.problems:
        checks += here.check_compute(config)
    checks += [here.check_sandbox(config), at_home]
    return checks + _of_tier(args, root, config, with_devices=not devices.problems)


def _of_tier(
    args: argparse.Namespace, root: Path, config: RunConfig, *, with_devices: bool
) -> list[Check]:
    from jaxchat.data.download.hub import open_hub
    from jaxchat.runs.doctor import sources, tier

    found = tier.find_here() if with_devices else None
    checks: list[Check] = []
    if found is not None:
        checks += [tier.check_devices(config, found), tier.check_memory(config, found)]
    checks.append(tier.check_disk(config, root))
    hub = open_hub(root, base_url=args.base_url, offline=args.offline, policy=sources.RETRY_POLICY)
    checks += sources.check_sources(config, hub)
    if found is not None and not args.no_bench:
        from jaxchat.runs.doctor import speed

        print("timing a training step ...", file=sys.stderr, flush=True)
        check, measured = speed.check_speed(found.platform)
        checks += [check, tier.check_time(config, found, measured)]
    return checks
