"""Fills in nanochat's rendering of conversations: its ids, its masks, its tasks' wording.

    python bench/nanochat_peer/render.py --checkout CHECKOUT FILE.json [--out OTHER.json]

FILE.json, which tests/golden/nanochat_render.json is one of, holds `pattern`, `tokens` (base64, by
rank), `max_tokens` and `examples`. An example has `messages`, or a `task` of nanochat and a `row`
of its data set, whose messages are then filled in, too. nanochat's own render_conversation gives
`ids` and `mask`, on a tiktoken encoding of that vocabulary with its special tokens behind it.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

CLASSES = {
    "gsm8k": ("gsm8k", "GSM8K"),
    "mmlu": ("mmlu", "MMLU"),
    "arc_easy": ("arc", "ARC"),
    "humaneval": ("humaneval", "HumanEval"),
    "smoltalk": ("smoltalk", "SmolTalk"),
}
# what nanochat imports and rendering does not need
UNUSED = (
    "rustbpe", "tokenizers", "tokenizers.models", "tokenizers.trainers", "datasets", "filelock",
    "pyarrow", "pyarrow.parquet",
)  # fmt: skip


def main() -> None:
    """Reads the file and writes it with nanochat's answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="default: the file itself")
    args = parser.parse_args()
    content = json.loads(args.file.read_text(encoding="utf-8"))
    tokenizer = make_tokenizer(args.checkout, content["pattern"], content["tokens"])
    for example in content["examples"]:
        if "task" in example:
            example["messages"] = messages_of(example["task"], example["row"])
        conversation = {"messages": example["messages"]}
        ids, mask = tokenizer.render_conversation(conversation, content["max_tokens"])
        example |= {"ids": ids, "mask": "".join(map(str, mask))}
    lines = ",\n".join(json.dumps(example, ensure_ascii=False) for example in content["examples"])
    head = {name: value for name, value in content.items() if name != "examples"}
    text = json.dumps(head)[:-1] + ', "examples": [\n' + lines + "\n]}\n"
    (args.out or args.file).write_text(text, encoding="utf-8")


def make_tokenizer(checkout: Path, pattern: str, tokens: list[str]) -> Any:
    """nanochat's tokenizer over a vocabulary."""
    if not (checkout / "nanochat" / "tokenizer.py").is_file():
        sys.exit(f"{checkout} is no checkout of nanochat: it has no nanochat/tokenizer.py.")
    sys.path.insert(0, str(checkout))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in UNUSED:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    import tiktoken
    from nanochat import tokenizer

    specials = {name: len(tokens) + i for i, name in enumerate(tokenizer.SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding(
        name="given",
        pat_str=pattern,
        mergeable_ranks={base64.b64decode(token): rank for rank, token in enumerate(tokens)},
        special_tokens=specials,
    )
    return tokenizer.RustBPETokenizer(encoding, "<|bos|>")


def messages_of(task: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """nanochat's rendering of a row of its task, without the download."""
    module, name = CLASSES[task]
    kind = getattr(importlib.import_module(f"tasks.{module}"), name)
    made = kind.__new__(kind)
    made.ds = [row]
    conversation: dict[str, Any] = made.get_example(0)
    messages: list[dict[str, Any]] = conversation["messages"]
    return messages


if __name__ == "__main__":
    main()
