"""`jaxchat tokenizer`: trains tokenizers, encodes text, and compares tokenizers.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchat.cli.args import Parser, positive
from jaxchat.errors import ConfigError
from jaxchat.progress import Progress, duration

if TYPE_CHECKING:
    from jaxchat.data.files.textfiles import TextFiles
    from jaxchat.evals.compression import Result
    from jaxchat.tokenizer import Tokenizer, TrainingReport

FILES = "FILE"
_FILES_HELP = "a .txt, .jsonl or .parquet file, also with .gz or .zst behind, or a folder of them"


def add_commands(parser: Parser) -> None:
    """Adds train, eval, encode and compare to the parser of `jaxchat tokenizer`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="learn a vocabulary from text")
    train.add_argument("files", nargs="+", metavar=FILES, help=f"{_FILES_HELP}; - is stdin")
    train.option("--vocab-size", positive, "N", required=True)
    train.option("--out", Path, "DIR", "a new folder", required=True)
    pattern = (
        "splits text into words: jaxchat (default), gpt2, gpt4, or a regular expression; a stretch "
        "that it doesn't match is a word of its own"
    )
    train.option("--pattern", text=pattern, default="jaxchat")
    train.switch("--no-tools", "five special tokens: without the four of tools")
    words = "limit memory: drop the rarest words when more distinct ones are held"
    train.option("--max-words", positive, "N", words)
    train.option("--threads", positive, "N", "at most, and by default, one per core")
    train.set_defaults(run_command=train_command)
    encode = commands.add_parser("encode", help="print the ids of a text")
    encode.add_argument("tokenizer", type=Path, metavar="DIR")
    encode.add_argument("text", nargs="?", metavar="TEXT", help="default: stdin")
    encode.option("--file", str, FILES, f"encode {_FILES_HELP} instead")
    encode.switch("--show", "a line for each token, and a summary")
    encode.set_defaults(run_command=encode_command)
    evaluate = commands.add_parser("eval", help="characters and bytes per token, by kind of text")
    evaluate.add_argument("tokenizer", type=Path, metavar="DIR")
    evaluate.set_defaults(run_command=eval_command)
    beside = "tokenizers side by side, GPT-2's and GPT-4's too"
    compare = commands.add_parser("compare", help=beside)
    compare.add_argument("tokenizers", type=Path, nargs="+", metavar="DIR")
    compare.set_defaults(run_command=compare_command)
    for command in (evaluate, compare):
        command.option("--text", str, FILES, f"also on {_FILES_HELP}", [], action="append")


def train_command(args: argparse.Namespace) -> int:
    """Trains a tokenizer and prints what it took."""
    from jaxchat.config.machine import peak_memory_bytes
    from jaxchat.data.files.textfiles import TextFiles
    from jaxchat.errors import TokenizerError
    from jaxchat.tokenizer import find_pattern, train_tokenizer

    files = TextFiles(args.files)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"{args.out} is there already; name a new folder with --out.")
    if None not in files.paths:
        print(files.listing.summary(), flush=True)
    began = time.monotonic()
    seen: list[TrainingReport] = []
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def merged(done: int) -> None:
            if not bars:  # the first time: reading is over, and its bar gone
                bars.append(stack.enter_context(Progress("merging", args.vocab_size, "token")))
            bars[0].update(done)

        try:
            tokenizer = train_tokenizer(
                _reading(files),
                args.vocab_size,
                find_pattern(args.pattern),
                tools=not args.no_tools,
                progress=merged,
                report=seen.append,
                threads=args.threads,
                max_words=args.max_words,
            )
        except TokenizerError as error:  # a vocabulary too small, a pattern that is none
            raise ConfigError(str(error)) from error
    if not seen[0].pretokens:
        raise ConfigError(
            f"there is nothing to learn a vocabulary from: {', '.join(args.files)} hold no text."
        )
    tokenizer.save(args.out)
    print(_summary(seen[0], tokenizer, args, time.monotonic() - began, peak_memory_bytes()))
    return 0


def _reading(files: TextFiles) -> Iterator[str]:
    with Progress("reading text", files.size // 1000, "kB") as bar:
        for number, text in enumerate(files):
            yield text
            if number % 100 == 0:
                bar.update(files.done // 1000)


def _summary(
    seen: TrainingReport,
    tokenizer: Tokenizer,
    args: argparse.Namespace,
    seconds: float,
    memory: int,
) -> str:
    """The report at the end of training."""
    lines = [
        f"{tokenizer.vocab_size:,} tokens from {seen.texts:,} texts of {seen.bytes / 1e6:,.1f} MB, "
        f"{seen.pretokens:,} words, {seen.distinct:,} of them distinct",
        f"{duration(seconds)}, {seen.bytes / 1e6 / max(seconds, 1e-9):,.1f} MB/s, "
        f"{memory / 1e6:,.0f} MB of memory at most",
        f"written to {args.out}",
    ]
    if seen.dropped:
        lines.insert(
            1,
            f"because of --max-words, {seen.dropped:,} rare words were dropped, which stood "
            f"{seen.dropped_pretokens:,} times in the text",
        )
    if tokenizer.vocab_size < args.vocab_size:
        lines.insert(
            1, f"the text has no more pairs to merge; {args.vocab_size:,} tokens need more of it"
        )
    return "\n".join(lines)


def encode_command(args: argparse.Namespace) -> int:
    """Prints ids; with --show, what each stands for."""
    from jaxchat.data.files.textfiles import STDIN, TextFiles
    from jaxchat.tokenizer import Tokenizer

    if args.text is not None and args.file is not None:
        raise ConfigError("give a text or --file, not both.")
    tokenizer = Tokenizer.load(args.tokenizer)
    texts = TextFiles([args.file or STDIN]) if args.text is None else [args.text]
    characters = size = tokens = 0
    for text in texts:
        ids = tokenizer.encode(text)
        if args.show:
            for token in ids:
                print(f"{token:>7}  {visible(tokenizer.decode_bytes([token]))}")
        else:
            print(*ids)
        characters, size = characters + len(text), size + len(text.encode())
        tokens += len(ids)
    if args.show:
        print(
            f"{tokens:,} tokens, {characters:,} characters, {size:,} bytes: "
            f"{characters / max(tokens, 1):.2f} characters and {size / max(tokens, 1):.2f} bytes "
            "per token"
        )
    return 0


def visible(piece: bytes, marked: str = " ", mark: str = "·") -> str:
    r"""Text for reading: spaces as `·`, controls and lone bytes escaped, as `\n` or `\xe4`."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(
        mark if c == marked else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def eval_command(args: argparse.Namespace) -> int:
    """Prints the compression of one tokenizer."""
    from jaxchat.evals import compression
    from jaxchat.runs.tables import table
    from jaxchat.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    own = compression.measure(args.tokenizer.name, tokenizer, _texts(args.text))
    rows: list[tuple[str, ...]] = [
        ("", "characters", "bytes", "tokens", "characters/token", "bytes/token")
    ]
    for name, s in own.texts.items():
        counts = (f"{count:,}" for count in (s.characters, s.bytes, s.tokens))
        rows.append((name, *counts, f"{s.characters_per_token:.2f}", f"{s.bytes_per_token:.2f}"))
    print(f"vocabulary {own.vocabulary:,}", *table(rows), sep="\n")
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """Prints the compression of several tokenizers."""
    from jaxchat import paths
    from jaxchat.evals import compression
    from jaxchat.tokenizer import Tokenizer

    folders = {path.resolve() for path in args.tokenizers}
    same = len({path.name for path in folders}) < len(folders)
    tokenizers = {str(p) if same else p.resolve().name: Tokenizer.load(p) for p in args.tokenizers}
    peers = compression.vocabulary_folder(paths.home(args.home))
    print(comparison(compression.survey(tokenizers, _texts(args.text), folder=peers)))
    return 0


def comparison(results: list[Result]) -> str:
    """Two tables, and why something is missing in them."""
    from jaxchat.evals import compression
    from jaxchat.runs.tables import table

    tables = [
        table(compression.cells(results, lambda s: s.characters_per_token, "characters per token")),
        table(compression.cells(results, lambda s: s.bytes_per_token, "bytes per token")),
    ]
    return "\n".join([*tables[0], "", *tables[1], *(f"\n{n}" for n in compression.notes(results))])


def _texts(names: list[str]) -> dict[str, list[str] | TextFiles]:
    """The project's texts, and the user's under their names."""
    from jaxchat.data.files.textfiles import STDIN, TextFiles
    from jaxchat.evals import compression

    if STDIN in names:
        raise ConfigError("stdin cannot be read several times; name a file.")
    return {**compression.read_texts(), **{Path(name).name: TextFiles([name]) for name in names}}
