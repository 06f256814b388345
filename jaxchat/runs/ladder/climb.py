"""Trains the rungs of a ladder, each an ordinary run, and measures their ends on one text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxchat.config.derive import count_params, flops_per_token
from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.records import write_texts
from jaxchat.data.shard_folder import training_tokens
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.launch_env import read_spec
from jaxchat.parallel.process_group import ALONE
from jaxchat.paths import atomic_folder, read_json, sha256_text, sweep, write_json
from jaxchat.progress import duration
from jaxchat.runs import processes, provenance, run_dir, runner
from jaxchat.runs.inputs import text_folder
from jaxchat.runs.ladder import recipe as recipes
from jaxchat.runs.ladder import results
from jaxchat.runs.ladder.recipe import Recipe
from jaxchat.runs.ladder.share import take_over
from jaxchat.runs.plan.plan import make_plan
from jaxchat.runs.report.curves import read_curves
from jaxchat.runs.stages import STAGES

TEXT = "text"  # the folder of the text


def climb(root: Path, recipe: Recipe, network: runner.Network) -> Path:
    """Trains and measures what is missing of a ladder; its folder. The same call resumes.

    Raises ConfigError for another recipe than it was begun with, and BusyError where another
    process works on it.
    """
    if read_spec() is not None:
        raise ConfigError(
            "JAXCHAT_PROCESSES is set; a ladder runs in one process, on all devices of its machine."
        )
    place, configs = recipes.folder(root, recipe.name), recipe.configs()
    with run_dir.locked(place, "ladder", "or give this ladder another name"):
        sweep(place)
        sweep(place / results.RUNGS)
        recipes.freeze(root, recipe, _text_asked(place, recipe))
        processes.start_jax(configs[0], root, ALONE)
        for number, config in enumerate(configs, 1):
            saved = results.read_rung(place, config.name)
            label = f"[rung {number}/{len(configs)}] {config.name}"
            if saved is not None and _is_current(root, config, saved):
                print(f"{label}: complete, skipped", flush=True)
                continue
            left = seconds_left(place, configs)
            print(f"{label}: depth {config.depth}, seed {config.seed}; about {duration(left)} left "
                  "in all", flush=True)  # fmt: skip
            _make_rung(root, place, recipe, config, network)
    return place


def seconds_left(place: Path, configs: Sequence[RunConfig]) -> float:
    """Training time of the rungs that are missing.

    As long as those of their depth have taken; else as planned, by the ratio to plan of the time
    that steps took at the deepest depth that is complete.
    """
    planned = {config.depth: make_plan(config).stages[0].seconds for config in configs}
    saved = [results.read_rung(place, config.name) for config in configs]
    done = {run["depth"]: run for run in saved if run is not None}
    missing = [c.depth for c, run in zip(configs, saved, strict=True) if run is None]
    ratio = 1.0
    if done:
        deepest = done[max(done)]
        ratio = deepest["tokens"] / deepest["tokens_per_second"] / planned[deepest["depth"]]
    return sum(done[d]["seconds"] if d in done else ratio * planned[d] for d in missing)


def _is_current(root: Path, config: RunConfig, saved: dict[str, Any]) -> bool:
    """Whether a rung's record is of its run's weights, if the run is still there."""
    base = runner.read_done(run_dir.folder(root, config.name), "base")
    return base is None or base["results"]["artifact"] == saved["weights"]


def _make_rung(
    root: Path, place: Path, recipe: Recipe, config: RunConfig, network: runner.Network
) -> None:
    """Runs the stages of a rung, and measures its base model."""
    run = run_dir.folder(root, config.name)
    with processes.working_on(run, config, ALONE), processes.mirrored(run, config, ALONE):
        names = [recipe.run_name(*rung) for rung in recipe.rungs]
        others = [run_dir.folder(root, name) for name in names if name != config.name]
        if taken := take_over(run, config, others):
            print(f"taken over from another rung: {', '.join(taken)}", flush=True)
        with runner.Context(config, run, network=network) as context:
            runner.run_stages(STAGES, context, only=recipes.STAGES)
            documents = _text(place, recipe, context)
            write_json(results.rung_file(place, config.name), _measured(context, documents))


def _measured(context: runner.Context, documents: Sequence[str]) -> dict[str, Any]:
    """The record of a rung, from its run's records and the measurement of its weights."""
    from jaxchat.evals.documents import bits_of_documents
    from jaxchat.runs.opening import eval_model

    config, base = context.config, context.done["base"]
    found = bits_of_documents(eval_model(context, "base"), documents, f"measuring {config.name}")
    tokens = base["results"]["tokens"]
    text = training_tokens(text_folder(context))
    environment = provenance.describe()
    print(f"{config.name}: {found.bits_per_byte:.4f} bits per byte", flush=True)
    return {
        "format": results.FORMAT,
        "run": config.name,
        "depth": config.depth,
        "seed": config.seed,
        "parameters": count_params(config.model)["total"],
        "steps": base["results"]["steps"],
        "tokens": tokens,
        "passes": tokens / text
        if text
        else None,  # over the run's text; None: not all of it was prepared
        "flops": flops_per_token(config.model) * tokens,
        "seconds": base["seconds"],
        "tokens_per_second": _rate(context.root, config) or tokens / base["seconds"],
        "bits_per_byte": found.bits_per_byte,
        "text": {"sha256": _hash(documents), "bytes": found.bytes, "tokens": found.tokens},
        "weights": base["results"]["artifact"],
        "devices": environment["devices"],
        "processor": environment["processor"],
        "packages": environment["packages"],
        "git": provenance.git_state(),
    }


def _rate(run: Path, config: RunConfig) -> float | None:
    """The median of tokens a second between steps, whatever else took time; None: not known."""
    curve = read_curves(run, config, ["base"]).get("base")
    rates = curve["speed"]["tokens_per_second"] if curve else []
    return statistics.median(rates) if rates else None


def _text_asked(place: Path, recipe: Recipe) -> dict[str, Any]:
    """What the record says of the text; a file of the user's is copied, so that it stays."""
    if not recipe.text:
        return {"held_out_bytes": recipe.text_bytes}
    documents = [text for text in TextFiles([recipe.text]) if text]
    if not documents:
        raise ConfigError(f"{recipe.text} holds no text to measure; name another file with --text.")
    if not (place / recipes.RECORD).exists():
        _write_text(place, documents)
    return {"sha256": _hash(documents)}


def _text(place: Path, recipe: Recipe, context: runner.Context) -> list[str]:
    """The documents that all rungs are measured on; the first rung's held-out text, if none."""
    if not (place / TEXT).exists():
        read = inputs.read_inputs(context.folder("data"))
        documents, size = list[str](), 0
        for text in inputs.read_texts(read, recipe.text_bytes, held_out=True):
            documents.append(text)
            size += len(text.encode())
            if size >= recipe.text_bytes:
                break
        _write_text(place, documents)
    documents = list(TextFiles.of([place / TEXT / "text.jsonl"]))
    if _hash(documents) != read_json(place / TEXT / "text.json")["sha256"]:
        raise ArtifactError(
            f"{place / TEXT} is not what the ladder began with; begin another one under a new name."
        )
    return documents


def _write_text(place: Path, documents: Sequence[str]) -> None:
    with atomic_folder(place / TEXT) as made:
        write_texts([made / "text.jsonl"], ((0, {"text": text}) for text in documents))
        size = sum(len(text.encode()) for text in documents)
        record = {"documents": len(documents), "bytes": size, "sha256": _hash(documents)}
        write_json(made / "text.json", record)


def _hash(documents: Sequence[str]) -> str:
    return sha256_text(*documents)
