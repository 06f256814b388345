"""Prompts that begin as earlier ones did: only what is new is read, and no bit changes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compilations
from whole_model import decode, prefill

from jaxchat.inference import jitted
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.prefixes import Prefixes, Reader
from jaxchat.model import gpt
from jaxchat.model.backend import PLAIN
from jaxchat.model.chunks import CHUNK, LEAST, chunk_ends
from jaxchat.model.kv_cache import init_cache, resize, slots_of

CONTEXT = 900  # no power of two, and no multiple of the chunk
PRESETS = ("classic", "modern")
NO_MARK = -1
MEGABYTE = 2**20


def preset(config, name):
    config = replace(config, sequence_len=CONTEXT)
    if name == "classic":
        config = replace(config, smear=False, value_embeds=False, window_pattern="L")
    return config


@pytest.fixture(params=PRESETS)
def model(request, config, params):
    """(config, params) of either preset."""
    chosen = preset(config, request.param)
    needed = gpt.param_shapes(chosen)
    return chosen, {name: params[name] for name in needed}


def prompt(length, seed=0):
    return tuple(np.random.default_rng(seed).integers(0, 280, length).tolist())


def make(model, tokenizer, size=MEGABYTE, **settings):
    config, params = model
    return Engine(params, config, tokenizer, slots=3, prefix_bytes=size, **settings)


def ask(engine, tokens, **settings):
    """The completion of a prompt, and how much of it was known."""
    job = engine.submit(Request(tokens, **{"max_tokens": 12, **settings}))
    while not job.done:
        engine.step()
    return job.rows[0].completion, job.rows[0].known


@pytest.mark.parametrize("length", [CHUNK, 300, 890])
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(model, length) -> None:
    config, params = model
    tokens = prompt(length)
    reader = Reader(params, config, PLAIN, CONTEXT, jax.devices()[0])
    ends = chunk_ends(tokens, NO_MARK)
    cache, chunks = reader.read(tokens, ends)
    assert len(chunks) == len(ends) == length // CHUNK
    whole = jnp.asarray([(*tokens, 5)])
    expected, _ = prefill(
        params, whole, jnp.array([length + 1]), init_cache(config, 1, length + 1), config
    )
    cache = resize(cache, slots_of(config, CONTEXT))
    got, _ = decode(params, jnp.array([5]), cache, config)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("shared", [CHUNK, 767])
def test_what_was_known_changes_no_bit(model, tokenizer, shared) -> None:
    tokens = prompt(shared) + prompt(880 - shared, seed=1)
    settings = {"temperature": 1.0, "seed": 3, "alternatives": 5}
    alone, none = ask(make(model, tokenizer), tokens, **settings)
    engine = make(model, tokenizer)
    ask(engine, prompt(shared) + prompt(20, seed=2))
    after, known = ask(engine, tokens, **settings)
    assert (none, known) == (0, shared // CHUNK * CHUNK)
    assert after == alone
    again, known = ask(engine, tokens, **settings)
    assert known == 879 // CHUNK * CHUNK
    assert again == alone


def test_the_next_turn_of_a_conversation_reads_what_is_new(model, tokenizer) -> None:
    engine = make(model, tokenizer)
    first = prompt(3 * CHUNK + 20)
    answer, _ = ask(engine, first)
    turn = (*first, *answer.tokens, *prompt(30, seed=4))
    _, known = ask(engine, turn)
    assert known == 3 * CHUNK


def chat(tokenizer, *lengths, seed=0):
    """The prompt of a conversation whose user's messages end at these places."""
    tokens = list(prompt(lengths[-1], seed))
    for length in lengths:
        tokens[length - 1] = tokenizer.special("<|user_end|>")
    return (*tokens, tokenizer.special("<|assistant_start|>"))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("." * 255, []),
        ("." * 256, [256]),
        ("." * 99 + "|" + "." * 500, [256, 512]),  # the first chunk ends at no mark
        ("." * 319 + "|" + "." * 280, [256, 320, 576]),
        ("." * 318 + "||" + "." * 280, [256, 320, 576]),  # one of 63 is too short
        ("." * 318 + "|" + "." * 280, [256, 512]),
        ("." * 511 + "|" + "." * 63 + "|", [256, 512, 576]),
    ],
)
def test_where_chunks_end(tokens, expected) -> None:
    assert chunk_ends(list(map(ord, tokens)), ord("|")) == expected
    for length in range(len(tokens)):  # what comes later changes nothing
        ends = chunk_ends(list(map(ord, tokens[:length])), ord("|"))
        assert ends == [end for end in expected if end <= length]


def test_the_next_turn_reads_what_follows_the_last_message_and_no_bit_changes(
    model, tokenizer
) -> None:
    """At the end of the context, too, where the last chunk is padded beyond it."""
    settings = {"temperature": 1.0, "seed": 3, "alternatives": 5}
    turns = [chat(tokenizer, 400, 500, 700, 885)[:end] for end in (401, 501, 701, 886)]
    engine, known = make(model, tokenizer), []
    for tokens in turns:
        answer, count = ask(engine, tokens, **settings)
        known.append(count)
        assert answer == ask(make(model, tokenizer), tokens, **settings)[0]
    assert known == [0, 400, 500, 700]
    ends = chunk_ends(turns[-1], tokenizer.special("<|user_end|>"))
    assert ends == [256, 400, 500, 700, 885]
    assert min(np.diff(ends)) >= LEAST
    plain, _ = ask(make(model, tokenizer, 0), turns[-1])
    read, _ = ask(engine, turns[-1])
    assert read.tokens == plain.tokens
    np.testing.assert_allclose(read.logprobs, plain.logprobs, atol=1e-5)


def test_greedy_answers_are_those_without_chunks(model, tokenizer) -> None:
    for seed in range(2):
        tokens = prompt(280 + 300 * seed, seed)
        answer, _ = ask(make(model, tokenizer), tokens)
        plain, _ = ask(make(model, tokenizer, 0), tokens)
        assert answer.tokens == plain.tokens
        np.testing.assert_allclose(answer.logprobs, plain.logprobs, atol=1e-5)


def test_short_prompts_are_read_as_ever(model, tokenizer) -> None:
    tokens = prompt(CHUNK)  # of which all but the last are read
    engine = make(model, tokenizer)
    answer, _ = ask(engine, tokens)
    plain, _ = ask(make(model, tokenizer, 0), tokens)
    assert answer == plain
    assert engine._shared.prefixes.bytes == 0


def test_memory_is_bounded_and_the_least_used_goes_first(model, tokenizer) -> None:
    config, _ = model
    one = 4 * (2 * config.n_layer * CHUNK * config.n_kv_head * config.head_dim + config.n_embd)
    engine = make(model, tokenizer, 5 * one)
    first, second, third = (prompt(3 * CHUNK, seed) for seed in range(3))
    for tokens in (first, second, first, third):
        ask(engine, (*tokens, 1))
        assert engine._shared.prefixes.bytes <= 5 * one
    _, known = ask(engine, (*first, 1))
    assert known >= CHUNK, "the beginning of what was used twice is gone"
    _, known = ask(engine, (*second, 1))
    assert known == 0


def test_nothing_is_kept_whose_beginning_is_gone() -> None:
    chunk = jax.tree.map(jnp.asarray, (np.zeros(4, np.float32),))
    prefixes = Prefixes(3 * 16)
    long, short = prompt(3 * CHUNK), prompt(2 * CHUNK, seed=1)
    ends = [CHUNK, 2 * CHUNK, 3 * CHUNK]
    prefixes.keep(long, ends, [chunk] * 3)
    prefixes.keep(short, ends[:2], [chunk] * 2)
    assert (len(prefixes.find(long, ends)), len(prefixes.find(short, ends[:2]))) == (1, 2)
    assert prefixes.bytes == 48


def test_other_weights_forget_what_was_read(model, tokenizer) -> None:
    _, params = model
    engine = make(model, tokenizer)
    tokens = prompt(300)
    before, _ = ask(engine, tokens)
    engine.set_params({**params, "wte": jax.tree.map(lambda x: x[::-1], params["wte"])})
    after, known = ask(engine, tokens)
    assert known == 0
    assert after != before


def test_an_error_forgets_what_was_read(config, params, tokenizer, monkeypatch) -> None:
    """What a device had not computed yet when it failed would fail again in every later prompt."""
    engine = make((replace(config, sequence_len=CONTEXT), params), tokenizer)
    engine.submit(Request(prompt(300), max_tokens=12))
    with monkeypatch.context() as patch:
        patch.setattr(jitted, "picks_of", lambda output: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert engine._shared.prefixes.bytes == 0
    assert ask(engine, prompt(300))[1] == 0


def test_a_prompt_that_is_known_as_a_whole(model, tokenizer) -> None:
    engine = make(model, tokenizer)
    request = Request(prompt(2 * CHUNK + 1), max_tokens=4, n=5, temperature=1.0)
    first, again = (engine.submit(request) for _ in range(2))
    while not again.done:
        engine.step()
    other = engine.submit(replace(request))
    while not other.done:
        engine.step()
    assert [row.known for row in other.rows] == [2 * CHUNK] * 5
    answers = [[row.completion for row in job.rows] for job in (first, again, other)]
    assert answers[0] == answers[1] == answers[2]


def test_nothing_is_compiled_after_warming_up(config, params, tokenizer) -> None:
    jax.clear_caches()  # those of other tests, so that what is counted is this engine's
    engine = make((replace(config, sequence_len=600), params), tokenizer)
    engine.warm_up(rare=False)
    assert engine._shared.prefixes.bytes == 0
    with compilations() as compiled:
        for length in (100, 200, 257, 300, 400, 598):
            ask(engine, prompt(length, length), max_tokens=1)
            ask(engine, prompt(length, length), max_tokens=1)
        for ends in ((300, 400), (330, 500), (480, 505), (340, 590), (500, 597)):
            for number in range(len(ends)):
                ask(engine, chat(tokenizer, *ends[: number + 1]), max_tokens=1)
    assert compiled() == 0
