"""`jaxchat eval core`: a run's model on CORE's tasks (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat import home
from jaxchat.arguments import positive
from jaxchat.config import ConfigError
from jaxchat.home import ArtifactError

if TYPE_CHECKING:
    from jaxchat.evals.core.bundle import Bundle
    from jaxchat.evals.core.result import CoreResult, TaskResult
    from jaxchat.evaluation import Opened

FORMAT = "jaxchat-core-1"


def add_core(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Adds core to the commands of `jaxchat eval`; `parents` hold the common arguments."""
    core = commands.add_parser(
        "core",
        parents=list(parents),
        help="CORE: 22 tasks of DCLM",
        description="Evaluates a model on CORE's tasks. Tasks that are finished are kept: the same "
        "command goes on where it stopped.",
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
        help="tokens of a prompt, of which the last are kept (default: the model's)",
    )
    core.add_argument("--dump", type=Path, metavar="FILE", help="write every example, a line each")
    core.set_defaults(run_command=core_command)


def core_command(args: argparse.Namespace) -> int:
    """Evaluates, and prints the table."""
    from jaxchat import machine, runs
    from jaxchat.config import MeshConfig
    from jaxchat.data import eval_bundle
    from jaxchat.evals.core.bundle import read_bundle

    root = home.home(getattr(args, "home", None))
    if args.download is not None and args.bundle is not None:
        raise ConfigError("--download fills HOME/eval_bundle; leave --bundle away.")
    runs.find(root, args.run)  # says what is missing, before anything is fetched
    if args.download is not None:
        eval_bundle.fetch_bundle(root, args.download or eval_bundle.URL)
    folder = args.bundle or eval_bundle.bundle_folder(root)
    if args.bundle is None and not folder.exists():
        raise ArtifactError(
            f"there is no {folder} with CORE's tasks; fetch nanochat's with --download, or name a "
            "bundle with --bundle DIR."
        )
    bundle = read_bundle(folder)
    bundle.select(args.task)
    machine.start_jax(MeshConfig(), root / "xla")
    from jaxchat.evaluation import open_model

    opened = open_model(root, args.run, args.stage)
    result, kept = evaluate(opened, bundle, args.task, args.max_problems, args.context)
    print(f"run {opened.run.name}, stage {opened.stage}, bundle {folder}\n\n{result.table()}")
    if args.dump is not None:
        write_dump(args.dump, result)
        print(f"\nevery example: {args.dump}")
    print(f"\n{kept / 'result.json'}")
    return 0


def evaluate(
    opened: Opened,
    bundle: Bundle,
    tasks: Sequence[str] | None,
    max_problems: int | None,
    context: int | None,
) -> tuple[CoreResult, Path]:
    """The result, and the folder that keeps it: tasks that are in it are not done again."""
    import jax.numpy as jnp

    from jaxchat.evals.core.evaluate import evaluate_core

    folder = opened.run / "eval" / f"core-{opened.stage}"
    folder.mkdir(parents=True, exist_ok=True)
    home.sweep(folder)
    fixed = (
        FORMAT, opened.digest, opened.tokenizer.hash, home.sha256_text(repr(opened.config.model)),
        str(context), str(max_problems), jnp.dtype(opened.compute.dtype).name,
    )  # fmt: skip
    keys = {
        task.label: home.sha256_text(*fixed, bundle.task_hash(task))
        for task in bundle.select(tasks)
    }

    def keep(result: TaskResult) -> None:
        _write_task(folder / f"{result.label}.json", keys[result.label], result)

    found = {label: _read_task(folder / f"{label}.json", key) for label, key in keys.items()}
    result = evaluate_core(
        opened.params,
        opened.config.model,
        opened.tokenizer,
        bundle,
        compute=opened.compute,
        mesh=opened.mesh,
        tasks=tasks,
        max_problems=max_problems,
        context=context,
        title=opened.stage,
        finished={label: one for label, one in found.items() if one is not None},
        on_task=keep,
    )
    told = {"format": FORMAT, "weights": opened.digest, **result.to_json()}
    home.write_json(folder / "result.json", told)
    return result, folder


def _write_task(path: Path, key: str, result: TaskResult) -> None:
    """Keeps one task with its examples."""
    record = {
        "format": FORMAT,
        "key": key,
        "label": result.label,
        "baseline": result.baseline,
        "seconds": result.seconds,
        "examples": [one.to_json() for one in result.judged],
    }
    with home.atomic_open(path) as file:
        json.dump(record, file)
        file.write("\n")


def _read_task(path: Path, key: str) -> TaskResult | None:
    """What `_write_task` kept, if it is of this model, data and options."""
    from jaxchat.evals.core.result import Judged, TaskResult

    if not path.exists():
        return None
    try:
        record = home.read_json(path)
        if record["key"] != key:
            return None
        judged = tuple(Judged.from_json(one) for one in record["examples"])
        return TaskResult(record["label"], record["baseline"], judged, record["seconds"])
    except (ArtifactError, KeyError, TypeError, ValueError):  # it is only a cache
        return None


def write_dump(path: Path, result: CoreResult) -> None:
    """One JSON object a line: task, index, prediction, gold, losses."""
    with home.atomic_open(path) as file:
        for task in result.tasks:
            for index, one in enumerate(task.judged):
                line = {"task": task.label, "index": index, **one.to_json()}
                file.write(json.dumps(line) + "\n")
