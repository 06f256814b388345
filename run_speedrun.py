"""From raw text to a model that answers in a chat: the table of contents of the whole project.

python run_speedrun.py --tier cpu            # minutes, on any machine, without a GPU or a network
python run_speedrun.py --tier list           # what each tier takes, and what to expect of it
python run_speedrun.py --tier 100 --plan     # what a run would take; runs nothing

Every stage is skipped when its artefact is complete and nothing it depends on has changed, and an
interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxchat import errors, paths
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.loading import find_tier, own_text, tiers
from jaxchat.config.schema import RunConfig
from jaxchat.runs import processes, run_dir
from jaxchat.runs.plan import checks, tier_list
from jaxchat.runs.plan.show import show
from jaxchat.runs.stages import STAGES, check_names
from jaxchat.train import trackers
from jaxchat.train.compiled.targets import TARGETS
from jaxchat.train.profiling import request


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a tier, or plans it; returns the exit code (see `jaxchat.errors`)."""
    args = parse(argv)
    root = paths.home(args.home)
    with errors.ErrorHandler(root) as handler:
        if args.tier == "list":
            print(tier_list.render())
            return 0
        config, profiles = read_settings(args, root)
        if args.plan:
            print(show(config, args.tier, args.compile, args.stages, as_json=args.json))
            return 0
        run = run_dir.folder(root, config.name)
        with (
            processes.joined(root) as group,
            processes.working_on(run, config, group),
            processes.mirrored(run, config, group),
        ):
            processes.start_jax(config, root, group)
            from jaxchat.runs import runner
            from jaxchat.runs.report import files

            net = runner.Network(args.base_url, args.offline)
            with runner.Context(config, run, profiles, net, group) as context:
                runner.run_stages(STAGES, context, only=args.stages, force=args.force)
            if "report" in context.done:
                print(files.final_summary(run, "" if args.home is None else f" --home {root}"))
    return handler.exit_code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    contents = "\n".join(f"  {stage.name:<9}  {stage.description}" for stage in STAGES)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"stages:\n{contents}\n\n{errors.EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = f"one of {', '.join(tiers())}; list compares them"
    parser.add_argument("--tier", required=True, help=known)
    parser.add_argument("--home", type=Path, help="where artefacts go (JAXCHAT_HOME)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="pretrain on your text: a folder of files, or a file"
    )
    parser.add_argument("--offline", action="store_true", help="ask no server for datasets")
    parser.add_argument("--base-url", metavar="URL", help="datasets from here instead of the hub")
    parser.add_argument("--stages", type=lambda s: s.split(","), metavar="A,B", help="only these")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="repeat")
    parser.add_argument("--plan", action="store_true", help="only print what it would take")
    parser.add_argument("--json", action="store_true", help="the plan, for programs")
    parser.add_argument("--compile", choices=TARGETS, help="the plan, and what compiling shows")
    parser.add_argument("--profile", action="append", default=[], metavar="A:B", help=request.HELP)
    args = parser.parse_args(argv)
    args.plan |= bool(args.json or args.compile)
    return args


def read_settings(args: argparse.Namespace, root: Path) -> tuple[RunConfig, list[request.Request]]:
    """The run's configuration and the steps to profile, checked before anything is written."""
    own = [] if args.data_dir is None else own_text(args.data_dir)
    config = run_dir.configure(root, find_tier(args.tier), [*args.set, *own])
    profiles = [request.parse(text) for text in args.profile]
    check_names([*(args.stages or ()), *args.force])
    checks.check_names(config)
    checks.check_sizes(config)
    if not args.plan:
        trackers.check_installed(config.track.trackers)
        run_dir.check_writable(root)
    elif not run_dir.has_one(run_dir.folder(root, config.name), ("data",)):
        checks.check_files(config)  # else they were read, and may be gone
    return config, profiles


if __name__ == "__main__":
    restart_with_huge_pages(skip=("list", "--plan", "--json"))
    sys.exit(main())
