"""Scheduling: fair turns, refusals, and clients that leave."""

import asyncio
import json
import socket
import time
from contextlib import contextmanager

import httpx
import pytest
import tiny_model
from live_server import asking, changed, gated, serve, wait_for

LONG = asking("Count.")


@pytest.fixture
def gate_server(models):
    """A server of one model with four slots, and the gate that its engine waits at."""
    model, gate = gated(models[0])
    with serve([model], queue=40, queue_seconds=600, behind_proxy=True) as server:
        try:
            yield server, gate
        finally:
            gate.open()
            wait_for(lambda: server.scheduler.idle, "nothing is left to do")
            assert server.scheduler.active == 0


def post_all(server, names, then):
    """One request for each client at once; (client, answer) in the order of their ends.

    `then` is called when all are sent.
    """

    async def send():
        done = []
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=300, limits=limits) as client:

            async def one(name):
                headers = {"x-forwarded-for": name}
                url = f"{server.api}/chat/completions"
                done.append((name, await client.post(url, json=LONG, headers=headers)))

            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(one(name))
                await asyncio.to_thread(then)
        return done

    return asyncio.run(send())


def arrived(server):
    """Requests that have a slot, wait or were refused."""
    refused = int(numbers(server)["jaxchat_rejected_total"])
    return server.scheduler.active + server.scheduler.waiting + refused


def test_a_client_with_many_requests_does_not_keep_others_waiting(gate_server):
    server, gate = gate_server

    def then():
        wait_for(lambda: arrived(server) == 26, "up to four have slots, the others wait")
        gate.open()

    done = post_all(server, ["10.0.0.1"] * 24 + ["10.0.0.2"] * 2, then)
    assert {answer.status_code for _, answer in done} == {200}
    order = [name for name, _ in done]
    places = [place for place, name in enumerate(order) if name == "10.0.0.2"]
    assert len(places) == 2
    assert max(places) < 12  # after those that had slots already, by turns: the last it would be 25


def test_too_many_are_refused_with_a_time_to_retry(gate_server):
    server, gate = gate_server

    def then():
        wait_for(lambda: arrived(server) == 60, "the rest is refused")
        gate.open()

    done = post_all(server, ["10.0.0.1"] * 60, then)
    refused = [answer for _, answer in done if answer.status_code == 429]
    assert 60 - 40 - 4 <= len(refused) < 60 - 40
    assert sorted({a.status_code for _, a in done}) == [200, 429]
    assert {a.json()["error"]["code"] for a in refused} == {"queue_full"}
    assert all(1 <= int(a.headers["retry-after"]) <= 60 for a in refused)


def test_a_request_that_waits_too_long_is_refused(models):
    model, gate = gated(models[0])

    def then():
        wait_for(lambda: arrived(server) == 9, "up to four have slots")
        time.sleep(0.4)
        gate.open()

    with serve([model], queue_seconds=0.3) as server:
        done = post_all(server, ["10.0.0.1"] * 9, then)
    late = [answer for _, answer in done if answer.status_code == 503]
    assert 5 <= len(late) < 9
    assert {answer.json()["error"]["code"] for answer in late} == {"queue_timeout"}


@contextmanager
def begun(server, body):
    """A stream, open until the block ends."""
    with (
        httpx.Client(trust_env=False, timeout=300) as client,
        client.stream("POST", f"{server.api}/chat/completions", json=body) as answer,
    ):
        yield answer


def test_a_stream_whose_reader_leaves_gives_its_slots_back(gate_server):
    server, gate = gate_server
    with begun(server, {**LONG, "stream": True, "n": 3}) as answer:
        gate.allow(2)
        lines = answer.iter_lines()
        while '"delta":{"content"' not in next(lines):
            pass
        assert server.scheduler.active == 3
    wait_for(lambda: numbers(server)["jaxchat_cancelled_total"] == 1, "it is noticed")
    gate.allow(1)  # the dispatch that was under way
    wait_for(lambda: server.scheduler.active == 0, "the slots are free at the next one")
    assert server.scheduler.idle


def leave_while(server, condition, body):
    """Sends a request from a thread and closes its connection once the condition holds."""
    port = int(server.url.rpartition(":")[2])
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        wait_for(condition, "the request arrives")


def test_an_answer_whose_client_left_gives_its_slot_back(gate_server):
    server, gate = gate_server
    leave_while(server, lambda: server.scheduler.active == 1, LONG)
    wait_for(lambda: numbers(server)["jaxchat_cancelled_total"] == 1, "it is noticed")
    gate.allow(1)
    wait_for(lambda: server.scheduler.active == 0, "the slot is free")


def test_one_who_leaves_the_queue_is_forgotten(gate_server):
    server, _ = gate_server
    with begun(server, {**LONG, "stream": True, "n": 4}):
        wait_for(lambda: server.scheduler.active == 4, "all slots are taken")
        leave_while(server, lambda: server.scheduler.waiting == 1, LONG)
        wait_for(lambda: server.scheduler.waiting == 0, "the queue is empty")
        assert server.scheduler.active == 4


def failing(model, times):
    """The model, whose engine fails `times` times."""

    left = [times]

    def fail():
        if left[0]:
            left[0] -= 1
            raise RuntimeError("the device is gone")

    return changed(model, fail)


def test_an_engine_that_fails_once_recovers(models):
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


def test_a_model_that_keeps_failing_is_given_up_and_the_others_continue(models):
    with serve([failing(models[0], 99), models[1]]) as server:
        codes = [server.ask("Who are you?").json()["error"]["code"] for _ in range(4)]
        assert codes == ["engine_failed"] * 3 + ["model_failed"]
        health = server.get("/health")
        assert health.status_code == 503
        assert health.json()["models"] == {"tiny/rl": "failed", "tiny/sft": "ok"}
        assert server.ask("Who are you?", model="tiny/sft").status_code == 200


def test_counters_tell_what_was_served(gate_server):
    slow, gate = gate_server
    gate.open()
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
