"""`jaxchat data`: lists, downloads, tokenizes and shows datasets.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import os
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchat import paths
from jaxchat.cli import data_show
from jaxchat.cli.args import Parser, add_hub, at_once, positive, row_tokens
from jaxchat.data.files.folders import shown
from jaxchat.data.files.text import MAX_RECORD
from jaxchat.errors import ConfigError
from jaxchat.progress import duration
from jaxchat.runs import tables
from jaxchat.runs.background import CHILD

if TYPE_CHECKING:
    from jaxchat.data.download.hub import Hub
    from jaxchat.data.registry import Source
    from jaxchat.data.shards import Prepared

ALL = "all"
ROW_TOKENS = 2_049
ADDRESS = (
    "a server that has the files under this address; {name} and {repo} stand for a source's "
    "(default: the hub, or HF_ENDPOINT)"
)


def add_commands(parser: Parser) -> None:
    """Adds list, download, prepare and show to the parser of `jaxchat data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="sources of data, and what of them is here")
    listing.option("--base-url", str, "URL", ADDRESS)
    listing.set_defaults(run_command=list_command)
    _add_download(
        commands.add_parser("download", help="download sources; resumes where it stopped")
    )
    _add_prepare(
        commands.add_parser(
            "prepare", help="tokenize text to shards of rows; resumes where it stopped"
        )
    )
    data_show.add_show(
        commands.add_parser("show", help="print examples, coloured by what is learned")
    )


def _add_download(parser: Parser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="as `jaxchat data list` has them")
    shards = "of text: the first N, and the last for validation; or all"
    parser.option("--shards", lambda text: text if text == ALL else positive(text), "N", shards)
    parser.switch("--refresh", "fetch the lists of files again")
    parser.switch("--verify", "check the bytes of what is here")
    parser.option("--workers", at_once, "N", "at once (4)", 4)
    add_hub(parser, "only say whether all is here", ADDRESS)
    parser.set_defaults(run_command=download_command)


def _add_prepare(parser: Parser) -> None:
    parser.description = (
        "Tokenizes the text of a run (--run), whose tokenizer is trained, or a folder of text "
        "(--data-dir, --tokenizer, --out)."
    )
    parser.option("--run", str, "NAME", "what the run's stage `rows` would prepare")
    parser.option(
        "--data-dir", Path, "DIR",
        "holds .txt, .jsonl and .parquet files, each also with .gz or .zst behind, in "
        "capitals or not; links are followed, each file is read once, and skipped files are "
        "reported; the last in the order of their names is held out; of one file alone (or named "
        "itself), its last twentieth. A .txt file is read in pieces; a "
        f"line of .jsonl may have {MAX_RECORD >> 20} MiB",
    )  # fmt: skip
    parser.option("--tokenizer", Path, "DIR")
    parser.option("--out", Path, "DIR")
    rows = f"of a row: the model's sequence length and one (default {ROW_TOKENS})"
    parser.option("--row-tokens", row_tokens, "N", rows)
    parser.option("--workers", positive, "N", "at most, and by default, one per core")
    add_hub(parser, "with --run: download nothing", "with --run: see jaxchat data download")
    parser.switch(CHILD, argparse.SUPPRESS)
    parser.set_defaults(run_command=prepare_command)


def list_command(args: argparse.Namespace) -> int:
    """Prints a table of the sources; asks no server."""
    from jaxchat.data import registry
    from jaxchat.data.download import hub

    opened = hub.open_hub(paths.home(args.home), base_url=args.base_url, offline=True)
    rows = [("", "what", "rows", "size", "here", "licence", "where")]
    rows += [
        (
            source.name,
            source.title,
            _rows(source),
            tables.size(source.size),
            _here(opened, source),
            source.licence,
            source.repo if args.base_url is None else opened.address(source),
        )
        for source in registry.SOURCES.values()
    ]
    print(textwrap.dedent("\n".join(tables.table(rows, left=len(rows[0])))))
    print(f"\nfiles are in {paths.data(opened.root)}; repositories are at {opened.endpoint}")
    return 0


def download_command(args: argparse.Namespace) -> int:
    """Downloads sources and prints where they are."""
    from jaxchat.data import registry
    from jaxchat.data.download import cache, hub
    from jaxchat.data.download.transfer import download_all

    sources = [registry.find(name) for name in dict.fromkeys(args.names)]
    _check_shards(sources, args.shards)
    shards = None if args.shards == ALL else args.shards
    opened = hub.open_hub(
        paths.home(args.home), base_url=args.base_url, offline=args.offline, refresh=args.refresh
    )
    wanted = [(source, opened.files(source, shards)) for source in sources]
    files = [file for _, chosen in wanted for file in chosen]
    options = {"workers": args.workers, "verify": args.verify, "offline": opened.offline}
    download_all(files, opened.web, **options)
    for source, chosen in wanted:
        size = sum(file.local.stat().st_size for file in chosen)
        count = "1 file" if len(chosen) == 1 else f"{len(chosen):,} files"
        print(f"{source.name}: {count}, {tables.size(size)}, in {opened.listing(source).folder}")
    unchecked = [file for file in files if not file.sha256 and not file.blob]
    if unchecked:
        print(
            f"the server has no checksums: those of the {len(unchecked):,} downloaded files are "
            f"noted, such as {cache.sha256_of(unchecked[0])} of {unchecked[0].path}"
        )
    return 0


def _check_shards(sources: list[Source], shards: int | str | None) -> None:
    """A text source is downloaded whole only when asked for. Raises ConfigError."""
    text = next((source for source in sources if source.kind == "text"), None)
    if text is not None and shards is None:
        raise ConfigError(
            f"{text.name} has {len(text.files):,} shards, {tables.size(text.size)}; say how many "
            "with --shards N, or --shards all."
        )
    if text is None and shards is not None:
        raise ConfigError(f"{', '.join(s.name for s in sources)} have no shards; leave --shards.")


def _rows(source: Source) -> str:
    if source.kind == "text":
        return f"{len(source.files):,} shards"
    return f"{sum(source.rows.values()):,}"


def _here(opened: Hub, source: Source) -> str:
    """What of a source is in the cache: `12 of 1,823 files`."""
    from jaxchat.data.download import cache

    listing = opened.saved(source)
    if listing is None:
        return "-"
    here = sum(cache.is_here(file) for file in listing.files)
    return "all" if here == len(listing.files) else f"{here:,} of {len(listing.files):,} files"


def prepare_command(args: argparse.Namespace) -> int:
    """Prepares the shards and prints what is in them."""
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
    """Ends this process when the one at the other end of its standard input has ended.

    Immediately: what is being written has a temporary name, and is removed the next time.
    """
    while os.read(0, 1):  # not sys.stdin, whose lock would still be held at the end
        pass
    os._exit(1)


def _of_folder(args: argparse.Namespace) -> str:
    from jaxchat.config.machine import cores
    from jaxchat.data import own
    from jaxchat.data.shards import prepare_shards
    from jaxchat.tokenizer import Tokenizer

    tokenizer, row_tokens = Tokenizer.load(args.tokenizer), args.row_tokens or ROW_TOKENS
    folder = own.path_of(args.data_dir)
    inputs = own.local_inputs(folder, row_tokens, paths.home(args.home), report=True)
    inputs = own.with_held_out(inputs, args.out / "split", row_tokens)
    prepared = prepare_shards(
        inputs, tokenizer, row_tokens, args.out, workers=min(args.workers or cores(), cores())
    )
    return _summary(prepared, inputs[-1].name, args.out)


def _of_run(args: argparse.Namespace) -> str:
    from jaxchat.config.machine import cores
    from jaxchat.data.download.hub import open_hub
    from jaxchat.data.inputs import read_inputs
    from jaxchat.data.shards import prepare_text, text_folder
    from jaxchat.runs import run_dir
    from jaxchat.runs.run_tokenizer import tokenizer_in

    root = paths.home(args.home)
    run = run_dir.find(root, args.run)
    inputs, tokenizer = read_inputs(run / "data"), tokenizer_in(run / "tokenizer")
    hub = open_hub(root, base_url=args.base_url, offline=args.offline)
    config = run_dir.read_config(run)
    out = text_folder(run, inputs, tokenizer, config.model.sequence_len + 1)
    prepared = prepare_text(
        config, inputs, tokenizer, out, hub, workers=min(args.workers or cores(), cores())
    )
    return _summary(prepared, inputs.text[-1].name, out)


def _summary(prepared: Prepared, held_out: str, out: Path) -> str:
    """The report at the end of preparing."""
    there = prepared.shards - prepared.made
    return "\n".join(
        [
            f"training  {prepared.training}",
            f"held out  {prepared.held_out} ({shown(held_out)})",
            f"{prepared.shards:,} shards in {out}, {there:,} of them were there already; "
            f"{duration(prepared.seconds)}",
        ]
    )
