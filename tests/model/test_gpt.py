"""The model: against an oracle, against itself with a cache, and what it may not look at."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpt_reference import logits_of
from model_variants import CLASSIC, MODERN, VARIANTS, lively_params
from whole_model import decode, forward, prefill

from jaxchat.config.derive import count_params, derive_model, layer_specs
from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import Compute
from jaxchat.model.gpt import init_params
from jaxchat.model.kv_cache import init_cache, view_of

every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


@functools.partial(jax.jit, static_argnames="config")
def decode_all(params, tokens, cache, config):
    """Feeds tokens [B,N] one by one: logits [B,N,V]."""

    def step(cache, token):
        logits, cache = gpt.decode(params, token, cache, config)
        return cache, logits

    cache, logits = jax.lax.scan(step, cache, tokens.T)
    return jnp.swapaxes(logits, 0, 1), cache


def random_tokens(config, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape, np.int32)


@every_variant
def test_logits_are_those_of_the_oracle_and_the_cache_gives_the_same(config):
    """Rows of different lengths: of one token, and at each side of the short window's edge."""
    params = lively_params(config)
    lengths = np.array([1, 20, 127, 128, 129, 140], np.int32)
    rows = np.arange(len(lengths))
    tokens = random_tokens(config, len(lengths), 170)
    full = forward(params, tokens, config)
    assert full.dtype == jnp.float32
    np.testing.assert_allclose(full[3, :145], logits_of(params, tokens[3, :145], config), atol=1e-4)

    prompts = np.where(np.arange(140) < lengths[:, None], tokens[:, :140], 7)  # 7: padding
    cache = init_cache(config, len(lengths), 170)
    logits, cache = prefill(params, prompts, lengths, cache, config)
    np.testing.assert_allclose(logits, full[rows, lengths - 1], atol=1e-4)

    following = lengths[:, None] + np.arange(30)
    logits, cache = decode_all(params, tokens[rows[:, None], following], cache, config)
    np.testing.assert_allclose(logits, full[rows[:, None], following], atol=1e-4)
    assert cache.length.tolist() == (lengths + 30).tolist()


def test_short_window_layers_keep_only_what_their_window_sees():
    cache = init_cache(dataclasses.replace(MODERN, sequence_len=1024), 2, 1024)
    assert [k.shape[2] for k in cache.k] == [320, 320, 1024]  # whole blocks


def test_a_prompt_in_a_larger_bucket_gives_the_same():
    params, lengths = lively_params(MODERN), np.array([9, 16], np.int32)
    tokens = random_tokens(MODERN, 2, 16)
    cache = init_cache(MODERN, 2, 64)
    small, _ = prefill(params, tokens, lengths, cache, MODERN)
    large, _ = prefill(params, np.pad(tokens, ((0, 0), (0, 48))), lengths, cache, MODERN)
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_an_inactive_row_continues_as_if_it_had_not_waited():
    params, tokens = lively_params(MODERN), random_tokens(MODERN, 2, 140)
    lengths = np.array([130, 130], np.int32)  # the rings are full: a stray write would cost a key
    cache = init_cache(MODERN, 2, 140)
    _, cache = prefill(params, tokens[:, :130], lengths, cache, MODERN)
    want, _ = decode_all(params, tokens[:, 130:134], cache, MODERN)
    waits = jnp.array([True, False])
    for token in (3, 4, 5):
        _, cache = decode(params, jnp.array([token, token]), cache, MODERN, active=waits)
    assert cache.length.tolist() == [133, 130]
    got, _ = decode_all(params, tokens[:, 130:134], cache, MODERN)
    np.testing.assert_allclose(got[1], want[1], atol=1e-6)


@every_variant
def test_a_view_computed_beforehand_is_that_of_each_rows_position(config):
    params, tokens = lively_params(config), random_tokens(config, 6, 140)
    lengths = np.array([1, 3, 20, 90, 128, 140], np.int32)
    # of the shapes of the test above: one program
    _, cache = prefill(params, tokens, lengths, init_cache(config, 6, 170), config)
    want, _ = decode(params, tokens[:, 0], cache, config)
    slots = [k.shape[2] for k in cache.k]
    here, there = (view_of(lengths + shift, slots, config, jnp.float32) for shift in (0, 1))
    for view, same in (
        (here, True),
        (here._replace(rope=there.rope), False),
        (here._replace(visible=there.visible), False),
    ):
        got, _ = decode(params, tokens[:, 0], cache, config, view=view)
        assert (np.abs(got - want).max(axis=1) < 1e-5).all() == same


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_no_token_sees_a_later_one_or_another_row(config):
    params = lively_params(config)
    tokens = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)  # each position an id of its own

    def logit(embedding):
        return gpt.forward({**params, "wte": {"embedding": embedding}}, tokens, config)[0, 6, 0]

    reached = np.abs(jax.jit(jax.grad(logit))(params["wte"]["embedding"])).sum(axis=1) > 0
    assert reached[:7].all(), "position 6 should see itself and what is before it"
    assert not reached[7:].any()


def test_a_short_window_sees_its_own_token_and_128_to_the_left():
    config = dataclasses.replace(CLASSIC, n_layer=2, window_pattern="SL", sequence_len=150)
    assert [spec.window for spec in layer_specs(config)] == [128, 150]
    config = dataclasses.replace(config, vocab_size=150)
    params = lively_params(config)
    params["h_1"]["attn"]["c_proj"]["kernel"] *= 0  # the last layer is full: it adds nothing now
    tokens = jnp.arange(150, dtype=jnp.int32)[None]

    def last(embedding):
        x = gpt.features({**params, "wte": {"embedding": embedding}}, tokens, config)
        return x[0, -1, 0]

    reached = np.abs(jax.jit(jax.grad(last))(params["wte"]["embedding"])).sum(axis=1) > 0
    assert np.flatnonzero(reached).tolist() == list(range(149 - 128, 150))


def test_bfloat16_stays_near_float32():
    params, tokens = lively_params(MODERN), random_tokens(MODERN, 2, 50)
    half = forward(params, tokens, MODERN, Compute(dtype=jnp.bfloat16))
    assert half.dtype == jnp.float32
    exact = forward(params, tokens, MODERN)
    assert float(jnp.abs(half - exact).mean()) < 0.1 * float(jnp.abs(exact).mean())


@every_variant
def test_parameters_are_as_many_as_the_plan_says(config):
    params = jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))
    counts = dict.fromkeys(count_params(config), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[0].key
        group = name if name in ("wte", "lm_head") else "scalars"
        group = "value_embeds" if name.startswith("value_embeds") else group
        group = "matrices" if name.startswith("h_") else group
        counts[group] += leaf.size
        counts["total"] += leaf.size
        assert leaf.dtype == jnp.float32
    assert counts == count_params(config)


def test_the_model_of_depth_20_has_560_988_160_parameters():
    config = derive_model(20, "classic", 65_536)
    shapes = jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 560_988_160


WIDE = ModelConfig(vocab_size=4_000, sequence_len=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=256)


def test_classic_parameters_begin_as_in_november_2025():
    params = init_params(jax.random.key(0), WIDE)
    attn, mlp = params["h_1"]["attn"], params["h_1"]["mlp"]
    assert_std(params["wte"]["embedding"], 1.0)
    assert_std(attn["c_q"]["kernel"], 1 / 16)
    assert_std(attn["c_v"]["kernel"], 1 / 16 * 0.5**0.5)  # half as many outputs as inputs
    assert_std(mlp["c_fc"]["kernel"], 1 / 16)
    for zero in (params["lm_head"], attn["c_proj"], mlp["c_proj"]):
        assert not zero["kernel"].any()
    fraction = float((jnp.abs(attn["c_q"]["kernel"]) > 3 / 16).mean())
    assert 0.001 < fraction < 0.005, "it should be normal"
    again = init_params(jax.random.key(0), WIDE)
    assert all(map(jnp.array_equal, jax.tree.leaves(params), jax.tree.leaves(again)))
    assert not jnp.array_equal(params["h_0"]["attn"]["c_q"]["kernel"], attn["c_q"]["kernel"])


def test_modern_parameters_begin_as_in_july_2026():
    config = dataclasses.replace(
        WIDE, init="modern", value_embeds=True, residual_scalars=True, smear=True, backout=True
    )
    params = init_params(jax.random.key(0), config)
    attn, mlp = params["h_2"]["attn"], params["h_2"]["mlp"]
    assert_std(params["wte"]["embedding"], 0.8)
    assert_std(params["lm_head"]["kernel"], 0.001)
    bound = 3**0.5 / 16
    assert_uniform(attn["c_k"]["kernel"], -bound, bound)
    assert_uniform(mlp["c_fc"]["kernel"], -0.4 * bound, 0.4 * bound)
    assert_uniform(params["value_embeds_2"]["embedding"], -bound, bound)
    assert_uniform(attn["ve_gate"]["kernel"], 0, 0.02)
    assert_uniform(params["smear_gate"]["kernel"], 0, 0.02)
    assert not mlp["c_proj"]["kernel"].any()
    np.testing.assert_allclose(params["resid_lambdas"], [1.15, 1.10, 1.05], rtol=1e-6)
    np.testing.assert_allclose(params["x0_lambdas"], [0.20, 0.125, 0.05], rtol=1e-6)
    assert params["smear_lambda"] == 0
    assert params["backout_lambda"] == pytest.approx(0.2)
    assert set(params) & {"value_embeds_0", "value_embeds_1"} == {"value_embeds_0"}


def assert_std(x, std):
    assert float(x.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(x.mean())) < 0.02 * std


def assert_uniform(x, low, high):
    few = x.size < 99
    slack = (0.5 if few else 0.02) * (high - low)
    assert low <= float(x.min()) < low + slack
    assert high - slack < float(x.max()) <= high
    assert float(x.std()) == pytest.approx((high - low) / 12**0.5, rel=0.4 if few else 0.03)


def test_a_score_that_could_overflow_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"qk_scale is 9\.0 .* smaller qk_scale"):
        init_params(jax.random.key(0), dataclasses.replace(CLASSIC, qk_scale=9.0))
