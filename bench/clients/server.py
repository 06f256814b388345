"""A server of a trained model, and its answers to plain requests, which clients must see too."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What is 37 * 24?"
PROMPT = f"<|bos|><|user_start|>{QUESTION}<|user_end|><|assistant_start|>"
BEGUN = "The answ"
LONG_CONTEXT = 4096  # tokens, for clients that send long prompts of their own
TOOL = {
    "name": "measure",
    "description": "Measures a thing.",
    "parameters": {
        "type": "object",
        "properties": {
            "thing": {"type": "string", "enum": ["table", "river", "mountain"]},
            "digits": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["thing", "digits"],
        "additionalProperties": False,
    },
}


def make_home(home: Path, run: str, stage: str, work: Path) -> Path:
    """A home with the model as `RUN`, and the same weights with a longer context as `long`.

    Beside it in `work`, the folder `export` is the model for transformers: a tokenizer for clients.
    """
    made, weights = work / "home", work / "weights"
    source = (home / "runs" / run / stage / "done.json").read_text()
    mark = made / "made_of.json"
    if mark.exists() and mark.read_text() == source:
        return made
    _jaxchat("export", "--home", home, "--force", run, stage, work / "export")
    _jaxchat("export", "--home", home, "--format", "jaxchat", "--force", run, stage, weights)
    for name in (run, "long"):
        if (made / "runs" / name).exists():
            raise SystemExit(f"{made} has the run {name} of another model; remove it")
        _jaxchat("import", "--home", made, "--name", name, "--stage", stage, weights)
        described = weights / "jaxchat.json"
        fields = json.loads(described.read_text())
        fields["config"]["model"]["sequence_len"] = LONG_CONTEXT
        described.write_text(json.dumps(fields))
    mark.write_text(source)
    return made


def _jaxchat(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "jaxchat", *map(str, words)], cwd=ROOT, check=True)


@contextmanager
def served(home: Path, run: str, stage: str, log: Path) -> Iterator[str]:
    """The address of `jaxchat serve`; the model's name has a slash, the long one's has none."""
    command = [
        sys.executable, "-m", "jaxchat", "serve", "--home", str(home), "--port", "0",
        "--model", f"{run}/{stage}", "--model", f"long/{stage}=long", "--temperature", "0",
    ]  # fmt: skip
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    try:
        line = ""
        while "open http" not in line:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server has ended: {log.read_text()[-1000:]}")
        yield line.partition("open ")[2].split()[0]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # what clients have seen is still worth its table
            process.kill()
            print("the server did not end within 60 s of SIGTERM", file=sys.stderr)


def post(url: str, path: str, **body: Any) -> Any:
    """The answer to a plain request."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def fits(arguments: Any) -> bool:
    """Whether a value is valid for the parameters of `TOOL`."""
    properties = TOOL["parameters"]["properties"]  # type: ignore[index]
    return (
        isinstance(arguments, dict)
        and set(arguments) == set(properties)
        and arguments["thing"] in properties["thing"]["enum"]
        and type(arguments["digits"]) is int
        and 1 <= arguments["digits"] <= 9
    )


def plain_answers(url: str, model: str) -> dict[str, Any]:
    """What plain requests at temperature 0 are answered, each checked by itself."""
    asked: dict[str, Any] = {
        "model": model, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}],
    }  # fmt: skip
    chat = post(url, "/v1/chat/completions", **asked)
    choose = {"type": "function", "function": {"name": TOOL["name"]}}
    tools = [{"type": "function", "function": TOOL}]
    called = post(url, "/v1/chat/completions", **asked, tools=tools, tool_choice=choose)
    schema = {"name": "measure", "schema": TOOL["parameters"]}
    form = {"type": "json_schema", "json_schema": schema}
    document = post(url, "/v1/chat/completions", **asked, response_format=form)
    completion = post(
        url, "/v1/completions", model=model, prompt=PROMPT, temperature=0, max_tokens=32
    )
    answer = post(url, "/v1/responses", model=model, input=QUESTION, temperature=0)
    call = called["choices"][0]["message"]["tool_calls"][0]["function"]
    begun = [*asked["messages"], {"role": "assistant", "content": BEGUN}]
    rest = post(url, "/v1/chat/completions", **{**asked, "messages": begun}, max_tokens=8)
    found = {
        "begun": BEGUN, "rest": rest["choices"][0]["message"]["content"],
        "question": QUESTION, "prompt": PROMPT, "tool": TOOL, "usage": _counts(chat["usage"]),
        "chat": chat["choices"][0]["message"]["content"],
        "call": {"name": call["name"], "arguments": json.loads(call["arguments"])},
        "document": json.loads(document["choices"][0]["message"]["content"]),
        "completion": completion["choices"][0]["text"],
        "response": answer["output"][0]["content"][0]["text"],
    }  # fmt: skip
    _check(found)
    return found


def _check(found: dict[str, Any]) -> None:
    """Raises AssertionError where the answers to plain requests are wrong by themselves."""
    usage = found["usage"]
    assert all(found[name] for name in ("chat", "completion", "rest")), found
    assert found["response"] == found["chat"], found
    assert fits(found["document"]), found
    assert fits(found["call"]["arguments"]), found
    assert usage["total"] == usage["prompt"] + usage["completion"], usage
    assert min(usage.values()) > 0, usage


def _counts(usage: dict[str, int]) -> dict[str, int]:
    return {name: usage[f"{name}_tokens"] for name in ("prompt", "completion", "total")}
