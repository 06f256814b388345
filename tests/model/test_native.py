"""Parts of a step by our own kernels, against the plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import distance, norm, normal
from whole_model import shaken

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import Compute, backend
from jaxchat.model.capabilities import choose_attention
from jaxchat.model.kernels import native
from jaxchat.model.kernels.matmul import rounded_matmul
from jaxchat.model.kernels.native import loss_gradient, native_attention
from jaxchat.model.loss import cross_entropy
from jaxchat.model.rope import rotary, rotate
from jaxchat.optim import muon
from jaxchat.train.step import batch_loss

SOFTCAP = 15.0
needs_kernels = pytest.mark.skipif(not native.able(), reason="no AVX-512 BF16")
needs_products = pytest.mark.skipif(not native.multiplies(), reason="no AMX")


def random_qkv(time, heads, groups, size, batch=2):
    rng = np.random.default_rng(time)
    return [normal(rng, batch, time, count, size) for count in (heads, groups, groups, heads)]


def plain(q, k, v, window):
    """Every score in float32, then a mask, then a softmax."""
    repeats, back = q.shape[2] // k.shape[2], jnp.arange(q.shape[1])
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision="highest") * q.shape[3] ** -0.5
    back = back[:, None] - back[None, :]
    seen = (back >= 0) & (back <= window)
    weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v, precision="highest")


def results(attention, q, k, v, dy, window):
    def run(q, k, v, dy):
        y, pull = jax.vjp(lambda q, k, v: attention(q, k, v, window=window), q, k, v)
        return y, *pull(dy)

    return jax.jit(run)(q, k, v, dy)


@needs_kernels
@pytest.mark.parametrize(("heads", "groups", "size"), [(2, 2, 32), (4, 2, 64), (3, 1, 128)])
@pytest.mark.parametrize(
    ("time", "window"),
    [(1, 0), (31, 5), (63, 1000), (64, 1), (65, 0), (130, 64), (200, 50), (300, 129), (600, 1000)],
)
def test_attention_and_its_gradients_are_the_plain_ones_but_for_rounding(
    time, window, heads, groups, size
):
    """bfloat16 keeps 8 bits, so a number and its sums are off by up to one in 256."""
    inputs = random_qkv(time, heads, groups, size)
    got = results(native_attention, *inputs, window)
    want = results(plain, *inputs, window)
    scale = max(norm(b) for b in want)  # some gradients are zero but for rounding
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        assert distance(a, b) < 6e-3 * scale


@needs_kernels
def test_a_row_gets_the_same_bits_in_any_company_and_each_time():
    inputs = random_qkv(200, 4, 2, 64, batch=5)
    together = results(native_attention, *inputs, 90)
    for a, b in zip(together, results(native_attention, *inputs, 90), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = results(native_attention, *(x[3:4] for x in inputs), 90)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[3:4], b)


@needs_kernels
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 33), (300, 1000), (17, 8192)])
def test_the_losss_gradient_is_the_plain_one_but_for_rounding(rows, columns):
    rng = np.random.default_rng(rows)
    logits = 9 * normal(rng, rows, columns)
    targets = rng.integers(0, columns, rows, np.int32)
    factor = np.where(np.arange(rows) % 3 == 1, np.float32(0), normal(rng, rows))

    @jax.jit
    def nll(logits):
        logprobs = jax.nn.log_softmax(SOFTCAP * jnp.tanh(logits / SOFTCAP), axis=-1)
        return -jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]

    want = jax.jit(jax.grad(lambda logits: jnp.sum(factor * nll(logits))))(logits)
    found, got = jax.jit(loss_gradient)(logits, targets, factor, SOFTCAP)
    np.testing.assert_allclose(found, np.where(factor == 0.0, 0.0, nll(logits)), atol=2e-5)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=8e-3, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize(("batch", "time", "heads", "size"), [(1, 1, 1, 32), (3, 70, 5, 128)])
@pytest.mark.parametrize("own", [False, True])
def test_norm_rope_and_its_gradient_are_the_plain_ones(batch, time, heads, size, own):
    rng = np.random.default_rng(size)
    x, dy = (3 * normal(rng, batch, time, heads, size) for _ in range(2))
    positions = np.arange(time)[None] + (7 * np.arange(batch)[:, None] if own else 0)
    rope = jax.jit(lambda: rotary(jnp.asarray(positions), size, 10_000.0, jnp.float32))()

    def normed_rotated(x):
        turned = rotate(x, *rope)
        return 1.2 * turned / jnp.sqrt(jnp.mean(turned**2, axis=-1, keepdims=True) + 1e-6)

    def run(function):
        y, pull = jax.vjp(function, x)
        return y, *pull(dy)

    got = jax.jit(lambda: run(lambda x: native.norm_rope(x, *rope, 1.2, 1e-6)))()
    for a, b in zip(got, jax.jit(lambda: run(normed_rotated))(), strict=True):
        np.testing.assert_allclose(a, b, atol=4e-6)


@needs_kernels
@pytest.mark.parametrize("chunk_rows", [64, 1000])
def test_the_loss_of_native_kernels_is_xlas(chunk_rows):
    rng = np.random.default_rng(0)
    x, kernel = normal(rng, 3, 50, 64), normal(rng, 64, 333)
    targets = rng.integers(0, 333, (3, 50), np.int32)
    mask = (np.arange(150).reshape(3, 50) % 4 > 0).astype(np.float32)

    def run(attention):
        how = Compute(matmul="bfloat16", attention=attention, chunk_rows=chunk_rows)

        def loss(x, kernel):
            return cross_entropy(x, kernel, targets, mask, softcap=SOFTCAP, compute=how)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    (got, grads), (want, wanted) = run("native"), run("banded")
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(grads, wanted, strict=True):
        assert distance(a, b) < 1e-3 * norm(b)


def with_gradients(function, *inputs):
    """What `function` gives, and its gradients by all inputs for random ones of what it gives."""

    def run(*inputs):
        ys, pull = jax.vjp(function, *inputs)
        rng = np.random.default_rng(1)
        return ys, pull(jax.tree.map(lambda y: jnp.asarray(normal(rng, *y.shape)), ys))

    return jax.tree.leaves(jax.jit(run)(*inputs))


def assert_near(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert distance(a, b) < tolerance * norm(b)


def normed(x, epsilon):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def random_kernels(*shapes):
    rng = np.random.default_rng(7)
    return [np.float32(shape[0] ** -0.5) * normal(rng, *shape) for shape in shapes]


@needs_products
@pytest.mark.parametrize(("rows", "width", "hidden"), [((1,), 64, 256), ((3, 43), 128, 192)])
def test_a_blocks_second_half_is_the_one_of_rounded_products(rows, width, hidden):
    """But for numbers that another order of sums rounds to the other side."""
    kernels = random_kernels((width, hidden), (hidden, width))
    x = 2 * normal(0, *rows, width)

    def plain(x, up, down):
        y = jnp.square(jax.nn.relu(rounded_matmul(normed(x, 1e-6), up)))
        return x + rounded_matmul(y, down)

    got = with_gradients(lambda *a: native.mlp(*a, 1e-6), x, *kernels)
    assert_near(got, with_gradients(plain, x, *kernels), 3e-4)


@needs_products
@pytest.mark.parametrize("epsilon", [None, 1e-6])
@pytest.mark.parametrize(
    ("rows", "width", "columns"),
    [((1,), 64, (64,)), ((2, 50), 96, (96, 32)), ((64,), 64, (192, 64, 64)), ((130,), 32, (32,))],
)
def test_products_with_several_kernels_are_the_rounded_ones(rows, width, columns, epsilon):
    kernels = random_kernels(*((width, count) for count in columns))
    x = 2 * normal(0, *rows, width)

    def plain(x, *kernels):
        x = x if epsilon is None else normed(x, epsilon)
        return tuple(rounded_matmul(x, kernel) for kernel in kernels)

    got = with_gradients(lambda x, *k: native.linear(x, k, epsilon), x, *kernels)
    assert_near(got, with_gradients(plain, x, *kernels), 3e-4)


@needs_products
def test_products_have_the_same_bits_each_time_and_a_row_in_any_company():
    up, down, kernel = random_kernels((128, 512), (512, 128), (128, 384))
    x = normal(0, 700, 128)
    for function, kernels in (
        (lambda *a: native.mlp(*a, 1e-6), (up, down)),
        (lambda x, *k: native.linear(x, k)[0], (kernel,)),
    ):
        whole = with_gradients(function, x, *kernels)
        for a, b in zip(whole, with_gradients(function, x, *kernels), strict=True):
            np.testing.assert_array_equal(a, b)
        alone = jax.jit(function)(x[37:39], *kernels)
        np.testing.assert_array_equal(np.asarray(whole[0])[37:39], alone)


@needs_products
@pytest.mark.parametrize("shape", [(2, 64, 64), (5, 128, 64), (1, 64, 192), (2, 3, 64, 128)])
def test_muons_iterations_are_the_ones_of_rounded_products(shape):
    """float32 is at 1.5 to 2.5%."""
    x = normal(0, *shape) / np.float32(math.sqrt(math.prod(shape[-2:])))

    def run(x):
        return muon.orthogonalize_matrix(x, muon.NEWTON_SCHULZ, jnp.bfloat16, 1.0, 1e-7)

    def plain(x):
        turn = x.shape[-2] > x.shape[-1]
        y = jnp.swapaxes(x, -1, -2) if turn else x
        y = muon._iterate(muon.NEWTON_SCHULZ, y)
        return jnp.swapaxes(y, -1, -2) if turn else y

    lowered = jax.jit(run).lower(x)
    assert "jaxchat_orthogonalize" in lowered.as_text()
    assert_near([lowered.compile()(x)], [jax.jit(plain)(x)], 3e-2)


@needs_products
def test_a_model_of_native_kernels_learns_what_one_of_rounded_products_does():
    """Gradients of every parameter; value embeddings and grouped queries among them."""
    config = ModelConfig(
        vocab_size=96, sequence_len=40, n_layer=2, n_head=4, n_kv_head=2, n_embd=128,
        value_embeds=True, residual_scalars=True, window_pattern="SL", short_window=16,
    )  # fmt: skip
    params = gpt.init_params(jax.random.key(0), config)
    params = shaken(params, 1, 0.1)
    tokens = np.random.default_rng(2).integers(0, 96, (3, 41), np.int32)
    batch = {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}

    def grads(attention):
        how = Compute(matmul="bfloat16", attention=attention)
        lowered = jax.jit(jax.grad(lambda p: batch_loss(p, batch, config, how)[0])).lower(params)
        return lowered.as_text(), lowered.compile()(params)

    (text, got), (_, want) = grads("native"), grads("banded")
    assert text.count("jaxchat_mlp_gradient") == 2
    assert text.count("jaxchat_linear_gradient") == 4
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert distance(a, b) <= 2e-2 * norm(b)


@needs_kernels
def test_what_is_not_finite_is_not_hidden():
    inputs = random_qkv(40, 2, 2, 32)
    inputs[1][0, 7, 0, 3] = np.nan
    y = np.asarray(native_attention(*inputs[:3], window=40))
    assert np.isnan(y[0, 7:, 0]).all()
    assert np.isfinite(y[0, :, 1]).all()
    assert np.isfinite(y[1]).all()
    logits = np.zeros((2, 40), np.float32)
    logits[1, 3] = np.nan
    gradient = loss_gradient(logits, np.zeros(2, np.int32), np.ones(2, np.float32), SOFTCAP)
    nll, grad = (np.asarray(x, np.float32) for x in gradient)
    assert np.isfinite(nll[0])
    assert np.isnan(nll[1])
    assert np.isnan(grad[1]).all()


@needs_products
def test_a_row_that_is_not_finite_is_not_hidden_by_products():
    up, down = random_kernels((64, 256), (256, 64))
    x = np.ones((3, 64), np.float32)
    x[1, 5] = np.nan
    found = with_gradients(lambda *a: native.mlp(*a, 1e-6), x, up, down)
    y, dx, *grads = map(np.asarray, found)
    for rows in (y, dx):
        assert np.isnan(rows[1]).all()
        assert np.isfinite(rows[::2]).all()
    assert all(np.isnan(grad).all() for grad in grads[:1])


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 8, 3, 32), (2, 8, 2, 16), (2, 8, 2, 64), (1, 8, 2, 32)])
def test_other_shapes_are_an_error_and_not_a_crash(shape):
    q = jnp.zeros((2, 8, 4, 16 if shape[3] == 16 else 32))
    k = jnp.zeros(shape)
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_norm_rope takes float32"):
        jax.block_until_ready(native.norm_rope(q, q, q, 1.0, 1e-6))
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_attention takes bfloat16"):
        jax.block_until_ready(native_attention(q, k, k, window=3))


@needs_products
def test_other_sizes_of_matrices_are_an_error_and_not_a_crash():
    odd = jnp.zeros((64, 48))
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_linear takes float32"):
        jax.block_until_ready(native.linear(jnp.zeros((8, 64)), (odd,)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_mlp takes float32"):
        jax.block_until_ready(native.mlp(jnp.zeros((8, 64)), odd, odd.T, 1e-6))
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_orthogonalize takes bfloat16"):
        jax.block_until_ready(native.orthogonalize(odd[None].astype(jnp.bfloat16), ((1, 2, 3),)))


def test_it_is_for_a_processor_and_heads_that_have_it(monkeypatch):
    assert choose_attention(48, jnp.float32, "bfloat16", backend()) == "banded"
    assert choose_attention(64, jnp.float32, "default", backend()) == "blocked"
    monkeypatch.setattr(native, "able", lambda: True)
    assert choose_attention(64, jnp.float32, "bfloat16", backend()) == "native"
    monkeypatch.setattr(native, "able", lambda: False)
    assert choose_attention(64, jnp.float32, "bfloat16", backend()) == "banded"
    with pytest.raises(ValueError, match="no AVX-512 BF16"):
        native_attention(*random_qkv(8, 2, 2, 32)[:3], window=3)


def test_evaluation_and_inference_do_not_use_it():
    rounded = Compute(matmul="bfloat16", attention="native")
    assert rounded.native
    assert rounded.unrounded() == Compute()
    assert not Compute(matmul="bfloat16", attention="banded").native
