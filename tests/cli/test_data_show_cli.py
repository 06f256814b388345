"""`jaxchat data show`: what is learned can be seen, with colours and without."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxchat.cli.data_show import lines_of
from jaxchat.cli.main import parse
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.tokenizer import Conversation, render, train_tokenizer

BYTES = train_tokenizer([], 265)
CHAT: Conversation = {
    "messages": [
        {"role": "user", "content": "Two\nlines?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "So,"},
                {"type": "python", "text": "1+1"},
                {"type": "python_output", "text": "2"},
                {"type": "text", "text": "two.\n\nEnd"},
            ],
        },
    ]
}
SHOWN = """\
  <|bos|>
  <|user_start|>Two↵
  lines?<|user_end|>
  <|assistant_start|>
+ So,
+ <|python_start|>1+1<|python_end|>
  <|output_start|>2<|output_end|>
+ two.↵
+ ↵
+ End<|assistant_end|>
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of bytes and a file of one conversation."""
    BYTES.save(tmp_path / "tokenizer")
    (tmp_path / "own.jsonl").write_text(json.dumps(CHAT) + "\n")
    return tmp_path


def show(folder: Path, *arguments: str) -> int:
    args = parse(["--home", str(folder / "home"), "data", "show", *arguments])
    code: int = args.run_command(args)
    return code


def test_without_colours_lines_of_what_is_learned_are_marked(folder: Path, capsys: Any) -> None:
    own, tokenizer = str(folder / "own.jsonl"), str(folder / "tokenizer")
    assert show(folder, own, "--tokenizer", tokenizer) == 0
    head, _, text = capsys.readouterr().out.partition("\n")
    ids, mask = render(CHAT, BYTES)
    assert (
        head == f"custom, number 0: {len(ids)} tokens, {sum(mask)} of them learned (lines with +)"
    )
    assert text == SHOWN + "\n"


@pytest.mark.parametrize(
    ("weights", "reported"),
    [
        ([0, 1], "3 of them learned (lines with +)"),
        ([0.5, False], "3 of them learned, at weight 0.5 (lines with +)"),
        ([0.25, 1], "6 of them learned, at weight 0.25 to 1 (lines with +)"),
        ([0, 0], "0 of them learned (lines with +)"),
    ],
)
def test_what_a_message_weighs_decides_what_is_marked(
    weights: list[float], reported: str, folder: Path, capsys: Any
) -> None:
    messages = []
    for number, weight in enumerate(weights):
        messages += [
            {"role": "user", "content": f"ask {number}"},
            {"role": "assistant", "content": f"A{number}", "weight": weight},
        ]
    (folder / "own.jsonl").write_text(json.dumps({"messages": messages}))
    show(folder, str(folder / "own.jsonl"), "--tokenizer", str(folder / "tokenizer"))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith(f"tokens, {reported}")
    for number, weight in enumerate(weights):
        assert ("+ " if weight else "  ") + f"A{number}<|assistant_end|>" in [
            line.replace("<|assistant_start|>", "") for line in lines
        ]


def test_fields_that_are_not_used_are_named(folder: Path, capsys: Any) -> None:
    chat = {"messages": [{**message, "name": "x"} for message in CHAT["messages"]], "id": 1}
    (folder / "own.jsonl").write_text(json.dumps(chat) + "\n")
    assert show(folder, str(folder / "own.jsonl"), "--tokenizer", str(folder / "tokenizer")) == 0
    count = len(CHAT["messages"])
    assert capsys.readouterr().err == (
        f"jaxchat: own.jsonl: the fields 'id' (1 conversation), 'name' ({count} messages) are not "
        "used\n"
    )


def test_colours_on_a_terminal_and_none_with_no_color(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = str(folder / "own.jsonl"), "--tokenizer", str(folder / "tokenizer")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(folder, *arguments)
    text = capsys.readouterr().out
    assert "\x1b[32mtwo.↵\x1b[0m" in text
    assert "\x1b[1;32m<|python_start|>\x1b[0m" in text
    assert "\x1b[36m<|user_start|>\x1b[0mTwo↵\n" in text
    monkeypatch.setenv("NO_COLOR", "1")
    show(folder, *arguments)
    assert "\x1b[3" not in capsys.readouterr().out


def shown(conversation: Any, **options: bool) -> list[str]:
    ids, mask = render(conversation, BYTES)
    return [line.plain for line in lines_of(ids, mask, BYTES, **options)]


def test_controls_and_broken_bytes_do_not_reach_the_terminal() -> None:
    said = "\x1b[2J\r\t\u202e\u00a0é"
    lines = shown({"messages": [{"role": "user", "content": said}]})
    assert lines[1] == r"  <|user_start|>\x1b[2J\r\t\u202e\xa0é<|user_end|>"
    ids, mask = render({"messages": [{"role": "user", "content": "é"}]}, BYTES)
    ids, mask = ids[:3], mask[:3]
    assert [line.plain for line in lines_of(ids, mask, BYTES)][1] == r"  <|user_start|>\xc3"


def test_markup_in_a_conversation_is_text(folder: Path, capsys: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "[red]a[/red]"}, CHAT["messages"][1]]}
    (folder / "own.jsonl").write_text(json.dumps(chat))
    show(folder, str(folder / "own.jsonl"), "--tokenizer", str(folder / "tokenizer"))
    assert "<|user_start|>[red]a[/red]<|user_end|>" in capsys.readouterr().out


def test_every_token_with_its_id() -> None:
    lines = shown({"messages": [{"role": "user", "content": "a\nb"}]}, with_ids=True)
    start, end = BYTES.special("<|user_start|>"), BYTES.special("<|user_end|>")
    assert lines == [
        f"  <|bos|>[{BYTES.bos}]",
        f"  <|user_start|>[{start}]a[97]↵[10]",
        f"  b[98]<|user_end|>[{end}]",
    ]


def test_generated_tasks_and_sources_with_their_files(folder: Path, capsys: Any) -> None:
    tokenizer = str(folder / "tokenizer")
    show(folder, "arithmetic", "-n", "2", "--tokenizer", tokenizer)
    text = capsys.readouterr().out
    assert text.count("learned (lines with +)") == 2
    assert "+ <|python_start|>" in text
    row = {"question": "How many?", "answer": "<<1+1=2>>2\n#### 2"}
    (folder / "test.jsonl").write_text(json.dumps(row))
    show(folder, "gsm8k", str(folder / "test.jsonl"), "--tokenizer", tokenizer)
    assert "  <|output_start|>2<|output_end|>\n+ 2↵\n+ #### 2<|assistant_end|>" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["squad"], ConfigError, "nothing called 'squad' to show; generated are identity"),
        (["gsm8k"], ArtifactError, r"run: jaxchat data --home \S+ download gsm8k"),
        (["missing.jsonl"], ConfigError, r"missing\.jsonl is no file"),
        (["identity"], ArtifactError, "name a tokenizer's folder with --tokenizer"),
    ],
)
def test_what_cannot_be_shown_is_reported(
    folder: Path, arguments: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        show(folder, *arguments)
