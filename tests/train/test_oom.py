"""The message when a device cannot hold a step; the errors are JAX's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from tiny_training import CLASSIC, CLASSIC_OPTIM, TRAIN, T, random_params, tiny_job

from jaxchat.config import memory
from jaxchat.config.memory import predict, with_rows
from jaxchat.config.schema import MeshConfig, TrainConfig
from jaxchat.errors import OutOfMemory, explain
from jaxchat.model import backend
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train import loop, oom, session

PETABYTES = 4 * 2**50


def allocate(*_):
    """Fails as a step does that is too large: when it has been compiled and begins."""
    return jax.jit(lambda: jnp.zeros(PETABYTES // 4, jnp.float32))().block_until_ready()


BATCH = (3, 16, T)  # 48 rows on one device, 16 at a time


@pytest.fixture
def job(tmp_path):
    return replace(tiny_job(tmp_path), title="base")


@pytest.fixture
def step():
    """What is predicted of such a batch."""
    return memory.Step(
        CLASSIC, CLASSIC_OPTIM, rows=16, accumulation=3, platform="cpu", compute_bytes=4
    )


def on_a_machine_of(size, monkeypatch):
    """Devices of `size` bytes: a CPU's are the machine's, shared by 8 virtual ones."""
    monkeypatch.setattr(backend, "memory_bytes", lambda: size * jax.local_device_count())


def message_of(job):
    with pytest.raises(OutOfMemory) as caught, oom.explained(job, BATCH):
        allocate()
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    return str(caught.value)


def test_the_sentence_says_what_was_asked_and_what_would_fit(job, step, monkeypatch, tmp_path):
    # room for 6 rows, not for 8
    enough = predict(with_rows(step, 6, 48)).peak
    on_a_machine_of(int(enough / (1 - memory.MARGIN)) + 1, monkeypatch)
    message = message_of(job)
    assert message.startswith("base runs out of memory on cpu (")
    assert "with micro_rows 16, predicted to take" in message
    assert f"allocating {PETABYTES} bytes" in message
    assert "--set base.micro_rows=6, predicted to take" in message
    assert "\n" not in message
    assert explain(OutOfMemory(message), tmp_path) == (f"jaxchat: {message}", 1)


def test_fewer_rows_are_named_even_where_all_should_have_fitted(job, monkeypatch):
    on_a_machine_of(10**12, monkeypatch)
    assert "--set sft.micro_rows=12," in message_of(replace(job, title="sft"))


def test_where_no_row_fits_something_else_is_named(job, monkeypatch):
    on_a_machine_of(1_000, monkeypatch)
    message = message_of(job)
    assert "so no micro_rows helps" in message
    assert "mesh.fsdp" in message
    assert "--set base" not in message


def test_other_errors_of_jax_are_left_alone(job):
    def callback(_):
        raise ZeroDivisionError

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    run = jax.jit(lambda x: jax.pure_callback(callback, shape, x))
    with pytest.raises(jax.errors.JaxRuntimeError), oom.explained(job, BATCH):
        run(1.0).block_until_ready()


def test_a_full_disk_is_not_taken_for_memory():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x: No space left on device")
    assert not oom.is_exhausted(full)


def test_training_that_runs_out_of_memory_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "make_train_step", lambda *_: allocate)
    job = replace(tiny_job(tmp_path), title="mid")
    with pytest.raises(OutOfMemory, match=r"--set mid\.micro_rows=2, predicted"):
        loop.fit(job, random_params(CLASSIC))
    # what is suggested is a batch that training accepts
    assert loop.plan_batch(replace(TRAIN, micro_rows=2), CLASSIC.sequence_len, 1) == (4, 2)


def test_the_predicted_step_is_that_of_one_device(job):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    train = TrainConfig(batch_tokens=32 * 8, micro_rows=4)
    accumulation, micro = loop.plan_batch(train, 8, shards=4)
    job = replace(job, mesh=mesh, dtype=jnp.bfloat16)
    found = oom.predicted(job, (accumulation, micro, 8))
    assert (found.rows, found.accumulation, found.model.sequence_len) == (4, 2, 8)
    assert (found.mesh, found.platform, found.compute_bytes) == (memory.Mesh(2, 2, 2), "cpu", 2)
