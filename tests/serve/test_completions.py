"""/v1/completions and the tokenizer's paths, as the `openai` package, lm-eval and others ask."""

import asyncio

import httpx
import jax
import numpy as np
import openai
import pytest
import tiny_model
from live_server import gated, serve, wait_for

from jaxchat.inference.engine import Request
from jaxchat.model import gpt
from jaxchat.serve.completions import named
from jaxchat.tokenizer.chat_format import render_prompt

WHO = "Who are you?"
SAID = tiny_model.ANSWERS[WHO]
TEMPLATE = "<|user_start|>{}<|user_end|><|assistant_start|>"


@pytest.fixture(scope="module")
def model(models):
    return models[0]


def complete(client, prompt, **settings):
    return client.completions.create(
        **{"model": "tiny/rl", "prompt": prompt, "temperature": 0, **settings}
    )


def chat_ids(tokenizer, question):
    return render_prompt([{"role": "user", "content": question}], tokenizer)


def log_softmax(model, ids):
    """The plain forward pass."""
    evaluated = model.evaluated
    padded = np.zeros((1, 128), np.int32)  # one shape, compiled once
    padded[0, : len(ids)] = ids
    logits = jax.jit(gpt.forward, static_argnums=2)(evaluated.params, padded, evaluated.config)
    return np.asarray(jax.nn.log_softmax(logits[0, : len(ids)], axis=-1))


def test_a_prompt_is_continued_as_text_and_as_ids(client, model):
    ids = chat_ids(model.tokenizer, WHO)
    as_text = complete(client, TEMPLATE.format(WHO), max_tokens=60)
    as_ids = complete(client, ids, max_tokens=60)
    for got in (as_text, as_ids):
        (choice,) = got.choices
        assert (choice.text, choice.finish_reason, choice.logprobs) == (SAID, "stop", None)
        assert (got.object, got.usage.prompt_tokens) == ("text_completion", len(ids))
        assert got.usage.total_tokens == len(ids) + got.usage.completion_tokens


def test_sixteen_tokens_are_the_default(client, model):
    got = complete(client, chat_ids(model.tokenizer, "Count."))
    assert (got.usage.completion_tokens, got.choices[0].finish_reason) == (16, "length")


def test_several_prompts_have_their_choices_in_order(client, model):
    questions = [WHO, "Count.", "Show me code."]
    for prompts in (
        [TEMPLATE.format(question) for question in questions],
        [chat_ids(model.tokenizer, question) for question in questions],
    ):
        got = complete(client, prompts, n=2, max_tokens=8)
        assert [choice.index for choice in got.choices] == list(range(6))
        texts = [choice.text for choice in got.choices]
        assert texts[::2] == texts[1::2]  # greedy
        for text, question in zip(texts[::2], questions, strict=True):
            assert tiny_model.ANSWERS[question].startswith(text)


def test_a_stream_adds_up_to_the_whole(client, model):
    settings = {"max_tokens": 12, "n": 2, "seed": 3, "temperature": 1.2, "logprobs": 2}
    prompts = [chat_ids(model.tokenizer, WHO), chat_ids(model.tokenizer, "Count.")]
    whole = complete(client, prompts, echo=True, **settings)
    texts, tokens, reasons = ["" for _ in range(4)], [[] for _ in range(4)], {}
    usage = None
    for chunk in complete(
        client, prompts, echo=True, stream=True, stream_options={"include_usage": True}, **settings
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_samples_are_the_engines(client, model):
    ids = chat_ids(model.tokenizer, "Count.")
    engine = model.open_engine()
    asked = Request(tuple(ids), 20, temperature=1.3, top_p=0.9, seed=7, n=2)
    (samples,) = engine.generate([asked])
    got = complete(
        client, ids, max_tokens=20, temperature=1.3, top_p=0.9, seed=7, n=2, logprobs=0,
        extra_body={"top_k": 0},
    )  # fmt: skip
    for choice, sample in zip(got.choices, samples, strict=True):
        expected = [named(model.tokenizer.decode_bytes([token])) for token in sample.tokens]
        assert choice.logprobs.tokens == expected
        np.testing.assert_allclose(choice.logprobs.token_logprobs, sample.logprobs, atol=1e-6)


def test_a_stop_text_ends_a_completion(client):
    got = complete(client, TEMPLATE.format(WHO), stop="small model", max_tokens=60).choices[0]
    assert (got.text, got.finish_reason) == (SAID.partition("small model")[0], "stop")


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompts_tokens_are_scored(client, model, tokens):
    """What lm-eval sends: ids, greedy, one token, whose entry it drops."""
    prompts = [chat_ids(model.tokenizer, question) for question in tiny_model.ANSWERS]
    prompts[0] = [*prompts[0], *model.tokenizer.encode(SAID)]
    got = complete(client, prompts, max_tokens=tokens, logprobs=1, echo=True, seed=1234)
    for ids, choice in zip(prompts, got.choices, strict=True):
        found, expected = choice.logprobs, log_softmax(model, ids)
        assert len(found.tokens) == len(found.token_logprobs) == len(ids) + tokens
        assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
        scored = expected[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(found.token_logprobs[1 : len(ids)], scored, atol=1e-4)
        best = expected.argmax(-1)
        for place in range(1, len(ids)):
            is_best = found.token_logprobs[place] == max(found.top_logprobs[place].values())
            assert is_best == (best[place - 1] == ids[place])
        if tokens:
            assert found.tokens[-1] == named(model.tokenizer.decode_bytes([int(best[-1])]))
            assert found.token_logprobs[-1] == pytest.approx(expected[-1].max(), abs=1e-4)
    if tokens:  # the one that is generated is listed even where it ends the text
        assert got.choices[0].logprobs.tokens[-1] == "<|assistant_end|>"
        assert got.choices[0].finish_reason == "stop"
        assert got.choices[1].finish_reason == "length"
    assert got.usage.completion_tokens == tokens * len(prompts)


def test_one_token_after_a_scored_prompt_is_the_engines(client, model):
    ids = chat_ids(model.tokenizer, "Count.")
    scored = complete(client, ids, max_tokens=1, logprobs=3, echo=True).choices[0]
    engine = complete(client, ids, max_tokens=1, logprobs=3).choices[0]
    assert scored.logprobs.tokens[-1:] == engine.logprobs.tokens
    assert scored.text == model.tokenizer.decode(ids) + engine.text
    assert list(scored.logprobs.top_logprobs[-1]) == list(engine.logprobs.top_logprobs[0])
    assert scored.logprobs.text_offset[-1] == len(model.tokenizer.decode(ids))


def test_offsets_are_places_in_the_text(client):
    prompt = "Grüße, 你好 to <|user_start|> 1 2 3"
    got = complete(client, prompt, max_tokens=6, logprobs=0, echo=True).choices[0]
    places = [*got.logprobs.text_offset, len(got.text)]
    assert got.text.startswith(prompt)
    assert (got.logprobs.tokens[0], places[:2]) == ("<|bos|>", [0, 0])
    for number, token in enumerate(got.logprobs.tokens[1:-6], 1):
        piece = got.text[places[number] : places[number + 1]]
        assert piece == token or token.startswith("bytes:")
    assert places == sorted(places)


def test_bos_stands_before_a_text_once(client, model):
    def first(prompt, **extra):
        got = complete(client, prompt, max_tokens=0, logprobs=0, echo=True, extra_body=extra)
        return got.choices[0].logprobs.tokens[:2]

    assert first("Who") == first("<|bos|>Who") == ["<|bos|>", "Who"]
    assert first("Who are", add_special_tokens=False)[0] == "Who"
    assert first(model.tokenizer.encode("Who are"))[0] == "Who"


def test_nothing_is_a_completion_of_no_tokens(client):
    got = complete(client, ["a", "b"], max_tokens=0)
    assert [(c.text, c.finish_reason) for c in got.choices] == [("", "length")] * 2


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [5_000]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": "", "extra_body": {"add_special_tokens": False}}, "prompt"),
        ({"prompt": "x " * 700, "max_tokens": 0}, "prompt"),
        ({"prompt": "x " * 700}, "prompt"),
        ({"suffix": "y"}, "suffix"),
        ({"best_of": 4}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 9}, "n"),
    ],
)
def test_a_bad_completion_says_which_field_is_wrong(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **{"prompt": "x", **settings})
    assert caught.value.param.startswith(param)
    if "x x" in str(settings.get("prompt")):
        assert caught.value.code == "context_length_exceeded"
        assert "This model's maximum context length is 512 tokens" in caught.value.message


def test_concurrent_requests_share_batches(models, monkeypatch):
    """Prompts that came while the engine was at work are scored together."""
    from jaxchat.serve import scoring

    sizes = []
    plain = scoring.score_tokens

    def counted(prompts, *rest, **options):
        sizes.append(len(prompts))
        return plain(prompts, *rest, **options)

    monkeypatch.setattr(scoring, "score_tokens", counted)
    model, gate = gated(models[0])
    body = {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 0, "logprobs": 1, "echo": True}

    async def ask(server):
        async with httpx.AsyncClient(trust_env=False, timeout=120) as http:
            slow = asyncio.create_task(
                http.post(f"{server.api}/completions", json={"prompt": "a", "max_tokens": 4})
            )
            await asyncio.to_thread(wait_for, lambda: server.scheduler.active == 1, "it is busy")
            calls = [
                asyncio.create_task(http.post(f"{server.api}/completions", json=body))
                for _ in range(6)
            ]
            await asyncio.to_thread(wait_for, lambda: server.scheduler.waiting == 6, "all wait")
            gate.open()
            return [answer.status_code for answer in await asyncio.gather(slow, *calls)]

    with serve([model]) as server:
        assert set(asyncio.run(ask(server))) == {200}
        assert server.scheduler.idle
    assert sizes == [12]


def test_what_fails_while_it_is_scored_is_an_error_and_no_end(models, monkeypatch):
    from jaxchat.serve import scoring

    body = {"prompt": [1, 2], "max_tokens": 0, "logprobs": 1, "echo": True}
    with serve(models[:1]) as server:
        with monkeypatch.context() as broken:
            broken.setattr(scoring, "score_tokens", lambda *_, **__: 1 / 0)
            failed = server.post("/v1/completions", body)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
        assert server.post("/v1/completions", body).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_tokenizer_answers_as_vllms(live_server, model, prefix):
    """What lm-eval's RemoteTokenizer asks for."""
    info = live_server.get(f"{prefix}/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<|bos|>", "<|assistant_end|>")
    assert "assistant_start" in info["chat_template"]

    def ids(**body):
        return live_server.post(f"{prefix}/tokenize", body).json()

    plain = model.tokenizer.encode("Who are you?")
    got = ids(prompt="Who are you?", add_special_tokens=False, return_token_strs=True)
    assert (got["tokens"], got["count"], got["max_model_len"]) == (plain, len(plain), 512)
    assert "".join(got["token_strs"]) == "Who are you?"
    assert ids(prompt="Who are you?")["tokens"] == [model.tokenizer.bos, *plain]
    assert ids(prompt="<|bos|>", add_special_tokens=False)["tokens"] == [model.tokenizer.bos]
    messages = [{"role": "user", "content": WHO}]
    assert ids(messages=messages)["tokens"] == chat_ids(model.tokenizer, WHO)
    back = live_server.post(f"{prefix}/detokenize", {"tokens": chat_ids(model.tokenizer, WHO)})
    assert back.json() == {"prompt": "<|bos|>" + TEMPLATE.format(WHO)}
    assert live_server.post(f"{prefix}/tokenize", {}).status_code == 400
    assert live_server.post(f"{prefix}/detokenize", {"tokens": [9_999]}).status_code == 400


@pytest.mark.parametrize(
    ("path", "usual"),
    [
        ("/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/models/tiny/sft", "/v1/models/tiny/sft"),
        ("/v1/models/tiny/sft/", "/v1/models/tiny/sft"),
    ],
)
def test_other_ways_to_write_an_address(live_server, path, usual):
    got, expected = live_server.get(path), live_server.get(usual)
    assert (got.status_code, got.json()) == (200, expected.json())


def test_paths_without_v1_answer(live_server):
    body = {"messages": [{"role": "user", "content": WHO}], "temperature": 0}
    got = live_server.post("/chat/completions", body).json()
    assert got["choices"][0]["message"]["content"] == SAID
    assert live_server.post("/completions", {"prompt": "a"}).json()["object"] == "text_completion"


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/version", "/metrics"])
def test_head_is_get_without_a_body(live_server, path):
    with httpx.Client(trust_env=False) as http:
        got = http.head(f"{live_server.url}{path}")
        assert (got.status_code, got.content) == (200, b"")
        assert http.head(f"{live_server.url}/none").status_code == 404


def test_the_version_is_shown(live_server):
    import jaxchat

    assert live_server.get("/version").json() == {"version": jaxchat.__version__}
