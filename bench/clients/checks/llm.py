"""The command `llm`, with a model of extra-openai-models.yaml."""

import json
import os
import sqlite3
import subprocess
from pathlib import Path


def _settings(s):
    folder = s.folder / "llm"
    folder.mkdir(exist_ok=True)
    shared = f"api_base: {s.url}\n  model_name: {s.model}"
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: chat\n  {shared}\n  supports_schema: true\n  supports_tools: true\n"
        f"- model_id: text\n  {shared}\n  completion: true\n"
    )
    return folder


def _llm(s, *words):
    done = subprocess.run(
        [Path(s.environment) / "bin" / "llm", *words], capture_output=True, text=True,
        env=os.environ | {"LLM_USER_PATH": str(_settings(s))}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-600:]
    return done.stdout.rstrip("\n")


def chat(s):
    return _llm(s, "-m", "chat", "--no-stream", "-o", "temperature", "0", s.question), s.chat


def stream(s):
    return _llm(s, "-m", "chat", "-o", "temperature", "0", s.question), s.chat


def usage_of_a_stream(s):
    with sqlite3.connect(s.folder / "llm" / "logs.db") as logs:
        (row,) = logs.execute(
            "select input_tokens, output_tokens from turns order by id desc limit 1"
        )
    return list(row), [s.usage["prompt"], s.usage["completion"]]


def chat_continued(s):
    first = _llm(s, "-m", "chat", "-s", "Be brief.", "Who are you?")
    second = _llm(s, "-c", s.question)
    return [bool(first), bool(second)], [True, True]


def tools_auto(s):
    function = "def measure(thing: str) -> str:\n    'Measures a thing.'\n    return thing"
    return _llm(s, "-m", "chat", "--functions", function, s.question), s.chat


def structured(s):
    schema = json.dumps(s.tool["parameters"])
    return json.loads(_llm(s, "-m", "chat", "--schema", schema, s.question)), s.document


def completions(s):
    text = _llm(s, "-m", "text", "-o", "temperature", "0", "-o", "max_tokens", "32", s.prompt)
    return text, s.completion
