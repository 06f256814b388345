"""The engine against naive decoding: one request, one full forward pass a token, no cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compilations
from whole_model import logprobs_of

from jaxchat.inference.engine import Engine, EngineError, Request
from jaxchat.inference.measure import weight_bytes
from jaxchat.inference.request import cut_prompt
from jaxchat.model.backend import Compute
from jaxchat.tokenizer.chat_format import parse_completion
from jaxchat.tools.calculator import run_tool


@pytest.fixture(scope="module")
def make_engine(params, config, tokenizer):
    return functools.partial(Engine, params, config, tokenizer, slots=8, steps_per_dispatch=4)


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


@pytest.fixture(scope="module")
def naive(params, config, tokenizer):
    """Greedy decoding as it is defined; gives tokens, mask, log-probabilities and the reason."""
    special = tokenizer.special

    def decode(prompt, max_tokens, tool=run_tool):
        ids, mask, logprobs = list(prompt), [], []
        while len(mask) < max_tokens and len(ids) < config.sequence_len:
            row = logprobs_of(params, ids, config)[-1]
            token = int(row.argmax())
            ids.append(token)
            mask.append(1)
            logprobs.append(float(row[token]))
            if token in (special("<|assistant_end|>"), tokenizer.bos):
                return ids[len(prompt) :], mask, logprobs, "stop"
            if token == special("<|python_end|>"):
                code = call_before(ids[len(prompt) : -1], mask[:-1])
                if code is not None:
                    output = tokenizer.encode(tool(tokenizer.decode(code)))
                    forced = [special("<|output_start|>"), *output, special("<|output_end|>")]
                    room = min(max_tokens - len(mask), config.sequence_len - len(ids))
                    ids += forced[:room]
                    mask += [0] * len(forced[:room])
                    logprobs += [0.0] * len(forced[:room])
        return ids[len(prompt) :], mask, logprobs, "length"

    def call_before(completion, mask):
        """The code of the call that a python_end after these tokens would end; None: no call."""
        start, end = special("<|python_start|>"), special("<|python_end|>")
        for at in range(len(completion) - 1, -1, -1):
            if mask[at] and completion[at] == end:
                return None
            if mask[at] and completion[at] == start:
                return completion[at + 1 :]
        return None

    return decode


def random_prompts(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 256, rng.integers(1, longest)).tolist()) for _ in range(count)]


def assert_same(got, want):
    """The same tokens; log-probabilities up to float32's rounding."""
    for a, b in zip(got, want, strict=True):
        assert (a.tokens, a.mask, a.finish_reason) == (b.tokens, b.mask, b.finish_reason)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def assert_is(completion, want):
    """A completion is what naive decoding gives."""
    tokens, mask, logprobs, reason = want
    assert (list(completion.tokens), list(completion.mask)) == (tokens, mask)
    assert completion.finish_reason == reason
    np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)


def test_greedy_decoding_equals_the_naive_one_with_tool_calls_in_the_loop(engine, naive):
    """20 requests in 8 slots: they join and leave while others decode."""
    requests = [Request(prompt, max_tokens=40) for prompt in random_prompts(20)]
    completions = [completion for (completion,) in engine.generate(requests)]
    for request, completion in zip(requests, completions, strict=True):
        assert_is(completion, naive(request.tokens, request.max_tokens))
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}, "the fixture's model should do both; change its seed"
    forced = sum(completion.mask.count(0) for completion in completions)
    assert forced > 20, "the fixture's model should call tools; change its seed"


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 129, 200])
def test_prompts_at_the_edges_of_buckets_and_windows(engine, naive, length):
    prompt = tuple(np.random.default_rng(length).integers(0, 256, length).tolist())
    ((completion,),) = engine.generate([Request(prompt, max_tokens=12)])
    assert_is(completion, naive(prompt, 12))


def test_a_completion_may_fill_the_context(engine, naive, config):
    prompt = random_prompts(1, seed=5)[0]
    ((completion,),) = engine.generate([Request(prompt, max_tokens=10_000)])
    assert_is(completion, naive(prompt, 10_000))
    for length in (config.sequence_len - 1, config.sequence_len - 9):
        longest = (prompt * 300)[:length]
        ((completion,),) = engine.generate([Request(longest, max_tokens=10_000)])
        assert len(completion.tokens) <= config.sequence_len - length
        assert_is(completion, naive(longest, 10_000))


SAMPLED = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {},  # greedy
)


def test_a_request_gets_the_same_alone_and_among_31_others(engine):
    requests = [
        Request(prompt, max_tokens=30, seed=number, **SAMPLED[number % len(SAMPLED)])
        for number, prompt in enumerate(random_prompts(32, seed=1))
    ]
    together = engine.generate(requests)
    for number in (0, 1, 2, 3, 13, 22, 31):
        assert_same(engine.generate([requests[number]])[0], together[number])


def test_samples_of_one_prompt_differ_and_do_not_depend_on_their_number(engine):
    request = Request(random_prompts(1)[0], max_tokens=20, temperature=1.0, seed=3, n=19)
    (many,) = engine.generate([request])  # more than there are slots
    assert len({completion.tokens for completion in many}) > 10
    (few,) = engine.generate([dataclasses.replace(request, n=2)])
    assert_same(few, many[:2])
    (other,) = engine.generate([dataclasses.replace(request, n=2, seed=4)])
    assert other[0].tokens != few[0].tokens


def test_temperature_0_samples_are_all_the_greedy_one(engine, naive):
    prompt = random_prompts(1)[0]
    (group,) = engine.generate([Request(prompt, max_tokens=20, n=3)])
    for completion in group:
        assert_is(completion, naive(prompt, 20))


def text_of(tokenizer, completion):
    """What the assistant says: without the tool's part."""
    parts = parse_completion(completion.tokens, tokenizer)
    return "".join(part["text"] for part in parts if part["type"] == "text")


def test_an_answer_ends_at_the_token_that_completes_a_stop_text(engine, tokenizer):
    requests = [
        Request(prompt, max_tokens=60, temperature=1.0, seed=number)
        for number, prompt in enumerate(random_prompts(12, seed=2))
    ]
    found = 0
    for request, (free,) in zip(requests, engine.generate(requests), strict=True):
        text = text_of(tokenizer, free)
        stops = tuple({text[3:5], text[-4:-2], "never said"} - {""})
        ((ended,),) = engine.generate([dataclasses.replace(request, stop=stops)])
        size = len(ended.tokens)
        assert ended.tokens == free.tokens[:size]
        assert ended.logprobs == pytest.approx(free.logprobs[:size], abs=1e-4)
        before = text_of(tokenizer, dataclasses.replace(ended, tokens=ended.tokens[:-1]))
        if any(stop in text for stop in stops):
            found += 1
            assert ended.finish_reason == "stop"
            said = text_of(tokenizer, ended)
            assert any(stop in said for stop in stops)
            assert not any(stop in before.rstrip("\ufffd") for stop in stops)
        else:
            assert ended == free
    assert found > 5, "the fixture's model should say more; change its seed"


def test_what_tools_are_asked_and_answer_stops_nothing(make_engine, tokenizer):
    requests = [Request(prompt, max_tokens=40) for prompt in random_prompts(20)]
    engine = make_engine(tools=lambda code: "quux")
    free = engine.generate(requests)
    stopped = engine.generate([dataclasses.replace(each, stop=("quux",)) for each in requests])
    assert any("quux" in tokenizer.decode(each.tokens) for (each,) in free)
    assert [each.tokens for (each,) in stopped] == [each.tokens for (each,) in free]


def test_alternatives_are_the_likeliest_tokens_of_the_model(engine, params, config):
    prompts = random_prompts(3, seed=4)
    requests = [
        Request(prompt, max_tokens=30, temperature=1.0, seed=9, alternatives=number)
        for prompt, number in zip(prompts, (0, 3, 20), strict=True)
    ]
    for request, (completion,) in zip(requests, engine.generate(requests), strict=True):
        logprobs = logprobs_of(params, [*request.tokens, *completion.tokens], config)
        logprobs = logprobs[len(request.tokens) - 1 : -1]
        assert len(completion.alternatives) == len(completion.tokens)
        for row, mask, others in zip(
            logprobs, completion.mask, completion.alternatives, strict=True
        ):
            assert len(others) == (request.alternatives if mask else 0)
            want = np.sort(row)[::-1][: len(others)]
            np.testing.assert_allclose([value for _, value in others], want, atol=1e-4)
            np.testing.assert_allclose([row[token] for token, _ in others], want, atol=1e-4)
    (plain,) = engine.generate([dataclasses.replace(requests[2], alternatives=0)])
    assert plain[0].tokens == completion.tokens


@pytest.mark.parametrize("begins_with_bos", [True, False])
def test_a_prompt_that_is_too_long_is_refused_unless_it_is_cut(
    engine, config, tokenizer, begins_with_bos
):
    context = config.sequence_len
    rest = tuple(np.random.default_rng(0).integers(0, 256, 3 * context).tolist())
    first = (tokenizer.bos,) if begins_with_bos else ()

    def cut(tokens, max_tokens):
        return cut_prompt(tokens, max_tokens=max_tokens, context=context, bos=tokenizer.bos)

    with pytest.raises(EngineError, match="shorten the prompt"):
        engine.submit(Request(first + rest, max_tokens=200))
    room = context // 4
    kept = context - room - len(first)
    assert cut(first + rest, 200) == first + rest[-kept:]
    job = engine.submit(Request(cut(first + rest, 200), max_tokens=200))
    while not job.done:
        engine.step()
    assert 0 < len(job.rows[0].tokens) <= room
    assert len(cut(first + rest, 5)) == context - 5
    assert cut(first + rest[:50], 200) == first + rest[:50]


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_the_steps_of_a_dispatch_change_nothing(make_engine, engine, steps):
    requests = [
        Request(prompt, max_tokens=25, temperature=temperature)
        for prompt, temperature in zip(random_prompts(6), [0.0, 1.0] * 3, strict=True)
    ]
    other = make_engine(steps_per_dispatch=steps).generate(requests)
    for got, want in zip(other, engine.generate(requests), strict=True):
        assert_same(got, want)


def test_a_first_token_that_comes_alone_changes_nothing(make_engine, engine):
    """Nor do those of others, which then come one by one, too."""
    other = make_engine(first_alone=True)
    running = Request(random_prompts(1, 4)[0], max_tokens=30, temperature=1.0, seed=1)
    late = Request(random_prompts(1, 5)[0], max_tokens=9, n=2, temperature=1.0, seed=2)
    first = other.submit(running)
    counts = []
    for _ in range(2):
        other.step()
        counts.append(len(first.rows[0].tokens))
    second = other.submit(late)
    other.step()
    assert counts[0] == 1 < counts[1]
    assert [len(row.tokens) for row in second.rows] == [1, 1]
    assert len(first.rows[0].tokens) - counts[1] <= 1
    while other.step():
        pass
    answers = [[row.completion for row in job.rows] for job in (first, second)]
    assert answers == engine.generate([running, late])


def test_log_probabilities_are_the_models_at_temperature_1(engine, params, config):
    """What RL on policy relies on."""
    prompt = random_prompts(1)[0]
    request = Request(prompt, max_tokens=30, temperature=1.5, top_k=40, seed=1)
    ((completion,),) = engine.generate([request])
    logprobs = logprobs_of(params, [*prompt, *completion.tokens], config)[len(prompt) - 1 : -1]
    want = [float(logprobs[i, token]) for i, token in enumerate(completion.tokens)]
    want = np.where(completion.mask, want, 0.0)
    np.testing.assert_allclose(completion.logprobs, want, atol=1e-4)


def test_a_stream_gives_the_tokens_of_generate_in_pieces(engine):
    request = Request(random_prompts(1, seed=8)[0], max_tokens=30, temperature=1.0)
    ((completion,),) = engine.generate([request])
    pieces = list(engine.stream(request))
    assert len(pieces) > 1
    assert tuple(token for piece in pieces for token in piece) == completion.tokens


def test_a_stream_that_is_closed_early_frees_its_slot(make_engine):
    engine = make_engine(slots=1)
    request = Request(random_prompts(1, seed=8)[0], max_tokens=200, temperature=1.0)
    stream = engine.stream(request)
    next(stream)
    stream.close()
    assert not engine.step(), "nothing should be left to do"
    assert engine.generate([dataclasses.replace(request, max_tokens=5)])


def test_a_request_joins_while_another_streams(engine, naive):
    first, second = random_prompts(2, seed=11)
    stream = engine.stream(Request(first, max_tokens=40))
    pieces = [next(stream)]
    ((joined,),) = engine.generate([Request(second, max_tokens=10)])
    assert_is(joined, naive(second, 10))
    pieces += stream
    assert [token for piece in pieces for token in piece] == naive(first, 40)[0]


def test_a_tool_that_raises_answers_error_and_the_row_continues(make_engine, naive):
    def broken(code):
        raise RuntimeError(code)

    requests = [Request(prompt, max_tokens=40) for prompt in random_prompts(20)]
    completions = make_engine(tools=broken).generate(requests)
    assert any(0 in completion.mask for (completion,) in completions)
    for request, (completion,) in zip(requests, completions, strict=True):
        assert_is(completion, naive(request.tokens, 40, tool=lambda code: "error"))


def test_a_long_tool_output_is_fed_over_several_dispatches_and_cut_at_the_limit(make_engine, naive):
    def talkative(code):
        return "12 + 34 = 46, " * 5

    requests = [Request(prompt, max_tokens=60) for prompt in random_prompts(10)]
    completions = make_engine(tools=talkative).generate(requests)
    assert max(completion.mask.count(0) for (completion,) in completions) > 20
    assert any(completion.mask[-1] == 0 for (completion,) in completions), "none was cut"
    for request, (completion,) in zip(requests, completions, strict=True):
        assert_is(completion, naive(request.tokens, 60, tool=talkative))


def test_new_weights_are_used_and_nothing_is_compiled_again(make_engine, params):
    engine = make_engine()
    request = Request(random_prompts(1)[0], max_tokens=20)
    before = engine.generate([request])
    with compilations() as count:
        engine.set_params(jax.tree.map(lambda x: -x, params))
        after = engine.generate([request])
        engine.set_params(params)
        again = engine.generate([request])
    # negating is one small function for every shape of a parameter
    assert count() <= len({x.shape for x in jax.tree.leaves(params)})
    assert before[0][0].tokens != after[0][0].tokens
    assert_same(again[0], before[0])


def test_a_second_engine_and_any_mix_of_requests_compile_little(make_engine, config):
    """Prompts of 64, 128, 256 are read and placed among 64, 128 or 256 slots, and decoded."""
    rng = np.random.default_rng(0)

    def run(engine, count):
        engine.generate(
            [
                Request((1,) * int(rng.integers(1, 200)), max_tokens=int(rng.integers(1, 56)))
                for _ in range(count)
            ]
        )

    engine = make_engine()
    with compilations() as count:
        for size in (1, 2, 5, 9, 30, 3, 70, 11):
            run(engine, size)
        engine.warm_up()  # what no request has asked for by chance
    assert count() <= sum(1 for _ in engine._programs()) == 3 + (3 + 2 + 1) + 3 * 8 + 3 * 2
    with compilations() as count:
        for size in (4, 40):
            run(make_engine(), size)
    assert count() <= 1, "the second engine should find it compiled"


def test_a_second_request_of_the_same_length_compiles_nothing(make_engine):
    """Though the first one's answer has lengthened the cache, and its prompt filled a bucket."""
    engine = make_engine(slots=3)
    first = Request((1,) * 64, max_tokens=6)
    engine.generate([first, first])
    with compilations() as count:
        engine.generate([first])
    assert count() == 0


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_an_engine_decodes_the_same_in_the_forms_of_a_gpu(make_engine, naive, params, slots):
    """Of one row, of a few, and of as many as there have to be; with new weights, too."""
    engine = make_engine(slots=slots, compute=Compute(decode_rows=4, joined=True))
    prompts = random_prompts(3, seed=4)
    requests = [Request(prompt, max_tokens=40) for prompt in prompts]
    for prompt, (completion,) in zip(prompts, engine.generate(requests), strict=True):
        assert_is(completion, naive(prompt, 40))
    before = engine.generate(requests)
    engine.set_params(jax.tree.map(lambda x: -x, params))
    assert engine.generate(requests) != before
    with compilations() as count:
        engine.set_params(params)
        assert engine.generate(requests) == before
    assert count() == 0
    assert weight_bytes(engine.params) == weight_bytes(params)


def test_what_keeps_tokens_from_being_drawn_is_not_looked_at_where_none_is(engine):
    requests = [Request((1, 2, 3), max_tokens=9, top_k=k, top_p=p) for k, p in ((0, 1), (5, 0.5))]
    first, second = engine.generate(requests)
    assert first == second
    assert not any(request.truncates for request in requests)
    warm = dataclasses.replace(requests[1], temperature=0.5)
    assert warm.truncates
    assert not dataclasses.replace(warm, top_k=0, top_p=1.0).truncates


def test_half_precision_gives_nearly_the_same_probabilities(make_engine, params, config):
    prompt = random_prompts(1)[0]
    request = Request(prompt, max_tokens=30, temperature=1.0)
    ((completion,),) = make_engine(compute=Compute(dtype=jnp.bfloat16)).generate([request])
    logprobs = logprobs_of(params, [*prompt, *completion.tokens], config)[len(prompt) - 1 : -1]
    want = [float(logprobs[i, token]) for i, token in enumerate(completion.tokens)]
    gaps = np.abs(np.array(want) - completion.logprobs)[np.array(completion.mask) == 1]
    assert len(gaps) > 3
    assert 1e-5 < gaps.mean() < 0.2, "near, but not computed in float32"


def test_progress_counts_finished_requests(engine):
    seen = []
    requests = [Request(prompt, max_tokens=9, n=2) for prompt in random_prompts(9)]
    engine.generate(requests, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 9


def test_no_requests_no_completions(engine):
    assert engine.generate([]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ()}, "the prompt is empty"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be a whole number from 1 to"),
        ({"n": 0}, "n is 0; it must be a whole number from 1 to"),
        ({"temperature": -1.0}, r"temperature is -1\.0; it must be a number from 0 to 10"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_k": 5_000_000_000}, "top_k is 5000000000"),
        ({"stop": ("a", "")}, r"stop is \('a', ''\); it must be a tuple of at most 16 texts"),
        ({"stop": "ab"}, "stop is 'ab'"),
        ({"stop": ("a",) * 17}, "at most 16 texts"),
        ({"alternatives": 21}, "alternatives is 21; it must be a whole number from 0 to 20"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be a number above 0 and at most 1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(EngineError, match=message):
        Request(**{"tokens": (1,), "max_tokens": 1, **values})


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(engine, config):
    fits = Request((1,) * (config.sequence_len - 1), max_tokens=1)
    too_long = Request((1,) * config.sequence_len, max_tokens=1)
    with pytest.raises(EngineError, match=r"has 256 tokens, .* room for 255 .* shorten"):
        engine.generate([fits, too_long])
    with pytest.raises(EngineError, match=f"outside the vocabulary of {config.vocab_size}"):
        engine.generate([fits, Request((config.vocab_size,), max_tokens=1)])
    with pytest.raises(EngineError, match="n is 2; a stream has one sample"):
        next(engine.stream(Request((1,), max_tokens=1, n=2)))
    assert not engine.step(), "nothing should be left to do"


def test_another_models_tokenizer_is_refused(params, config, tokenizer):
    smaller = dataclasses.replace(config, vocab_size=100)
    with pytest.raises(EngineError, match="ids but the model only 100"):
        Engine(params, smaller, tokenizer)
