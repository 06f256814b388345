"""A real Chromium for the tests of the page, which are skipped where there is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # milliseconds that a test waits for something; programs are compiled meanwhile


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        pytest.skip("there is no Chromium on PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, env={**os.environ})
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of its own at an address; what the page does wrong fails the test.

    Wrong is an exception, anything that its security policy forbids, and a request that does not
    go to the server that it came from.
    """
    contexts, wrong = [], list[str]()

    def visit(url: str, settings: dict[str, Any] | None = None, **options: Any) -> Page:
        context = browser.new_context(**options)
        given = json.dumps(json.dumps(settings or {}))
        context.add_init_script(f"localStorage['jaxchat.settings'] ??= {given}")
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: "Policy" in said.text and wrong.append(said.text))
        page.on(
            "request", lambda request: wrong.append(request.url) if foreign(request.url) else None
        )
        page.on("dialog", lambda dialog: wrong.append(dialog.message))

        def foreign(address: str) -> bool:
            return not address.startswith((url, "blob:", "data:"))

        page.goto(url)
        page.locator("header select, dialog[open]").first.wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def say(page: Page, text: str) -> None:
    """Writes a message and sends it."""
    page.fill("#message", text)
    page.press("#message", "Enter")


def answered(page: Page, column: int = 0) -> str:
    """The text of the last turn's answer, when it is complete."""
    answer = page.locator(
        f".turn:last-child .answer[aria-busy=false] .said[data-column='{column}']"
    )
    answer.locator(".stats", has_text="token").wait_for()
    return answer.locator(".prose").last.inner_text()
