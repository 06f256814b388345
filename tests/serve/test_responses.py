"""The Responses API, as the `openai` package asks for it and adds its events up."""

import json

import openai
import pytest
import tiny_model

WHO = "Who are you?"
SAID = tiny_model.ANSWERS[WHO]
LOOK = {
    "type": "function",
    "name": "look",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"way": {"enum": ["up", "down"]}},
        "required": ["way"],
        "additionalProperties": False,
    },
}
STOP = {"type": "function", "name": "stop", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def client(live_server):
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=live_server.api, api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


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


@pytest.mark.parametrize("tools", [[LOOK], [LOOK, STOP]])
def test_a_call_that_is_required_is_made_and_its_events_add_up(client, tools):
    pytest.importorskip("llguidance")
    asked = {"tools": tools, "tool_choice": "required"}
    (call,) = ask(client, **asked).output
    assert (call.type, call.status) == ("function_call", "completed")
    assert call.call_id.startswith("call_")
    assert (
        json.loads(call.arguments)
        in ({"look": [{"way": "up"}, {"way": "down"}], "stop": [{}]}[call.name])
    )
    with client.responses.stream(model="tiny/rl", input=WHO, temperature=0, **asked) as stream:
        events = list(stream)
        (made,) = stream.get_final_response().output
    assert (made.name, made.arguments) == (call.name, call.arguments)
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


def test_a_function_of_several_is_named_and_its_call_may_be_cut(client):
    pytest.importorskip("llguidance")
    asked = {"tools": [LOOK, STOP], "tool_choice": {"type": "function", "name": "look"}}
    assert ask(client, **asked).output[0].name == "look"
    cut = ask(client, tools=[LOOK, STOP], tool_choice="required", max_output_tokens=1)
    assert (cut.status, cut.output) == ("incomplete", [])


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
        ({"tool_choice": {"type": "function", "name": "none"}, "tools": [LOOK]}, "tool_choice"),
        ({"input": "many words " * 400}, "input"),
    ],
)
def test_a_bad_request_says_which_field_is_wrong(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"given": settings.pop("input", WHO), **settings})
    assert caught.value.param == param


def test_nothing_is_stored(client):
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve(ask(client, max_output_tokens=1).id)
