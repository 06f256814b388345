"""`jaxchat data prepare`: tokenizes the text of a run, or of a folder (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat import paths
from jaxchat.cli.args import positive, row_tokens
from jaxchat.data.files.folders import shown
from jaxchat.data.files.text import MAX_RECORD
from jaxchat.errors import ConfigError
from jaxchat.progress import duration
from jaxchat.runs.background import CHILD

if TYPE_CHECKING:
    from jaxchat.data.shards import Prepared

ROW_TOKENS = 2_049


def add_prepare(commands: Any) -> None:
    """Adds prepare to the commands of `jaxchat data`."""
    prepare = commands.add_parser(
        "prepare",
        help="tokenize text to shards of rows; goes on where it stopped",
        description="Tokenizes the text of a run (--run), whose tokenizer is trained, or a folder "
        "of text (--data-dir, --tokenizer, --out).",
    )
    prepare.add_argument("--run", metavar="NAME", help="what the run's stage `rows` would prepare")
    prepare.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="holds .txt, .jsonl and .parquet files, each also with .gz or .zst behind, in "
        "capitals or not; links are followed, each file is read once, and what is left out is "
        "said; the last in the order of their names is held out; of one file alone (or named "
        "itself), its last twentieth. A .txt file is read in pieces; a "
        f"line of .jsonl may have {MAX_RECORD >> 20} MiB",
    )
    prepare.add_argument("--tokenizer", type=Path, metavar="DIR")
    prepare.add_argument("--out", type=Path, metavar="DIR")
    prepare.add_argument(
        "--row-tokens",
        type=row_tokens,
        metavar="N",
        help=f"of a row: the model's sequence length and one (default {ROW_TOKENS})",
    )
    prepare.add_argument(
        "--workers", type=positive, metavar="N", help="at most, and by default, one per core"
    )
    prepare.add_argument("--offline", action="store_true", help="with --run: download nothing")
    prepare.add_argument("--base-url", metavar="URL", help="with --run: see jaxchat data download")
    prepare.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    prepare.set_defaults(run_command=prepare_command)


def prepare_command(args: argparse.Namespace) -> int:
    """Prepares the shards and tells what is in them."""
    if args.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    folder_options = (args.data_dir, args.tokenizer, args.out)
    if (args.run is None) != (None not in folder_options) or (
        args.run is not None and any((*folder_options, args.row_tokens))
    ):
        raise ConfigError(
            "name a run with --run NAME, or a folder of text with --data-dir DIR, --tokenizer DIR "
            "and --out DIR."
        )
    for flag in ("tokenizer", "out"):  # --data-dir may be one file
        paths.check_folder(getattr(args, flag), f"--{flag}")
    print(_of_folder(args) if args.run is None else _of_run(args))
    return 0


def _end_with_stdin() -> None:
    """Ends this process when the one that holds the other end of its standard input has ended.

    At once: what is being written has a temporary name, and is swept up the next time.
    """
    while os.read(0, 1):  # not sys.stdin, whose lock would still be held at the end
        pass
    os._exit(1)


def _of_folder(args: argparse.Namespace) -> str:
    from jaxchat import paths
    from jaxchat.config.machine import cores
    from jaxchat.data import own
    from jaxchat.data.shards import prepare_shards
    from jaxchat.tokenizer import Tokenizer

    tokenizer, row_tokens = Tokenizer.load(args.tokenizer), args.row_tokens or ROW_TOKENS
    folder = own.path_of(args.data_dir)
    inputs = own.text_below(folder, row_tokens, paths.home(args.home), report=True)
    inputs = own.with_held_out(inputs, args.out / "split", row_tokens)
    prepared = prepare_shards(
        inputs, tokenizer, row_tokens, args.out, workers=min(args.workers or cores(), cores())
    )
    return told(prepared, inputs[-1].name, args.out)


def _of_run(args: argparse.Namespace) -> str:
    from jaxchat.config.machine import cores
    from jaxchat.data.download.hub import open_hub
    from jaxchat.data.inputs import read_inputs
    from jaxchat.data.prepare import load_tokenizer
    from jaxchat.data.shards import prepare_text, text_folder
    from jaxchat.runs import run_dir

    root = paths.home(args.home)
    run = run_dir.find(root, args.run)
    inputs, tokenizer = read_inputs(run / "data"), load_tokenizer(run / "tokenizer")
    hub = open_hub(root, base_url=args.base_url, offline=args.offline)
    config = run_dir.read_config(run)
    out = text_folder(run, inputs, tokenizer, config.model.sequence_len + 1)
    prepared = prepare_text(
        config, inputs, tokenizer, out, hub, workers=min(args.workers or cores(), cores())
    )
    return told(prepared, inputs.text[-1].name, out)


def told(prepared: Prepared, held_out: str, out: Path) -> str:
    """What preparing says at its end."""
    there = prepared.shards - prepared.made
    return "\n".join(
        [
            f"training  {prepared.training}",
            f"held out  {prepared.held_out} ({shown(held_out)})",
            f"{prepared.shards:,} shards in {out}, {there:,} of them were there already; "
            f"{duration(prepared.seconds)}",
        ]
    )
