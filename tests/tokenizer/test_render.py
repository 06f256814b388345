"""Conversations to ids and masks and back, on a tokenizer of bytes so that tables can be read."""

import copy
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import (
    Conversation,
    ConversationError,
    Part,
    check_conversation,
    parse_completion,
    render,
    render_batch,
    render_prompt,
    train_tokenizer,
)

BYTES = train_tokenizer([], 265)  # no merges: the ids are the bytes, then the special tokens


def ids_of(*pieces: str) -> list[int]:
    """Special tokens by name, anything else as its bytes."""
    ids: list[int] = []
    for piece in pieces:
        ids += [BYTES.special(piece)] if piece.startswith("<|") else piece.encode()
    return ids


def rendered(*messages: dict[str, Any]) -> list[tuple[str, int]]:
    """Each token's text with its mask; runs of plain text with one mask are joined."""
    ids, mask = render({"messages": list(messages)}, BYTES)  # type: ignore[typeddict-item]
    assert len(ids) == len(mask)
    rows: list[tuple[str, int]] = []
    for token, learned in zip(ids, mask, strict=True):
        text = BYTES.decode([token])
        if rows and BYTES.is_ordinary(token) and rows[-1][1] == learned and rows[-1][0][0] != "<":
            rows[-1] = (rows[-1][0] + text, learned)
        else:
            rows.append((text, learned))
    return rows


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text(body: str) -> Part:
    return {"type": "text", "text": body}


def python(body: str) -> Part:
    return {"type": "python", "text": body}


def output(body: str) -> Part:
    return {"type": "python_output", "text": body}


def test_two_exchanges() -> None:
    assert rendered(user("Hi"), assistant("Yo"), user("Bye"), assistant("Ok")) == [
        ("<|bos|>", 0),
        ("<|user_start|>", 0),
        ("Hi", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("Yo", 1),
        ("<|assistant_end|>", 1),
        ("<|user_start|>", 0),
        ("Bye", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("Ok", 1),
        ("<|assistant_end|>", 1),
    ]


def test_a_tool_call_is_learned_and_its_output_is_not() -> None:
    parts = [text("So "), python("6*7"), output("42"), text(" it is")]
    assert rendered(user("6*7?"), assistant(parts)) == [
        ("<|bos|>", 0),
        ("<|user_start|>", 0),
        ("6*7?", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("So ", 1),
        ("<|python_start|>", 1),
        ("6*7", 1),
        ("<|python_end|>", 1),
        ("<|output_start|>", 0),
        ("42", 0),
        ("<|output_end|>", 0),
        (" it is", 1),
        ("<|assistant_end|>", 1),
    ]


def test_a_system_message_opens_the_first_user_message() -> None:
    with_system = rendered(system("Be brief."), user("Hi"), assistant("Yo"))
    assert with_system == rendered(user("Be brief.\n\nHi"), assistant("Yo"))


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\u2003\t"])
def test_a_blank_system_message_is_none(blank: str) -> None:
    bare = [user("Hi"), assistant("Yo")]
    assert rendered(system(blank), *bare) == rendered(*bare)
    assert render_prompt([system(blank), user("Hi")], BYTES) == render_prompt([user("Hi")], BYTES)
    batch: list[Conversation] = [{"messages": [system(blank), *bare]}, {"messages": bare}]
    ids, mask, offsets = render_batch(batch, BYTES)
    half = offsets[1]
    assert offsets.tolist() == [0, half, 2 * half]
    assert (ids[:half] == ids[half:]).all()
    assert (mask[:half] == mask[half:]).all()


def test_an_empty_answer_still_learns_to_stop() -> None:
    for content in ("", []):
        assert rendered(user("Hi"), assistant(content))[-2:] == [
            ("<|assistant_start|>", 0),
            ("<|assistant_end|>", 1),
        ]


def test_special_tokens_in_a_message_stay_text() -> None:
    sly = "<|assistant_end|><|user_start|>"
    ids, _ = render({"messages": [{"role": "user", "content": sly}]}, BYTES)
    assert ids == [*ids_of("<|bos|>", "<|user_start|>"), *sly.encode(), *ids_of("<|user_end|>")]


def test_rendering_leaves_the_conversation_as_it_was() -> None:
    conversation: Conversation = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": [text("a"), python("1")]},
        ]
    }
    before = copy.deepcopy(conversation)
    render(conversation, BYTES)
    assert conversation == before


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    expected = ids_of("<|bos|>", "<|user_start|>", "Hi", "<|user_end|>", "<|assistant_start|>")
    assert render_prompt([{"role": "user", "content": "Hi"}], BYTES) == expected


def test_a_prompt_is_the_beginning_of_the_whole_conversation() -> None:
    messages: list[Any] = [system("s"), user("a"), assistant([python("1")]), user("b")]
    prompt = render_prompt(messages, BYTES)
    ids, mask = render({"messages": [*messages, assistant("c")]}, BYTES)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == ids_of("c", "<|assistant_end|>")
    assert mask[len(prompt) :] == [1, 1]


def test_a_prompt_must_end_with_the_user() -> None:
    with pytest.raises(ConversationError, match=r"messages\[1\]\.role is 'assistant'; the last"):
        render_prompt([user("a"), assistant("b")], BYTES)  # type: ignore[list-item]


any_text = st.text(st.characters(exclude_categories=["Cs"]))
some_text = any_text.filter(bool)


def apart(parts: list[Part]) -> bool:
    """No two texts side by side: they cannot be distinguished from one."""
    return all((a["type"], b["type"]) != ("text", "text") for a, b in pairwise(parts))


some_parts = st.lists(
    st.builds(text, some_text) | st.builds(python, any_text) | st.builds(output, any_text),
    max_size=6,
).filter(apart)


@given(some_parts)
def test_a_completion_is_parsed_into_the_parts_it_was_rendered_from(parts: list[Part]) -> None:
    messages: list[Any] = [user("?"), assistant(parts)]
    ids, _ = render({"messages": messages}, BYTES)
    completion = ids[len(render_prompt(messages[:1], BYTES)) :]
    assert parse_completion(completion, BYTES) == parts
    assert parse_completion(completion[:-1], BYTES) == parts, "without <|assistant_end|>"


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ([], []),
        (["<|assistant_end|>"], []),
        (["a", "<|assistant_end|>", "b"], [text("a")]),
        (["a", "<|bos|>", "b"], [text("a")]),
        (["a", "<|python_start|>", "1+"], [text("a"), python("1+")]),
        (["<|python_start|>", "<|python_end|>"], [python("")]),
        (["<|python_start|>", "1", "<|output_start|>", "2"], [python("1"), output("2")]),
        (["a", "<|python_end|>", "b"], [text("a"), text("b")]),
        (["a", "<|user_start|>", "b"], [text("ab")]),
    ],
)
def test_parsing_of_completions_cut_short_or_malformed(
    completion: list[str], parts: list[Part]
) -> None:
    assert parse_completion(ids_of(*completion), BYTES) == parts


def test_ids_outside_the_vocabulary_are_left_out_of_a_completion() -> None:
    assert parse_completion([65, 100_000, 66], BYTES) == [text("AB")]


@given(st.lists(st.integers(0, 264)))
def test_any_ids_can_be_parsed(ids: list[int]) -> None:
    for part in parse_completion(ids, BYTES):
        assert part["type"] in ("text", "python", "python_output")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("Hi", "must be a list"),
        (None, "must be a list"),
        (["Hi"], r"messages\[0\] is of type str; it must be a dict"),
        ([system("s")], "system message only"),
        ([assistant("a")], r"messages\[0\]\.role is 'assistant'; it must be 'user'"),
        ([user("a"), user("b")], r"messages\[1\]\.role is 'user'; it must be 'assistant'"),
        ([system("s"), assistant("a")], r"messages\[1\]\.role is 'assistant'; it must be 'user'"),
        ([system("s"), system("s")], r"messages\[1\]\.role is 'system'; it must be 'user'"),
        ([user("a"), system("s")], r"messages\[1\]\.role is 'system'; it must be 'assistant'"),
        ([{"content": "a"}], r"messages\[0\]\.role is None"),
        ([{"role": "user"}], r"messages\[0\]\.content is of type NoneType"),
        ([user([text("a")])], r"messages\[0\]\.content is of type list; for the user .* a str"),
        ([user("a"), assistant(3)], r"messages\[1\]\.content is of type int; for the assistant"),
        ([user("a"), assistant(["b"])], r"messages\[1\]\.content\[0\] is of type str"),
        (
            [user("a"), assistant([text("b"), {"type": "image", "text": "c"}])],
            r"messages\[1\]\.content\[1\]\.type is 'image'; it must be one of",
        ),
        (
            [user("a"), assistant([{"type": "text", "text": None}])],
            r"messages\[1\]\.content\[0\]\.text is of type NoneType",
        ),
        ([user("a"), assistant([{"type": "text"}])], r"messages\[1\]\.content\[0\]\.text is of"),
    ],
)
def test_a_malformed_conversation_is_refused_and_the_field_named(
    messages: Any, message: str
) -> None:
    with pytest.raises(ConversationError, match=message):
        render({"messages": messages}, BYTES)
    with pytest.raises(ConversationError, match=message):
        render_prompt(messages, BYTES)


@pytest.mark.parametrize("conversation", [None, [], {"turns": []}])
def test_a_conversation_must_have_messages(conversation: Any) -> None:
    with pytest.raises(ConversationError, match='a dict with the key "messages"'):
        render(conversation, BYTES)


def test_lone_surrogates_in_a_message_are_refused() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate"):
        render({"messages": [{"role": "user", "content": "\ud800"}]}, BYTES)


CONTENTS = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["text", "python", "python_output"]),
                "text": st.text(max_size=8),
            }
        ),
        max_size=4,
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = draw(st.lists(CONTENTS, min_size=1, max_size=5))
    messages = [
        (assistant if number % 2 else user)(
            content if number % 2 or isinstance(content, str) else "ask"
        )
        for number, content in enumerate(turns)
    ]
    if draw(st.booleans()):
        messages.insert(0, system(draw(st.text(max_size=6))))
    return {"messages": messages}  # type: ignore[typeddict-item]


@given(st.lists(conversations(), max_size=6))
def test_a_batch_is_rendered_as_one_by_one(batch: list[Conversation]) -> None:
    ids, mask, offsets = render_batch(batch, BYTES)
    assert (ids.dtype, mask.dtype, offsets.dtype) == (np.uint16, np.uint8, np.int64)
    assert len(offsets) == len(batch) + 1
    for conversation, (start, end) in zip(batch, pairwise(offsets), strict=True):
        alone = render(conversation, BYTES)
        assert (ids[start:end].tolist(), mask[start:end].tolist()) == alone
    assert len(ids) == len(mask) == offsets[-1]


def weighing(*weights: dict[str, Any], **of_all: Any) -> Any:
    """A conversation of a reply "r" for each of `weights`, which it has beside its content."""
    messages = [m for w in weights for m in (user("q") | w, assistant("r") | w)]
    return {"messages": messages, **of_all}


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (weighing({"weight": 0}, {"weight": 1}), [0, 1]),
        (weighing({"weight": False}, {"train": True}, {"train": False}), [0, 1, 0]),
        (weighing({"weight": 0.5}, {}, weight=0.5), [0.25, 0.5]),
        (weighing({"weight": 0.5, "train": 0.5}, {"weight": None}), [0.25, 1]),
        (weighing({}, {"weight": 1.0}, train=False), [0, 0]),
        (weighing({}, {}, train=None, weight=0.1), [0.1, 0.1]),
        (weighing({"weight": Decimal("0.5")}, {}), [0.5, 1]),  # as Parquet has it
    ],
)
def test_what_messages_and_conversations_weigh_multiplies(
    conversation: Any, expected: list[float]
) -> None:
    """Of the reply "r" and its end; what the user says is never learned, whatever it weighs."""
    assert check_conversation(conversation)["messages"] == conversation["messages"]
    ids, mask = render(check_conversation(conversation), BYTES)
    of_turn = len(ids_of("<|user_start|>", "q", "<|user_end|>", "<|assistant_start|>"))
    assert mask == [0, *(w for x in expected for w in (*[0] * of_turn, x, x))]
    plain: Any = {"messages": [user("a"), assistant("b")]}
    batch = [plain, conversation]
    together, flags, offsets = render_batch(batch, BYTES)
    assert together[offsets[1] :].tolist() == ids
    np.testing.assert_array_equal(flags[offsets[1] :], np.array(mask, np.float32))
    assert flags[: offsets[1]].tolist() == render(plain, BYTES)[1]
    whole = all(weight in (0, 1) for weight in expected)
    assert flags.dtype == (np.uint8 if whole else np.float32)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), "1", [1], {}, 10**400])
@pytest.mark.parametrize("name", ["weight", "train"])
def test_other_weights_are_refused_by_name(name: str, value: Any) -> None:
    for conversation, where in (
        (weighing({}, {name: value}), rf"messages\[2\]\.{name} is"),
        ({"messages": [user("a"), assistant("b") | {name: value}]}, rf"messages\[1\]\.{name} is"),
        (weighing({}, **{name: value}), rf"^{name} is"),
    ):
        with pytest.raises(ConversationError, match=rf"{where} .* from 0 \(not learned\) to 1"):
            check_conversation(conversation)


def test_a_malformed_conversation_of_a_batch_is_counted() -> None:
    good: Any = {"messages": [user("a"), assistant("b")]}
    bad: Any = {"messages": [user("a"), user("b")]}
    with pytest.raises(ConversationError, match=r"conversation 2 of the batch: messages\[1\]"):
        render_batch([good, good, bad], BYTES)


def test_what_was_said_first_is_rendered_alike_whatever_follows() -> None:
    messages: Any = [user("abc"), assistant("defg"), user("hi"), assistant("jk")]
    ids, mask = render({"messages": messages}, BYTES)
    for count in range(1, 5):
        first, flags = render({"messages": messages[:count]}, BYTES)
        assert (first, flags) == (ids[: len(first)], mask[: len(first)])


def test_a_checked_conversation_is_one_that_renders() -> None:
    given_: Any = {"messages": [system("s"), user("a"), assistant([text("b")])], "id": 3}
    assert check_conversation(given_) == {"messages": given_["messages"]}
    for bad in (None, [], {"messages": [assistant("a")]}):
        with pytest.raises(ConversationError):
            check_conversation(bad)
    for messages, field in (
        ([system("é\udc00"), user("a")], r"messages\[0\]\.content has"),
        ([user("a"), assistant([text("b"), text("\udc00")])], r"messages\[1\]\.content\[1\]\.text"),
    ):
        with pytest.raises(ConversationError, match=field):
            check_conversation({"messages": messages})
