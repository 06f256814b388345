"""openai-agents by its default, responses, and by chat completions."""

import json
from typing import Literal

import agents
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

agents.set_tracing_disabled(True)


class Measure(BaseModel):
    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


@agents.function_tool
def measure(thing: Literal["table", "river", "mountain"], digits: int) -> str:
    """Measures a thing."""
    return json.dumps({"thing": thing, "digits": digits})


def _client(s):
    client = AsyncOpenAI(base_url=s.url, api_key="none")
    agents.set_default_openai_client(client, use_for_tracing=False)
    return client


def _chat(s):
    return agents.OpenAIChatCompletionsModel(model=s.model, openai_client=_client(s))


def _agent(s, model, **options):
    settings = agents.ModelSettings(
        temperature=0, tool_choice=options.pop("tool_choice", None), include_usage=True
    )
    return agents.Agent(name="helper", model=model, model_settings=settings, **options)


async def _run(s, model, **options):
    return await agents.Runner.run(_agent(s, model, **options), s.question)


async def chat(s):
    return (await _run(s, _chat(s))).final_output, s.chat


async def stream(s):
    run = agents.Runner.run_streamed(_agent(s, _chat(s)), s.question)
    kinds = {event.type async for event in run.stream_events()}
    return [run.final_output, "raw_response_event" in kinds], [s.chat, True]


async def usage_of_a_stream(s):
    run = agents.Runner.run_streamed(_agent(s, _chat(s)), s.question)
    async for _ in run.stream_events():
        pass
    usage = run.context_wrapper.usage
    seen = [usage.input_tokens, usage.output_tokens, usage.total_tokens]
    return seen, list(s.usage.values())


async def tools_auto(s):
    return (await _run(s, _chat(s), tools=[measure])).final_output, s.chat


async def tools_required(s):
    run = await _run(
        s, _chat(s), tools=[measure], tool_choice="required",
        tool_use_behavior="stop_on_first_tool",
    )  # fmt: skip
    found = json.loads(run.final_output)
    return [sorted(found), found["thing"]], [["digits", "thing"], s.call["arguments"]["thing"]]


async def structured(s):
    return (await _run(s, _chat(s), output_type=Measure)).final_output.model_dump(), s.document


async def responses(s):
    _client(s)
    return (await _run(s, s.long, tools=[measure])).final_output, s.chat


async def responses_streamed(s):
    _client(s)
    run = agents.Runner.run_streamed(_agent(s, s.long), s.question)
    async for _ in run.stream_events():
        pass
    return run.final_output, s.chat


async def responses_structured(s):
    _client(s)
    return (await _run(s, s.long, output_type=Measure)).final_output.model_dump(), s.document


async def responses_tools_required(s):
    _client(s)
    run = await _run(
        s, s.long, tools=[measure], tool_choice="required",
        tool_use_behavior="stop_on_first_tool",
    )  # fmt: skip
    found = json.loads(run.final_output)
    return [sorted(found), found["thing"]], [["digits", "thing"], s.call["arguments"]["thing"]]


async def name_with_a_slash(s):
    """The client takes what is before a slash for a provider of its own, and sends nothing."""
    _client(s)
    try:
        return (await _run(s, s.model)).final_output, "a UserError"
    except agents.UserError as error:
        return str(error), f"Unknown prefix: {s.model.partition('/')[0]}"
