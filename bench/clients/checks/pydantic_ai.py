"""pydantic-ai by chat completions and by responses."""

from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Measure(BaseModel):
    """Measures a thing."""

    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


class Anything(BaseModel, extra="allow"):
    """A thing."""


def _agent(s, kind=OpenAIChatModel, name=None, **options):
    provider = OpenAIProvider(base_url=s.url, api_key="none")
    model = kind(name or s.model, provider=provider)
    return Agent(model, model_settings={"temperature": 0}, **options)


def chat(s):
    return _agent(s).run_sync(s.question).output, s.chat


def chat_history(s):
    agent = _agent(s)
    first = agent.run_sync("Who are you?")
    second = agent.run_sync(s.question, message_history=first.all_messages())
    return [second.output != "", len(second.all_messages())], [True, 4]


async def stream(s):
    async with _agent(s).run_stream(s.question) as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True)]
    return "".join(pieces), s.chat


async def usage_of_a_stream(s):
    async with _agent(s).run_stream(s.question) as answer:
        await answer.get_output()
    usage = answer.usage() if callable(answer.usage) else answer.usage
    seen = {"prompt": usage.input_tokens, "completion": usage.output_tokens}
    return {**seen, "total": sum(seen.values())}, s.usage


def tools_auto(s):
    agent = _agent(s)

    @agent.tool_plain
    def measure(thing: str) -> str:
        """Measures a thing."""
        return thing

    return agent.run_sync(s.question).output, s.chat


def structured_tool(s):
    return _agent(s, output_type=Measure).run_sync(s.question).output.model_dump(), s.document


def structured_native(s):
    agent = _agent(s, output_type=NativeOutput(Measure))
    return agent.run_sync(s.question).output.model_dump(), s.document


def structured_prompted(s):
    """It asks for any JSON object; only the prompt has the schema, which a small model ignores."""
    agent = _agent(s, name=s.long, output_type=PromptedOutput(Anything))
    agent.model_settings["max_tokens"] = 64
    return type(agent.run_sync(s.question).output).__name__, "Anything"


def responses(s):
    return _agent(s, OpenAIResponsesModel).run_sync(s.question).output, s.chat


async def responses_streamed(s):
    async with _agent(s, OpenAIResponsesModel).run_stream(s.question) as answer:
        return await answer.get_output(), s.chat


def responses_structured_native(s):
    agent = _agent(s, OpenAIResponsesModel, output_type=NativeOutput(Measure))
    return agent.run_sync(s.question).output.model_dump(), s.document


def responses_structured_tool(s):
    agent = _agent(s, OpenAIResponsesModel, output_type=Measure)
    return agent.run_sync(s.question).output.model_dump(), s.document
