"""nanochat's loader of batches, timed in the Python that has torch; bench/data.py starts it.

    python bench/nanochat_peer/loader.py CHECKOUT TASK

TASK is JSON: `work` (a folder with `text/*.parquet` and our tokenizer in `tokenizer/`), `rows`,
`tokens` (T of a row) and `seconds`. Its loader reads Parquet, tokenizes and packs as it is asked
for batches; the result is one line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock


def main(checkout: str, text: str) -> None:
    """Measures, and prints the figures."""
    task = json.loads(text)
    work = Path(task["work"])
    os.environ["NANOCHAT_BASE_DIR"] = str(work / "nanochat")
    for name in ("base_data", "base_data_climbmix"):  # of the classic version, of the modern one
        (work / "nanochat" / name).mkdir(parents=True, exist_ok=True)
        for path in (work / "text").glob("*.parquet"):
            with contextlib.suppress(FileExistsError):
                (work / "nanochat" / name / path.name).symlink_to(path)
    sys.path.insert(0, checkout)
    # What its module of tokenizers imports, to train them, is not needed here.
    for name in ("rustbpe", "tokenizers", "tokenizers.models", "tokenizers.trainers"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = mock.MagicMock()
    with contextlib.redirect_stdout(sys.stderr):
        figures = measure(task, Counting(read_tokenizer(work / "tokenizer")))
    print(json.dumps(figures))


def read_tokenizer(folder: Path) -> Any:
    """Our vocabulary in its class."""
    import tiktoken
    from nanochat.tokenizer import RustBPETokenizer
    from tiktoken.load import load_tiktoken_bpe

    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    encoding = tiktoken.Encoding(
        name="jaxchat",
        pat_str=settings["pattern"],
        mergeable_ranks=load_tiktoken_bpe(str(folder / "tokenizer.tiktoken")),
        special_tokens=settings["special_tokens"],
    )
    return RustBPETokenizer(encoding, "<|bos|>")


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.tokens = tokenizer, 0

    def get_bos_token_id(self) -> int:
        """The id."""
        found: int = self.tokenizer.get_bos_token_id()
        return found

    def encode(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """As the tokenizer does."""
        lists: list[list[int]] = self.tokenizer.encode(*args, **kwargs)
        self.tokens += sum(map(len, lists))
        return lists


def measure(task: dict[str, Any], tokenizer: Counting) -> dict[str, Any]:
    """Batches for some seconds, after a first one."""
    from nanochat import dataloader

    best_fit = hasattr(dataloader, "tokenizing_distributed_data_loader_with_state_bos_bestfit")
    if best_fit:
        loader = dataloader.tokenizing_distributed_data_loader_with_state_bos_bestfit(
            tokenizer, task["rows"], task["tokens"], "train", device="cpu"
        )
    else:
        dataloader.get_tokenizer = lambda: tokenizer
        loader = dataloader.tokenizing_distributed_data_loader_with_state(
            task["rows"], task["tokens"], "train", device="cpu"
        )
    next(loader)
    batches = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < task["seconds"]:
        next(loader)
        batches += 1
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    used = tokenizer.tokens
    if best_fit:  # what waits in its buffer is not lost
        used -= sum(map(len, loader.gi_frame.f_locals["doc_buffer"]))
        kept = (batches + 1) * task["rows"] * (task["tokens"] + 1) / used
    else:
        kept = 1.0
    tokens = batches * task["rows"] * task["tokens"]
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu,
        "kept": kept,
        "what": "best fit, the rest dropped" if best_fit else "one stream, cut anywhere",
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
