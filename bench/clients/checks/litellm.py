"""litellm by `openai/NAME` with an `api_base`, and by `hosted_vllm/NAME`."""

import json
from typing import Literal

import litellm
from pydantic import BaseModel, Field


class Measure(BaseModel):
    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


def _ask(s, provider="openai", **options):
    return litellm.completion(
        f"{provider}/{s.model}", messages=options.pop("messages", None) or [
            {"role": "user", "content": s.question}],
        api_base=s.url, api_key="none", temperature=0, **options,
    )  # fmt: skip


def chat(s):
    return _ask(s).choices[0].message.content, s.chat


def chat_hosted_vllm(s):
    return _ask(s, "hosted_vllm").choices[0].message.content, s.chat


def chat_prefix(s):
    messages = [
        {"role": "user", "content": s.question},
        {"role": "assistant", "content": s.begun, "prefix": True},
    ]
    return _ask(s, messages=messages, max_tokens=8).choices[0].message.content, s.rest


def stream(s):
    chunks = _ask(s, stream=True)
    return "".join(c.choices[0].delta.content or "" for c in chunks), s.chat


def usage_of_a_stream(s):
    *_, last = _ask(s, stream=True, stream_options={"include_usage": True})
    return {n: last.usage[f"{n}_tokens"] for n in ("prompt", "completion", "total")}, s.usage


def tools_auto(s):
    tools = [{"type": "function", "function": s.tool}]
    return _ask(s, tools=tools).choices[0].message.content, s.chat


def tools_required(s):
    tools = [{"type": "function", "function": s.tool}]
    call = _ask(s, tools=tools, tool_choice="required").choices[0].message.tool_calls[0].function
    return {"name": call.name, "arguments": json.loads(call.arguments)}, s.call


def structured(s):
    text = _ask(s, response_format=Measure).choices[0].message.content
    return Measure.model_validate_json(text).model_dump(), s.document


def structured_hosted_vllm(s):
    text = _ask(s, "hosted_vllm", response_format=Measure).choices[0].message.content
    return Measure.model_validate_json(text).model_dump(), s.document


def completions(s):
    answer = litellm.text_completion(
        model=f"openai/{s.model}", prompt=s.prompt, max_tokens=32, temperature=0,
        api_base=s.url, api_key="none",
    )  # fmt: skip
    return answer.choices[0].text, s.completion


def responses(s):
    answer = litellm.responses(
        model=f"openai/{s.model}", input=s.question, temperature=0,
        api_base=s.url, api_key="none",
    )  # fmt: skip
    return answer.output[0].content[0].text, s.chat


def too_long(s):
    try:
        _ask(s, messages=[{"role": "user", "content": "many words " * 400}])
    except Exception as error:
        return type(error).__name__, "ContextWindowExceededError"
    return "an answer", "ContextWindowExceededError"
