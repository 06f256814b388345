"""The benchmark of conversations runs, and writes what it reads."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxchat.tasks.conversations import SmolTalk
from jaxchat.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "bench"))
    import chat

    yield chat
    sys.path.remove(str(ROOT / "bench"))


def test_it_prints_a_rate_for_everything(
    bench: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer([], 265).save(tmp_path / "tokenizer")
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "one two three four five"}\n' * 40)
    given = f"chat.py --text {text} --tokenizer {tmp_path / 'tokenizer'} --repeats 1 --limit 30"
    monkeypatch.setattr(sys, "argv", given.split())
    assert bench.main() == 0
    first, _, *rates, last = capsys.readouterr().out.splitlines()
    assert first.startswith("30 conversations, 0.0 MB, 23 bytes each")
    assert len(rates) == 4
    assert "the order of 849,656 conversations" in last


def test_texts_are_cut_into_messages_without_loss(bench: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "äb cd"}\n')
    chats = SmolTalk([bench.write_chats(str(text), 5, tmp_path / "chats.parquet")])
    messages = chats.conversation(0)["messages"]
    assert "".join(str(message["content"]) for message in messages) == "äb cd"
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
