"""Biases, penalties and held-back tokens: against NumPy, in the engine, and in any company."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compilations
from whole_model import forward

from jaxchat.inference import jitted
from jaxchat.inference.changes import (
    HELD,
    change,
    count,
    count_next,
    packed_changes,
    unpacked_changes,
)
from jaxchat.inference.engine import Engine, EngineError, Request
from jaxchat.inference.sampling import Sampling, sample
from jaxchat.inference.sequence import SequenceState

change, count_next, unpacked_changes = map(jax.jit, (change, count_next, unpacked_changes))
count = jax.jit(count, static_argnums=1)
ENDS = (3, 4)
VOCAB = 50


def reference(logits, request, prompt, chosen, length):
    """float64, token by token, from the formulas."""
    shaped = np.array(logits, np.float64)
    for token, bias in request.logit_bias:
        shaped[token] += bias
    for token in {*prompt, *chosen}:
        r = request.repetition_penalty
        shaped[token] = shaped[token] / r if shaped[token] > 0 else shaped[token] * r
    for token in set(chosen):
        times = chosen.count(token)
        shaped[token] -= request.frequency_penalty * times + request.presence_penalty
    if length < request.min_tokens:
        shaped[[*ENDS, *request.stop_token_ids]] = HELD
    if request.ignore_eos:
        shaped[list(ENDS)] = HELD
    return shaped


def random_row(rng):
    """A row with a text, and what it asks for; also its prompt and what the model has chosen."""
    prompt = tuple(rng.integers(0, VOCAB, int(rng.integers(1, 20))).tolist())
    ids = rng.permutation(VOCAB)[:8].tolist()
    request = Request(
        prompt, max_tokens=40, temperature=1.0,
        repetition_penalty=float(rng.choice([1.0, 0.7, 1.3])),
        frequency_penalty=float(rng.choice([0.0, -0.5, 1.7])),
        presence_penalty=float(rng.choice([0.0, -2.0, 0.9])),
        logit_bias=tuple((i, float(rng.uniform(-9, 9))) for i in ids[: int(rng.integers(0, 6))]),
        ignore_eos=bool(rng.random() < 0.3), min_tokens=int(rng.choice([0, 5, 30])),
        stop_token_ids=tuple(ids[6:]), min_p=float(rng.choice([0.0, 0.1])),
    )  # fmt: skip
    row = SequenceState(request, 0, 40)
    row.tokens = rng.integers(0, VOCAB, int(rng.integers(0, 20))).tolist()
    row.mask = rng.integers(0, 2, len(row.tokens)).tolist()
    chosen = [token for token, mask in zip(row.tokens, row.mask, strict=True) if mask]
    given = [*prompt, *(t for t, mask in zip(row.tokens, row.mask, strict=True) if not mask)]
    return row, given, chosen


def test_logits_are_changed_as_numpy_changes_them_through_a_dispatch():
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = [random_row(rng) for _ in range(4)]
        changes = unpacked_changes(
            jnp.asarray(packed_changes([r for r, *_ in rows], 64, VOCAB, ENDS))
        )
        counts = count(changes, VOCAB)
        for number in range(3):
            logits = rng.normal(0, 4, (4, VOCAB)).astype(np.float32)
            got = change(jnp.asarray(logits), changes, counts, jnp.int32(number))
            for slot, (row, given, chosen) in enumerate(rows):
                length = len(row.tokens) + number
                want = reference(logits[slot], row.request, given, chosen, length)
                np.testing.assert_allclose(got[slot], want, rtol=1e-5, atol=1e-5)
            token, sampled = rng.integers(0, VOCAB, 4), rng.integers(0, 2, 4) == 1
            counts = count_next(counts, jnp.asarray(token, "int32"), jnp.asarray(sampled))
            for (_, given, chosen), t, mask in zip(rows, token.tolist(), sampled, strict=True):
                (chosen if mask else given).append(t)


def test_a_row_that_asks_for_nothing_keeps_its_logits_to_the_bit():
    rng = np.random.default_rng(1)
    plain = SequenceState(Request((1, 2, 3), 40), 0, 40)
    plain.tokens, plain.mask = [5, 6, 6], [1, 1, 0]
    slots = [plain, random_row(rng)[0], None]
    changes = unpacked_changes(jnp.asarray(packed_changes(slots, 64, VOCAB, ENDS)))
    logits = jnp.asarray(rng.normal(0, 4, (3, VOCAB)), "float32").at[0, 7].set(-0.0)
    got = change(logits, changes, count(changes, VOCAB), jnp.int32(0))
    assert np.asarray(got)[[0, 2]].tobytes() == np.asarray(logits)[[0, 2]].tobytes()


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest():
    probs = np.array([0.05, 0.4, 0.1, 0.2, 0.25], np.float32)
    draws = 8_000
    rows = Sampling(
        jnp.full(draws, 0.5), jnp.zeros(draws, jnp.int32), jnp.ones(draws),
        jnp.arange(draws, dtype=jnp.uint32), jnp.zeros(draws, jnp.int32),
    )  # fmt: skip
    logits = jnp.log(jnp.tile(probs, (draws, 1)))
    uniform = jnp.linspace(0, 1, draws, endpoint=False)
    least = jnp.full(draws, np.log(0.2), jnp.float32)
    want = np.where((probs / 0.4) ** 2 >= 0.2, probs**2, 0)  # at a temperature of 0.5
    for truncate, top_p, kept in ((False, 1.0, [1, 3, 4]), (True, 0.8, [1, 4])):
        settings = rows._replace(top_p=jnp.full(draws, top_p))
        token, _ = sample(logits, settings, uniform, truncate=truncate, least=least)
        mine = np.where(np.isin(np.arange(5), kept), want, 0)
        got = np.bincount(token, minlength=5) / draws
        np.testing.assert_allclose(got, mine / mine.sum(), atol=1e-3)


CHANGED = (
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.8, "presence_penalty": 0.4},
    {"frequency_penalty": -1.5},
    {"logit_bias": ((65, 4.0), (66, 3.5), (67, -100.0))},
    {"ignore_eos": True},
    {"min_tokens": 30, "stop_token_ids": (65, 66, 67)},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 30, "repetition_penalty": 1.1, "alternatives": 3},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.05, "presence_penalty": 1.0, "ignore_eos": True},
)
PLAIN = ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}, {"alternatives": 3})


def requests(count, settings, seed):
    rng = np.random.default_rng(seed)
    return [
        Request(
            tuple(rng.integers(0, 256, int(rng.integers(1, 90))).tolist()),
            max_tokens=int(rng.integers(30, 60)), seed=number, **settings[number % len(settings)],
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine(params, config, tokenizer):
    return Engine(params, config, tokenizer, slots=8, steps_per_dispatch=4)


def test_greedy_answers_are_the_likeliest_after_the_changes(engine, config, tokenizer):
    """Dispatches of 4 steps, tools among them, against a whole forward pass and NumPy."""
    ends = (tokenizer.special("<|assistant_end|>"), tokenizer.bos)
    tools = 0
    for request in [dataclasses.replace(r, temperature=0.0) for r in requests(18, CHANGED, 0)]:
        ((completion,),) = engine.generate([request])
        ids = np.zeros((1, config.sequence_len), np.int32)
        text = [*request.tokens, *completion.tokens]
        ids[0, : len(text)] = text
        logits = np.asarray(forward(engine.params, jnp.asarray(ids), config))[0]
        given, chosen = list(request.tokens), []
        for number, token in enumerate(completion.tokens):
            now = logits[len(request.tokens) - 1 + number]
            if not completion.mask[number]:
                given.append(token)
                tools += 1
                continue
            held = number < request.min_tokens
            want = reference(
                now, dataclasses.replace(request, ignore_eos=False, min_tokens=0), given, chosen, 0
            )
            want[list(ends)] = HELD if held or request.ignore_eos else want[list(ends)]
            want[list(request.stop_token_ids)] = (
                HELD if held else want[list(request.stop_token_ids)]
            )
            assert want[token] >= want.max() - 1e-3
            own = float(now[token] - np.logaddexp.reduce(now))  # the model's, whatever was changed
            assert completion.logprobs[number] == pytest.approx(own, abs=1e-3)
            chosen.append(token)
    assert tools > 20


def test_penalties_and_biases_do_something(engine):
    (plain,) = requests(1, PLAIN, 3)
    plain = dataclasses.replace(plain, max_tokens=50, ignore_eos=True)
    ((before,),) = engine.generate([plain])
    for changed in CHANGED[:4]:
        ((after,),) = engine.generate([dataclasses.replace(plain, **changed)])
        assert after.tokens != before.tokens
    ((only,),) = engine.generate([dataclasses.replace(plain, logit_bias=((70, 100.0),))])
    assert set(only.tokens) == {70}


def test_the_end_is_ignored_or_comes_no_earlier_than_asked(engine):
    eager = [dataclasses.replace(r, temperature=1.0) for r in requests(24, PLAIN, 4)]
    lengths = [len(one.tokens) for (one,) in engine.generate(eager)]
    assert min(lengths) < 20
    held = [dataclasses.replace(request, min_tokens=20) for request in eager]
    lengths = [len(one.tokens) for (one,) in engine.generate(held)]
    assert min(lengths) > 20
    assert min(lengths) < 30
    ignoring = [dataclasses.replace(request, ignore_eos=True) for request in eager]
    for request, (one,) in zip(ignoring, engine.generate(ignoring), strict=True):
        assert (len(one.tokens), one.finish_reason) == (request.max_tokens, "length")


def test_a_stop_token_ends_an_answer_where_the_model_chooses_it(engine):
    request = Request(
        (5, 6, 7), max_tokens=60, logit_bias=((70, 100.0),), stop_token_ids=(70,), min_tokens=9
    )
    ((one,),) = engine.generate([request])
    assert (len(one.tokens), one.tokens[-1], one.finish_reason) == (10, 70, "stop")
    assert 70 not in one.tokens[:-1]


def test_stop_texts_count_from_min_tokens_on(engine, tokenizer):
    (token,) = tokenizer.encode("A")
    request = Request(
        (5, 6, 7), max_tokens=60, logit_bias=((token, 100.0),), stop=("AA",), min_tokens=9
    )
    ((one,),) = engine.generate([request])
    assert (one.tokens, one.finish_reason) == ((token,) * 10, "stop")
    ((one,),) = engine.generate([dataclasses.replace(request, min_tokens=0)])
    assert one.tokens == (token,) * 2


def test_company_changes_no_bit_whatever_it_asks_for(engine):
    plain, changed = requests(8, PLAIN, 5), requests(9, CHANGED, 6)
    alone = [engine.generate([request])[0] for request in [*plain, *changed]]
    together = engine.generate([*plain, *changed])
    assert together == alone
    turned = engine.generate([*changed[::-1], *plain[::-1]])
    assert turned == alone[::-1]


def test_dispatches_of_one_step_give_the_same_to_the_bit(engine, params, config, tokenizer):
    single = Engine(params, config, tokenizer, slots=8, steps_per_dispatch=1)
    mine = [*requests(9, CHANGED, 7), *requests(8, PLAIN, 7)]
    assert single.generate(mine) == engine.generate(mine)


def test_rows_that_ask_for_nothing_keep_todays_programs(engine, monkeypatch):
    given = []
    decode_steps = jitted.decode_steps

    def spy(*arrays, **settings):
        given.append((arrays[3] is not None, settings["alternatives"]))
        return decode_steps(*arrays, **settings)

    monkeypatch.setattr(jitted, "decode_steps", spy)
    engine.generate(requests(3, PLAIN[:3], 8))
    assert set(given) == {(False, 0)}
    engine.generate([dataclasses.replace(requests(1, PLAIN, 8)[0], min_p=0.1)])  # greedy: nothing
    assert set(given) == {(False, 0)}
    engine.generate(requests(1, CHANGED, 8))
    assert given[-1] == (True, 20)


def test_all_is_compiled_in_warm_up(params, config, tokenizer):
    small = Engine(params, config, tokenizer, slots=3, max_len=64, steps_per_dispatch=2)
    small.warm_up()
    mine = [dataclasses.replace(r, tokens=r.tokens[:20], max_tokens=30, **changed)
            for r in requests(8, PLAIN, 9) for changed in CHANGED]  # fmt: skip
    with compilations() as compiled:
        small.generate(mine)
    assert compiled() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 6}, "min_tokens is 6 and max_tokens 5"),
        ({"logit_bias": ((1, 101.0),)}, "logit_bias of token 1 is 101.0"),
        ({"logit_bias": tuple((i, 1.0) for i in range(301))}, "logit_bias has 301 tokens"),
        ({"stop_token_ids": (1,) * 17}, "stop_token_ids has 17 ids; at most 16"),
        ({"logit_bias": ((70_000, 1.0),)}, "name token 70000, and the vocabulary has"),
        ({"stop_token_ids": (-1,)}, "name token -1"),
    ],
)
def test_what_makes_no_sense_is_refused(engine, settings, message):
    with pytest.raises(EngineError, match=message):
        engine.check(Request((1,), max_tokens=5, **settings))
