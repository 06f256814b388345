"""What is answered while the server still compiles."""

import dataclasses
import threading

import pytest
import tiny_model
from live_server import asking, serve, wait_for


@pytest.fixture
def compiling(models):
    """A server of two models that stands still in the middle of the second one's programs."""
    go_on = threading.Event()

    def opener(model, stops):
        def open_engine():
            engine = model.open_engine()

            def warm_up(stopped, progress=lambda share: None, rare=None):
                progress(0.5)
                if stops:
                    go_on.wait(60)
                progress(1.0)

            engine.warm_up = warm_up
            return engine

        return dataclasses.replace(model, open_engine=open_engine)

    two = [opener(models[0], False), opener(models[1], True)]
    with serve(two, wait=False, warm_up=True) as server:
        wait_for(lambda: server.scheduler.compiled == 0.75, "the second one compiles")
        yield server, go_on
        go_on.set()


def test_chats_are_refused_at_once_with_a_time_to_retry(compiling):
    server, go_on = compiling
    for path, body in (
        ("/v1/chat/completions", asking("Who are you?")),
        ("/v1/chat/completions", asking("Who are you?", stream=True)),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0}),
    ):
        got = server.post(path, body)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "not_ready")
        assert "75% done" in got.json()["error"]["message"]
        assert 1 <= int(got.headers["retry-after"]) <= 60
    go_on.set()
    wait_for(lambda: server.scheduler.ready, "it is ready")
    answer = server.ask("Who are you?").json()["choices"][0]["message"]["content"]
    assert answer == tiny_model.ANSWERS["Who are you?"]


def test_how_far_it_is_is_said(compiling):
    server, go_on = compiling
    got = server.get("/ready")
    assert got.status_code == 503
    assert (got.json()["status"], got.json()["compiled"]) == ("compiling", 0.75)
    assert got.json()["error"]["code"] == "not_ready"
    assert server.get("/health").status_code == 200
    cards = server.get("/v1/models").json()["data"]
    assert [card["jaxchat"]["ready"] for card in cards] == [False, False]
    assert server.post("/v1/count", asking("Who are you?")).status_code == 200
    go_on.set()
    wait_for(lambda: server.scheduler.ready, "it is ready")
    assert server.get("/ready").json() == {"status": "ready"}
    assert server.get("/v1/models/tiny/sft").json()["jaxchat"]["ready"]


def test_what_few_requests_need_is_compiled_while_nobody_asks(models):
    calls = []
    model = models[0]

    def open_engine():
        engine = model.open_engine()

        def warm_up(stopped, progress=lambda share: None, rare=None):
            calls.append(rare)
            if rare and len(calls) == 2:
                raise RuntimeError("no memory for the rare")

        engine.warm_up = warm_up
        return engine

    with serve([dataclasses.replace(model, open_engine=open_engine)], warm_up=True) as server:
        wait_for(lambda: len(calls) == 2, "the rest is compiled")
        question = "Who are you?"
        answer = server.ask(question).json()["choices"][0]["message"]["content"]
    assert answer == tiny_model.ANSWERS[question], "a program that fails beforehand stops nothing"
    assert calls == [False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_answers_are_tried_before_it_is_ready_and_not_counted(models, fails):
    """A server whose trial fails is ready all the same: requests find out."""
    tried, model = [], models[0]

    def open_engine():
        engine = model.open_engine()
        generate = engine.generate

        def counted(requests):
            tried.extend(len(request.tokens) for request in requests)
            return 1 / 0 if fails else generate(requests)

        engine.warm_up = lambda *args, **settings: None
        engine.generate = counted
        return engine

    with serve([dataclasses.replace(model, open_engine=open_engine)], warm_up=True) as server:
        wait_for(lambda: server.scheduler.ready, "it is ready")
        assert tried[0] == 34  # padded to 64
        assert "jaxchat_generated_tokens_total 0.0" in server.get("/metrics").text
        answer = server.ask("Who are you?").json()["choices"][0]["message"]["content"]
        assert answer == tiny_model.ANSWERS["Who are you?"]
