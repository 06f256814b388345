"""The shapes that signatures state, checked while they are called.

jaxtyping's import hook checks a copy of the package, which is imported here beside the one that all
other tests use: they would trace a third slower. Nothing is compiled: shapes are known earlier.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError, install_import_hook

from jaxchat.train.grpo import advantages

ROOMS = ("model", "optim", "train.step", "train.grpo", "train.rollouts", "inference.sampling")
STATED: set[str] = set()  # functions whose signature states a shape
CALLED: set[str] = set()
B, T, D, V, F32 = 8, 16, 32, 64, jnp.float32


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Around every function of the rooms; those without a shape are left as they are."""
    if not any("jaxtyping." in str(hint) for hint in function.__annotations__.values()):
        return function
    name = f"{function.__module__.removeprefix('jaxchat.')}.{function.__qualname__}"
    check = beartype.beartype(function)
    STATED.add(name)

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        CALLED.add(name)
        return check(*args, **kwargs)

    return checking


@pytest.fixture(scope="module", autouse=True)
def checked_copy() -> Iterator[None]:
    def ours() -> list[str]:  # a compiled module cannot be imported twice
        names = [name for name in sys.modules if name.split(".")[0] == "jaxchat"]
        return [name for name in names if name != "jaxchat._bpe"]

    others = {name: sys.modules.pop(name) for name in ours()}
    with install_import_hook([f"jaxchat.{room}" for room in ROOMS], f"{__name__}.checked"):
        for room in ROOMS:
            load(room)
        yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(others)


def load(name: str) -> Any:
    return importlib.import_module(f"jaxchat.{name}")


def shaped(*shape: int, dtype: Any = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return shaped(*shape, dtype=jnp.int32)


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Shapes of what a function of arrays returns; other arguments are bound."""
    return jax.eval_shape(functools.partial(function, **kwargs), *args)


def model_config() -> Any:
    """Every switch on, with two lengths of windows."""
    config = load("config.derive").derive_model(2, "modern", V, T)
    return replace(config, n_head=4, n_kv_head=2, n_embd=D, window_pattern="SL")


def compute(**how: Any) -> Any:
    return load("model.backend").Compute(**how)


@pytest.mark.usefixtures("optax_promotion")
def test_every_function_that_states_shapes_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config, gpt, cache_of = model_config(), load("model.gpt"), load("model.kv_cache")
    params = gpt.param_shapes(config)
    trace(gpt.forward, params, ids(B, T), config=config)
    steps_over_a_mesh(config, params)
    wide = replace(config, n_embd=128)
    narrow = {"dtype": jnp.bfloat16}
    # Traced as any processor can, and never run
    for ask in ("able", "multiplies"):
        monkeypatch.setattr(load("model.kernels.native"), ask, lambda: True)
    for how in (
        {"attention": "native", "matmul": "bfloat16"},
        {"attention": "banded", "matmul": "bfloat16"},
        {"matmul": "fp8", **narrow},
        {"fused": True, **narrow},
        {"fused": True, "lean_relu2": True, **narrow},
        {"fused": True, "matmul": "fp8", **narrow},
    ):
        loss = functools.partial(mean_loss, model=wide, compute=compute(**how))
        for function in (loss, jax.grad(loss)):
            trace(function, gpt.param_shapes(wide), ids(B, T + 1))

    muon = load("optim.muon")
    trace(
        lambda x: muon.orthogonalize_matrix(x, muon.POLAR_EXPRESS, jnp.bfloat16, 1.0, 1e-6),
        shaped(2, 128, 64),
    )

    small, cache = (
        jax.eval_shape(functools.partial(cache_of.init_cache, config, rows, T)) for rows in (1, B)
    )
    trace(lambda *a: gpt.prefill(*a, config), params, ids(B, T), ids(B), cache)
    trace(
        lambda params, tokens, cache, active: gpt.decode(
            params, tokens, cache, config, active=active
        ),
        params, ids(B), cache, shaped(B, dtype=bool),
    )  # fmt: skip
    trace(functools.partial(one_layer, config=config), params, ids(B), cache)
    for copy in (cache_of.place, cache_of.copy_to_rows, cache_of.scatter_to_rows):
        trace(copy, cache, small, ids(3))
    chunks, start = load("model.chunks"), shaped(dtype=jnp.int32)
    row = jax.eval_shape(lambda: chunks.empty_prefix(config, 2 * T))
    row, chunk = trace(
        lambda params, *a: chunks.read_chunk(params, *a, config),
        params, ids(1, T), ids(1), start, row,
    )  # fmt: skip
    row = trace(chunks.append_chunk, row, chunk, start)
    trace(lambda *a: chunks.cache_of(*a, 2 * T, config), row, ids(1))
    branches = load("model.branches").branch_features
    trace(lambda *a: branches(*a, config), params, ids(B, T), ids(B), ids(B, 6), ids(B, 6))

    int8 = load("model.kernels.int8")
    held = trace(int8.quantize, shaped(64, 48))
    trace(int8.plain_matmul, shaped(B, 64), *held)
    trace(int8.matmul, shaped(B, T, 64), held)
    trace(int8.dequantize, held)

    splash, q, kv = load("model.kernels.splash"), shaped(B, 128, 2, 128), shaped(B, 128, 1, 128)
    trace(splash.splash_attention, q, kv, kv, window=20)

    trace(next_tokens, shaped(B, V), ids(B))
    rewards_to_rows()
    assert STATED == CALLED
    assert len(STATED) > 50


def mean_loss(params: Any, tokens: jax.Array, *, model: Any, compute: Any) -> jax.Array:
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape)}
    total, weight = load("train.step").batch_loss(params, batch, model, compute)
    return total / weight


def one_layer(params: Any, tokens: jax.Array, cache: Any, *, config: Any) -> jax.Array:
    """A step of decoding in parts, with its last layer alone."""
    layerwise, how = load("model.layerwise"), (config, compute())
    parts, slots = layerwise.parts_of(params, config), [k.shape[2] for k in cache.k]
    at, kept = cache.length, (cache.k[-1], cache.v[-1])
    first = layerwise.start(parts.embedding, tokens, at, cache.previous, tuple(slots), *how)
    here = first._replace(view=first.view._replace(visible=first.view.visible[-1:]))
    number = jnp.int32(len(parts.layers) - 1)
    x, _ = layerwise.layer(parts.layers[-1], number, here.x, here, kept, tokens, at, *how)
    logits: jax.Array = layerwise.logits(parts.head, x, x, *how)
    return logits


def steps_over_a_mesh(config: Any, params: Any) -> None:
    """Rows, parameters and heads are split: what a function gets are its device's parts."""
    step, schema = load("train.step"), load("config.schema")
    optim = schema.OptimConfig(
        equilibrate_rows=True, renormalize=True, normuon=True, weight_decay=0.1
    )
    optimizer = load("optim.optimizer").make_optimizer(config, optim, 10)
    mesh = load("parallel.mesh").make_mesh(schema.MeshConfig(fsdp=2, tensor=2))
    state = jax.eval_shape(
        lambda params: step.TrainState(
            params,
            optimizer.init(load("optim.stacking").stack(params, mesh.size)),
            jnp.zeros([], jnp.int32),
        ),
        params,
    )
    batch = {"tokens": ids(2, B, T + 1), "mask": shaped(2, B, T + 1), "advantage": shaped(2, B)}
    after, _ = jax.eval_shape(step.make_train_step(config, optimizer, mesh), state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def next_tokens(logits: jax.Array, position: jax.Array) -> Any:
    sampling = load("inference.sampling")
    zeros, count = jnp.zeros(B), jnp.zeros(B, jnp.int32)
    rows = sampling.Sampling(zeros, count, zeros, count.astype(jnp.uint32), count)
    uniform = sampling.uniforms(rows, position)
    sampling.token_key(rows.seed[0], rows.stream[0], position[0])
    likely = sampling.greedy(logits), sampling.likeliest(logits, 3)
    return sampling.sample(logits, rows, uniform, truncate=True), likely


def rewards_to_rows() -> None:
    rollouts, completion = load("train.rollouts"), load("inference.request").Completion
    group = [completion((5, 6), (1, 1), (-1.0, -1.0), "stop")] * 2
    made = rollouts.Rollouts([(1, 2)], [group], np.array([[0.0, 1.0]]))
    signal = load("train.grpo").advantages(made.rewards)
    rollouts.make_batch(made, signal, T, 4, 0, loss_group=2)


WRONG = {  # a call, and the argument in which the shapes first disagree
    "targets of another length": (
        "targets", lambda: trace(
            functools.partial(load("model.loss").cross_entropy, softcap=15.0),
            shaped(B, T, D), shaped(D, V), ids(B, T - 1), shaped(B, T),
        ),
    ),
    "a head of another width": (
        "kernel", lambda: trace(
            functools.partial(load("model.loss").token_logprobs, softcap=15.0),
            shaped(B, T, D), shaped(D + 1, V), ids(B, T),
        ),
    ),
    "tokens that are no whole numbers": (
        "tokens", lambda: trace(
            load("model.gpt").forward, load("model.gpt").param_shapes(model_config()),
            shaped(B, T), config=model_config(),
        ),
    ),
    "keys of other heads than values": (
        "v", lambda: trace(
            functools.partial(load("model.attention").causal_attention, window=3),
            shaped(B, T, 4, 8), shaped(B, T, 2, 8), shaped(B, T, 4, 8),
        ),
    ),
    "angles of another head size": (
        "sin", lambda: trace(
            load("model.rope").rotate, shaped(B, T, 4, 8), shaped(1, T, 1, 4), shaped(1, T, 1, 8)
        ),
    ),
    "a lengths array of two axes": (
        "lengths", lambda: trace(
            functools.partial(load("model.kv_cache").slot_positions, slots=4), ids(B, 1)
        ),
    ),
    "a vector where matrices are orthogonalised": (
        "x", lambda: trace(
            lambda x: load("optim.muon").orthogonalize_matrix(x, (), F32, 1.0, 1e-7), shaped(B)
        ),
    ),
    "rewards without samples": (
        "rewards", lambda: load("train.grpo").advantages(np.zeros(3)),
    ),
    "uniform numbers for other rows": (
        "uniform", lambda: trace(
            lambda logits, uniform: load("inference.sampling")._draw(logits, uniform),
            shaped(B, V), shaped(B - 1),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused(name: str) -> None:
    argument, call = WRONG[name]
    with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
        call()


def test_a_wrong_result_is_refused() -> None:
    matmul = load("model.kernels.matmul")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "takes", lambda *_: True)
        patch.setattr(matmul, "rounded_matmul", lambda x, kernel: x)
        with pytest.raises(
            TypeCheckError, match=r"return value of jaxchat\.model\.kernels\.matmul"
        ):
            trace(lambda x, k: matmul.matmul(x, k, "bfloat16"), shaped(B, D), shaped(D, V))


def test_what_all_others_import_is_not_checked() -> None:
    assert advantages(np.zeros((1, 2, 3))).shape == (1, 2, 3)
