"""`jaxchat data prepare`: tokenizes a folder of the user's own text (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat.progress import duration

if TYPE_CHECKING:
    from jaxchat.data.shards import Prepared, ShardInput

ROW_TOKENS = 2_049


def add_prepare(commands: Any) -> None:
    """Adds prepare to the commands of `jaxchat data`."""
    prepare = commands.add_parser("prepare", help="tokenize a folder of text to shards of rows")
    prepare.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet files; the last in the order "
        "of their names is held out",
    )
    prepare.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR")
    prepare.add_argument(
        "--row-tokens",
        type=_at_least(2),
        default=ROW_TOKENS,
        metavar="N",
        help=f"of a row: the model's sequence length and one (default {ROW_TOKENS})",
    )
    prepare.add_argument(
        "--workers", type=_at_least(1), metavar="N", help="default: one per core, at most 8"
    )
    prepare.set_defaults(run_command=prepare_command)


def _at_least(least: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return parse


def prepare_command(args: argparse.Namespace) -> int:
    """Prepares the shards and tells what is in them."""
    from jaxchat.data.shards import MOST_WORKERS, local_inputs, prepare_shards
    from jaxchat.machine import cores
    from jaxchat.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    inputs = local_inputs(args.data_dir, args.row_tokens)
    workers = args.workers or min(cores(), MOST_WORKERS)
    prepared = prepare_shards(inputs, tokenizer, args.row_tokens, args.out, workers=workers)
    print(told(prepared, inputs, args.out))
    return 0


def told(prepared: Prepared, inputs: list[ShardInput], out: Path) -> str:
    """What preparing says at its end."""
    there = prepared.shards - prepared.made
    return "\n".join(
        [
            f"training  {prepared.training}",
            f"held out  {prepared.held_out} ({inputs[-1].name})",
            f"{prepared.shards:,} shards in {out}, {there:,} of them were there already; "
            f"{duration(prepared.seconds)}",
        ]
    )
