"""The user's own conversations, and what is said of bad lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_files import CHATS, jsonl, parquet

from jaxchat.errors import ArtifactError
from jaxchat.tasks.conversations import MAX_REPORTED, Custom
from jaxchat.tokenizer import render, train_tokenizer

BYTES = train_tokenizer([], 265)
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


def reported(tmp_path: Path, *lines: Any) -> list[str]:
    """The lines of the message about a file of these lines (str: as it is)."""
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    with pytest.raises(ArtifactError) as caught:
        Custom([file])
    return str(caught.value).replace(str(file), "FILE").splitlines()


def test_every_bad_line_is_reported_with_its_number_and_field(tmp_path: Path) -> None:
    part = {"type": "code", "text": "1+1"}
    message = reported(
        tmp_path,
        [ASK, REPLY],
        "{not json",
        "",
        {"conversation": []},
        {"messages": [ASK, {"role": "bot", "content": "x"}]},
        {"messages": [ASK, {"role": "assistant", "content": [part]}]},
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": []}]},
        [ASK],
        [{"role": "user", "content": "ab\ud800"}, REPLY],
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
        "line 9 of FILE: messages[0].content has a lone surrogate at character 2",
        "line 10 of FILE: a conversation must be a dict",
    ]
    for line, start in zip(message[1:], starts, strict=True):
        assert line.strip().startswith(start)


def test_a_weight_that_is_none_is_reported_with_its_line(tmp_path: Path) -> None:
    message = reported(
        tmp_path,
        {"messages": [ASK, REPLY], "weight": 0.5, "train": True},
        {"messages": [ASK, REPLY], "weight": 2},
        [ASK, {**REPLY, "weight": "high"}],
        '{"messages": [{"role": "user", "content": "?", "train": NaN}, ' + json.dumps(REPLY) + "]}",
    )
    assert message[0].startswith("3 of 4 lines are no conversations")
    allowed = "; it must be a number from 0 (not learned) to 1, or true or false."
    assert [line.strip() for line in message[1:]] == [
        "line 2 of FILE: weight is 2" + allowed,
        "line 3 of FILE: messages[1].weight is 'high'" + allowed,
        "line 4 of FILE: messages[0].train is nan" + allowed,
    ]


def test_weights_stay_with_conversations_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [
        {"messages": [ASK, {"role": "assistant", "content": "Two.", "weight": 0.5}], "train": 0.5},
        {"messages": [ASK, {"role": "assistant", "content": "Three."}]},
    ]
    for file in (jsonl(tmp_path / "own.jsonl", rows), parquet(tmp_path / "own.parquet", rows)):
        chats = Custom([file])
        assert [max(render(chats.conversation(n), BYTES)[1]) for n in range(2)] == [0.25, 1]


def test_of_many_bad_lines_the_first_are_reported(tmp_path: Path) -> None:
    message = reported(tmp_path, *["[]"] * 25)
    assert message[0].startswith("25 of 25 lines")
    assert len(message) == 1 + MAX_REPORTED + 1
    assert message[-1].strip() == f"... and {25 - MAX_REPORTED} more"


def test_an_empty_file_holds_no_conversation(tmp_path: Path) -> None:
    assert reported(tmp_path) == ["the files hold no conversation; they are empty."]


def test_fields_that_are_ignored_are_counted_and_named_once(tmp_path: Path) -> None:
    named = {**ASK, "name": "Mia"}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "Two.", "cache": 1}]}
    rows = [
        {"messages": [named, REPLY], "source": "a", "tool_calls": None, "images": []},
        {"messages": [named, parts], "source": "b"},
        [ASK, REPLY],
    ]
    unused = {("message", "name"): 2, ("part", "cache"): 1, ("conversation", "source"): 2}
    chats = Custom([jsonl(tmp_path / "talks.jsonl", rows)])
    assert chats.unused == unused
    assert chats.unused_message == (
        "talks.jsonl: the fields 'source' (2 conversations), 'name' (2 messages), "
        "'cache' (1 part) are not used"
    )
    known = [{"messages": [ASK, {"role": "assistant", "content": "Two.", "weight": 1}]}]
    assert Custom([jsonl(tmp_path / "known.jsonl", known)]).unused_message == ""


def test_columns_of_parquet_that_are_ignored_are_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": [{**ASK, "name": "Mia"}, {"role": "assistant", "content": "2"}], "id": n}
        for n in range(3)
    ]
    chats = Custom([parquet(tmp_path / "talks.parquet", rows)])
    assert chats.unused_message == (
        "talks.parquet: the fields 'id' (3 conversations), 'name' (3 messages) are not used"
    )


@pytest.mark.parametrize("kind", [jsonl, parquet])
@pytest.mark.parametrize(
    ("conversation", "message", "what"),
    [
        ({}, {"tool_calls": [{"name": "look"}]}, "messages[1].tool_calls"),
        ({}, {"function_call": {"name": "look"}}, "messages[1].function_call"),
        ({}, {"loss": False}, "messages[1].loss is False"),
        ({}, {"mask": 1}, "messages[1].mask"),
        ({}, {"refusal": "I won't."}, "messages[1].refusal"),
        ({"images": ["a.png"]}, {}, "images is ['a.png']"),
        ({"system": "Be brief."}, {}, "system is 'Be brief.'"),
    ],
)
def test_a_field_that_would_change_what_is_learned_is_refused(
    tmp_path: Path, kind: Any, conversation: Any, message: Any, what: str
) -> None:
    reply = {"role": "assistant", "content": "", **message}
    suffix = "jsonl" if kind is jsonl else "parquet"
    file = kind(tmp_path / f"own.{suffix}", [{"messages": [ASK, reply], **conversation}])
    with pytest.raises(ArtifactError) as caught:
        Custom([file])
    assert what in str(caught.value)
    assert "not obeyed here" in str(caught.value)
