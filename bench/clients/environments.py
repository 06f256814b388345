"""The clients with their pinned versions, and an environment for each, kept for the next time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

UV = "uv==0.13.9"
NODE = "node@24.21.0"  # the clients for Node need 22 or newer


@dataclass(frozen=True)
class Client:
    """One client: its checks are in the file of this name in `checks/`."""

    file: str
    title: str
    packages: tuple[str, ...]  # the first gives the version
    without: tuple[str, ...] = ()  # packages that it names and does not need for what is checked

    @property
    def name(self) -> str:
        """As the command line names it."""
        return self.file.rpartition(".")[0].replace("_", "-")

    @property
    def version(self) -> str:
        """Of its first package."""
        return self.packages[0].replace("==", "@").rpartition("@")[2]


SDK = ("ai@7.0.173", "zod@4.6.7")
COMPATIBLE = "@ai-sdk/openai-compatible@3.0.92"
BROWSER = "playwright==1.65.2"
LIKE = "llama-index-llms-openai-like"
CLIENTS = {
    client.name: client
    for client in (
        Client("openai_python.py", "openai (Python)", ("openai==3.57.0",)),
        Client("openai_node.mjs", "openai (Node)", ("openai@7.59.0", "zod@4.6.7")),
        Client("ai_compatible.mjs", "AI SDK, openai-compatible", (COMPATIBLE, *SDK)),
        Client("ai_openai.mjs", "AI SDK, openai", ("@ai-sdk/openai@4.0.118", *SDK)),
        Client("litellm.py", "litellm", ("litellm==1.110.2",)),
        Client("langchain.py", "langchain-openai", ("langchain-openai==1.7.4",)),
        Client("llama_index.py", LIKE, (f"{LIKE}==0.8.1",)),
        Client("pydantic_ai.py", "pydantic-ai", ("pydantic-ai==2.62.0",)),
        Client("openai_agents.py", "openai-agents", ("openai-agents==0.24.0",)),
        Client("instructor.py", "instructor", ("instructor==1.17.0",)),
        Client("llm.py", "llm", ("llm==0.36",)),
        Client("inspect_ai.py", "inspect-ai", ("inspect-ai==0.3.285", "openai")),
        Client("lm_eval.py", "lm-eval", ("lm-eval[api]==0.4.13", "transformers==5.24.0")),
        Client("guidellm.py", "guidellm", ("guidellm==0.8.1",)),
        Client("gradio.py", "gradio `load_chat`", ("gradio==6.31.0", "openai==3.57.0")),
        Client("aider.py", "aider", ("aider-chat==0.86.2",)),
        Client("open_webui.py", "Open WebUI", ("open-webui==0.12.4", BROWSER), ("torch",)),
    )
}  # fmt: skip


class NotInstalled(Exception):
    """An environment could not be made; the message is the end of the installer's log."""


def command(client: Client, work: Path) -> list[str]:
    """What runs JavaScript or Python in a client's environment, which is made if need be."""
    folder, known = work / "environments" / client.name, [*client.packages, *client.without]
    done = folder / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != known:
        shutil.rmtree(folder, ignore_errors=True)
        (_npm if client.file.endswith(".mjs") else _uv)(client, folder, work)
        done.write_text(json.dumps(known))
    if client.file.endswith(".mjs"):
        return [str(folder / "node_modules/node/bin/node")]
    return [str(folder / "bin/python"), "-P"]


def _uv(client: Client, folder: Path, work: Path) -> None:
    uv = work / "uv" / "bin" / "uv"
    if not uv.exists():
        _run([sys.executable, "-m", "venv", str(work / "uv")], work)
        _run([str(uv.with_name("python")), "-m", "pip", "install", "-q", UV], work)
    _run([str(uv), "venv", "-q", "--python", sys.executable, str(folder)], work)
    left_out = work / "left_out.txt"
    left_out.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in client.without))
    _run(
        [str(uv), "pip", "install", "--python", str(folder / "bin/python"),
         "--override", str(left_out), *client.packages], work,
    )  # fmt: skip


def _npm(client: Client, folder: Path, work: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    _run(["npm", "install", "--prefix", str(folder), *client.packages, NODE], work)


def _run(words: list[str], work: Path) -> None:
    """Runs a step of an installation."""
    try:
        done = subprocess.run(
            words, cwd=work, env={**os.environ, "UV_CACHE_DIR": str(work / "uv-cache")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise NotInstalled(f"{words[0]}: {error}") from error
    if done.returncode:
        raise NotInstalled("\n".join(done.stdout.strip().splitlines()[-8:]))
