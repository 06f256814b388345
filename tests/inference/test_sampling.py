"""The sampler: what it may draw, how often, and that company changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.config.schema import ModelConfig
from jaxchat.inference import sampling
from jaxchat.inference.sampling import Sampling, token_key
from jaxchat.model import gpt
from jaxchat.model.init import init_table


@functools.partial(jax.jit, static_argnames="truncate")
def sample(logits, rows, position, *, truncate):
    return sampling.sample(logits, rows, sampling.uniforms(rows, position), truncate=truncate)


PROBS = np.array([0.05, 0.4, 0.1, 0.2, 0.25], np.float32)
DRAWS = 20_000


def settings(rows, temperature=1.0, top_k=0, top_p=1.0, seed=None):
    return Sampling(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        seed=jnp.arange(rows, dtype=jnp.uint32) if seed is None else jnp.full(rows, seed, "uint32"),
        stream=jnp.zeros(rows, jnp.int32),
    )


def frequencies(**kwargs):
    """How often each token of PROBS is drawn, each draw with a seed of its own."""
    logits = jnp.log(jnp.tile(PROBS, (DRAWS, 1)))
    tokens, _ = sample(
        logits, settings(DRAWS, **kwargs), jnp.zeros(DRAWS, jnp.int32), truncate=True
    )
    return np.bincount(tokens, minlength=len(PROBS)) / DRAWS


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0], [5.0, -1.0, 0.0, 4.9]])
    tokens, _ = sample(logits, settings(2, 0.0), jnp.zeros(2, jnp.int32), truncate=True)
    assert tokens.tolist() == [1, 0]


def test_tokens_come_as_often_as_their_probability_says():
    np.testing.assert_allclose(frequencies(), PROBS, atol=0.015)


def test_temperature_sharpens():
    want = PROBS**2 / (PROBS**2).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), want, atol=0.015)


@pytest.mark.parametrize(
    ("kwargs", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 4]),
        ({"top_p": 0.8}, [1, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        # of the three likeliest, renormalised, the two likeliest have 0.65 / 0.85 = 0.76
        ({"top_k": 3, "top_p": 0.75}, [1, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3, 4]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_in_proportion(kwargs, kept):
    want = np.zeros_like(PROBS)
    want[kept] = PROBS[kept] / PROBS[kept].sum()
    np.testing.assert_allclose(frequencies(**kwargs), want, atol=0.015)


@functools.cache
def random_logits(rows=32, vocab=1_003):
    return 4.0 * jax.random.normal(jax.random.key(0), (rows, vocab))


def test_a_row_draws_the_same_alone_and_in_company():
    logits, position = random_logits(), jnp.arange(32, dtype=jnp.int32)
    rows = settings(32)._replace(top_k=jnp.arange(32, dtype=jnp.int32) % 3 * 10)
    together, logprobs = sample(logits, rows, position, truncate=True)
    for i in range(0, 32, 5):
        mine = Sampling(*(setting[i : i + 1] for setting in rows))
        alone, logprob = sample(logits[i : i + 1], mine, position[i : i + 1], truncate=True)
        assert alone[0] == together[i]
        assert float(logprob[0]) == pytest.approx(float(logprobs[i]), abs=1e-5)


def test_truncation_of_one_row_leaves_the_others_draws():
    logits, position = random_logits(), jnp.zeros(32, jnp.int32)
    rows = settings(32)
    plain, _ = sample(logits, rows, position, truncate=False)
    mixed, _ = sample(logits, rows._replace(top_k=rows.top_k.at[0].set(1)), position, truncate=True)
    assert plain[1:].tolist() == mixed[1:].tolist()
    assert int(mixed[0]) == int(logits[0].argmax())


def test_seed_stream_and_position_each_change_what_is_drawn():
    logits = jnp.tile(random_logits()[:1] / 4, (32, 1))  # flat, so that draws differ
    same = settings(32, seed=7)
    still, many = jnp.zeros(32, jnp.int32), jnp.arange(32, dtype=jnp.int32)

    def drawn(rows, position):
        return len(set(sample(logits, rows, position, truncate=False)[0].tolist()))

    assert drawn(same, still) == 1
    assert drawn(same, many) > 20
    assert drawn(settings(32), still) > 20
    assert drawn(same._replace(stream=many), still) > 20


@pytest.mark.parametrize("kwargs", [{}, {"temperature": 0.0}, {"temperature": 2.0, "top_k": 5}])
def test_the_log_probability_is_the_models_whatever_the_settings(kwargs):
    logits = random_logits()
    tokens, got = sample(logits, settings(32, **kwargs), jnp.zeros(32, jnp.int32), truncate=True)
    want = jax.nn.log_softmax(logits)[jnp.arange(32), tokens]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_impossible_tokens_are_never_drawn_at_the_ends_of_the_unit_interval():
    weights = jnp.array([[0.0, 0.0, 1e-8, 0.0, 3.0, 0.0, 0.0]] * 3)
    ends = jnp.array([0.0, 0.5, 1.0 - 2.0**-24])
    assert sampling._draw(weights, ends).tolist() == [2, 4, 4]


SMALL = (1e-2, 1e-4, 1e-6, 5e-9, 1e-10, 1e-20, 1e-33, 1.2e-38, 1e-40, 1e-45)


@functools.partial(jax.jit, static_argnames=("dtype", "truncate", "barrier"))
def sample_of_model(features, kernel, rows, *, dtype, truncate, barrier):
    """As the engine has it: products in `dtype`, a cap, sampled in the same program."""
    logits = 15.0 * jnp.tanh((features.astype(dtype) @ kernel.astype(dtype)).astype("float32") / 15)
    if barrier:
        logits = jax.lax.optimization_barrier(logits)
    uniform = sampling.uniforms(rows, jnp.zeros(len(features), jnp.int32))
    return sampling.sample(logits, rows, uniform, truncate=truncate)[0], logits


@functools.cache
def matrices(rows=64, width=64, vocab=1_003):
    keys = jax.random.split(jax.random.key(5))
    return jax.random.normal(keys[0], (rows, width)), jax.random.normal(keys[1], (width, vocab))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("kept", [None, {"top_k": 50, "top_p": 0.9}])
def test_a_small_temperature_draws_the_likeliest_always(dtype, barrier, kept):
    """float32 rounds logits over a small temperature so much that nothing is the highest."""
    for temperature in (0.0, *SMALL[2:]):
        tokens, logits = sample_of_model(
            *matrices(), settings(64, temperature, **(kept or {})),
            dtype=dtype, truncate=kept is not None, barrier=barrier,
        )  # fmt: skip
        chosen = np.take_along_axis(np.asarray(logits), np.asarray(tokens)[:, None], axis=1)[:, 0]
        wrong = int(np.sum(chosen < np.max(logits, axis=1) - 1e-5))
        assert wrong == 0, f"at {temperature}: {wrong} of 64 rows draw a less likely token"


def test_a_smaller_temperature_draws_the_likeliest_more_often():
    logits = jnp.tile(jnp.array([[1.0, 1.02, 0.0, -9.0]]), (4_000, 1))
    still = jnp.zeros(4_000, jnp.int32)
    for temperature in SMALL:
        tokens, _ = sample(logits, settings(4_000, temperature), still, truncate=False)
        want = 1 / (1 + np.exp(np.float64(-0.02) / temperature))
        assert np.mean(tokens == 1) == pytest.approx(want, abs=0.03), temperature


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_in_half_precision_are_taken_too(dtype):
    logits = random_logits().astype(dtype)
    for temperature in (0.0, 1e-12):
        tokens, logprobs = sample(
            logits, settings(32, temperature), jnp.zeros(32, jnp.int32), truncate=True
        )
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        assert (chosen == logits.max(axis=-1)).all()
        assert logprobs.dtype == jnp.float32


def test_a_log_probability_is_never_above_zero():
    """Even where rounding of the sum would have it: a client takes exp of it."""
    logits = jax.random.uniform(jax.random.key(1), (256, 300), minval=-40.0, maxval=-14.0)
    logits = logits.at[:, 7].set(jax.random.uniform(jax.random.key(2), 256, minval=1.0, maxval=15))
    _, logprobs = sample(logits, settings(256, 0.0), jnp.zeros(256, jnp.int32), truncate=False)
    _, others = sampling.likeliest(logits, 5)
    assert float(logprobs.max()) <= 0
    assert float(others.max()) <= 0


def keys_of_weights(seed: int, config: ModelConfig) -> np.ndarray:
    """The keys [N] that the initial weights of a seed are drawn with, as 64 bits each."""
    keys = []

    def noting(initializer):
        def init(key, *rest):
            keys.append(jax.random.key_data(key))
            return initializer(key, *rest)

        return init

    def table(config):
        return {name: noting(initializer) for name, initializer in init_table(config).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt, "init_table", table)
        gpt.init_params.__wrapped__(jax.random.key(seed), config)
    return np.stack(keys).view(np.uint64)[:, 0]


@pytest.mark.parametrize("seed", [0, 42, 2**31, 2**32 - 1])
def test_the_uniform_numbers_are_those_of_jax_to_the_bit(seed):
    streams = jnp.array([0, 1, 7, 2**31 - 1])
    positions = jnp.stack([jnp.arange(300), jnp.arange(2**31 - 300, 2**31)]).reshape(4, 150)
    seeds, zeros = jnp.full(4, seed, jnp.uint32), jnp.zeros(4)
    rows = Sampling(zeros, zeros.astype(jnp.int32), zeros, seeds, streams)

    def one(stream, position):
        return jax.random.uniform(token_key(jnp.uint32(seed), stream, position))

    wanted = jax.vmap(jax.vmap(one, (None, 0)))(streams, positions)
    np.testing.assert_array_equal(sampling.uniforms(rows, positions), wanted)
    np.testing.assert_array_equal(sampling.uniforms(rows, positions[:, 0]), wanted[:, 0])


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_no_token_has_the_key_of_a_weight(seed):
    """Of a prompt and an answer of 65,536 tokens, in any of 8 samples."""
    deep = ModelConfig(
        8, 4, n_layer=24, n_head=2, n_kv_head=2, n_embd=32, value_embeds=True,
        residual_scalars=True, smear=True, backout=True, init="modern",
    )  # fmt: skip
    weights = keys_of_weights(seed, deep)
    assert len(set(weights.tolist())) == len(weights) > 24 * 7, "two weights share a key"
    streams, positions = jnp.arange(8), jnp.arange(65_536)
    keys = jax.vmap(jax.vmap(token_key, (None, None, 0)), (None, 0, None))
    tokens = np.asarray(jax.random.key_data(keys(jnp.uint32(seed), streams, positions)))
    tokens = np.ascontiguousarray(tokens).view(np.uint64)
    assert len(np.unique(tokens)) == 8 * 65_536
    assert not np.isin(weights, tokens).any()
    seeds = jax.vmap(lambda stream: jax.random.fold_in(jax.random.key(seed), stream))(streams)
    head = np.asarray(jax.random.key_data(seeds)).view(np.uint64)[1]
    assert head in weights, "what this test is about: the second sample's key is lm_head's"
