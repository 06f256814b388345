"""Text files, a tokenizer of bytes, and shards of them, small enough to be looked through."""

from __future__ import annotations

import json
import random
from pathlib import Path

from jaxchat.data.own import InputFile, hash_of
from jaxchat.data.shards import Fetch, Prepared, prepare_shards
from jaxchat.tokenizer import Tokenizer

ROW = 17
TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])


def write_texts(folder: Path, files: int = 6) -> list[InputFile]:
    """Files a.jsonl, b.jsonl, ... of documents that no other file has."""
    folder.mkdir(exist_ok=True)
    inputs = []
    for number in range(files):
        draw = random.Random(number)
        texts = [
            f"{number}:{n} " + "".join(draw.choices("abcdefghijklmnop", k=draw.randrange(60)))
            for n in range(30 + 5 * number)
        ]
        path = folder / f"{'abcdefghijklmnop'[number]}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        inputs.append(InputFile(path.name, hash_of([path]), path.stat().st_size, (path,)))
    return inputs


def prepare(
    inputs: list[InputFile], folder: Path, workers: int = 2, fetch: Fetch | None = None
) -> Prepared:
    return prepare_shards(inputs, TOKENIZER, ROW, folder, workers=workers, fetch=fetch)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder of shards, hidden ones too, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
