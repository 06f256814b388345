"""inspect-ai: a task of one question by each of its providers."""

import json

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import JSONSchema


@tool(name="measure")
def _measure():
    async def execute(thing: str) -> str:
        """Measures a thing.

        Args:
            thing: what is measured
        """
        return thing

    return execute


def _run(s, model, solver=(), config=None, **options):
    sample = Sample(s.question, target=s.chat)
    task = Task([sample], solver=[*solver, generate()], scorer=includes())
    config = config or GenerateConfig(temperature=0)
    model = get_model(model, base_url=s.url, api_key="none", config=config, **options)
    (log,) = eval(task, model=model, display="none", log_dir=str(s.folder), fail_on_error=True)
    assert log.status == "success", log.error.message if log.error else log.status
    return log


def _score(log):
    (metric,) = (m.value for m in log.results.scores[0].metrics.values() if m.name == "accuracy")
    return [log.samples[0].output.completion, metric]


def chat(s):
    log = _run(s, f"openai-api/jaxchat/{s.model}")
    return _score(log), [s.chat, 1.0]


def usage_of_an_answer(s):
    (usage,) = _run(s, f"openai-api/jaxchat/{s.model}").stats.model_usage.values()
    seen = [usage.input_tokens, usage.output_tokens, usage.total_tokens]
    return seen, list(s.usage.values())


def tools_auto(s):
    log = _run(s, f"openai-api/jaxchat/{s.model}", [use_tools(_measure())])
    return _score(log), [s.chat, 1.0]


def structured(s):
    schema = ResponseSchema(name="measure", json_schema=JSONSchema(**s.tool["parameters"]))
    config = GenerateConfig(temperature=0, response_schema=schema)
    log = _run(s, f"openai-api/jaxchat/{s.model}", config=config)
    found = json.loads(log.samples[0].output.completion)
    # its schemas have no bounds of numbers
    return [found["thing"], type(found["digits"]).__name__], [s.document["thing"], "int"]


def responses(s):
    return _score(_run(s, f"openai/{s.model}", responses_api=True)), [s.chat, 1.0]


def vllm_provider(s):
    return _score(_run(s, f"vllm/{s.model}")), [s.chat, 1.0]
