"""Products in 8-bit floats, against NumPy in float64 and a rounding written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import distance, norm

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.kernels import fp8
from jaxchat.model.kernels.matmul import count_products
from jaxchat.model.loss import cross_entropy
from jaxchat.train.step import loss_and_grads

# fraction bits, exponent of the smallest normal number, largest value
E4M3 = (3, -6, 448.0)
E5M2 = (2, -14, 57344.0)


def rounded(x, kind):
    """To the nearest number of `bits` bits of fraction (ties to even), after scaling by the largest
    power of two with which the tensor fits; scaled back. In float64."""
    bits, smallest, largest = kind
    x = np.asarray(x, np.float64)
    scale = 2.0 ** np.floor(np.log2(largest / np.abs(x).max()))
    exponent = np.floor(np.log2(np.maximum(np.abs(x * scale), 2.0**-100)))
    unit = 2.0 ** (np.maximum(exponent, smallest) - bits)
    return np.rint(x * scale / unit) * unit / scale


def draw(shape, seed, spread=1.0, dtype=jnp.float32):
    """Values over many orders of magnitude, so that the small ones are subnormal in 8 bits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
    return x.astype(dtype)


@pytest.mark.parametrize("size", [1.0, 3e-12, 7e7, 448.0, 2.0**-20])
def test_quantized_values_are_the_nearest(size):
    x = draw((300,), 0, spread=3.0)
    x = x / np.abs(x).max() * np.float32(size)
    for dtype, kind in ((jnp.float8_e4m3fn, E4M3), (jnp.float8_e5m2, E5M2)):
        q, scale = jax.jit(fp8.quantize, static_argnums=1)(x, dtype)
        assert (q.dtype, scale.dtype) == (dtype, jnp.float32)
        assert np.log2(float(scale)) % 1 == 0, "the scale is no power of two"
        values = np.asarray(q, np.float64)
        assert kind[2] / 2 <= np.abs(values).max() <= kind[2]
        got = values * float(scale)
        np.testing.assert_array_equal(got, rounded(x, kind))


def test_zero_stays_zero_and_what_is_not_finite_does_not_become_so():
    x, kernel = np.zeros((4, 128), np.float32), draw((128, 128), 1)
    multiply = jax.jit(fp8.matmul)
    np.testing.assert_array_equal(multiply(x, kernel), 0.0)
    for bad in (np.inf, np.nan):
        x[2, 5] = bad
        assert not np.isfinite(np.asarray(multiply(x, kernel))[2]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_and_its_gradients_are_those_of_the_rounded_values(dtype):
    x = draw((3, 5, 128), 2, dtype=dtype)
    kernel, dy = draw((128, 144), 3), draw((3, 5, 144), 4, 2.0, dtype) * np.asarray(1e-6, dtype)
    y, pull = jax.vjp(jax.jit(fp8.matmul), x, kernel)
    dx, dkernel = pull(dy)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (dtype, dtype, jnp.float32)

    wide = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
    x8, w8, g8 = (rounded(a, k) for a, k in zip(wide, (E4M3, E4M3, E5M2), strict=True))
    ulp = 2.0**-8 if dtype == jnp.bfloat16 else 1e-6
    wants = (x8 @ w8, g8 @ w8.T, np.einsum("btd,btf->df", x8, g8))
    for got, want, tolerance in zip((y, dx, dkernel), wants, (ulp, ulp, 1e-6), strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance * np.abs(want).max()
        )
    # and the rounding is there: these are no products of the values themselves
    assert np.abs(np.asarray(y, np.float64) - wide[0] @ wide[1]).max() > 3 * ulp


def test_the_program_multiplies_8_bit_floats():
    def total(x, kernel):
        return jnp.sum(jnp.square(fp8.matmul(x, kernel)))

    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).lower(
        draw((64, 128), 5), draw((128, 256), 6)
    )
    text = lowered.as_text(dialect="hlo")
    assert count_products(text, "f8") == 3
    assert "f8e4m3fn[64,128]" in text
    assert "f8e5m2[64,256]" in text
    plain = jax.jit(jnp.matmul).lower(draw((64, 128), 5), draw((128, 256), 6))
    assert count_products(plain.as_text(dialect="hlo"), "f8") == 0


def test_products_are_counted_in_what_a_gpu_compiles():
    text = """
    %a = f8e4m3fn[64,128]{1,0} parameter(0)
    %b.1 = f8e5m2[64,256]{1,0} parameter(1)
    %c = bf16[64,256]{1,0} convert(%b.1)
    %dot.1 = f32[128,256]{1,0} dot(%a, %b.1), lhs_contracting_dims={0}
    %dot.2 = f32[128,256]{1,0} dot(%a, %c), lhs_contracting_dims={0}
    %y = (bf16[8,8], s8[99]) custom-call(%a, %b.1), custom_call_target="__cublas$lt$matmul$f8"
    %z = (bf16[8,8], s8[99]) custom-call(%c, %c), custom_call_target="__cublas$lt$matmul"
    """
    assert count_products(text, "f8") == 2
    shapes_in_place = " dot(f8e4m3fn[64,128]{1,0} %a, f8e5m2[64,256]{1,0} %b.1), lhs"
    assert count_products(text + shapes_in_place, "f8") == 3


def test_only_large_matrices_are_taken():
    assert fp8.takes(1280, 5120)
    assert fp8.takes(128, 128)
    for shape in ((12, 128), (1280, 10), (112, 5120), (136, 1280), (1280, 1288)):
        assert not fp8.takes(*shape), shape


def relative(got, want):
    """The distance of two tensors, relative to the second's norm."""
    return distance(got, want) / norm(want)


@pytest.mark.parametrize("times", [1.0, 1.7, 32.0])
def test_a_bound_above_the_largest_value_costs_what_is_small_alone(times):
    x = draw((400,), 7)
    largest = np.abs(x).max()
    q, scale = fp8.quantize(x, fp8.E4M3, times * largest)
    assert np.log2(float(scale)) % 1 == 0
    assert float(largest / scale) <= 448
    got, want = (
        np.asarray(r.values, np.float32) * np.asarray(r.scale)
        for r in (fp8.Rounded(q, scale), fp8.quantize(x, fp8.E4M3))
    )
    normal = np.abs(x) >= 2.0**-6 * float(scale)
    assert normal.any()
    np.testing.assert_array_equal(got[normal], want[normal])
    assert np.abs(got - x)[~normal].max(initial=0.0) <= 2.0**-10 * float(scale)


def rows_of(shape, seed, dtype=jnp.float32):
    """Rows whose root mean square is 1."""
    x = draw(shape, seed)
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True))).astype(dtype)


def plain_mlp(multiply):
    def mlp(x, up, down):
        return multiply(jnp.square(jax.nn.relu(multiply(x, up))), down)

    return mlp


def fused_mlp(x, up, down):
    return fp8.relu2_mlp(x, (up, fp8.round_kernel(up)), (down, fp8.round_kernel(down)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-5, 3e4])
def test_the_mlp_without_a_pass_for_the_largest_is_as_exact_as_with_it(dtype, size):
    x = rows_of((2, 24, 128), 8, dtype)
    dy = (np.float32(size) * draw((2, 24, 128), 9, 1.5)).astype(dtype)
    up = np.float32(size) * draw((128, 512), 10, 0.2)
    down = draw((512, 128), 11, 0.2) / np.float32(size)

    def run(mlp, x, dy):
        y, pull = jax.vjp(jax.jit(mlp), x, up, down)
        return (y, *pull(dy))

    exact = run(plain_mlp(jnp.matmul), x.astype(np.float32), dy.astype(np.float32))
    plain, fused = (run(mlp, x, dy) for mlp in (plain_mlp(fp8.matmul), fused_mlp))
    assert [a.dtype for a in fused] == [dtype, dtype, jnp.float32, jnp.float32]
    for got, other, want in zip(fused, plain, exact, strict=True):
        assert relative(got, want) <= 1.05 * relative(other, want) + 1e-4


def test_what_reaches_the_bounds_overflows_nothing():
    """A row along a column, whose neuron is as large as it can be, and a gradient along its row."""
    up, down = draw((128, 256), 12), draw((256, 128), 13)
    column, row = np.argmax(np.sum(up**2, 0)), np.argmax(np.sum(down**2, 1))
    x = np.float32(128**0.5) * up[:, column] / np.linalg.norm(up[:, column])
    dy = np.float32(1e3) * down[row] / np.linalg.norm(down[row])
    down[column] = down[row]  # where h is the largest, da is too
    y, pull = jax.vjp(jax.jit(fused_mlp), x[None], up, down)
    want, pull_plain = jax.vjp(jax.jit(plain_mlp(jnp.matmul)), x[None], up, down)
    for got, exact in zip((y, *pull(dy[None])), (want, *pull_plain(dy[None])), strict=True):
        assert np.isfinite(np.asarray(got)).all()
        assert relative(got, exact) < 0.15


def test_rows_of_zeros_give_zeros():
    zeros = [np.zeros(shape, np.float32) for shape in ((2, 128), (128, 256), (256, 128))]
    y, pull = jax.vjp(jax.jit(fused_mlp), *zeros)
    for got in (y, *pull(jnp.zeros_like(y))):
        np.testing.assert_array_equal(got, 0.0)


def test_a_loss_with_the_head_in_8_bits_is_near_the_exact_one():
    x, kernel = rows_of((2, 40, 128), 14, jnp.bfloat16), draw((128, 256), 15, 0.2)
    kernel *= np.float32(0.2)
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 256, (2, 40), np.int32)
    mask = (rng.random((2, 40)) < 0.7).astype(np.float32)
    compute = Compute(jnp.bfloat16, chunk_rows=32, matmul="fp8", fused=True)

    def run(x, compute, rounded):
        def loss(x, kernel):
            return cross_entropy(
                x, kernel, targets, mask, softcap=15.0, compute=compute, rounded=rounded
            )[0]

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)

    want, exact = run(x.astype(np.float32), PLAIN, None)
    got, grads = run(x, compute, fp8.round_kernel(kernel))
    np.testing.assert_allclose(got, want, rtol=2e-2)
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32]
    for grad, wide in zip(grads, exact, strict=True):
        assert relative(grad, wide) < 0.02, "the gradients' products are not of 8 bits"


@pytest.mark.parametrize("seed", [0, 1])
def test_no_gradient_is_further_from_float32_where_bytes_are_saved(seed):
    """As a model begins, when every token is about as likely as the others: what is rounded of the
    head's gradient is then rounded alike for all tokens, and does not cancel.
    """
    model = ModelConfig(vocab_size=512, sequence_len=128, n_layer=2, n_head=1, n_kv_head=1,
                        n_embd=128, value_embeds=True, residual_scalars=True)  # fmt: skip
    begun = gpt.init_params(jax.random.key(seed), model)
    params = jax.tree.map(
        lambda x, y: np.asarray(x) + np.float32(0.02) * y if x.ndim == 2 else x, begun,
        jax.tree.map(lambda x: draw(x.shape, seed), begun),
    )  # fmt: skip
    tokens = np.random.default_rng(seed).zipf(1.5, (1, 8, 129)) % 512
    batch = {"tokens": tokens.astype(np.int32), "mask": np.ones(tokens.shape, np.float32)}

    def gradients(compute):
        run = jax.jit(loss_and_grads, static_argnames=("model", "compute"))
        grads, _, _ = run(params, batch, model, compute)
        return grads

    exact = gradients(PLAIN)
    plain, fused = (
        jax.tree.map(relative, gradients(Compute(jnp.bfloat16, matmul="fp8", fused=fused)), exact)
        for fused in (False, True)
    )
    for (path, got), other in zip(
        jax.tree_util.tree_leaves_with_path(fused), jax.tree.leaves(plain), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if "gate" not in name and "lambda" not in name:  # those few numbers are mostly luck
            assert got <= 1.05 * other, f"{name}: {got} for {other}"


def test_kernels_are_rounded_once_for_a_step_and_for_fused_products_alone():
    model = ModelConfig(vocab_size=128, sequence_len=64, n_layer=1, n_head=1, n_kv_head=1,
                        n_embd=128)  # fmt: skip
    params = gpt.param_shapes(model)
    fused = Compute(jnp.bfloat16, matmul="fp8", fused=True)
    for compute in (PLAIN, Compute(matmul="fp8"), Compute(jnp.bfloat16, fused=True)):
        assert not compute.fused_fp8
    rounded = jax.eval_shape(fp8.round_kernels, params)
    assert len(jax.tree.leaves(rounded)) == 4 * 7  # of six matrices and the head
    assert rounded["wte"]["embedding"] is None

    def text(batches):
        shape = (batches, 1, 65)
        batch = {
            "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
            "mask": jax.ShapeDtypeStruct(shape, jnp.float32),
        }
        step = jax.jit(loss_and_grads, static_argnames=("model", "compute"))
        return step.lower(params, batch, model, fused).as_text()

    outside = text(3).split("stablehlo.while")[0]  # the loop over micro-batches
    assert outside.count("-> tensor<128x512xf8E4M3FN>") == 1
    assert text(3).count("(tensor<128x512xf32>) -> tensor<128x512xf8E4M3FN>") == 1
