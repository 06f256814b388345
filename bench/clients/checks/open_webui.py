"""Open WebUI: its page in a headless Chromium, and its own API."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

TYPED = "What is 37 × 24?"  # the page would make this of `*` itself
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = 400  # seconds until its own server answers, at most
ANSWER = 120_000  # milliseconds


def _free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def _open(s):
    """The address of an Open WebUI with this server as its only connection, and no log-in."""
    port = _free_port()
    settings = {
        "DATA_DIR": str(s.folder / "data"), "WEBUI_AUTH": "False", "ENABLE_OLLAMA_API": "False",
        "OPENAI_API_BASE_URLS": s.url, "OPENAI_API_KEYS": "none", "DEFAULT_MODELS": s.long,
        "RAG_EMBEDDING_ENGINE": "openai", "OFFLINE_MODE": "True", "ENABLE_VERSION_UPDATE_CHECK": "False",
        "ENABLE_PERSISTENT_CONFIG": "False", "WEBUI_SECRET_KEY": "a test", "SCARF_NO_ANALYTICS": "true",
    }  # fmt: skip
    (s.folder / "data").mkdir(exist_ok=True)
    command = [Path(s.environment) / "bin" / "open-webui", "serve", "--host", "127.0.0.1"]
    with (s.folder / "open_webui.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=os.environ | settings, stdout=log, stderr=log,
            cwd=s.folder,
        )  # fmt: skip
    try:
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START
        while not _healthy(base):
            assert process.poll() is None, "Open WebUI has ended: see open_webui.log"
            assert time.monotonic() < deadline, f"Open WebUI did not answer in {START} s"
            time.sleep(1)
        yield base
    finally:
        process.terminate()
        process.wait(30)


def _healthy(base):
    try:
        return urllib.request.urlopen(f"{base}/health", timeout=5).status == 200
    except OSError:
        return False


def chat_on_its_page(s):
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, "there is no Chromium on PATH"
    with _open(s) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page()
        page.set_default_timeout(ANSWER)
        page.goto(base)
        page.wait_for_timeout(15000)
        page.screenshot(path=str(s.folder / "page.png"))
        print(page.content()[:200000])
        browser.close()
    return "x", "y"
