"""The page in a real Chromium before the real server with a real, tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import answered, browser, say, visit
from live_server import serve
from tiny_model import CODE, HOSTILE

__all__ = ["browser", "visit"]  # fixtures

SURE = {"temperature": 0, "maxTokens": 120}  # the model knows its answers by heart
BRIEF = {"temperature": 0, "maxTokens": 8}


@pytest.fixture(scope="module")
def url(live_server):
    return live_server.url


def titles(page):
    return [chat.inner_text() for chat in page.locator(".chat").all()]


def test_a_message_is_answered_in_a_stream_and_its_cost_is_shown(url, visit):
    page = visit(url, SURE)
    page.locator(".empty button", has_text="Who are you?").click()
    assert answered(page) == "I am jaxchat, a very small model that was trained in a test."
    stats = page.locator(".stats").inner_text()
    for text in ("tokens ·", "tokens/s", "first token after"):
        assert text in stats
    page.locator(".room", has_text=" of ").wait_for()
    assert " answered: " in page.locator("[role=status].unseen").inner_text()


def test_a_call_of_the_tool_is_shown_with_its_result(url, visit):
    page = visit(url, SURE)
    say(page, "What is 12 + 34?")
    assert answered(page) == "It is 46."
    assert page.locator(".tool").inner_text().split() == ["calculator", "12", "+", "34", "=", "46"]
    assert page.locator(".prose").first.inner_text() == "Let me see."


def test_code_tables_and_hostile_output_of_a_model_are_set(url, visit):
    page = visit(url, SURE)
    for question in ("Show me code.", "Show me a table.", "Say something hostile."):
        page.keyboard.press("Control+Shift+O")
        say(page, question)
        answered(page)
        if "code" in question:
            code = CODE.split("```")[1].removeprefix("python\n")
            assert page.locator(".code code").inner_text() == code
            assert page.locator(".hljs-keyword").first.inner_text() == "def"
        if "table" in question:
            assert page.locator("td").all_inner_texts() == ["ant", "6", "spider", "8"]
    assert page.locator(".prose").inner_text() == HOSTILE
    assert page.title() != "owned"


def test_stopping_keeps_what_came(slow_server, visit):
    page = visit(slow_server.url, SURE)
    say(page, "Count.")
    page.locator(".prose", has_text="1 2 3").wait_for()
    page.keyboard.press("Escape")
    page.locator(".remark", has_text="Stopped.").wait_for()
    kept = page.locator(".prose").inner_text()
    assert not kept.endswith("40.")
    page.wait_for_timeout(300)
    assert page.locator(".prose").inner_text() == kept
    page.click("text=Regenerate")
    page.click("[aria-label=Stop]")
    page.locator(".remark", has_text="Stopped.").wait_for()


def test_a_server_with_a_key_that_ends_and_comes_back(models, visit):
    with serve(models, key="open sesame") as server:
        page = visit(server.url, SURE)
        for key in ("wrong", "open sesame"):
            page.fill("dialog[open] input", key)
            page.press("dialog[open] input", "Enter")
            if key == "wrong":
                page.locator("text=That key was refused").wait_for()
        page.locator("header select").wait_for()
    say(page, "Who are you?")
    page.locator(".banner", has_text="cannot be reached").wait_for()
    with serve(models, key="open sesame", port=int(server.url.split(":")[-1])):
        assert answered(page).startswith("I am jaxchat")
        assert page.locator(".banner p").count() == 0


def test_a_full_context_is_shown_before_and_after(url, visit):
    page = visit(url, SURE)
    say(page, "Who are you?")
    answered(page)
    page.fill("#message", "Who are you? " * 300)
    page.locator(".room.over", has_text="too long").wait_for()
    page.press("#message", "Enter")
    page.locator(".remark", has_text="The context is full").wait_for()
    page.locator(".remark >> text=Start a new chat").click()
    say(page, "Who are you?")
    assert answered(page).startswith("I am")


def test_tokens_are_shown_with_their_probabilities(url, visit):
    page = visit(url, SURE)
    page.click("[aria-label^='Show tokens']")
    say(page, "What is 12 + 34?")
    page.locator(".answer[aria-busy=false] .inspector").wait_for()
    tokens = page.locator(".token")
    text = "".join(tokens.all_text_contents())
    assert text.startswith("Let me see. <|python_start|>12 + 34<|python_end|>")
    assert "46" in "".join(page.locator(".token.forced").all_text_contents())
    tokens.first.hover()
    shares = page.locator(".inspector .share").all_inner_texts()
    assert len(shares) == 5
    assert float(shares[0].strip("%")) > 90  # by heart


def test_history_outlives_a_reload_and_chats_are_renamed_and_deleted(url, visit):
    page = visit(url, BRIEF)
    for text in ("First question", "Second question"):
        page.keyboard.press("Control+Shift+O")
        page.locator("#message:focus").wait_for()
        say(page, text)
        answered(page)
    said = page.locator(".turns").inner_text()
    page.reload()
    assert page.locator(".turns").inner_text() == said
    assert titles(page) == ["Second question", "First question"]
    page.hover("text=First question")
    page.click("[aria-label='Rename First question']")
    page.keyboard.type("A better name\n")
    page.hover(".chats >> text=Second question")
    page.click("[aria-label='Delete Second question']")
    assert titles(page) == ["A better name"]
    page.click("text=Undo")
    assert titles(page) == ["Second question", "A better name"]
    page.click("[aria-label='Delete A better name']", force=True)
    page.reload()
    assert titles(page) == ["Second question"]


def test_editing_a_message_continues_from_there_and_can_be_undone(url, visit):
    page = visit(url, BRIEF)
    for text in ("One", "Two", "Three"):
        say(page, text)
        answered(page)
    page.locator(".question", has_text="Two").hover()
    page.locator(".question", has_text="Two").locator("text=Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("Changed\n")
    answered(page)
    asked = page.locator(".asked")
    assert asked.all_inner_texts() == ["One", "Changed"]
    page.click("text=Undo")
    assert asked.all_inner_texts() == ["One", "Two", "Three"]


def test_regenerating_replaces_the_answer(url, visit):
    page = visit(url, SURE)
    page.click("[aria-label=Settings]")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Top-k").fill("")
    page.get_by_label("Maximum tokens").fill("4")
    page.keyboard.press("Escape")
    say(page, "Who are you?")
    first = answered(page)
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click("text=Regenerate")
    request = asked.value.post_data_json
    assert (request["temperature"], request["max_tokens"], request["seed"]) == (0.7, 4, 3)
    assert "top_k" not in request
    page.locator(".remark", has_text="Cut off at the maximum").wait_for()
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert answered(page) == first
    assert page.locator(".turn").count() == page.locator(".answer").count() == 1


def test_two_models_answer_side_by_side(url, visit):
    page = visit(url, SURE)
    page.click("[aria-label='Two models side by side']")
    assert page.locator("header select").count() == 2
    say(page, "Who are you?")
    answered(page, column=0)
    answered(page, column=1)
    left, right = (answer.bounding_box() for answer in page.locator(".answer").all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    models = page.locator(".answer .who").all_inner_texts()
    assert len(set(models)) == 2
    page.set_viewport_size({"width": 360, "height": 740})
    left, right = (answer.bounding_box() for answer in page.locator(".answer").all())
    assert left["y"] + left["height"] <= right["y"]


def test_chats_are_exported_and_imported(url, visit, tmp_path):
    page = visit(url, SURE)
    say(page, "Who are you?")
    text = answered(page)
    files = {}
    page.click("[aria-label=Settings]")
    for label in ("Chat as Markdown", "Chat as JSON"):
        with page.expect_download() as download:
            page.click(f"text={label}")
        name = download.value.suggested_filename
        download.value.save_as(tmp_path / name)
        files[name] = Path(tmp_path / name).read_text()
    assert files["who-are-you.md"].startswith("# Who are you?\n\n**You**\n\nWho are you?\n\n**")
    assert text in files["who-are-you.md"]
    (chat,) = json.loads(files["who-are-you.json"])
    assert chat["turns"][0]["text"] == "Who are you?"
    page.set_input_files("input[type=file]", tmp_path / "who-are-you.json")
    page.locator("text=1 chat was imported.").wait_for()
    assert titles(page) == ["Who are you?"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(url, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(url, SURE, color_scheme=scheme, viewport={"width": 1280, "height": 800})

    def check(state):
        page.mouse.move(0, 0)
        found = axe.run(page).response["violations"]
        bad = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not bad, (state, [(one["id"], one["nodes"][0]["html"]) for one in bad])

    check("empty")
    page.click("[aria-label^='Show tokens']")
    say(page, "What is 12 + 34?")
    page.locator(".answer[aria-busy=false] .inspector").wait_for()
    check("tokens")
    page.set_viewport_size({"width": 360, "height": 740})
    check("phone")
    page.click(".drawer-button")
    page.wait_for_timeout(250)  # it slides
    check("drawer")
    page.keyboard.press("Escape")
    page.click("[aria-label=Settings]")
    check("settings")


def test_the_page_is_usable_by_keyboard_and_fits_a_phone(url, visit):
    page = visit(url, BRIEF, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.querySelector('a, button, input').className") == "skip"
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("another")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".asked").inner_text() == "One line\nanother"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click(".drawer-button")
    page.locator(".new:focus").wait_for()
    page.keyboard.press("Escape")
    page.locator(".drawer-button:focus").wait_for()
