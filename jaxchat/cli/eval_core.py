"""`jaxchat eval core`: a run's model on CORE's tasks (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat import paths
from jaxchat.cli.args import positive
from jaxchat.config.schema import NOWHERE
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.launch_env import start_jax

if TYPE_CHECKING:
    from jaxchat.evals.core.result import CoreResult


def add_core(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Adds core to the commands of `jaxchat eval`; `parents` hold the common arguments."""
    core = commands.add_parser(
        "core",
        parents=list(parents),
        help="CORE: 22 tasks of DCLM",
        description="Evaluates a model on CORE's tasks. Tasks that are finished are kept: the same "
        "command resumes. The run's next report (jaxchat report, or the run's own) has the result.",
    )
    core.add_argument("--run", metavar="NAME", help="name of the run (default: the last)")
    core.add_argument("--stage", choices=("base", "mid", "sft", "rl"), default="base")
    core.add_argument(
        "--bundle", type=Path, metavar="DIR", help="with core.yaml (default HOME/eval_bundle)"
    )
    core.add_argument(
        "--download",
        nargs="?",
        const="",
        metavar="URL",
        help="fetch nanochat's eval_bundle.zip to HOME/eval_bundle first",
    )
    core.add_argument(
        "-a", "--task", action="append", metavar="TASK", help="only this; may be given again"
    )
    core.add_argument("--max-problems", type=positive, metavar="N", help="of each task")
    core.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help="tokens of a prompt, of which the last are kept (default: the model's); of more than "
        "the model was trained on, a modern model sees what its windows let it, as in nanochat",
    )
    core.add_argument("--dump", type=Path, metavar="FILE", help="write every example, a line each")
    core.set_defaults(run_command=core_command)


def core_command(args: argparse.Namespace) -> int:
    """Evaluates, and prints the table."""
    from jaxchat.config.schema import MeshConfig
    from jaxchat.data.download import eval_bundle
    from jaxchat.evals.core.bundle import read_bundle
    from jaxchat.runs import run_dir

    root = paths.home(getattr(args, "home", None))
    paths.check_folder(args.bundle, "--bundle")
    if args.download is not None and args.bundle is not None:
        raise ConfigError("--download fills HOME/eval_bundle; leave --bundle away.")
    run = run_dir.find(
        root, args.run, (args.stage,)
    )  # says what is missing, before anything is fetched
    if args.download is not None:
        own = run_dir.read_config(run).eval.bundle_url.replace(NOWHERE, "")
        eval_bundle.fetch_bundle(root, args.download or own or eval_bundle.URL)
    folder = args.bundle or eval_bundle.bundle_folder(root)
    if args.bundle is None:
        if not folder.exists():
            raise ArtifactError(
                f"there is no {folder} with CORE's tasks; fetch nanochat's with --download, or "
                "name a bundle with --bundle DIR."
            )
        eval_bundle.check_bundle(root)
    bundle = read_bundle(folder)
    bundle.select(args.task)
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.evals.core.evaluate import evaluate_saved
    from jaxchat.evals.saved import core_folder
    from jaxchat.runs.opening import open_model

    opened = open_model(root, args.run, args.stage)
    place = core_folder(opened.run, opened.stage)
    result, path = evaluate_saved(
        place, lambda: opened.params, opened.digest, opened.config.model, opened.tokenizer, bundle,
        compute=opened.compute, mesh=opened.mesh, tasks=args.task, max_problems=args.max_problems,
        context=args.context, widen=opened.config.preset == "classic", title=opened.stage,
    )  # fmt: skip
    print(f"run {opened.run.name}, stage {opened.stage}, bundle {folder}\n\n{result.table()}")
    if args.dump is not None:
        write_dump(args.dump, result)
        print(f"\nevery example: {args.dump}")
    print(f"\n{path}")
    return 0


def write_dump(path: Path, result: CoreResult) -> None:
    """One JSON object a line: task, index, prediction, gold, losses."""
    with paths.atomic_open(path) as file:
        for task in result.tasks:
            for index, one in enumerate(task.judged):
                line = {"task": task.label, "index": index, **one.to_json()}
                file.write(json.dumps(line) + "\n")
