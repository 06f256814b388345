"""Parts of a step by our own kernels, against the plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    keys = jax.random.split(jax.random.key(time), 4)
    return [
        jax.random.normal(key, (batch, time, count, size))
        for key, count in zip(keys, (heads, groups, groups, heads), strict=True)
    ]


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
    scale = max(float(jnp.linalg.norm(b)) for b in want)  # some gradients are zero but for rounding
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        assert float(jnp.linalg.norm(a - b)) < 6e-3 * scale


@needs_kernels
def test_a_row_gets_the_same_bits_in_any_company_and_each_time():
    inputs = random_qkv(200, 4, 2, 64, batch=5)
    together = results(native_attention, *inputs, 90)
    for a, b in zip(together, results(native_attention, *inputs, 90), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = results(native_attention, *(x[3:4] for x in inputs), 90)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[3:4], b)


@needs_kernels
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 33), (300, 1000), (17, 8192)])
def test_the_losss_gradient_is_the_plain_one_but_for_rounding(rows, columns):
    keys = jax.random.split(jax.random.key(rows), 3)
    logits = 9.0 * jax.random.normal(keys[0], (rows, columns))
    targets = jax.random.randint(keys[1], (rows,), 0, columns)
    factor = jnp.where(jnp.arange(rows) % 3 == 1, 0.0, jax.random.normal(keys[2], (rows,)))

    def nll(logits):
        logprobs = jax.nn.log_softmax(SOFTCAP * jnp.tanh(logits / SOFTCAP), axis=-1)
        return -jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]

    want = jax.grad(lambda logits: jnp.sum(factor * nll(logits)))(logits)
    found, got = jax.jit(lambda: loss_gradient(logits, targets, factor, SOFTCAP))()
    np.testing.assert_allclose(found, jnp.where(factor == 0.0, 0.0, nll(logits)), atol=2e-5)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=8e-3, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize(("batch", "time", "heads", "size"), [(1, 1, 1, 32), (3, 70, 5, 128)])
@pytest.mark.parametrize("own", [False, True])
def test_norm_rope_and_its_gradient_are_the_plain_ones(batch, time, heads, size, own):
    keys = jax.random.split(jax.random.key(size), 2)
    x, dy = (3.0 * jax.random.normal(key, (batch, time, heads, size)) for key in keys)
    positions = jnp.arange(time)[None] + (7 * jnp.arange(batch)[:, None] if own else 0)
    rope = rotary(positions, size, 10_000.0, jnp.float32)

    def norm(x):
        turned = rotate(x, *rope)
        return 1.2 * turned / jnp.sqrt(jnp.mean(turned**2, axis=-1, keepdims=True) + 1e-6)

    def run(function):
        y, pull = jax.vjp(function, x)
        return y, *pull(dy)

    got = jax.jit(lambda: run(lambda x: native.norm_rope(x, *rope, 1.2, 1e-6)))()
    for a, b in zip(got, run(norm), strict=True):
        np.testing.assert_allclose(a, b, atol=4e-6)


@needs_kernels
@pytest.mark.parametrize("chunk_rows", [64, 1000])
def test_the_loss_of_native_kernels_is_xlas(chunk_rows):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 50, 64))
    kernel = jax.random.normal(keys[1], (64, 333))
    targets = jax.random.randint(keys[2], (3, 50), 0, 333)
    mask = (jnp.arange(150).reshape(3, 50) % 4 > 0).astype(jnp.float32)

    def run(attention):
        how = Compute(matmul="bfloat16", attention=attention, chunk_rows=chunk_rows)

        def loss(x, kernel):
            return cross_entropy(x, kernel, targets, mask, softcap=SOFTCAP, compute=how)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    (got, grads), (want, wanted) = run("native"), run("banded")
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(grads, wanted, strict=True):
        assert float(jnp.linalg.norm(a - b)) < 1e-3 * float(jnp.linalg.norm(b))


def with_gradients(function, *inputs):
    """What `function` gives, and its gradients by all inputs for random ones of what it gives."""

    def run(*inputs):
        ys, pull = jax.vjp(function, *inputs)
        keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(ys)))
        dys = [
            jax.random.normal(k, y.shape) for k, y in zip(keys, jax.tree.leaves(ys), strict=True)
        ]
        return ys, pull(jax.tree.unflatten(jax.tree.structure(ys), dys))

    return jax.tree.leaves(jax.jit(run)(*inputs))


def assert_near(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert float(jnp.linalg.norm(a - b)) < tolerance * float(jnp.linalg.norm(b))


def normed(x, epsilon):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def random_kernels(*shapes):
    keys = jax.random.split(jax.random.key(7), len(shapes))
    return [
        jax.random.normal(key, shape) * shape[0] ** -0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]


@needs_products
@pytest.mark.parametrize(("rows", "width", "hidden"), [((1,), 64, 256), ((3, 43), 128, 192)])
def test_a_blocks_second_half_is_the_one_of_rounded_products(rows, width, hidden):
    """But for numbers that another order of sums rounds to the other side."""
    kernels = random_kernels((width, hidden), (hidden, width))
    x = 2.0 * jax.random.normal(jax.random.key(0), (*rows, width))

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
    x = 2.0 * jax.random.normal(jax.random.key(0), (*rows, width))

    def plain(x, *kernels):
        x = x if epsilon is None else normed(x, epsilon)
        return tuple(rounded_matmul(x, kernel) for kernel in kernels)

    got = with_gradients(lambda x, *k: native.linear(x, k, epsilon), x, *kernels)
    assert_near(got, with_gradients(plain, x, *kernels), 3e-4)


@needs_products
def test_products_have_the_same_bits_each_time_and_a_row_in_any_company():
    up, down, kernel = random_kernels((128, 512), (512, 128), (128, 384))
    x = jax.random.normal(jax.random.key(0), (700, 128))
    for function, kernels in (
        (lambda *a: native.mlp(*a, 1e-6), (up, down)),
        (lambda x, *k: native.linear(x, k)[0], (kernel,)),
    ):
        whole = with_gradients(function, x, *kernels)
        for a, b in zip(whole, with_gradients(function, x, *kernels), strict=True):
            np.testing.assert_array_equal(a, b)
        alone = jax.jit(function)(x[37:39], *kernels)
        np.testing.assert_array_equal(whole[0][37:39], alone)


@needs_products
@pytest.mark.parametrize("shape", [(2, 64, 64), (5, 128, 64), (1, 64, 192), (2, 3, 64, 128)])
def test_muons_iterations_are_the_ones_of_rounded_products(shape):
    """float32 is at 1.5 to 2.5%."""
    x = jax.random.normal(jax.random.key(0), shape) / math.sqrt(math.prod(shape[-2:]))

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
    noise = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(noise), p.shape), params)
    tokens = jax.random.randint(jax.random.key(2), (3, 41), 0, 96)
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape)}

    def grads(attention):
        how = Compute(matmul="bfloat16", attention=attention)
        lowered = jax.jit(jax.grad(lambda p: batch_loss(p, batch, config, how)[0])).lower(params)
        return lowered.as_text(), lowered.compile()(params)

    (text, got), (_, want) = grads("native"), grads("banded")
    assert text.count("jaxchat_mlp_gradient") == 2
    assert text.count("jaxchat_linear_gradient") == 4
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= 2e-2 * float(jnp.linalg.norm(b))


@needs_kernels
def test_what_is_not_finite_is_not_hidden():
    inputs = random_qkv(40, 2, 2, 32)
    inputs[1] = inputs[1].at[0, 7, 0, 3].set(jnp.nan)
    y = native_attention(*inputs[:3], window=40)
    assert jnp.isnan(y[0, 7:, 0]).all()
    assert jnp.isfinite(y[0, :, 1]).all()
    assert jnp.isfinite(y[1]).all()
    logits = jnp.zeros((2, 40)).at[1, 3].set(jnp.nan)
    nll, grad = loss_gradient(logits, jnp.zeros(2, jnp.int32), jnp.ones(2), SOFTCAP)
    assert jnp.isfinite(nll[0])
    assert jnp.isnan(nll[1])
    assert jnp.isnan(grad[1].astype(jnp.float32)).all()


@needs_products
def test_a_row_that_is_not_finite_is_not_hidden_by_products():
    up, down = random_kernels((64, 256), (256, 64))
    x = jnp.ones((3, 64)).at[1, 5].set(jnp.nan)
    y, dx, *grads = with_gradients(lambda *a: native.mlp(*a, 1e-6), x, up, down)
    for rows in (y, dx):
        assert jnp.isnan(rows[1]).all()
        assert jnp.isfinite(rows[::2]).all()
    assert all(jnp.isnan(grad).all() for grad in grads[:1])


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
