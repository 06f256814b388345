"""The Responses API, as the `openai` package asks for it and adds its events up."""

import json

import openai
import pytest
import tiny_model

WHO = "Who are you?"
SAID = tiny_model.ANSWERS[WHO]
ADD = {
    "type": "function", "name": "add", "strict": True,
    "parameters": {
        "type": "object", "properties": {"a": {"enum": [1, 23]}}, "required": ["a"],
        "additionalProperties": False,
    },
}  # fmt: skip
STOP = {"type": "function", "name": "stop", "parameters": None, "strict": False}


def ask(client, given=WHO, **settings):
    return client.responses.create(
        **{"model": "tiny/rl", "input": given, "temperature": 0, **settings}
    )


@pytest.mark.parametrize(
    "given",
    [
        WHO,
        [{"role": "user", "content": WHO}],
        [{"role": "user", "content": [{"type": "input_text", "text": WHO}]}],
        [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": WHO}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        ],
    ],
)
def test_an_input_is_answered(client, given):
    got = ask(client, given, store=True, include=["reasoning.encrypted_content"])
    assert (got.output_text, got.status, got.store) == (SAID, "completed", False)
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    assert got.output[0].role == "assistant"


def test_a_conversation_is_the_same_as_by_chat(client):
    items = [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "1 2"}]},
        {"role": "user", "content": "Count."},
    ]
    settings = {"max_output_tokens": 9, "temperature": 1.0, "extra_body": {"seed": 4}}
    got = ask(client, items, instructions="Be brief.", **settings)
    messages = [
        {"role": "system", "content": "Be brief."}, items[0],
        {"role": "assistant", "content": "1 2"}, items[2],
    ]  # fmt: skip
    chat = client.chat.completions.create(
        model="tiny/rl", messages=messages, max_tokens=9, seed=4, temperature=1.0
    )
    assert got.output_text == chat.choices[0].message.content
    assert got.usage.input_tokens == chat.usage.prompt_tokens


def test_an_answer_that_is_cut_is_incomplete(client):
    got = ask(client, "Count.", max_output_tokens=5)
    assert (got.status, got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert got.usage.output_tokens == 5


def test_the_packages_stream_adds_up(client):
    with client.responses.stream(model="tiny/rl", input=WHO, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == SAID
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == SAID
    messages = [{"role": "user", "content": WHO}]
    chat = client.chat.completions.create(
        model="tiny/rl", messages=messages, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content for chunk in chat]
    assert [event.delta for event in deltas] == [piece for piece in pieces if piece]  # of a token
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in ask(client, "Count.", stream=True, max_output_tokens=3)]
    assert kinds[-1] == "response.incomplete"


def test_a_call_and_its_result_are_taken(client):
    items = [
        {"role": "user", "content": "What is 12 + 34?"},
        {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "46"},
        {"type": "function_call_output", "call_id": "b", "output": "46"},
    ]
    tools = [{"type": "function", "name": "add", "parameters": {}, "strict": False}]
    got = ask(client, items, tools=tools, max_output_tokens=4)
    assert got.usage.output_tokens in range(1, 5)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "none"}, "tools": [ADD]}, "tool_choice"),
        ({"input": "many words " * 400}, "input"),
    ],
)
def test_a_bad_request_says_which_field_is_wrong(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"given": settings.pop("input", WHO), **settings})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tools", "choice"),
    [([ADD], "required"), ([ADD, STOP], {"type": "function", "name": "add"}),
     ([ADD, STOP], "required")],
)  # fmt: skip
def test_a_required_call_is_an_item_and_its_stream_adds_up(client, tools, choice):
    pytest.importorskip("llguidance")
    settings = {"tools": tools, "tool_choice": choice, "extra_body": {"seed": 3}}
    whole = ask(client, temperature=1.0, **settings)
    (made,) = whole.output
    assert (made.type, made.status, whole.status) == ("function_call", "completed", "completed")
    arguments = json.loads(made.arguments)
    assert arguments in ([{"a": 1}, {"a": 23}] if made.name == "add" else [{}])
    assert made.call_id.startswith("call_")
    with client.responses.stream(model="tiny/rl", input=WHO, temperature=1.0, **settings) as stream:
        events = list(stream)
        (streamed,) = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (made.name, made.arguments)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type.endswith("arguments.delta")]
    assert "".join(deltas) == made.arguments
    assert events[-1].sequence_number == len(events) - 1
    # The call and its result are taken as the conversation.
    result = {"type": "function_call_output", "call_id": made.call_id, "output": "24"}
    items = [{"role": "user", "content": WHO}, made.model_dump(exclude_none=True), result]
    assert ask(client, items, tools=tools, max_output_tokens=2).usage.output_tokens > 0


def test_a_call_that_is_cut_before_its_name_is_no_item(client):
    pytest.importorskip("llguidance")
    settings = {"tools": [ADD, STOP], "tool_choice": "required", "max_output_tokens": 1}
    assert (ask(client, **settings).status, ask(client, **settings).output) == ("incomplete", [])
    kinds = [event.type for event in ask(client, stream=True, **settings)]
    assert kinds == ["response.created", "response.in_progress", "response.incomplete"]


def test_an_answer_follows_a_schema(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    kind = {"type": "json_schema", "name": "A", "schema": schema}
    got = ask(client, temperature=1.0, text={"format": kind})
    assert json.loads(got.output_text)["a"] in ("x", "y")


def test_a_token_that_ends_the_answer_is_not_shown(client):
    shown = ask(client, "Count.", max_output_tokens=3).output_text
    (entry, *_) = client.chat.completions.create(
        model="tiny/rl", messages=[{"role": "user", "content": "Count."}], temperature=0,
        max_tokens=3, logprobs=True,
    ).choices[0].logprobs.content[2:]  # fmt: skip
    ended = ask(client, "Count.", extra_body={"stop_token_ids": [entry.jaxchat["id"]]})
    assert (ended.status, ended.output_text) == ("completed", shown.removesuffix(entry.token))


def test_nothing_is_stored(client):
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve(ask(client, max_output_tokens=1).id)
