"""Who is served when, who is sent away, and what becomes of those who leave."""

import asyncio
import dataclasses
import json
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import tiny_model
from live_server import asking, serve, slowed, wait_for

LONG = asking("Count.")


@pytest.fixture(scope="module")
def slow(models):
    """A server of one model, ten dispatches a second, four slots, three may wait."""
    with serve([slowed(models[0], 0.1)], queue=40, behind_proxy=True) as server:
        yield server


@pytest.fixture(autouse=True)
def is_idle_again(slow):
    yield
    wait_for(lambda: slow.scheduler.idle and not slow.scheduler.active, "all slots are free")


def post_all(server, bodies):
    """Sends [(client, body)] at once; (client, status, when it was done) in the order of ends."""

    async def send():
        done = []
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=120, limits=limits) as client:

            async def one(name, body):
                headers = {"x-forwarded-for": name}
                url = f"{server.api}/chat/completions"
                answer = await client.post(url, json=body, headers=headers)
                done.append((name, answer))

            async with asyncio.TaskGroup() as group:
                for name, body in bodies:
                    group.create_task(one(name, body))
                    await asyncio.sleep(0.001)
        return done

    return asyncio.run(send())


def test_a_client_with_many_requests_does_not_keep_others_waiting(slow):
    done = post_all(slow, [("10.0.0.1", LONG)] * 24 + [("10.0.0.2", LONG)] * 2)
    assert {answer.status_code for _, answer in done} == {200}
    order = [name for name, _ in done]
    assert len(order) == 26
    # The four that had slots already, and then by turns.
    assert max(order.index("10.0.0.2"), 25 - order[::-1].index("10.0.0.2")) < 12


def test_too_many_are_sent_away_and_told_when_to_come_again(slow):
    done = post_all(slow, [("10.0.0.1", LONG)] * 60)
    refused = [answer for _, answer in done if answer.status_code == 429]
    assert len(refused) >= 60 - 40 - 8
    assert {a.status_code for _, a in done} == {200, 429}
    assert {a.json()["error"]["code"] for a in refused} == {"queue_full"}
    assert all(1 <= int(a.headers["retry-after"]) <= 60 for a in refused)
    assert "jaxchat_rejected_total 0.0" not in slow.get("/metrics").text


def test_one_who_waits_too_long_is_told_so(models):
    with serve([slowed(models[0], 0.2)], queue_seconds=0.3) as server:
        done = post_all(server, [("10.0.0.1", LONG)] * 9)
    late = [answer for _, answer in done if answer.status_code == 503]
    assert late
    assert {answer.json()["error"]["code"] for answer in late} == {"queue_timeout"}
    assert len(late) < 9


@contextmanager
def begun(server, body):
    """A request that has a slot, open until the block ends."""
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{server.api}/chat/completions", json=body) as answer,
    ):
        yield answer


def test_a_stream_whose_reader_leaves_gives_its_slots_back(slow):
    with begun(slow, {**LONG, "stream": True, "n": 3}) as answer:
        lines = answer.iter_lines()
        while "content" not in next(lines):
            pass
        wait_for(lambda: slow.scheduler.active == 3, "three slots are taken")
    start = time.monotonic()
    wait_for(lambda: slow.scheduler.active == 0, "the slots are free")
    assert time.monotonic() - start < 0.9  # the whole answer takes 1.2 s or more
    assert "jaxchat_cancelled_total 0.0" not in slow.get("/metrics").text


def leave_while(server, condition, body):
    """Sends a request from a thread and closes its connection once the condition holds."""
    transport = httpx.HTTPTransport()
    client = httpx.Client(transport=transport, timeout=60)

    def send():
        with pytest.raises(httpx.TransportError):
            client.post(f"{server.api}/chat/completions", json=body)

    thread = threading.Thread(target=send)
    thread.start()
    wait_for(condition, "the request arrives")
    for connection in transport._pool.connections:
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(2)
    thread.join(30)
    client.close()


def test_an_answer_nobody_waits_for_any_more_gives_its_slot_back(slow):
    leave_while(slow, lambda: slow.scheduler.active == 1, LONG)
    start = time.monotonic()
    wait_for(lambda: slow.scheduler.active == 0, "the slot is free")
    assert time.monotonic() - start < 0.9


def test_one_who_leaves_the_queue_is_forgotten(slow):
    with begun(slow, {**LONG, "stream": True, "n": 4}) as answer:
        next(answer.iter_lines())
        wait_for(lambda: slow.scheduler.active == 4, "all slots are taken")
        leave_while(slow, lambda: slow.scheduler.waiting == 1, LONG)
        wait_for(lambda: slow.scheduler.waiting == 0, "the queue is empty")
        assert slow.scheduler.active == 4


def failing(model, times):
    """The model, whose engine fails so many times."""

    def open_engine():
        engine, left = model.open_engine(), [times]
        step = engine.step

        def failing_step():
            if left[0]:
                left[0] -= 1
                raise RuntimeError("the device is gone")
            return step()

        engine.step = failing_step
        return engine

    return dataclasses.replace(model, open_engine=open_engine)


def test_an_engine_that_fails_once_goes_on(models):
    with serve([failing(models[0], 1)]) as server:
        answer = server.ask("Who are you?")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
        assert answer.json()["error"]["type"] == "server_error"
        again = server.ask("Who are you?").json()["choices"][0]["message"]["content"]
        assert again == tiny_model.ANSWERS["Who are you?"]
        assert server.get("/health").status_code == 200


def test_a_failure_in_a_stream_is_an_event_that_ends_it(models):
    with serve([failing(models[0], 1)]) as server:
        text = server.ask("Count.", stream=True).text
    *_, last = text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert "[DONE]" not in text


def test_a_model_that_keeps_failing_is_given_up_and_the_others_go_on(models):
    with serve([failing(models[0], 99), models[1]]) as server:
        codes = [server.ask("Who are you?").json()["error"]["code"] for _ in range(4)]
        assert codes == ["engine_failed"] * 3 + ["model_failed"]
        health = server.get("/health")
        assert health.status_code == 503
        assert health.json()["models"] == {"tiny/rl": "failed", "tiny/sft": "ok"}
        assert server.ask("Who are you?", model="tiny/sft").status_code == 200


def test_counters_tell_what_was_served(slow):
    before = numbers(slow)
    used = slow.ask("Who are you?").json()["usage"]
    after = numbers(slow)
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["jaxchat_generated_tokens_total"] == used["completion_tokens"]
    assert grown["jaxchat_prompt_tokens_total"] == used["prompt_tokens"]
    assert grown["jaxchat_time_to_first_token_seconds_count"] == 1
    assert grown["jaxchat_inter_token_seconds_count"] == 1
    path = 'jaxchat_requests_total{path="/v1/chat/completions",status="200"}'
    assert after[path] - before.get(path, 0) == 1
    assert after["jaxchat_slots"] == 4
    assert after["jaxchat_active"] == after["jaxchat_queue_depth"] == 0


def numbers(server):
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
