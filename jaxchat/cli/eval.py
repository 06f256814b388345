"""`jaxchat eval`: CORE, bits per byte, chat tasks and samples of a run's models.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxchat import paths
from jaxchat.cli.args import Parser, add_model, positive, seed, temperature
from jaxchat.config.schema import CHAT_STAGES, GENERATED_PROBLEMS, MODELS, NOWHERE, MeshConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.paths import sha256_file, sha256_text, write_json
from jaxchat.runs import run_dir

if TYPE_CHECKING:
    from jaxchat.evals.bpb import TextSplit
    from jaxchat.evals.core.result import CoreResult
    from jaxchat.runs.runner import Context
    from jaxchat.tasks import Task

TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "counting")
FORMAT = "jaxchat-chat-eval-2"
SPLITS: tuple[TextSplit, ...] = ("train", "heldout")
ROWS = 1_024


def add_commands(parser: Parser) -> None:
    """Adds core, bpb, chat and samples to the parser of `jaxchat eval`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    core = commands.add_parser(
        "core",
        help="CORE: 22 tasks of DCLM",
        description="Evaluates a model on CORE's tasks. Finished tasks are saved: the same command "
        "resumes. The run's next report (jaxchat report, or the run's own) has the result.",
    )
    add_model(core, MODELS, "base")
    core.option("--bundle", Path, "DIR", "with core.yaml (default HOME/eval_bundle)")
    fetch = "fetch nanochat's eval_bundle.zip to HOME/eval_bundle first"
    core.option("--download", str, "URL", fetch, nargs="?", const="")
    core.option("-a --task", str, "TASK", "only this; may be given again", action="append")
    core.option("--max-problems", positive, "N", "of each task")
    core.option(
        "--context", positive, "N",
        "tokens of a prompt, of which the last are used (default: the model's); beyond the "
        "training length, a modern model sees what its windows let it, as in nanochat",
    )  # fmt: skip
    core.option("--dump", Path, "FILE", "write every example, a line each")
    core.set_defaults(run_command=core_command)
    bpb = commands.add_parser(
        "bpb",
        help="bits per byte of text",
        description="Measures bits per byte on the text that the run trained on, and on the shard "
        "that it held out; or on all documents of a file. They do not depend on the tokenizer.",
    )
    add_model(bpb, MODELS, "base")
    bpb.option("--split", text="default: both", choices=SPLITS)
    rows = f"of each split (default: what eval.text_tokens says, else {ROWS:,})"
    bpb.option("--rows", positive, "N", rows)
    bpb.option("--text", Path, "FILE", "instead: all of a text, JSON lines or Parquet file")
    bpb.set_defaults(run_command=bpb_command)
    chat = commands.add_parser(
        "chat",
        help="ChatCORE's tasks and counting, or others; finished ones are skipped",
        description="Evaluates a model on tasks. Results are saved, and finished tasks skipped. "
        "The run's next report (jaxchat report) has a result of more problems than the run's own "
        "evaluation took, greedy and at no fewer tokens.",
    )
    add_model(chat, CHAT_STAGES[::-1])
    chat.option("-a --task", str, "TASK", f"default: {', '.join(TASKS)}", action="append")
    chat.option("--max-problems", positive, "N", "of a task; default: all")
    chat.option("--samples", positive, "N", "a problem (1)", 1)
    chat.option("--temperature", temperature, "T", "default: 0, with several samples 1")
    chat.option("--max-tokens", positive, "N", "generated (512)", 512)
    chat.option("--slots", positive, "N", "decoded at once (64)", 64)
    chat.option("--seed", seed, default=0)
    unsafe = "run the model's programs even where they cannot be sandboxed"
    chat.switch("--unsafe-exec", unsafe)
    chat.switch("--force", "repeat finished tasks")
    chat.set_defaults(run_command=chat_command)
    samples = commands.add_parser("samples", help="answers of a model to a few prompts")
    add_model(samples, MODELS)
    samples.set_defaults(run_command=samples_command)


def _open(
    args: argparse.Namespace, among: Sequence[str], mesh: MeshConfig | None = None
) -> tuple[Context, str]:
    root = paths.home(args.home)
    run = run_dir.find(root, args.run, (args.stage,) if args.stage else among)
    config = run_dir.read_config(run)  # says what is missing, before JAX starts
    start_jax(mesh or config.mesh, root / "xla")
    from jaxchat.runs.opening import find_model

    return find_model(root, args.run, args.stage, among)


def samples_command(args: argparse.Namespace) -> int:
    """Prints samples of a model."""
    context, stage = _open(args, MODELS[::-1])
    from jaxchat.evals.chat import sampler
    from jaxchat.runs.opening import load_model, make_engine
    from jaxchat.runs.run_tokenizer import tokenizer_of

    engine = make_engine(context, load_model(context.root, stage, context.config.model))
    ask, prompts = sampler(stage)
    for sample in ask(engine, tokenizer_of(context), prompts):
        print("\n".join(f"{name}: {text}" for name, text in sample.items()) + "\n")
    return 0


def chat_command(args: argparse.Namespace) -> int:
    """Evaluates the tasks, one after the other, and prints a table."""
    context, stage = _open(args, CHAT_STAGES)
    from jaxchat.evals.scores import chatcore, chatcore_counting

    given = (name.lower().replace("-", "_") for name in args.task or TASKS)  # GSM8K, ARC-Easy
    names = list(dict.fromkeys(given))
    tasks = find_tasks(context, names)
    results = evaluate(context, stage, tasks, args)
    print(table(results))
    accuracies = {name: result["accuracy"] for name, result in results.items()}
    means = {
        "ChatCORE": chatcore(accuracies),
        "ChatCORE + counting": chatcore_counting(accuracies),
    }
    if shown := [f"{name} {mean:.4f}" for name, mean in means.items() if mean is not None]:
        print("\n" + ", ".join(shown))
    return 0


# A task, and the hashes or settings that decide its problems
TaskData: TypeAlias = "tuple[Task, tuple[object, ...]]"


def find_tasks(context: Context, names: Sequence[str]) -> dict[str, TaskData]:
    """Tasks by name: of the run's datasets, of what was downloaded, or generated.

    Raises ConfigError for a name that is none, ArtifactError for what has not been downloaded.
    """
    from jaxchat.data import inputs, prepare, registry
    from jaxchat.runs.inputs import hub_of
    from jaxchat.runs.run_tokenizer import tokenizer_of
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
    found = dict[str, TaskData]()
    for name in names:
        if name in tasks:
            found[name] = tasks[name], inputs.data_of(name, read, context.config.seed)
        else:
            splits = inputs.downloaded(name, hub)
            data = tuple(sha256_file(path) for paths in splits.values() for path in paths)
            found[name] = prepare.open_task(name, splits, "-a"), data
    return found


def evaluate(
    context: Context, stage: str, tasks: Mapping[str, TaskData], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Task -> result. Each is saved in the run's folder `eval` as soon as it is complete.

    A file holds the result of one set of options: others do not replace it.
    """
    from jaxchat.evals import humaneval
    from jaxchat.evals.chat import Sampling, by_letters, evaluate_task
    from jaxchat.evals.saved import keyed_file, read_record
    from jaxchat.runs.opening import load_model, make_engine
    from jaxchat.runs.run_tokenizer import tokenizer_of
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
        path = keyed_file(context.root / "eval", f"chat-{stage}-{name}", key)
        saved = read_record(path, "key", "result")
        if saved is None or saved["key"] != key or args.force:
            if engine is None:
                params = load_model(context.root, stage, context.config.model)
                engine = make_engine(context, params, slots=args.slots)
            result = evaluate_task(
                engine, tokenizer, task, problems=limit, sampling=sampling,
                title=f"{name}, {stage}", judge=judge,
            )  # fmt: skip
            greedy = sampling.samples == 1 and sampling.temperature == 0
            length = None if by_letters(task) else sampling.max_tokens  # a letter has none
            options = {"weights": weights, "task": name, "greedy": greedy, "max_tokens": length}
            saved = {"format": FORMAT, "key": key, **options, "result": result.to_json()}
            write_json(path, saved)
        results[name] = saved["result"]
    return results


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


def core_command(args: argparse.Namespace) -> int:
    """Evaluates, and prints the table."""
    from jaxchat.data.download import eval_bundle
    from jaxchat.evals.core.bundle import read_bundle

    root = paths.home(args.home)
    paths.check_folder(args.bundle, "--bundle")
    if args.download is not None and args.bundle is not None:
        raise ConfigError("--download fills HOME/eval_bundle; leave --bundle away.")
    run = run_dir.find(root, args.run, (args.stage,))  # reports what is missing before fetching
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
    from jaxchat.runs.opening import eval_model, find_model

    context, stage = find_model(root, args.run, args.stage, MODELS)
    run = context.root
    result, path = evaluate_saved(
        core_folder(run, stage), eval_model(context, stage), bundle, tasks=args.task,
        max_problems=args.max_problems, context=args.context,
        widen=context.config.preset == "classic", title=stage,
    )  # fmt: skip
    print(f"run {run.name}, stage {stage}, bundle {folder}\n\n{core_table(result)}")
    if args.dump is not None:
        write_dump(args.dump, result)
        print(f"\nevery example: {args.dump}")
    print(f"\n{path}")
    return 0


def core_table(result: CoreResult) -> str:
    """The tasks, a line each, and CORE."""
    from jaxchat.runs.tables import table as aligned

    rows = [("task", "accuracy", "95% interval", "centred")]
    for task in result.tasks:
        low, high = task.score.interval
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        rows.append((task.label, f"{task.score.accuracy:.1%}", interval, f"{task.centered:.4f}"))
    lines = aligned([*rows, (result.name, "", "", f"{result.core:.4f}")])
    if result.missing:
        lines.append(f"without data in the bundle: {', '.join(result.missing)}")
    return "\n".join(lines)


def write_dump(path: Path, result: CoreResult) -> None:
    """One JSON object a line: task, index, prediction, gold, losses."""
    with paths.atomic_open(path) as file:
        for task in result.tasks:
            for index, one in enumerate(task.judged):
                line = {"task": task.label, "index": index, **one.to_json()}
                file.write(json.dumps(line) + "\n")


def bpb_command(args: argparse.Namespace) -> int:
    """Measures bits per byte, and prints a line a split, or one of a file."""
    if args.text is not None:
        return _bpb_of_file(args)
    context, stage = _open(args, MODELS, MeshConfig())
    from jaxchat.evals.bpb import TextRows, bits_of_text
    from jaxchat.runs.inputs import text_folder
    from jaxchat.runs.opening import eval_model

    config, run, length = context.config, context.root, context.config.model.sequence_len
    folder = text_folder(context)
    if not folder.exists():
        raise ArtifactError(
            f"the run in {run} has no rows of text in {folder}; make them with: jaxchat data "
            f"prepare --run {run.name}"
        )
    model = eval_model(context, stage)
    limit = args.rows or -(-config.eval.text_tokens // length) or ROWS
    measured = {}
    for split in SPLITS if args.split is None else (args.split,):
        rows = TextRows(folder, model.tokenizer.hash, split, config.seed)
        count = min(limit, len(rows))
        bits = bits_of_text(model, rows, count, f"{stage} on {split}")
        print(f"{split:<8} {bits:.4f} bits per byte over {count:,} rows, {count * length:,} tokens")
        measured[split] = {"bits_per_byte": bits, "rows": count}
    path = run / "eval" / f"bpb-{stage}.json"
    saved = paths.read_json(path) if path.exists() else {}
    if saved.get("model") != model.digest:
        saved = {"model": model.digest}
    paths.write_json(path, saved | measured)
    return 0


def _bpb_of_file(args: argparse.Namespace) -> int:
    """Measures bits per byte of a file's documents, every byte once, and prints a line."""
    if args.split is not None or args.rows is not None:
        raise ConfigError("--text measures all of a file; leave --split and --rows away.")
    from jaxchat.data.files.textfiles import TextFiles

    documents = [text for text in TextFiles([str(args.text)]) if text]
    if not documents:
        raise ConfigError(f"{args.text} holds no text to measure; name another file.")
    context, stage = _open(args, MODELS, MeshConfig())
    from jaxchat.evals.documents import bits_of_documents
    from jaxchat.runs.opening import eval_model

    found = bits_of_documents(eval_model(context, stage), documents, f"{stage} on {args.text}")
    print(
        f"{args.text} {found.bits_per_byte:.4f} bits per byte over {found.bytes:,} bytes, "
        f"{found.tokens:,} tokens"
    )
    return 0
