"""The user's own conversations, and what is said of bad lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_files import CHATS, jsonl

from jaxchat.home import ArtifactError
from jaxchat.tasks.custom import MAX_TOLD, Custom

ASK = {"role": "user", "content": "How many?"}
REPLY = {
    "role": "assistant",
    "content": [
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "Two."},
    ],
}


def test_objects_and_lists_of_messages_with_tool_parts(tmp_path: Path) -> None:
    rows = [{"id": 7, "messages": [ASK, REPLY]}, [ASK, REPLY], CHATS[0]]
    chats = Custom([jsonl(tmp_path / "own.jsonl", rows)])
    assert [chats.conversation(index) for index in range(3)] == [
        {"messages": [ASK, REPLY]},
        {"messages": [ASK, REPLY]},
        CHATS[0],
    ]


def told(tmp_path: Path, *lines: Any) -> list[str]:
    """The lines of the message about a file of these lines (str: as it is)."""
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    with pytest.raises(ArtifactError) as caught:
        Custom([file])
    return str(caught.value).replace(str(file), "FILE").splitlines()


def test_every_bad_line_is_told_with_its_number_and_field(tmp_path: Path) -> None:
    part = {"type": "code", "text": "1+1"}
    message = told(
        tmp_path,
        [ASK, REPLY],
        "{not json",
        "",
        {"conversation": []},
        {"messages": [ASK, {"role": "bot", "content": "x"}]},
        {"messages": [ASK, {"role": "assistant", "content": [part]}]},
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": []}]},
        [ASK],
        [{"role": "user", "content": "\ud800"}, REPLY],
        "17",
    )
    assert message[0].startswith("8 of 9 lines are no conversations")
    starts = [
        "line 2 of FILE is not JSON",
        'line 4 of FILE: a conversation must be a dict with the key "messages"',
        "line 5 of FILE: messages[1].role is 'bot'",
        "line 6 of FILE: messages[1].content[0].type is 'code'",
        "line 7 of FILE: messages[1].content is of type NoneType",
        "line 8 of FILE: messages holds no reply of the assistant",
        "line 9 of FILE: a text of the user holds a lone surrogate",
        "line 10 of FILE: a conversation must be a dict",
    ]
    for line, start in zip(message[1:], starts, strict=True):
        assert line.strip().startswith(start)


def test_of_many_bad_lines_the_first_are_told(tmp_path: Path) -> None:
    message = told(tmp_path, *["[]"] * 25)
    assert message[0].startswith("25 of 25 lines")
    assert len(message) == 1 + MAX_TOLD + 1
    assert message[-1].strip() == f"... and {25 - MAX_TOLD} more"


def test_an_empty_file_holds_no_conversation(tmp_path: Path) -> None:
    assert told(tmp_path) == ["the files hold no conversation; they are empty."]
