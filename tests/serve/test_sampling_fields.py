"""The sampling fields over HTTP, against a real server of a real model; chunks of one token."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_model
from live_server import asking

WHO = "Who are you?"
SAID = tiny_model.ANSWERS[WHO]


@pytest.fixture(scope="module")
def tokenizer(models):
    return models[0].tokenizer


def answer(server, question=WHO, **fields):
    response = server.ask(question, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def text(got):
    return got["choices"][0]["message"]["content"]


def test_an_answer_whose_end_is_ignored_has_the_tokens_that_were_asked_for(live_server):
    got = answer(live_server, ignore_eos=True, max_tokens=90)
    assert got["usage"]["completion_tokens"] == 90
    assert got["choices"][0]["finish_reason"] == "length"
    assert text(got).startswith(SAID)
    plain = answer(live_server)["usage"]["completion_tokens"]
    assert plain < 80
    got = answer(live_server, min_tokens=plain + 3, max_tokens=99)
    assert got["usage"]["completion_tokens"] >= plain + 3


def test_biases_and_penalties_change_the_answer(live_server, tokenizer):
    (token,) = tokenizer.encode("a")
    got = answer(live_server, logit_bias={str(token): 100}, max_tokens=5)
    assert text(got) == "aaaaa"
    (first, *_) = tokenizer.encode(SAID)
    assert text(answer(live_server, logit_bias={str(first): -100}, max_tokens=5))[0] != SAID[0]
    plain = text(answer(live_server, "Count.", max_tokens=60))
    assert text(answer(live_server, "Count.", max_tokens=60, repetition_penalty=10)) != plain


def test_stop_tokens_are_hidden_and_shown_on_request(live_server, tokenizer):
    (token,) = tokenizer.encode("a")
    fields = {"logit_bias": {str(token): 100}, "stop_token_ids": [token], "min_tokens": 3}
    hidden = text(answer(live_server, **fields))
    assert hidden == tokenizer.decode(tokenizer.encode(SAID)[:3])
    assert text(answer(live_server, **fields, include_stop_str_in_output=True)) == f"{hidden}a"
    assert text(answer(live_server, stop="very")) == SAID[: SAID.index("very")]
    shown = answer(live_server, stop="very", include_stop_str_in_output=True)
    assert text(shown) == SAID[: SAID.index("very") + 4]


def test_min_p_of_one_is_the_likeliest(live_server):
    assert text(answer(live_server, temperature=2.0, min_p=1, seed=1)) == SAID
    assert text(answer(live_server, temperature=2.0, top_p=0, seed=1)) == SAID


def test_company_that_asks_for_changes_does_not_change_an_answer(live_server):
    plain = {"temperature": 1.2, "seed": 5, "max_tokens": 40, "logprobs": True}
    alone = answer(live_server, "Count.", **plain)["choices"]
    with ThreadPoolExecutor(4) as pool:
        crowd = [
            pool.submit(answer, live_server, ignore_eos=True, max_tokens=60, repetition_penalty=1.3)
            for _ in range(2)
        ]
        together = pool.submit(answer, live_server, "Count.", **plain).result()["choices"]
        assert len({text(one.result()) for one in crowd}) == 1
    assert together == alone


def test_a_stream_has_a_chunk_for_each_token(live_server, tokenizer):
    body = asking(WHO, stream=True, logprobs=True)
    lines = live_server.post("/v1/chat/completions", body).text.split("\n\n")
    chunks = [
        json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")
    ]
    choices = [chunk["choices"][0] for chunk in chunks]
    entries = [c["logprobs"]["content"] for c in choices if c["logprobs"] is not None]
    assert [len(entry) for entry in entries] == [1] * len(entries)
    assert len(entries) == len(tokenizer.encode(SAID)) + 1
    assert "".join(c["delta"].get("content") or "" for c in choices) == SAID
    plain = live_server.post("/v1/chat/completions", asking(WHO, stream=True)).text
    assert plain.count('"content":') == len(tokenizer.encode(SAID)) + 1  # and the role's


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "An answer has at least one token"),
        ({"mirostat": 2}, "mirostat", "mirostat is not supported"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "has the id 99999"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "pattern"),
        ({"stop_token_ids": [1] * 17}, "stop_token_ids", "at most 16"),
    ],
)
def test_a_refusal_names_the_field(live_server, fields, param, message):
    response = live_server.ask(WHO, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_an_image_is_refused_with_a_sentence(live_server):
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}]
    response = live_server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}
    )
    assert response.status_code == 400
    assert "reads text alone" in response.json()["error"]["message"]
