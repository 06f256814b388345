"""`jaxchat export` and `jaxchat import`: models for others, and models of others.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jaxchat import paths
from jaxchat.cli.args import Parser, whole
from jaxchat.config.schema import MODELS, MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs import run_dir

FORMATS = ("hf", "mlx", "jaxchat")
DTYPES = ("float32", "bfloat16")


def add_export(parser: Parser) -> None:
    """The options of `jaxchat export`."""
    parser.description = (
        "Writes the model of a stage, its tokenizer and a model card into a folder. `hf` is the "
        "layout of transformers' NanoChatForCausalLM, which holds classic models; `mlx` is that "
        "for mlx-lm; `jaxchat` holds every one, with the configuration of its run."
    )
    parser.add_argument("run", metavar="RUN", help="name of the run")
    parser.add_argument("stage", metavar="STAGE", choices=MODELS, help=", ".join(MODELS))
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    parser.option("--format", text="default: hf", default="hf", choices=FORMATS)
    dtype = "of the weights, with hf or mlx; bfloat16 rounds (float32)"
    parser.option("--dtype", text=dtype, choices=DTYPES)
    parser.option("--license", str, "ID", "of the weights, for the card", "")
    parser.switch("--force", "replace an export that is there")
    parser.set_defaults(run_command=export_command)


def add_import(parser: Parser) -> None:
    """The options of `jaxchat import`."""
    parser.description = (
        "Makes a run of a model: from a folder that jaxchat or transformers wrote, from nanochat's "
        "checkpoints, or from the hub. Nothing in it is executed. Train on from it with "
        "run_speedrun.py --set run.name=NAME."
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder, or OWNER/NAME of a model on the hub"
    )
    parser.option("--name", text="of the new run (default: that of the folder or model)")
    place = (
        "the place it takes; training continues with the next one (default: what its files say, "
        "else sft)"
    )
    parser.option("--stage", text=place, choices=MODELS)
    parser.option("--tokenizer", Path, "DIR", "where its tokenizer is (default: beside it)")
    parser.option("--step", whole, "N", "of nanochat's checkpoints; the last")
    parser.option("--revision", str, "REV", "on the hub (main)", "main")
    parser.switch("--offline", "only what was downloaded before")
    parser.switch("--refresh", "ask the hub for its files again")
    parser.set_defaults(run_command=import_command)


def export_command(args: argparse.Namespace) -> int:
    """Exports, and prints where to."""
    root = paths.home(args.home)
    run_dir.find(root, args.run)  # reports what is missing before JAX starts
    if not re.fullmatch(r"[\w.-]*", args.license):
        raise ConfigError(f"--license is {args.license!r}; it must be an identifier, such as mit.")
    if args.dtype and args.format == "jaxchat":
        raise ConfigError("--dtype is of --format hf and mlx; the format jaxchat is always exact.")
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.runs import export_run

    size = export_run.export_model(
        root, args.run, args.stage, args.folder.absolute(), kind=args.format,
        dtype=args.dtype or DTYPES[0], licence=args.license, force=args.force,
    )  # fmt: skip
    print(f"{args.folder}: stage {args.stage} of the run {args.run}, {size / 1e6:,.1f} MB")
    return 0


def import_command(args: argparse.Namespace) -> int:
    """Imports, and prints how to talk to it."""
    root = paths.home(args.home)
    source = Path(args.source)
    on_hub = not source.is_dir()
    if on_hub and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", args.source):
        raise ConfigError(
            f"{args.source} is neither a folder nor the name of a model on the hub, OWNER/NAME."
        )
    name = args.name or re.sub(r"[^\w.-]", "-", source.absolute().name).lstrip(".-")
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.config.derive import count_params
    from jaxchat.runs import import_run

    import_run.check_name(root, name)  # before anything is read
    origin = str(source.absolute())
    if on_hub:
        options = {"step": args.step, "offline": args.offline, "refresh": args.refresh}
        source, origin = import_run.fetch_model(root, args.source, args.revision, **options)
    found = import_run.read_model(source, args.step, args.tokenizer)
    stage = args.stage or found.stage or import_run.DEFAULT_STAGE
    config = import_run.make_run(root, name, found, stage, origin)
    size = count_params(config.model)["total"]
    print(f"{origin} ({found.format}): {size:,} parameters, now stage {stage} of the run {name}")
    for note in found.notes:
        print(f"Note: {note}")
    command = "eval samples" if stage == "base" else "chat"
    print(f"Try it: jaxchat {command} --run {name}")
    return 0
