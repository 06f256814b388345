"""The page where the world is unkind: hostile output, a slow network, a server that goes, refusals.

In a real Chromium, before a server that plays by a script what a real one does seldom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from browser import answered, browser, say, visit
from scripted_server import (
    Refusal,
    Script,
    ScriptedServer,
    chunk,
    end,
    saying,
    scripted_server,
)

__all__ = ["browser", "visit"]  # fixtures

HOSTILE = """\
<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">
<b onclick="window.pwned=3">bold</b>
<svg onload="window.pwned=4"></svg><iframe src="javascript:parent.pwned=5"></iframe>
<style>body { display: none }</style><a href="javascript:window.pwned=6">raw</a>

[one](javascript:window.pwned=7) [two](JaVaScRiPt:alert(8))
[three](data:text/html,<script>1</script>)
[four](vbscript:x) [relative](/v1/models) ![pixel](https://evil.example/pixel.png)
[good](https://example.org/?a=1&b="2") <https://auto.example> [mail](mailto:a@b.example)

| a |
|:-:|
| <img src=x onerror="window.pwned=9"> |

```"><img/src=x/onerror=window.pwned=10>
</code></pre><script>window.pwned = 11</script>
```
"""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def refusing(*refusals: Refusal, then: Script) -> Script:
    """A script that refuses as often as there are refusals, and then continues with another."""
    left = list(refusals)

    def script(request: dict[str, Any]) -> Iterator[Any]:
        if left:
            raise left.pop(0)
        yield from then(request)

    return script


def begins(text: str) -> Script:
    """A script that begins an answer and comes no further."""

    def script(_: dict[str, Any]) -> Iterator[Any]:
        yield chunk(text)
        yield 60.0

    return script


def test_hostile_output_is_text(server, visit):
    server.script = saying(HOSTILE)
    page = visit(server.url)
    say(page, "<img src=x onerror='window.pwned=12'>")
    answered(page)
    assert page.evaluate("window.pwned") is None
    turn = page.locator(".turn")
    assert turn.locator("script, img, iframe, style, [onclick], [onerror], [style]").count() == 0
    assert "<script>window.pwned = 1</script>" in turn.inner_text()
    links = {link.inner_text(): link for link in turn.locator("a").all()}
    assert set(links) == {"pixel", "good", "https://auto.example", "mail"}
    for link in links.values():
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"
    assert turn.locator("td").inner_text() == '<img src=x onerror="window.pwned=9">'


def test_hostile_tool_and_tokens_are_text(server, visit):
    evil = "<img src=x onerror='window.pwned=1'>"

    def script(request):
        entry = {"token": evil, "logprob": -0.1, "top_logprobs": [{"token": evil, "logprob": -0.1}]}
        yield chunk(part=("python", evil), tokens=[entry])
        yield chunk(part=("python_output", evil), tokens=[entry])
        yield from end()

    server.script = script
    page = visit(server.url)
    say(page, "Go")
    page.locator(".tool .output", has_text=evil).wait_for()
    page.click("[aria-label^='Show tokens']")
    page.click("text=Regenerate")
    page.locator(".inspector", has_text=evil).wait_for()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0


def test_code_and_tables_are_set_and_code_is_copied(server, visit):
    server.script = saying("| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nx = 'y'  # z\n```\n")
    page = visit(server.url, permissions=["clipboard-read", "clipboard-write"])
    say(page, "Go")
    answered(page)
    assert page.locator("td.align-right").inner_text() == "2"
    assert page.locator(".code .hljs-string").inner_text() == "'y'"
    page.click(".copy-code")
    page.locator(".copy-code", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 'y'  # z\n"


def test_a_slow_answer_says_that_it_is_waited_for(server, visit):
    server.script = lambda _: iter([60.0])
    page = visit(server.url)
    page.clock.install()
    say(page, "Are you there?")
    page.locator(".waiting", has_text="Waiting for the model").wait_for()
    page.clock.run_for(8000)
    page.locator(".waiting", has_text="Still waiting").wait_for()
    page.keyboard.press("Escape")
    page.locator(".remark", has_text="Stopped").wait_for()


def test_what_is_asked_while_the_server_is_gone_is_answered_when_it_is_back(visit):
    with scripted_server() as server:
        page = visit(server.url)
    say(page, "Are you there?")
    page.locator(".banner", has_text="cannot be reached").wait_for()
    page.locator(".remark", has_text="sent again when it is back").wait_for()
    page.fill("#message", "A draft")
    with scripted_server(server.server_port) as back:
        back.script = saying("I am back.")
        assert answered(page) == "I am back."
        assert page.locator(".banner p").count() == 0
        assert page.input_value("#message") == "A draft"
        assert len(back.requests) == 1


def test_an_answer_that_breaks_keeps_what_came(visit):
    with scripted_server() as server:
        server.script = begins("Half of")
        page = visit(server.url)
        say(page, "Go")
        page.locator(".prose", has_text="Half of").wait_for()
    page.locator(".remark", has_text="connection to the server broke").wait_for()
    assert page.locator(".prose").inner_text() == "Half of"
    with scripted_server(server.server_port) as back:
        back.script = saying("A whole one.")
        page.click("text=Try again")
        assert answered(page) == "A whole one."


def test_an_error_within_a_stream_is_shown(server, visit):
    def script(_):
        yield chunk("Half of")
        yield {"error": {"message": "The model was taken away.", "code": None}}

    server.script = script
    page = visit(server.url)
    say(page, "Go")
    page.locator(".remark", has_text="The model was taken away.").wait_for()
    assert page.locator(".prose").inner_text() == "Half of"
    assert page.locator(".banner p").count() == 0  # the server itself is there


def test_a_busy_server_is_asked_again_when_it_said(server, visit):
    server.script = refusing(
        Refusal(429, "queue_full", "The server is busy.", retry_after=2), then=saying("At last.")
    )
    page = visit(server.url)
    say(page, "Go")
    page.locator(".remark", has_text="The server is busy.").wait_for()
    page.click("text=Try again")
    page.locator("text=Trying again in").wait_for()
    assert len(server.requests) == 1  # not yet
    assert answered(page) == "At last."
    assert len(server.requests) == 2


def test_a_full_context_offers_to_forget_the_oldest_or_begin_anew(server, visit):
    page = visit(server.url)
    for text in ("One " * 300, "Two " * 100, "Three"):
        say(page, text)
        answered(page)
    full = Refusal(400, "context_length_exceeded", "Too long.")
    server.script = refusing(full, then=saying("Now it fits."))
    say(page, "Four")
    page.locator(".remark", has_text="The context is full").wait_for()
    page.click("text=Forget the oldest turns")
    assert answered(page) == "Now it fits."
    sent = [message["content"] for message in server.requests[-1]["messages"]]
    assert sent[0].startswith("Two")
    assert sent[-1] == "Four"
    assert page.locator(".boundary").count() == 1
    page.reload()
    say(page, "Five")
    answered(page)
    assert server.requests[-1]["messages"][0]["content"].startswith("Two")  # still forgotten


def test_an_answer_that_the_context_cut_off_offers_a_new_chat(server, visit):
    def script(_):
        yield chunk("On and on")
        yield from end(tokens=500, prompt=12, finish="length")

    server.script = script
    page = visit(server.url)
    say(page, "Go")
    page.locator(".remark", has_text="cut off here").wait_for()
    page.click("text=Start a new chat")
    page.locator(".empty").wait_for()


def test_the_key_is_asked_for_until_it_is_right(server, visit):
    server.key = "open sesame"
    page = visit(server.url)
    for key in ("wrong", "open sesame"):
        page.fill("dialog[open] input", key)
        page.press("dialog[open] input", "Enter")
        if key == "wrong":
            page.locator("text=That key was refused").wait_for()
    page.locator("header select").wait_for()
    say(page, "Go")
    assert answered(page) == "Hello."
    page.reload()
    page.locator("header select").wait_for()  # this tab knows it
    assert page.evaluate("JSON.stringify(localStorage)").count("sesame") == 0


def test_a_reload_within_a_stream_keeps_what_came(server, visit):
    server.script = begins("Half of")
    page = visit(server.url)
    say(page, "Go")
    page.locator(".prose", has_text="Half of").wait_for()
    page.reload()
    page.locator(".prose", has_text="Half of").wait_for()
    page.locator(".remark", has_text="Interrupted before").wait_for()
    server.script = saying("Whole.")
    page.click("text=Try again")
    assert answered(page) == "Whole."


def test_full_storage_is_reported_and_the_chat_continues(server, visit):
    page = visit(server.url)
    page.evaluate(
        """() => { let text = "x".repeat(1 << 20), n = 0;
                   while (text) try { localStorage.setItem("fill" + n++, text) }
                                catch { text = text.slice(text.length / 2 + 1) } }"""
    )
    say(page, "Go")
    assert answered(page) == "Hello."
    page.locator(".banner", has_text="storage is full").wait_for()
    page.evaluate(
        "Object.keys(localStorage).forEach(k => k[0] == 'f' && localStorage.removeItem(k))"
    )
    say(page, "Again")
    page.locator(".banner p").wait_for(state="detached")


def test_a_call_of_the_tool_is_shown_before_its_result(server, visit):
    def script(_):
        for text in ("37", " * 24"):
            yield chunk(part=("python", text))
        yield 0.5
        yield chunk(part=("python_output", "888"))
        yield chunk("The answer is 888.")
        yield from end()

    server.script = script
    page = visit(server.url)
    say(page, "What is 37 * 24?")
    page.locator(".tool .call", has_text="37 * 24").wait_for()
    page.locator(".tool .output.pending", has_text="…").wait_for()
    page.locator(".tool .output", has_text="888").wait_for()
    assert answered(page) == "The answer is 888."
    say(page, "Again")
    answered(page)
    assert server.requests[-1]["messages"][1]["content"] == [  # what was said, exactly
        {"type": "python", "text": "37 * 24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "The answer is 888."},
    ]


def test_tokens_show_their_alternatives_by_keyboard(server, visit):
    def entry(token, probability, sampled=True, **others):
        likeliest = {token: probability, **others} if sampled else {}
        return {
            "token": token,
            "logprob": math.log(probability),
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in likeliest.items()],
            "jaxchat": {"id": 1, "sampled": sampled},
        }

    def script(_):
        yield chunk("Yes", tokens=[entry("Yes", 0.5, No=0.25)])
        yield chunk(part=("python_output", "7"), tokens=[entry("7", 1.0, sampled=False)])
        yield from end()

    server.script = script
    page = visit(server.url)
    page.click("[aria-label^='Show tokens']")
    say(page, "Go")
    rows = page.locator(".inspector tr")
    rows.first.wait_for()
    assert [row.inner_text().split() for row in rows.all()] == [["Yes", "50.0%"], ["No", "25.0%"]]
    request = server.requests[-1]
    assert (request["logprobs"], request["top_logprobs"]) == (True, 5)
    tokens = page.locator(".token")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.locator(".inspector", has_text="given by the tool").wait_for()
    page.locator(".token.forced:focus").wait_for()
    page.click("[aria-label^='Show tokens']")
    assert page.locator(".prose").inner_text() == "Yes"


def test_a_reader_who_scrolled_up_is_left_there(server, visit):
    server.script = saying("A line.\n\n" * 40, pause=0.005)
    page = visit(server.url)
    say(page, "Go")
    page.locator(".prose p").nth(30).wait_for()
    thread = page.locator(".thread")
    assert thread.evaluate("n => n.scrollHeight - n.clientHeight - n.scrollTop") < 60  # followed
    for _ in range(50):  # text that comes before the page hears of it moves it once more
        thread.evaluate("n => n.scrollTo(0, 100)")
        if page.locator("text=Jump to the end").is_visible():
            break
    answered(page)
    assert thread.evaluate("n => n.scrollTop") == 100
    page.click("text=Jump to the end")
    assert thread.evaluate("n => n.scrollHeight - n.clientHeight - n.scrollTop") < 2


def test_nothing_moves_when_an_answer_is_complete(server, visit):
    def script(_):
        yield chunk("A short answer.")
        yield 0.4
        yield from end()

    server.script = script
    page = visit(server.url)
    say(page, "Go")
    page.locator(".prose", has_text="A short answer.").wait_for()
    page.wait_for_timeout(100)
    before = page.locator(".turn").bounding_box()
    answered(page)
    assert page.locator(".turn").bounding_box() == before


def test_a_server_that_knows_no_extension_is_enough(server, visit):
    def script(_):
        for text in ("Plain", " answer."):
            yield {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield ": a comment\n\ndata: [DONE]\n\n"

    server.script, server.models = script, [{"id": "plain", "object": "model"}]
    page = visit(server.url)
    say(page, "Go")
    page.locator(".prose", has_text="Plain answer.").wait_for()
    page.locator(".answer[aria-busy=false]").wait_for()


def test_a_server_that_compiles_says_how_far_it_is_and_answers_then(server, visit):
    for model in server.models:
        model["jaxchat"]["ready"] = False
    server.compiled = 0.25
    server.script = refusing(
        Refusal(503, "not_ready", "compiling (25% done)", 30), then=saying("Hi.")
    )
    page = visit(server.url)
    bar = page.locator(".banner progress")
    bar.wait_for()
    assert bar.evaluate("bar => bar.value") == 0.25
    say(page, "Hello")
    page.locator(".remark", has_text="will be sent when it answers").wait_for()
    assert not page.get_by_text("network").count()
    for model in server.models:
        model["jaxchat"]["ready"] = True
    server.compiled = None
    answered(page)
    assert "Hi." in page.locator("article.answer").inner_text()
    assert len(server.requests) == 2
    assert not bar.count()
