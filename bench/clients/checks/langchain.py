"""langchain-openai."""

from typing import Literal

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Measure(BaseModel):
    """Measures a thing."""

    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


@tool
def measure(thing: Literal["table", "river", "mountain"], digits: int) -> str:
    """Measures a thing."""
    return f"{thing} {digits}"


def _model(s, **options):
    return ChatOpenAI(model=s.model, base_url=s.url, api_key="none", temperature=0, **options)


def _counts(usage):
    names = {"prompt": "input", "completion": "output", "total": "total"}
    return {ours: usage[f"{theirs}_tokens"] for ours, theirs in names.items()}


def chat(s):
    return _model(s).invoke(s.question).content, s.chat


def chat_batch(s):
    return [m.content for m in _model(s).batch([s.question] * 3)], [s.chat] * 3


def stream(s):
    return "".join(chunk.content for chunk in _model(s).stream(s.question)), s.chat


def usage_of_a_stream(s):
    whole = None
    for chunk in _model(s, stream_usage=True).stream(s.question):
        whole = chunk if whole is None else whole + chunk
    return _counts(whole.usage_metadata), s.usage


def tools_auto(s):
    return _model(s).bind_tools([measure]).invoke(s.question).content, s.chat


def tools_required(s):
    (call,) = _model(s).bind_tools([Measure], tool_choice="any").invoke(s.question).tool_calls
    return [call["name"], call["args"]], ["Measure", s.call["arguments"]]


def tools_answered(s):
    call = {"id": "c1", "name": "multiply", "args": {"a": 37, "b": 24}}
    history = [HumanMessage(s.question), AIMessage("", tool_calls=[call])]
    history.append(ToolMessage("888", tool_call_id="c1"))
    return _model(s).bind_tools([measure]).invoke(history).content, s.chat


def structured_json_schema(s):
    return _model(s).with_structured_output(Measure).invoke(s.question).model_dump(), s.document


def structured_function_calling(s):
    model = _model(s).with_structured_output(Measure, method="function_calling")
    return model.invoke(s.question).model_dump(), s.document


def structured_json_mode(s):
    model = _model(s, max_tokens=64).with_structured_output(None, method="json_mode")
    return type(model.invoke(s.question)).__name__, "dict"


def completions(s):
    model = OpenAI(model=s.model, base_url=s.url, api_key="none", temperature=0, max_tokens=32)
    return model.invoke(s.prompt), s.completion


def completions_streamed(s):
    model = OpenAI(model=s.model, base_url=s.url, api_key="none", temperature=0, max_tokens=32)
    return "".join(model.stream(s.prompt)), s.completion


def responses(s):
    return _model(s, use_responses_api=True).invoke(s.question).text, s.chat


def responses_streamed(s):
    chunks = _model(s, use_responses_api=True).stream(s.question)
    return "".join(chunk.text for chunk in chunks), s.chat


def responses_reasoning(s):
    return _model(s, reasoning={"effort": "low"}).invoke(s.question).text, s.chat


def too_long(s):
    try:
        _model(s).invoke("many words " * 400)
    except openai.BadRequestError as error:
        return type(error).__name__, "OpenAIContextOverflowError"
    return "an answer", "OpenAIContextOverflowError"
