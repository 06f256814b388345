"""`jaxchat eval`: measures the models of a run (layer 5).

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxchat.cli import eval_bpb, eval_core
from jaxchat.cli.args import positive, seed, temperature
from jaxchat.config.schema import GENERATED_PROBLEMS
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.paths import home, read_json, sha256_file, sha256_text, write_json
from jaxchat.runs import run_dir

if TYPE_CHECKING:
    from jaxchat.runs.runner import Context
    from jaxchat.tasks import Task

TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "counting")
FORMAT = "jaxchat-chat-eval-2"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds core, bpb, chat and samples to the parser of `jaxchat eval`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    eval_core.add_core(commands)
    eval_bpb.add_bpb(commands)
    chat = commands.add_parser(
        "chat",
        help="ChatCORE's tasks and counting, or others; what is finished is not done again",
        description="Evaluates a model on tasks. What is finished is kept and not done again. The "
        "run's next report (jaxchat report) has it where that is more problems than the run's own "
        "evaluation took, greedily and at no fewer tokens.",
    )
    _add_model(chat, ("mid", "sft", "rl"))
    chat.add_argument(
        "-a", "--task", action="append", metavar="TASK", help=f"default: {', '.join(TASKS)}"
    )
    chat.add_argument("--max-problems", type=positive, metavar="N", help="of a task; default: all")
    chat.add_argument("--samples", type=positive, default=1, metavar="N", help="a problem (1)")
    chat.add_argument(
        "--temperature", type=temperature, metavar="T", help="default: 0, with several samples 1"
    )
    chat.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="said (512)")
    chat.add_argument(
        "--slots", type=positive, default=64, metavar="N", help="decoded at once (64)"
    )
    chat.add_argument("--seed", type=seed, default=0)
    chat.add_argument(
        "--unsafe-exec",
        action="store_true",
        help="run the model's programs even where they cannot be locked in",
    )
    chat.add_argument("--force", action="store_true", help="do again what is finished")
    chat.set_defaults(run_command=chat_command)
    samples = commands.add_parser("samples", help="what a model says to a few prompts")
    _add_model(samples, ("base", "mid", "sft", "rl"))
    samples.set_defaults(run_command=samples_command)


def _add_model(parser: argparse.ArgumentParser, stages: Sequence[str]) -> None:
    parser.add_argument("--run", metavar="NAME", help="default: the last")
    parser.add_argument("-i", "--stage", choices=stages, help="default: the last complete")


def _open(args: argparse.Namespace, among: Sequence[str]) -> tuple[Context, str]:
    root = home(args.home)
    run = run_dir.find(root, args.run, (args.stage,) if args.stage else among)
    config = run_dir.read_config(run)  # says what is missing, before JAX starts
    start_jax(config.mesh, root / "xla")
    from jaxchat.runs.opening import find_model

    return find_model(root, args.run, args.stage, among)


def samples_command(args: argparse.Namespace) -> int:
    """Prints samples of a model."""
    context, stage = _open(args, ("rl", "sft", "mid", "base"))
    from jaxchat.evals.chat import COMPLETIONS, QUESTIONS, chat_samples, text_samples
    from jaxchat.runs.inputs import tokenizer_of
    from jaxchat.runs.opening import load_model, make_engine

    engine = make_engine(context, load_model(context.root, stage, context.config.model))
    tokenizer = tokenizer_of(context)
    if stage == "base":
        told = text_samples(engine, tokenizer, COMPLETIONS)
    else:
        told = chat_samples(engine, tokenizer, QUESTIONS)
    for sample in told:
        print("\n".join(f"{name}: {text}" for name, text in sample.items()) + "\n")
    return 0


def chat_command(args: argparse.Namespace) -> int:
    """Evaluates the tasks, one after the other, and prints a table."""
    context, stage = _open(args, ("rl", "sft", "mid"))
    from jaxchat.evals.scores import chatcore, chatcore_counting

    names = list(dict.fromkeys(map(task_name, args.task or TASKS)))
    tasks = find_tasks(context, names)
    results = evaluate(context, stage, tasks, args)
    print(table(results))
    accuracies = {name: result["accuracy"] for name, result in results.items()}
    means = {
        "ChatCORE": chatcore(accuracies),
        "ChatCORE + counting": chatcore_counting(accuracies),
    }
    if told := [f"{name} {mean:.4f}" for name, mean in means.items() if mean is not None]:
        print("\n" + ", ".join(told))
    return 0


def task_name(given: str) -> str:
    """A task's name as it is written here: `GSM8K` is gsm8k, `ARC-Easy` arc_easy."""
    return given.lower().replace("-", "_")


class Asked(NamedTuple):
    """A task, and what its problems depend on."""

    task: Task
    data: tuple[object, ...]


def find_tasks(context: Context, names: Sequence[str]) -> dict[str, Asked]:
    """Tasks by name: of the run's datasets, of what was downloaded, or generated.

    Raises ConfigError for a name that is none, ArtifactError for what has not been downloaded.
    """
    from jaxchat.data import inputs, prepare, registry
    from jaxchat.runs.inputs import hub_of, tokenizer_of
    from jaxchat.tasks import TASKS as GENERATED

    read = inputs.read_inputs(context.folder("data"))
    chats = [name for name, source in registry.SOURCES.items() if source.kind == "chat"]
    unknown = [name for name in names if name not in (*chats, *GENERATED)]
    if unknown:
        raise ConfigError(
            f"there is no task {unknown[0]!r}; there are {', '.join((*chats, *GENERATED))}."
        )
    own = [name for name in names if name in read.chat or name in GENERATED]
    tasks = prepare.run_tasks(own, context.config.seed, read, tokenizer_of(context))
    hub = hub_of(context, offline=True)
    found = dict[str, Asked]()
    for name in names:
        if name in tasks:
            data = inputs.data_of(name, read, context.config.seed)
            found[name] = Asked(tasks[name], data)
        else:
            splits = inputs.downloaded(name, hub)
            data = tuple(sha256_file(path) for paths in splits.values() for path in paths)
            found[name] = Asked(prepare.open_task(name, splits, "-a"), data)
    return found


def evaluate(
    context: Context, stage: str, tasks: Mapping[str, Asked], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Task -> result. Each is kept in the run's folder `eval` as soon as it is there.

    A file is of one set of options: others take nothing of it away.
    """
    from jaxchat.evals import humaneval
    from jaxchat.evals.chat import Sampling, by_letters, evaluate_task
    from jaxchat.runs.inputs import tokenizer_of
    from jaxchat.runs.opening import load_model, make_engine
    from jaxchat.runs.report.by_hand import chat_file
    from jaxchat.tasks.dataset import FixedTask

    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.samples == 1 else 1.0
    sampling = Sampling(args.max_tokens, args.samples, temperature, args.seed)
    judge = humaneval.judge(args.unsafe_exec) if "humaneval" in tasks else None
    weights = str(context.done[stage]["results"]["artifact"])
    tokenizer = tokenizer_of(context)
    results: dict[str, dict[str, Any]] = {}
    engine = None
    for name, (task, data) in tasks.items():
        limit = args.max_problems or (0 if isinstance(task, FixedTask) else GENERATED_PROBLEMS)
        key = sha256_text(
            FORMAT, weights, tokenizer.hash, name, repr(sampling), str(limit), *map(str, data)
        )
        path = chat_file(context.root, stage, name, key)
        kept = _kept(path, key)
        if kept is None or args.force:
            if engine is None:
                params = load_model(context.root, stage, context.config.model)
                engine = make_engine(context, params, slots=args.slots)
            result = evaluate_task(
                engine, tokenizer, task, problems=limit, sampling=sampling,
                title=f"{name}, {stage}", judge=judge,
            )  # fmt: skip
            kept = result.to_json()
            greedy = sampling.samples == 1 and sampling.temperature == 0
            length = None if by_letters(task) else sampling.max_tokens  # a letter has none
            told = {"weights": weights, "task": name, "greedy": greedy, "max_tokens": length}
            write_json(path, {"format": FORMAT, "key": key, **told, "result": kept})
        results[name] = kept
    return results


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    """What an evaluation kept; a damaged file is no loss."""
    try:
        record = read_json(path)
        result: dict[str, Any] = record["result"]
        return result if record["key"] == key else None
    except (ArtifactError, KeyError, TypeError):
        return None


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a task: problems, accuracy with its interval, centred, pass@k."""
    from jaxchat.evals.scores import centred
    from jaxchat.runs.tables import table as aligned

    ks = [key for result in results.values() for key in result if key.startswith("pass@")]
    heads = list(dict.fromkeys(ks))
    rows = [("task", "samples", "accuracy", "95% interval", "centred", *heads)]
    for name, result in results.items():
        low, high = result["interval"]
        rows.append(
            (
                name,
                f"{result['total']:,}",
                f"{result['accuracy']:.2%}",
                f"[{low:.1%}, {high:.1%}]",
                f"{centred(name, result['accuracy']):.4f}",
                *(f"{result[head]:.2%}" if head in result else "-" for head in heads),
            )
        )
    return "\n".join(aligned(rows))
