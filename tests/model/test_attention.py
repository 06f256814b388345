"""Attention against the plain formula."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import backend
from jaxchat.model.capabilities import choose_attention
from jaxchat.model.kernels import banded, native
from jaxchat.model.kernels.banded import banded_attention
from jaxchat.model.kernels.blocked import blocked_attention
from jaxchat.model.kernels.cached import cached_attention, plain_cached_attention

B, H, G, K = 2, 4, 2, 8
attend = jax.jit(causal_attention, static_argnames=("window", "implementation"))
attend_banded = jax.jit(banded_attention, static_argnames="window")


@functools.partial(jax.jit, static_argnames="window")
def plain(q, k, v, window):
    """Every score, then a mask, then a softmax."""
    time = q.shape[1]
    k, v = jnp.repeat(k, H // G, axis=2), jnp.repeat(v, H // G, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / jnp.sqrt(jnp.float32(K))
    back = np.arange(time)[:, None] - np.arange(time)[None, :]
    mask = (back >= 0) & (back <= window)
    probs = jax.nn.softmax(jnp.where(mask[None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", probs, v)


def random_qkv(time, seed=0):
    rng = np.random.default_rng(seed)
    return [normal(rng, B, time, heads, K) for heads in (H, G, G, H)]


@pytest.mark.parametrize(
    ("time", "window"), [(1, 0), (63, 1000), (64, 1), (65, 0), (200, 50), (200, 1000)]
)
def test_blocked_attention_and_its_gradients_are_the_plain_ones(time, window):
    q, k, v, dy = random_qkv(time)

    def run(attention):
        def total(q, k, v):
            return jnp.sum(attention(q, k, v) * dy)

        return jax.jit(attention)(q, k, v), *jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)

    got = run(lambda q, k, v: blocked_attention(q, k, v, window=window))
    want = run(lambda q, k, v: plain(q, k, v, window))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("time", "window"),
    [(1, 0), (63, 1000), (64, 1), (65, 0), (130, 64), (200, 50), (200, 99), (200, 1000),
     (300, 129), (600, 300), (600, 1000)],
)  # fmt: skip
@pytest.mark.parametrize("at_once", [banded.SCORES, 1])
def test_banded_attention_and_its_gradients_are_the_plain_ones_but_for_rounding(
    time, window, at_once, monkeypatch
):
    """bfloat16 keeps 8 bits, so a number and its sums are off by up to one in 256."""
    monkeypatch.setattr(banded, "SCORES", at_once)
    q, k, v, dy = random_qkv(time)

    def run(attention):
        def both(q, k, v, dy):
            y, pull = jax.vjp(functools.partial(attention, window=window), q, k, v)
            return y, *pull(dy)

        return [np.asarray(x) for x in jax.jit(both)(q, k, v, dy)]

    got, want = run(banded_attention), run(plain)
    scale = max(np.linalg.norm(b) for b in want)  # some gradients are zero but for rounding
    for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32
        assert np.linalg.norm(a - b) < 6e-3 * scale


def test_banded_attention_of_exact_operands_is_exact():
    """Where nothing is lost by rounding q, k, v and dy, what is left is the rounding of weights."""
    q, k, v, _ = (x.astype(jnp.bfloat16).astype(np.float32) for x in random_qkv(200))
    k = np.zeros_like(k)  # every weight is 1
    got = attend_banded(q, k, v, window=50)
    np.testing.assert_allclose(got, plain(q, k, v, 50), atol=2e-6)


@pytest.mark.parametrize(("time", "window"), [(1, 0), (64, 1), (200, 50), (200, 1000)])
def test_xlas_attention_is_the_plain_one(time, window):
    q, k, v, _ = random_qkv(time)
    got = attend(q, k, v, window=window, implementation="xla")
    np.testing.assert_allclose(got, plain(q, k, v, window), atol=2e-5)


def test_attention_is_chosen_by_name():
    q, k, v, _ = random_qkv(100)
    got = attend(q, k, v, window=30, implementation="banded")
    np.testing.assert_array_equal(got, attend_banded(q, k, v, window=30))
    assert jnp.any(got != attend(q, k, v, window=30))


def test_long_rows_make_few_blocks_and_the_same_result():
    q, k, v, _ = random_qkv(1100)
    got = jax.jit(lambda q, k, v: blocked_attention(q, k, v, window=300))(q, k, v)
    np.testing.assert_allclose(got, plain(q, k, v, 300), atol=2e-5)


@pytest.mark.parametrize("cached_attention", [cached_attention, plain_cached_attention])
def test_one_query_against_a_cache_is_the_last_row_of_attention(cached_attention):
    q, k, v, _ = random_qkv(40)
    want = np.asarray(plain(q, k, v, 1000))
    rows, lengths = np.arange(B), np.array([13, 40])
    visible = np.arange(40)[None, :] < lengths[:, None]
    got = jax.jit(cached_attention)(
        q[rows, lengths - 1], k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), jnp.array(visible)
    )
    np.testing.assert_allclose(got, want[rows, lengths - 1], atol=2e-5)


@pytest.mark.parametrize(("time", "window"), [(7, 3), (63, 1000), (63, 62), (64, 16), (1, 0)])
def test_rows_of_odd_length_reach_cudnn_as_even_ones(monkeypatch, time, window):
    """With XLA's formula in cuDNN's place, as cuDNN needs a GPU."""
    original = jax.nn.dot_product_attention

    def in_its_place(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] == k.shape[1] == v.shape[1] == time + time % 2
        return original(q, k, v, implementation="xla", **options)

    monkeypatch.setattr("jax.nn.dot_product_attention", in_its_place)
    q, k, v, dy = random_qkv(time)

    def total(attention):
        return lambda q, k, v: jnp.sum(attention(q, k, v, window=window) * dy)

    ours = jax.jit(
        functools.partial(causal_attention, implementation="cudnn"), static_argnames="window"
    )
    np.testing.assert_allclose(ours(q, k, v, window=window), plain(q, k, v, window), atol=2e-5)
    got = jax.jit(jax.grad(total(ours), (0, 1, 2)))(q, k, v)
    want = jax.jit(jax.grad(total(plain), (0, 1, 2)))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("time", [63, 64, 2047])
def test_rows_of_any_length_lower_for_a_gpu(monkeypatch, time):
    """On a CPU, up to the two calls of cuDNN, forward and backward."""
    private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 92_300)  # none is installed here
    x = jax.ShapeDtypeStruct((2, time, 4, 128), jnp.bfloat16)

    def total(q, k, v):
        y = causal_attention(q, k, v, window=16, implementation="cudnn")
        return jnp.sum(y.astype(jnp.float32))

    lowered = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__cudnn$fmha") == 2


def test_a_cpu_gets_the_implementation_that_runs_on_it():
    assert backend() == backend("cpu")
    assert choose_attention(64, jnp.bfloat16, "default", backend()) == "blocked"
    assert choose_attention(64, jnp.float32, "default", backend()) == "blocked"
    ours = "native" if native.able() else "banded"
    assert choose_attention(64, jnp.float32, "bfloat16", backend()) == ours
    assert choose_attention(8, jnp.float32, "bfloat16", backend()) == "banded"


def test_other_platforms_get_theirs_and_cudnn_and_splash_only_where_a_trial_succeeds():
    assert choose_attention(64, jnp.bfloat16, "default", backend("tpu")) == "xla"
    with pytest.warns(RuntimeWarning, match="splash attention .* so the slower xla one is used"):
        assert choose_attention(128, jnp.bfloat16, "default", backend("tpu")) == "xla"
    assert choose_attention(64, jnp.float32, "default", backend("gpu")) == "blocked"
    with pytest.warns(RuntimeWarning, match="cudnn attention does not work on this machine"):
        assert choose_attention(64, jnp.bfloat16, "default", backend("gpu")) == "blocked"


@pytest.mark.parametrize("cached_attention", [cached_attention, plain_cached_attention])
@pytest.mark.parametrize("heads", [2, 4, 8])
def test_hidden_slots_that_come_after_change_no_bit(heads, cached_attention):
    """However far the cache is looked at: 1, 2, 4 or 8 blocks of 128 slots."""
    rows, groups, size, most = 5, 2, 16, 1024
    rng = np.random.default_rng(heads)
    q = rng.standard_normal((rows, heads, size), np.float32)
    k = rng.standard_normal((rows, groups, most, size), np.float32)
    v = rng.standard_normal((rows, groups, most, size), np.float32)
    visible = np.arange(most)[None, :] < np.array([1, 17, 64, 100, 128])[:, None]
    cached = jax.jit(cached_attention)
    whole = np.asarray(cached(q, k, v, visible))
    for slots in (128, 256, 512):
        part = cached(q, k[:, :, :slots], v[:, :, :slots], visible[:, :slots])
        np.testing.assert_array_equal(part, whole)
    short = cached(q[:4], k[:4, :, :100], v[:4, :, :100], visible[:4, :100])
    np.testing.assert_array_equal(short, whole[:4])


@pytest.mark.parametrize("size", [16, 24, 128])
@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (3, 64), (40, 200)])
def test_our_own_cached_attention_is_the_plain_formula(rows, slots, size):
    """Rings, too, of which any slot may be hidden; a row that sees nothing gives NaN in both."""
    rng = np.random.default_rng(slots)
    q, k, v = (normal(rng, rows, *shape, size) for shape in ((6,), (2, slots), (2, slots)))
    visible = rng.random((rows, slots)) < 0.7
    visible[-1] = rows == 1
    cached = jax.jit(cached_attention)
    got, want = (np.asarray(f(q, k, v, visible)) for f in (cached, jax.jit(plain_cached_attention)))
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.isnan(got[-1]).all() == (rows > 1)
    np.testing.assert_array_equal(cached(q[:1], k[:1], v[:1], visible[:1]), got[:1])


def test_our_own_cached_attention_refuses_what_it_cannot_take():
    cached_attention(jnp.ones((1, 1, 16)), *[jnp.ones((1, 1, 4, 16))] * 2, jnp.ones((1, 4), bool))
    shape = jax.ShapeDtypeStruct((1, 3, 16), jnp.float32)
    call = jax.ffi.ffi_call("jaxchat_cached_attention", shape)
    with pytest.raises(Exception, match=r"takes float32 \[B,H,K\], twice \[B,G,S,K\]"):
        call(jnp.ones((1, 3, 16)), *[jnp.ones((1, 2, 4, 16))] * 2, jnp.ones((1, 4), bool))
