"""The openai package for Python."""

import json
from typing import Literal

import openai
from pydantic import BaseModel, Field


class Measure(BaseModel):
    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


def _client(s):
    return openai.OpenAI(base_url=s.url, api_key="none")


def _ask(s, **options):
    messages = [{"role": "user", "content": s.question}]
    ask = _client(s).chat.completions.create
    return ask(model=s.model, messages=messages, temperature=0, **options)


def _counts(usage):
    return {n: getattr(usage, f"{n}_tokens") for n in ("prompt", "completion", "total")}


def chat(s):
    return _ask(s).choices[0].message.content, s.chat


def chat_history(s):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": s.question},
    ]
    ask = _client(s).chat.completions.create
    seen = ask(model=s.model, messages=messages, temperature=0).choices[0].message.content
    raw = openai.OpenAI(base_url=s.url, api_key="none").post(
        "/chat/completions",
        body={"model": s.model, "messages": messages, "temperature": 0},
        cast_to=object,
    )
    return seen, raw["choices"][0]["message"]["content"]


def chat_seeded(s):
    texts = {
        _ask(s, seed=7, top_p=0.9, n=2, logprobs=True).choices[1].message.content for _ in (1, 2)
    }
    return len(texts), 1


def stream(s):
    pieces = [c.choices[0].delta.content or "" for c in _ask(s, stream=True)]
    return {"text": "".join(pieces), "in pieces": len(pieces) > 3}, {
        "text": s.chat, "in pieces": True,
    }  # fmt: skip


def stream_helper(s):
    with _client(s).chat.completions.stream(
        model=s.model, messages=[{"role": "user", "content": s.question}], temperature=0
    ) as events:
        kinds = {event.type for event in events}
        text = events.get_final_completion().choices[0].message.content
    return [text, "content.delta" in kinds, "content.done" in kinds], [s.chat, True, True]


def usage_of_a_stream(s):
    *_, last = _ask(s, stream=True, stream_options={"include_usage": True})
    return _counts(last.usage), s.usage


def tools_auto(s):
    tools = [{"type": "function", "function": s.tool}]
    message = _ask(s, tools=tools).choices[0].message
    none = _ask(s, tools=tools, tool_choice="none").choices[0].message
    return [message.content, message.tool_calls, none.content], [s.chat, None, s.chat]


def tools_required(s):
    tools = [{"type": "function", "function": s.tool}]
    choice = _ask(s, tools=tools, tool_choice="required").choices[0]
    call = choice.message.tool_calls[0]
    found = {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
    return [found, choice.finish_reason], [s.call, "tool_calls"]


def tools_streamed(s):
    tools = [{"type": "function", "function": s.tool}]
    name, text = "", ""
    for chunk in _ask(s, tools=tools, tool_choice="required", stream=True):
        for call in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            name, text = name + (call.function.name or ""), text + (call.function.arguments or "")
    return {"name": name, "arguments": json.loads(text)}, s.call


def tools_answered(s):
    function = {"name": "multiply", "arguments": '{"a": 37, "b": 24}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    result = {"role": "tool", "tool_call_id": "c1", "content": "888"}
    messages = [{"role": "user", "content": s.question}, message, result]
    answer = _client(s).chat.completions.create(
        model=s.model, messages=messages, temperature=0,
        tools=[{"type": "function", "function": s.tool}],
    )  # fmt: skip
    return answer.choices[0].message.content, s.chat


def structured_parse(s):
    answer = _client(s).chat.completions.parse(
        model=s.model, messages=[{"role": "user", "content": s.question}], temperature=0,
        response_format=Measure,
    )  # fmt: skip
    return answer.choices[0].message.parsed.model_dump(), s.document


def structured_json_object(s):
    form = {"type": "json_object"}
    text = _ask(s, response_format=form, max_tokens=64).choices[0].message.content
    return type(json.loads(text)).__name__, "dict"


def completions(s):
    answer = _client(s).completions.create(
        model=s.model, prompt=s.prompt, temperature=0, max_tokens=32
    )
    return answer.choices[0].text, s.completion


def completions_streamed(s):
    chunks = _client(s).completions.create(
        model=s.model, prompt=s.prompt, temperature=0, max_tokens=32, stream=True
    )
    return "".join(c.choices[0].text for c in chunks if c.choices), s.completion


def responses(s):
    answer = _client(s).responses.create(model=s.model, input=s.question, temperature=0)
    usage = answer.usage
    counts = [usage.input_tokens, usage.output_tokens, usage.total_tokens]
    return [answer.output_text, counts], [s.chat, list(s.usage.values())]


def responses_streamed(s):
    text, kinds = "", []
    for event in _client(s).responses.create(
        model=s.model, input=s.question, temperature=0, stream=True
    ):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    return [text, kinds[0], kinds[-1]], [s.chat, "response.created", "response.completed"]


def responses_parse(s):
    answer = _client(s).responses.parse(
        model=s.model, input=s.question, temperature=0, text_format=Measure
    )
    return answer.output_parsed.model_dump(), s.document


def models(s):
    client = _client(s)
    names = [model.id for model in client.models.list()]
    return [names, client.models.retrieve(s.model).id], [[s.model, s.long], s.model]


def raw_response(s):
    raw = _client(s).chat.completions.with_raw_response.create(
        model=s.model, messages=[{"role": "user", "content": s.question}], temperature=0
    )
    shown = raw.parse()._request_id
    return [shown == raw.headers["x-request-id"], bool(shown)], [True, True]


async def many_at_once(s):
    import asyncio

    client = openai.AsyncOpenAI(base_url=s.url, api_key="none")

    async def one():
        answer = await client.chat.completions.create(
            model=s.model, messages=[{"role": "user", "content": s.question}], temperature=0
        )
        return answer.choices[0].message.content

    return await asyncio.gather(*(one() for _ in range(12))), [s.chat] * 12


def too_long(s):
    try:
        _client(s).chat.completions.create(
            model=s.model, messages=[{"role": "user", "content": "many words " * 400}]
        )
    except openai.BadRequestError as error:
        return [error.code, error.type], ["context_length_exceeded", "invalid_request_error"]
    return "an answer", "a BadRequestError"


def unknown_model(s):
    try:
        _client(s).chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": s.question}]
        )
    except openai.NotFoundError as error:
        return error.code, "model_not_found"
    return "an answer", "a NotFoundError"
