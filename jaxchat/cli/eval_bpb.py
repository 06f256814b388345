"""`jaxchat eval bpb`: bits per byte of a run's model on the run's text (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxchat import paths
from jaxchat.cli.args import positive
from jaxchat.errors import ArtifactError
from jaxchat.parallel.launch_env import start_jax

if TYPE_CHECKING:
    from jaxchat.evals.bpb import TextSplit
    from jaxchat.runs.opening import Opened

SPLITS: tuple[TextSplit, ...] = ("train", "heldout")
ROWS = 1_024


def add_bpb(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Adds bpb to the commands of `jaxchat eval`; `parents` hold the common arguments."""
    bpb = commands.add_parser(
        "bpb",
        parents=list(parents),
        help="bits per byte of text",
        description="Measures bits per byte on the text that the run trained on, and on the shard "
        "that it held out. They do not depend on the tokenizer.",
    )
    bpb.add_argument("--run", metavar="NAME", help="name of the run (default: the last)")
    bpb.add_argument("--stage", choices=("base", "mid", "sft", "rl"), default="base")
    bpb.add_argument("--split", choices=SPLITS, help="default: both")
    bpb.add_argument(
        "--rows",
        type=positive,
        metavar="N",
        help=f"of each split (default: what eval.text_tokens says, else {ROWS:,})",
    )
    bpb.set_defaults(run_command=bpb_command)


def bpb_command(args: argparse.Namespace) -> int:
    """Measures, and prints a line a split."""
    from jaxchat.config.schema import MeshConfig
    from jaxchat.runs import run_dir

    root = paths.home(getattr(args, "home", None))
    run_dir.find(root, args.run, (args.stage,))  # says what is missing, before JAX starts
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.runs.opening import open_model

    opened = open_model(root, args.run, args.stage)
    model, settings = opened.config.model, opened.config.eval
    limit = args.rows or -(-settings.text_tokens // model.sequence_len) or ROWS
    measured = {}
    for split in SPLITS if args.split is None else (args.split,):
        bits, rows = measure(opened, split, limit)
        tokens = rows * model.sequence_len
        print(f"{split:<8} {bits:.4f} bits per byte over {rows:,} rows, {tokens:,} tokens")
        measured[split] = {"bits_per_byte": bits, "rows": rows}
    path = opened.run / "eval" / f"bpb-{opened.stage}.json"
    kept = paths.read_json(path) if path.exists() else {}
    if kept.get("model") != opened.digest:
        kept = {"model": opened.digest}
    paths.write_json(path, kept | measured)
    return 0


def measure(opened: Opened, split: TextSplit, limit: int) -> tuple[float, int]:
    """Bits per byte over the first `limit` rows of a split, or all; and how many there were.

    Raises ArtifactError when there are none.
    """
    from jaxchat.data.inputs import read_inputs
    from jaxchat.data.text_rows import text_folder
    from jaxchat.evals.bpb import TextRows, bits_of_text

    model, tokenizer = opened.config.model, opened.tokenizer
    read = read_inputs(opened.run / "data")
    folder = text_folder(opened.run, read, tokenizer, model.sequence_len + 1)
    if not folder.exists():
        raise ArtifactError(
            f"the run in {opened.run} has no rows of text in {folder}; make them with: jaxchat "
            f"data prepare --run {opened.run.name}"
        )
    rows = TextRows(folder, tokenizer.hash, split, opened.config.seed)
    count = min(limit, len(rows))
    bits = bits_of_text(
        opened.params, rows, count, token_bytes=tokenizer.token_bytes, model=model,
        compute=opened.compute, mesh=opened.mesh, title=f"{opened.stage} on {split}",
    )  # fmt: skip
    return bits, count
