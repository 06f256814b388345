"""Open WebUI: its page in a headless Chromium, and its own API. It is started once for both."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

TYPED = "What is 37 \u00d7 24?"  # of `*`, too, the page makes a multiplication sign
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = 400  # seconds until it answers, at most
PATIENCE = 90_000  # milliseconds for a step on the page
_running = []


def _open(s):
    """Its address: this server is its only connection, and it asks for no log-in."""
    if _running:
        return _running[0]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    settings = {
        "DATA_DIR": str(s.folder / "data"), "WEBUI_SECRET_KEY": "a test", "WEBUI_AUTH": "False",
        "OPENAI_API_BASE_URLS": s.url, "OPENAI_API_KEYS": "none", "DEFAULT_MODELS": s.model,
        "ENABLE_OLLAMA_API": "False", "ENABLE_PERSISTENT_CONFIG": "False", "OFFLINE_MODE": "True",
        "RAG_EMBEDDING_ENGINE": "openai", "ENABLE_VERSION_UPDATE_CHECK": "False",
    }  # fmt: skip
    (s.folder / "data").mkdir()
    with (s.folder / "open_webui.log").open("w") as log:
        process = subprocess.Popen(
            [Path(s.environment) / "bin/open-webui", "serve", "--host", "127.0.0.1",
             "--port", port], env=os.environ | settings, stdout=log, stderr=log, cwd=s.folder,
        )  # fmt: skip
    atexit.register(process.kill)
    base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START
    while not _healthy(base):
        assert process.poll() is None, "Open WebUI has ended: see open_webui.log"
        assert time.monotonic() < deadline, f"Open WebUI did not answer in {START} s"
        time.sleep(1)
    _running.append(base)
    return base


def _healthy(base):
    try:
        return urllib.request.urlopen(f"{base}/health", timeout=5).status == 200
    except OSError:
        return False


def _post(address, body, token="none"):
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request, timeout=120))


def _asked(text, model):
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}


def chat_api(s):
    base = _open(s)
    token = _post(f"{base}/api/v1/auths/signin", {"email": "", "password": ""})["token"]
    answer = _post(f"{base}/api/chat/completions", _asked(s.question, s.model), token)
    return answer["choices"][0]["message"]["content"], s.chat


def chat_page(s):
    """A message typed into the page, with the tools that it sends along."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, "there is no Chromium on PATH"
    base = _open(s)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, env={**os.environ})
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        try:
            page.goto(base)
            page.get_by_text("Okay, Let's Go!").click()
            page.click("#chat-input")
            page.keyboard.type(TYPED)
            page.keyboard.press("Enter")
            page.get_by_label("Regenerate", exact=True).wait_for()  # the answer has ended
            asked = page.locator(".chat-user").inner_text().splitlines()[0]  # then the time
            said = page.locator(".chat-assistant").inner_text()
        finally:
            page.screenshot(path=str(s.folder / "page.png"))
            (s.folder / "page.html").write_text(page.content())
            browser.close()
    plain = _post(f"{s.url}/chat/completions", _asked(TYPED, s.model))
    return [asked.strip(), said.strip()], [TYPED, plain["choices"][0]["message"]["content"]]
