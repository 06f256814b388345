"""Conversations to ids: reading them from Parquet, mixing them, rendering them.

    python bench/chat.py --text DIR --tokenizer DIR         texts cut into chats of four messages
    python bench/chat.py --tokenizer DIR --file FILE.parquet    a file of SmolTalk's

One core; MB of UTF-8 per second of processor time, the fastest of several passes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.data.files.textfiles import TextFiles
from jaxchat.runs.tables import table
from jaxchat.tasks.conversations import SmolTalk
from jaxchat.tasks.mixture import Ingredient, Mixture
from jaxchat.tokenizer import Conversation, Tokenizer, render, render_batch

TURNS = 4
BATCH = 512  # conversations rendered at a time
SIZES = {  # conversations of tier_100's midtraining
    "smoltalk": 460_341,
    "mmlu": 99_842,
    "gsm8k": 7_473,
    "identity": 2_000,
    "spelling": 200_000,
    "counting": 80_000,
}


class _Empty:
    """A dataset that has a size and nothing else."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def conversation(self, index: int) -> Conversation:
        raise IndexError(index)


def main() -> int:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help=".txt, .jsonl or .parquet file, or a folder of them")
    source.add_argument("--file", type=Path, help="Parquet with a column `messages`")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=10_000, help="conversations")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        file = args.file or write_chats(args.text, args.limit, Path(temporary) / "chats.parquet")
        mixture = Mixture([Ingredient(SmolTalk([file]), rows=args.limit)], 0)
        chats = list(mixture)
        size = sum(len(str(m["content"]).encode()) for c in chats for m in c["messages"])

        def batches() -> Iterator[Any]:
            yield from (render_batch(part, tokenizer, threads=1) for part in parts(chats))

        def together() -> Iterator[Any]:
            rows = parts(mixture)
            yield from (render_batch(part, tokenizer, threads=1) for part in rows)

        works: dict[str, Callable[[], Iterable[Any]]] = {
            "reading in the mixture's order": lambda: mixture,
            "render, one by one": lambda: (render(chat, tokenizer) for chat in chats),
            "render_batch": batches,
            "reading and render_batch": together,
        }
        rows = [("", "MB/s", "us a conversation")]
        for name, work in works.items():
            seconds = fastest(work, args.repeats)
            each = 1e6 * seconds / len(chats)
            rows.append((name, f"{size / 1e6 / seconds:,.1f}", f"{each:,.1f}"))
    print(
        f"{len(chats):,} conversations, {size / 1e6:,.1f} MB, {size / len(chats):,.0f} bytes each"
    )
    print(*table(rows), sep="\n")
    print(mixing())
    return 0


def write_chats(text: str, limit: int, path: Path) -> Path:
    """Texts, each cut into the messages of a conversation, as SmolTalk's Parquet has them."""
    import pyarrow
    import pyarrow.parquet

    chats = []
    for said in itertools.islice(TextFiles([text]), limit):
        size = -(-len(said) // TURNS)
        cut = [said[start : start + size] for start in range(0, size * TURNS, size)]
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"content": c, "role": r} for c, r in zip(cut, roles, strict=False)]
        chats.append({"messages": messages})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), path, row_group_size=1_000)
    return path


def parts(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Batches of them."""
    source = iter(conversations)
    while batch := list(itertools.islice(source, BATCH)):
        yield batch


def fastest(work: Callable[[], Iterable[Any]], repeats: int) -> float:
    """Processor seconds of the fastest pass."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        for _ in work():
            pass
        times.append(time.process_time() - began)
    return min(times)


def mixing() -> str:
    """How long the order of the whole midtraining mixture takes."""
    ingredients = [Ingredient(_Empty(name, size)) for name, size in SIZES.items()]
    began = time.process_time()
    mixture = Mixture(ingredients, 0)
    seconds = time.process_time() - began
    where = np.array([mixture.place(index)[0].name == "gsm8k" for index in range(50_000)])
    share = ingredients[list(SIZES).index("gsm8k")].count / len(mixture)
    away = np.abs(np.cumsum(where) - share * np.arange(1, len(where) + 1)).max()
    return (
        f"the order of {len(mixture):,} conversations: {seconds:.2f} s; gsm8k is never more than "
        f"{away:.2f} conversations from its share"
    )


if __name__ == "__main__":
    raise SystemExit(main())
