"""Muon's small transforms, each alone. Kernels are [in, out]: a neuron is a column."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import distance, norm, normal

from jaxchat.optim import muon

SHAPES = [(6, 10), (10, 6), (8, 8), (3, 4, 7)]


def gradient(shape: tuple[int, ...]) -> np.ndarray:
    return normal(0, *shape) * np.float32(10) ** np.linspace(-2, 2, shape[-1], dtype=np.float32)


def updated(transform: optax.GradientTransformation, x: np.ndarray) -> np.ndarray:
    """What the transform's first update makes of a gradient."""

    def update(x: jax.Array) -> Any:
        return transform.update({"x": x}, transform.init({"x": x}))[0]["x"]

    return np.asarray(jax.jit(update)(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_equilibrated_neurons_have_equal_norms_and_the_matrix_its_own(
    shape: tuple[int, ...],
) -> None:
    x = gradient(shape)
    y = updated(muon.equilibrate_rows(), x)
    norms = np.linalg.norm(y, axis=-2)
    whole = np.linalg.norm(x, axis=(-2, -1))
    np.testing.assert_allclose(norms, np.broadcast_to(norms[..., :1], norms.shape), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(y, axis=(-2, -1)), whole, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("coefficients", "low", "high"),
    [(muon.NEWTON_SCHULZ, 0.6, 1.25), (muon.POLAR_EXPRESS, 0.85, 1.15)],
)
def test_orthogonalized_singular_values_are_near_one(
    shape: tuple[int, ...], coefficients: muon.Coefficients, low: float, high: float
) -> None:
    x = normal(1, *shape)
    y = jax.jit(lambda x: muon.orthogonalize_matrix(x, coefficients, jnp.float32, 1.01, 1e-6))(x)
    values = np.linalg.svd(y, compute_uv=False)
    wanted = np.linalg.svd(x, compute_uv=False)
    kept = wanted > 0.05 * wanted.max()  # five steps do not lift the very smallest
    assert values[kept].min() > low
    assert values.max() < high


@pytest.mark.parametrize("shape", [(64, 64), (3, 64, 96), (2, 128, 64)])
def test_orthogonalizing_in_bfloat16_is_near_that_in_float32(shape: tuple[int, ...]) -> None:
    x = normal(2, *shape)
    exact, near = (
        jax.jit(lambda x, d=dtype: muon.orthogonalize_matrix(x, muon.POLAR_EXPRESS, d, 1.01, 1e-6))(
            x
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert near.dtype == jnp.float32
    assert 0 < distance(near, exact) < 0.03 * norm(exact)


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(96, 96), (2, 64, 192)])
def test_iterating_with_few_bytes_is_as_near_to_float32(
    shape: tuple[int, ...], decay: float
) -> None:
    """With equal singular values, and such that fall off."""
    u, s, v = np.linalg.svd(normal(5, *shape), full_matrices=False)
    falling = s * np.arange(1, s.shape[-1] + 1, dtype=np.float32) ** -decay
    x = (u * falling[..., None, :]) @ v
    x = x / (1.01 * np.linalg.norm(x, axis=(-2, -1), keepdims=True))
    exact = jax.jit(functools.partial(muon._iterate, muon.POLAR_EXPRESS))(x)
    plain, narrow = (
        jax.jit(functools.partial(form, muon.POLAR_EXPRESS))(x.astype(jnp.bfloat16))
        for form in (muon._iterate, muon._iterate_narrow)
    )
    assert narrow.dtype == jnp.bfloat16
    far, near = (distance(y, exact) for y in (plain, narrow))
    assert 0 < near < 1.1 * far


def test_a_cpu_iterates_as_ever_and_a_gpu_with_few_bytes() -> None:
    x = normal(6, 2, 64, 96)
    lowered = jax.jit(
        lambda x: muon.orthogonalize_matrix(x, muon.POLAR_EXPRESS, jnp.bfloat16, 1.01, 1e-6)
    ).trace(x)
    counts = {
        platform: lowered.lower(lowering_platforms=(platform,)).as_text().count("barrier")
        for platform in ("cpu", "cuda")
    }
    assert counts == {"cpu": 0, "cuda": 15}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_renormalized_matrix_has_the_norm_of_a_semi_orthogonal_one(
    shape: tuple[int, ...],
) -> None:
    norms = np.linalg.norm(updated(muon.renormalize(), gradient(shape)), axis=(-2, -1))
    np.testing.assert_allclose(norms, min(shape[-2:]) ** 0.5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_normuon_keeps_the_norm_and_one_number_a_neuron(shape: tuple[int, int]) -> None:
    transform = muon.normuon(0.9)
    state = transform.init({"x": jnp.zeros(shape)})
    into, out = shape
    assert state.second["x"].shape == ((1, out) if out >= into else (into, 1))
    np.testing.assert_allclose(
        norm(updated(transform, gradient(shape))), norm(gradient(shape)), rtol=1e-5
    )
