"""aider: a question about a file. Its prompts need the longer context."""

import json
import os
import subprocess
import urllib.request
from pathlib import Path


def _answer(s, *words):
    """What it prints for a question; its repetitions are cut by the model's most tokens."""
    settings = s.folder / "settings.yml"
    settings.write_text(
        f"- name: openai/{s.long}\n  edit_format: ask\n  use_repo_map: false\n"
        "  extra_params:\n    max_tokens: 24\n    temperature: 0\n"
    )
    (s.folder / "hello.py").write_text("print('Hello')\n")
    done = subprocess.run(
        [Path(s.environment) / "bin" / "aider", "--model", f"openai/{s.long}",
         "--openai-api-base", s.url, "--openai-api-key", "none", "--no-git", "--yes-always",
         "--no-check-update", "--no-analytics", "--no-show-model-warnings", "--no-pretty",
         "--no-detect-urls", "--no-show-release-notes", "--map-tokens", "0", "--chat-mode", "ask",
         "--model-settings-file", settings, "--llm-history-file", "sent", *words,
         "--message", s.question, "hello.py"],
        capture_output=True, text=True, cwd=s.folder, env={**os.environ},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-600:] + done.stderr[-600:]
    return done.stdout


def _messages(log):
    """What its log says it sent: a line `ROLE text` for each line of a message."""
    found = []
    for block in log.partition("LLM RESPONSE")[0].split("-------\n")[1:]:
        lines = block.splitlines()
        role = lines[0].split(" ")[0]
        text = "\n".join(line.removeprefix(role).removeprefix(" ") for line in lines)
        if role != "ASSISTANT":
            text += "\n"  # the log leaves it out
        found.append({"role": role.lower(), "content": text})
    return found


def _compared(s, *words):
    said = _answer(s, *words)
    log = (s.folder / "sent").read_text()
    (s.folder / "sent").unlink()
    body = {"model": s.long, "messages": _messages(log), "temperature": 0, "max_tokens": 24}
    request = urllib.request.Request(
        f"{s.url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    choice = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]
    plain = choice["message"]["content"].strip()
    return [len(body["messages"]) > 2, plain in said and plain], [True, plain]


def stream(s):
    return _compared(s, "--stream")


def chat(s):
    return _compared(s, "--no-stream")
