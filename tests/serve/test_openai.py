"""The `openai` package, as people use it, against a real server of a real model."""

import asyncio

import openai
import pytest
import tiny_model
from live_server import asking, serve, slowed

from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.transcript import as_text
from jaxchat.tokenizer.chat_format import parse_completion, render_prompt

KEY = "a-key-of-some-length"
WHO = "Who are you?"
SAID = tiny_model.ANSWERS[WHO]


def call(client, question=WHO, **settings):
    return client.chat.completions.create(**{"model": "tiny/rl", **asking(question), **settings})


@pytest.mark.parametrize("question", tiny_model.ANSWERS)
def test_the_model_answers_as_it_was_trained_to(client, question):
    answer = tiny_model.ANSWERS[question]
    parts = [{"type": "text", "text": answer}] if isinstance(answer, str) else answer
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    got = call(client, question, extra_body={"parts": True})
    (choice,) = got.choices
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
    assert choice.message.parts == parts
    assert (got.object, got.model) == ("chat.completion", "tiny/rl")
    assert "parts" not in call(client, question).choices[0].message.model_extra


@pytest.mark.parametrize("question", tiny_model.ANSWERS)
def test_a_stream_adds_up_to_the_answer(client, question):
    whole = call(client, question, extra_body={"parts": True})
    chunks = list(
        call(client, question, stream=True, stream_options={"include_usage": True},
             extra_body={"parts": True})
    )  # fmt: skip
    *spoken, last = chunks
    assert {(c.id, c.object, c.model, c.created) for c in chunks} == {
        (chunks[0].id, "chat.completion.chunk", "tiny/rl", chunks[0].created)
    }
    first = spoken[0].choices[0].delta
    assert (first.role, first.content) == ("assistant", "")
    content = "".join(c.choices[0].delta.content or "" for c in spoken)
    assert content == whole.choices[0].message.content
    pieces = [d.part for c in spoken if hasattr(d := c.choices[0].delta, "part")]
    assert "".join(p["text"] for p in pieces) == as_joined(whole.choices[0].message.parts)
    assert [c.choices[0].finish_reason for c in spoken] == [None] * (len(spoken) - 1) + ["stop"]
    assert spoken[-1].choices[0].delta.content is None
    assert last.choices == []
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [getattr(last.usage, n) for n in counts] == [getattr(whole.usage, n) for n in counts]
    assert last.usage.jaxchat["context"] == tiny_model.CONTEXT
    assert last.usage.jaxchat["tokens_per_second"] > 0


def as_joined(parts):
    return "".join(part["text"] for part in parts)


def test_a_second_turn_reads_only_what_is_new(client):
    question = "Count to one hundred, as slowly as you can. " * 12
    first = call(client, question, max_tokens=16)
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Count."},
    ]
    cached = call(client, messages=turns).usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.prompt_tokens - 1, "all but what begins the answer"
    assert call(client, "Count.").usage.prompt_tokens_details.cached_tokens == 0


def test_tool_parts_are_no_content_and_each_is_announced(client):
    chunks = call(client, "What is 12 + 34?", stream=True, extra_body={"parts": True})
    deltas = [chunk.choices[0].delta for chunk in chunks]
    kinds = [d.part["type"] for d in deltas if hasattr(d, "part")]
    turns = [k for k, before in zip(kinds, [None, *kinds], strict=False) if k != before]
    assert turns == ["text", "python", "python_output", "text"]
    assert not any(d.content for d in deltas if hasattr(d, "part") and d.part["type"] != "text")


def test_a_client_that_knows_no_parts_sees_none(client):
    for chunk in call(client, "What is 12 + 34?", stream=True):
        assert "part" not in chunk.choices[0].delta.model_extra


def test_the_same_seed_gives_the_text_of_the_engine(client, models):
    (model, *_) = models
    engine: Engine = model.open_engine()
    tokens = tuple(render_prompt([{"role": "user", "content": "Count."}], model.tokenizer))
    request = Request(tokens, 30, temperature=1.3, top_p=0.95, top_k=50, seed=11, n=2)
    (samples,) = engine.generate([request])
    got = call(
        client, "Count.", n=2, seed=11, temperature=1.3, top_p=0.95, max_tokens=30,
        extra_body={"top_k": 50, "parts": True}, logprobs=True,
    )  # fmt: skip
    assert [choice.index for choice in got.choices] == [0, 1]
    for choice, sample in zip(got.choices, samples, strict=True):
        ids = [entry.jaxchat["id"] for entry in choice.logprobs.content]
        assert ids == list(sample.tokens)
        parts = parse_completion(sample.tokens, model.tokenizer)
        assert as_text(choice.message.parts) == as_text(parts)
        assert choice.finish_reason == sample.finish_reason
    assert samples[0].tokens != samples[1].tokens


def test_samples_of_a_stream_come_by_their_index(client):
    whole = call(client, "Count.", n=3, seed=5, temperature=1.2, max_tokens=20)
    texts = dict.fromkeys(range(3), "")
    for chunk in call(client, "Count.", n=3, seed=5, temperature=1.2, max_tokens=20, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


def test_a_stop_text_ends_the_answer_and_is_not_said(client):
    got = call(client, stop=["small model"])
    assert got.choices[0].message.content == SAID.partition("small model")[0]
    assert got.choices[0].finish_reason == "stop"
    chunks = call(client, stop="small model", stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == SAID.partition("small model")[0]


def test_an_answer_that_is_too_long_ends_with_length(client):
    got = call(client, "Count.", max_completion_tokens=7)
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == 7
    assert tiny_model.COUNTED.startswith(got.choices[0].message.content)


def test_log_probabilities_of_tokens_and_their_alternatives(client):
    got = call(client, logprobs=True, top_logprobs=3).choices[0]
    entries = got.logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries[:-1]).decode() == SAID
    assert entries[-1].token == "<|assistant_end|>"
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob) == (entry.token, pytest.approx(entry.logprob, abs=1e-4))
        assert entry.jaxchat["sampled"]
    chunks = call(client, logprobs=True, top_logprobs=3, stream=True)
    streamed = [e for c in chunks if (p := c.choices[0].logprobs) for e in p.content]
    assert [e.token for e in streamed] == [e.token for e in entries]


def test_tokens_of_tools_are_marked_as_not_sampled(client):
    entries = call(client, "What is 12 + 34?", logprobs=True).choices[0].logprobs.content
    forced = "".join(e.token for e in entries if not e.jaxchat["sampled"])
    assert forced == "<|output_start|>46<|output_end|>"
    assert {e.logprob for e in entries if not e.jaxchat["sampled"]} == {0.0}


def test_models_are_listed_and_found_by_their_name(client):
    cards = list(client.models.list())
    assert [card.id for card in cards] == ["tiny/rl", "tiny/sft"]
    assert [card.jaxchat["default"] for card in cards] == [True, False]
    assert client.models.retrieve("tiny/sft").jaxchat["stage"] == "sft"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny/none")


def test_a_model_that_is_not_there_is_an_error_that_names_those_that_are(client):
    with pytest.raises(openai.NotFoundError, match="tiny/rl, tiny/sft") as caught:
        call(client, model="gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 10.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"seed": "one"}, "seed"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ],
)
def test_a_bad_request_says_which_field_is_wrong(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        call(client, **settings)
    error = caught.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert param in error.message


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(client):
    with pytest.raises(
        openai.BadRequestError, match=r"This model's maximum context length is 512 tokens.*take \d+"
    ) as caught:
        call(client, "many words " * 400)
    assert caught.value.code == "context_length_exceeded"
    assert "prompt is too long" in caught.value.message  # langchain-openai looks for it


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
def test_tools_that_may_be_called_are_answered_in_text(client, choice):
    got = call(client, tools=TOOLS, parallel_tool_calls=True, **choice).choices[0]
    assert (got.message.content, got.message.tool_calls) == (SAID, None)
    assert got.finish_reason == "stop"


def test_a_conversation_with_tools_as_the_package_keeps_it_is_taken(client):
    """The messages that an agent sends after a call: content null, and a result."""
    calls = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    kept = [
        {"role": "user", "content": "What is 12 + 34?"},
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "tool_call_id": "c", "content": "46"},
    ]
    got = call(client, messages=kept, tools=TOOLS, max_tokens=5)
    assert got.usage.completion_tokens in range(1, 6)


@pytest.mark.parametrize(
    "settings", [{}, {"continue_final_message": True, "add_generation_prompt": False}]
)
def test_a_last_message_of_the_assistant_is_continued(client, settings):
    begun, rest = SAID[:20], SAID[20:]
    messages = [{"role": "user", "content": WHO}, {"role": "assistant", "content": begun}]
    got = call(client, messages=messages, extra_body=settings)
    assert got.choices[0].message.content == rest


def test_unknown_fields_are_ignored(client):
    got = call(client, extra_body={"user": "me", "store": True, "metadata": {"a": [1, {}]}})
    assert got.choices[0].message.content == SAID


def test_many_clients_at_once_get_the_same_answers(live_server):
    async def ask_all():
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=live_server.api, api_key="none", max_retries=0, http_client=http
        ) as client:

            async def one(question):
                stream = await client.chat.completions.create(
                    model="tiny/rl", stream=True, **asking(question)
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            questions = list(tiny_model.ANSWERS) * 3
            return questions, await asyncio.gather(*map(one, questions))

    for question, said in zip(*asyncio.run(ask_all()), strict=True):
        answer = tiny_model.ANSWERS[question]
        parts = [{"type": "text", "text": answer}] if isinstance(answer, str) else answer
        assert said == "".join(part["text"] for part in parts if part["type"] == "text")


def test_a_key_and_a_full_queue_are_errors_of_their_own_types(models):
    (model, *_) = models

    async def crowd(url):
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=url, api_key=KEY, max_retries=0, http_client=http
        ) as client:
            calls = [
                client.chat.completions.create(model="tiny/rl", **asking("Count."))
                for _ in range(12)
            ]
            got = await asyncio.gather(*calls, return_exceptions=True)
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.with_options(api_key="another").models.list()
            return got, caught.value

    with serve([slowed(model, 0.2)], key=KEY, queue=2) as server:
        got, refused = asyncio.run(crowd(server.api))
    errors = [error for error in got if isinstance(error, Exception)]
    assert 0 < len(errors) < 12
    assert {type(error) for error in errors} == {openai.RateLimitError}
    assert {error.code for error in errors} == {"queue_full"}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in errors)
    assert refused.code == "invalid_api_key"
