"""Programs that are compiled before they are called, and without being run."""

import contextlib
import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compilations

from jaxchat.inference.ahead import Ahead
from jaxchat.inference.engine import Engine, Request

DEVICE = jax.devices()[0]


@functools.partial(jax.jit, static_argnames="times", donate_argnames="x")
def scale(x, y, *, times):
    for _ in range(times):
        x = jnp.sin(x) + y.sum()
    return x, {"sum": x.sum()}


def arrays():
    return jax.device_put((jnp.ones((3, 5)), jnp.ones(4)), DEVICE)


def test_what_is_compiled_ahead_is_not_compiled_again():
    given = arrays()
    with compilations() as compiled, contextlib.closing(Ahead(DEVICE)) as ahead:
        shapes = ahead.call(scale, *given, times=2)
        ahead.call(scale, shapes[0], given[1], times=2)  # with shapes, too
        ahead.make_room()
        ahead.finish()
    assert compiled() == 1
    assert (shapes[0].shape, shapes[1]["sum"].dtype) == ((3, 5), jnp.float32)
    assert not given[0].is_deleted(), "nothing was run"
    with compilations() as compiled:
        scale(*given, times=2)
    assert compiled() == 0


def test_what_compiling_raises_is_raised():
    def fail(self):
        raise RuntimeError("no memory to compile")

    class Program:
        def trace(self, *args):
            return self

        def lower(self):
            return self

        compile, out_info = fail, None

    with contextlib.closing(Ahead(DEVICE)) as ahead:
        ahead.call(Program(), 1)
        with pytest.raises(RuntimeError, match="no memory to compile"):
            ahead.finish()


def test_a_question_is_prepared_for_its_first_tokens(params, config, tokenizer):
    engine = Engine(params, config, tokenizer, slots=1, steps_per_dispatch=3)
    request = Request((1,) * 70, max_tokens=5)
    engine.prepare(request)
    with compilations() as compiled:
        ((answer,),) = engine.generate([request])
    assert compiled() == 0
    other = Engine(params, config, tokenizer, slots=1, steps_per_dispatch=3)
    assert other.generate([request]) == [[answer]]
    changed = dataclasses.replace(request, temperature=1.0, top_k=5, min_p=0.1)
    engine.prepare(changed)
    with compilations() as compiled:
        engine.generate([changed])
    assert compiled() == 0


def test_an_engine_that_compiles_keeps_its_cache(params, config, tokenizer):
    engine = Engine(params, config, tokenizer, slots=2, max_len=64, steps_per_dispatch=2)
    request = Request((1, 2, 3), max_tokens=9)
    before = engine.generate([request])
    engine.warm_up(lambda: threading.active_count() < 0, rare=False)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(engine._cache))
    assert engine.generate([request]) == before
    assert np.isfinite(before[0][0].logprobs).all()
