"""What the start of training finds out, and that the step follows its settings."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CLASSIC, CLASSIC_OPTIM, MODERN, T, random_params, tiny_job

from jaxchat.config.schema import ComputeConfig, MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.model.backend import BACKENDS, Compute, backend
from jaxchat.model.capabilities import check_capability, choose_compute
from jaxchat.model.kernels.matmul import count_products
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.train.loop import fit
from jaxchat.train.step import init_state, loss_and_grads, make_train_step

WIDE = replace(MODERN, n_embd=128)  # the least that fp8 takes
OPTION = "xla_cpu_enable_fast_min_max"
ROUNDED = Compute(matmul="bfloat16", attention="banded")


def batch_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One micro-batch, in which each token follows from the one before."""
    first = np.random.default_rng(seed).integers(0, 50, rows)
    tokens = [first]
    for _ in range(T):
        tokens.append((tokens[-1] * 7 + 3) % 50)
    stacked = np.stack(tokens, 1).astype(np.int32)[None]
    return {"tokens": stacked, "mask": np.ones(stacked.shape, np.float32)}


def losses_of(compute: Compute, steps: int, shape: tuple[int, int, int] = (1, 1, 1)) -> list[float]:
    """Of some steps from the same weights, on a mesh."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    optimizer = make_optimizer(WIDE, CLASSIC_OPTIM, 40, muon_dtype=compute.muon_dtype)
    step = make_train_step(WIDE, optimizer, mesh, compute)
    state, found = init_state(random_params(WIDE), optimizer, mesh), []
    for number in range(steps):
        state, metrics = step(state, put_batch(mesh, batch_of(8, number)))
        found.append(float(metrics["loss"]))
    return found


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Linux tells of the processor, as a file of the test's own."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("jaxchat.model.capabilities.CPUINFO", path)
    return path


def test_a_cpu_computes_in_float32(cpuinfo: Path) -> None:
    assert choose_compute(ComputeConfig(), CLASSIC, jnp.float32, 8) == Compute()
    cpuinfo.write_text("flags : fpu avx2 avx512f\n", encoding="utf-8")
    assert choose_compute(ComputeConfig(), CLASSIC, jnp.float32, 8) == Compute()
    cpuinfo.write_text("flags : fpu avx512_bf16\n", encoding="utf-8")
    plain = ComputeConfig(products="plain")
    assert choose_compute(plain, CLASSIC, jnp.float32, 8) == Compute()


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_is_made_for_it_multiplies_bfloat16(cpuinfo: Path, flag: str) -> None:
    cpuinfo.write_text(f"processor : 0\nflags : fpu {flag} sse\nflags :\n", encoding="utf-8")
    compute = choose_compute(ComputeConfig(), CLASSIC, jnp.float32)
    assert compute == Compute(matmul="bfloat16", attention="banded")
    assert (compute.dtype, compute.muon_dtype) == (jnp.float32, jnp.bfloat16)
    assert compute.unrounded() == Compute()
    half = choose_compute(ComputeConfig(), CLASSIC, jnp.bfloat16)  # they are bfloat16 anyway
    assert (half.matmul, half.attention) == ("default", "blocked")


def test_products_that_xla_does_in_float32_are_not_asked_for(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text("flags : avx512_bf16\n", encoding="utf-8")
    monkeypatch.setattr("jaxchat.model.capabilities.count_products", lambda text: 1 if text else 0)
    with pytest.warns(RuntimeWarning, match="it does 1 of a layer's 3 products in bfloat16"):
        assert choose_compute(ComputeConfig(), CLASSIC, jnp.float32) == Compute()


def test_products_may_be_asked_for_anywhere(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    config = ComputeConfig(products="bfloat16")
    assert choose_compute(config, CLASSIC, jnp.float32).matmul == "bfloat16"
    with pytest.raises(ConfigError, match=r"compute\.products is 'fp4'"):
        ComputeConfig(products="fp4")


def test_sizes_and_options_are_as_configured() -> None:
    config = ComputeConfig(
        loss_chunk_rows=77, lean_relu2=True, compiler_options=(f"{OPTION}=false",)
    )
    compute = choose_compute(config, CLASSIC, jnp.bfloat16)
    assert (compute.chunk_rows, compute.options) == (77, ((OPTION, False),))
    assert compute.lean_relu2
    assert compute.dtype == jnp.bfloat16


def test_accelerators_compute_in_bfloat16() -> None:
    dtypes = {name: row.dtype for name, row in BACKENDS.items()}
    assert dtypes == {"cpu": jnp.float32, "gpu": jnp.bfloat16, "tpu": jnp.bfloat16}


def test_a_gpu_takes_large_chunks() -> None:
    assert backend("gpu").chunk_rows >= 8_192
    assert backend("cpu").chunk_rows == Compute().chunk_rows


def test_a_tpu_computes_in_bfloat16_and_has_no_fp8() -> None:
    tpu = backend("tpu")
    assert WIDE.head_dim % 128
    chosen = choose_compute(ComputeConfig(), WIDE, devices=8, on=tpu)
    assert chosen == Compute(jnp.bfloat16, "xla", tpu.chunk_rows)
    heads_of_128 = replace(WIDE, n_head=1, n_kv_head=1)
    with pytest.warns(RuntimeWarning, match="splash attention does not work on this machine, so"):
        assert choose_compute(ComputeConfig(), heads_of_128, devices=8, on=tpu) == chosen
    with pytest.raises(ConfigError, match=r"compute\.fp8 is on, but .* compute capability none"):
        choose_compute(ComputeConfig(fp8=True), WIDE, on=tpu)
    assert backend("an unknown one") == backend("cpu")


def test_the_line_says_everything() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert Compute().describe(list(mesh.devices.flat), mesh.shape) == (
        "8 x cpu (data=4, fsdp=2, tensor=1); float32; attention blocked; loss in chunks of 1,024 "
        "tokens; large products float32; compiler options: XLA's own"
    )
    other = Compute(
        jnp.bfloat16,
        "cudnn",
        8192,
        "fp8",
        (("xla_a", True), ("xla_b", 4)),
        (("xla_c", "no such"), ("xla_d", "not a bool")),
    )
    assert other.describe(list(mesh.devices.flat), mesh.shape).partition("; ")[2] == (
        "bfloat16 over float32 weights; attention cudnn; loss in chunks of 8,192 tokens; large "
        "products fp8; compiler options: xla_a=True, xla_b=4; XLA refuses xla_c: no such; "
        "XLA refuses xla_d: not a bool"
    )


@pytest.mark.usefixtures("optax_promotion")
def test_training_says_it_once(tmp_path: Path, capsys: Any) -> None:
    fit(tiny_job(tmp_path), random_params(CLASSIC))
    said = [line for line in capsys.readouterr().err.splitlines() if "; attention b" in line]
    assert len(said) == 1
    assert said[0].startswith("test: 1 x cpu (data=1, fsdp=1, tensor=1); float32; ")


def test_fp8_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"at least 128, multiples of 16, .*n_embd is 32"):
        choose_compute(ComputeConfig(fp8=True), CLASSIC, jnp.float32)
    assert choose_compute(ComputeConfig(fp8=True), WIDE, jnp.float32).matmul == "fp8"
    for capability in ("8.6", "8.0", "7.5", ""):
        with pytest.raises(ConfigError, match=f"NVIDIA X has the compute capability {capability}"):
            check_capability("NVIDIA X", capability)
    for capability in ("8.9", "9.0", "10.0", "12.0"):
        check_capability("NVIDIA X", capability)


def test_the_loss_chunk_does_not_change_the_gradients() -> None:
    params, batch = random_params(MODERN), batch_of(4)

    def run(rows: int) -> Any:
        compute = Compute(chunk_rows=rows)
        return jax.jit(lambda p: loss_and_grads(p, batch, MODERN, compute))(params)

    def close(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, atol=1e-4)

    jax.tree.map(close, run(8), run(8_192))


def test_every_large_matrix_of_a_step_is_multiplied_in_fp8() -> None:
    params, batch = random_params(WIDE), batch_of(4)

    def program(on: bool) -> str:
        compute = Compute(matmul="fp8" if on else "default")
        step = jax.jit(lambda p: loss_and_grads(p, batch, WIDE, compute))
        return step.lower(params).as_text(dialect="hlo")

    # q and c_proj of 128 x 128, k and v of 128 x 64 (too small), MLP twice: forward, two backward
    assert count_products(program(True), "f8") == WIDE.n_layer * 4 * 3
    assert count_products(program(False), "f8") == 0


@pytest.mark.usefixtures("optax_promotion")
def test_rounded_products_work_on_a_mesh() -> None:
    alone, together = (losses_of(ROUNDED, 2, shape) for shape in ((1, 1, 1), (2, 2, 2)))
    assert together == pytest.approx(alone, rel=2e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("products", ["bfloat16", "fp8"])
def test_a_model_learns_with_narrow_products_what_it_learns_without(products: Any) -> None:
    narrow = ROUNDED if products == "bfloat16" else Compute(matmul=products)
    plain, rounded = losses_of(Compute(), 40), losses_of(narrow, 40)
    assert rounded != plain, "the switch does nothing"
    assert abs(rounded[0] / plain[0] - 1) < 0.01, "the same weights have another loss"
    # From the first update on the two are different runs: Muon makes the noise of small singular
    # values as large as the signal. What they have learned is comparable at the end only.
    assert np.mean(plain[-10:]) < plain[0] / 8, "it learns nothing, so this test shows nothing"
    assert np.mean(rounded[-10:]) < 1.2 * np.mean(plain[-10:]) + 0.05


def test_a_steps_gradients_with_rounded_products_are_near_the_exact_ones() -> None:
    params, batch = random_params(WIDE), batch_of(4)

    def run(compute: Compute) -> Any:
        return jax.jit(lambda p: loss_and_grads(p, batch, WIDE, compute))(params)

    exact, near = run(Compute()), run(ROUNDED)
    assert abs(near[1] / exact[1] - 1) < 1e-3
    leaves = jax.tree_util.tree_flatten_with_path(exact[0])[0]
    for (path, want), got in zip(leaves, jax.tree.leaves(near[0]), strict=True):
        if want.ndim == 2:  # the gradient of a scalar is a sum in which much cancels
            error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
            assert error < 0.05, f"{jax.tree_util.keystr(path)} is off by {error:.3f}"


@pytest.mark.usefixtures("optax_promotion")
def test_the_step_is_compiled_with_the_options() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(CLASSIC, CLASSIC_OPTIM, 10)
    step: Any = make_train_step(
        CLASSIC, optimizer, mesh, Compute(options=(("xla_no_such_option", True),))
    )
    state = jax.eval_shape(lambda: init_state(random_params(CLASSIC), optimizer))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        step.lower(state, batch_of(2)).compile()
