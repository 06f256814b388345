"""Conversations and tasks beside what nanochat made of them: messages, ids and masks."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hub_files import jsonl

from jaxchat.tasks import open_source
from jaxchat.tokenizer import Conversation, Part, Tokenizer, render, render_batch

FILE = Path(__file__).parents[1] / "golden" / "nanochat_render.json"
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
EXAMPLES: list[dict[str, Any]] = GOLDEN["examples"]
LIMIT: int = GOLDEN["max_tokens"]
REMEDY = (
    "differs from nanochat; if nanochat changed, run bench/nanochat_peer/render.py on this file "
    "with a checkout of it"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokens = [base64.b64decode(token) for token in GOLDEN["tokens"]]
    return Tokenizer(tokens, GOLDEN["pattern"])


def conversation_of(example: dict[str, Any], folder: Path) -> Conversation:
    """Our own reading of a row, or the messages that are given."""
    if "task" not in example:
        return {"messages": example["messages"]}
    file = jsonl(folder / "row.jsonl", [example["row"]])
    return open_source(example["task"], [file]).conversation(0)


def without_empty(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """nanochat keeps empty text around a call, which renders to nothing."""

    def kept(content: str | list[Part]) -> str | list[Part]:
        if isinstance(content, str):
            return content
        return [part for part in content if part["text"] or part["type"] != "text"]

    return [{**message, "content": kept(message["content"])} for message in messages]


def has_blank_system(example: dict[str, Any]) -> bool:
    """nanochat puts an empty line before the user's text then; here it is as if absent."""
    first = example["messages"][0]
    return first["role"] == "system" and not first["content"].strip()


BLANK = [example for example in EXAMPLES if has_blank_system(example)]
EXAMPLES = [example for example in EXAMPLES if not has_blank_system(example)]


@pytest.mark.parametrize("example", BLANK, ids=range(len(BLANK)))
def test_a_blank_system_message_is_as_if_absent(
    tokenizer: Tokenizer, example: dict[str, Any]
) -> None:
    """The one rendering that differs from nanochat's: docs/parity.md."""
    ours = render({"messages": example["messages"]}, tokenizer)
    assert ours == render({"messages": example["messages"][1:]}, tokenizer)
    newline = tokenizer.encode("\n")
    assert [*ours[0][:2], *newline, *newline, *ours[0][2:]][:LIMIT] == example["ids"]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_messages_ids_and_masks_are_nanochats(
    tokenizer: Tokenizer, tmp_path: Path, example: dict[str, Any]
) -> None:
    conversation = conversation_of(example, tmp_path)
    if "task" in example:
        assert conversation["messages"] == without_empty(example["messages"]), REMEDY
    ids, mask = render(conversation, tokenizer)
    assert ids[:LIMIT] == example["ids"], REMEDY
    assert "".join(map(str, mask[:LIMIT])) == example["mask"], REMEDY


def test_all_at_once_they_are_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    conversations = [conversation_of(example, tmp_path) for example in EXAMPLES]
    ids, mask, offsets = render_batch(conversations, tokenizer)
    for example, begin, end in zip(EXAMPLES, offsets, offsets[1:], strict=False):
        assert ids[begin:end][:LIMIT].tolist() == example["ids"]
        assert "".join(map(str, mask[begin:end][:LIMIT])) == example["mask"]
    assert offsets[-1] == len(ids)


def test_the_examples_cover_cuts_tools_and_every_task() -> None:
    assert sum(len(example["ids"]) == LIMIT for example in EXAMPLES) >= 2
    assert {e["task"] for e in EXAMPLES if "task" in e} == {
        "smoltalk", "gsm8k", "mmlu", "arc_easy", "humaneval",
    }  # fmt: skip
