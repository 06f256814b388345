"""The message when a device cannot hold a step; the errors are JAX's own."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny_rl
from tiny_training import CLASSIC, CLASSIC_OPTIM, TRAIN, T, random_params, tiny_job

from jaxchat.checkpoints.save import fingerprint
from jaxchat.config import memory
from jaxchat.config.memory import predict, with_rows
from jaxchat.config.schema import MeshConfig, TrainConfig
from jaxchat.errors import ConfigError, OutOfMemory, explain
from jaxchat.model import backend
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train import loop, oom, session
from jaxchat.train.grpo import train_rl

PETABYTES = 4 * 2**50
SHORT = Path(__file__).with_name("short_of_memory.py")
BOUND = 800_000_000  # bytes: 8,192 rows of that program take 840 MB, 4,096 half, without compiling


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam
        yield


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


def failing(monkeypatch, fails):
    """Steps (call, rows) for which `fails` find no memory, and have then lost their state."""
    make, calls = session.make_train_step, []

    def made(*args):
        step = make(*args)

        def run(state, batch):
            calls.append(batch["tokens"].shape[1])
            if fails(len(calls), calls[-1]):
                jax.tree.map(lambda x: x.delete(), state)
                allocate()
            return step(state, batch)

        return run

    monkeypatch.setattr(session, "make_train_step", made)
    return calls


def test_where_not_even_one_row_fits_training_says_so(tmp_path, monkeypatch, capsys):
    calls = failing(monkeypatch, lambda call, rows: True)
    with pytest.raises(OutOfMemory, match="so no micro_rows helps"):
        loop.fit(replace(tiny_job(tmp_path), title="mid"), random_params(CLASSIC))
    assert calls == [4, 2, 1]
    assert "mid.micro_rows=1" in capsys.readouterr().out


def test_a_first_step_is_tried_again_with_half_the_rows(tmp_path, monkeypatch, capsys):
    calls = failing(monkeypatch, lambda call, rows: rows > 2)
    params = random_params(CLASSIC)
    job = replace(tiny_job(tmp_path / "halved"), title="mid")
    halved = loop.fit(job, params)
    assert calls == [4] + [2] * TRAIN.steps
    out = capsys.readouterr().out
    assert "mid: a step with micro_rows 4 does not fit (RESOURCE_EXHAUSTED" in out
    assert "give --set mid.micro_rows=2" in out
    plain = loop.fit(
        tiny_job(tmp_path / "plain", train=replace(TRAIN, micro_rows=2)), random_params(CLASSIC)
    )
    assert fingerprint(halved.params) == fingerprint(plain.params)
    assert (halved.micro_rows, halved.loss) == (2, plain.loss)

    # the same command begins with fewer; another number is a new try
    shutil.rmtree(job.folder / "checkpoints")
    calls.clear()
    loop.fit(job, params)
    assert set(calls) == {2}
    assert "micro_rows is 2 as before, for the 4 asked for" in capsys.readouterr().out
    shutil.rmtree(job.folder / "checkpoints")
    calls.clear()
    loop.fit(replace(job, train=replace(TRAIN, micro_rows=8)), params)
    assert calls[:3] == [8, 4, 2]


def test_a_resumed_stage_goes_back_to_its_checkpoint(tmp_path, monkeypatch):
    """A session that ends without memory in a later step; in the next one, the first step fails."""
    calls = failing(monkeypatch, lambda call, rows: call in (8, 9))
    job, params = tiny_job(tmp_path), random_params(CLASSIC)
    with pytest.raises(OutOfMemory, match=r"--set test\.micro_rows=2, predicted"):
        loop.fit(job, params)
    assert calls == [4] * 8
    result = loop.fit(job, params)
    assert calls[8:] == [4] + [2] * (TRAIN.steps - 5)  # from the checkpoint of step 5
    assert result.micro_rows == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no address space")
def test_real_memory_that_runs_out_and_a_kill_leave_the_bits_of_fewer_rows(tmp_path):
    def command(folder, rows, more):
        return [sys.executable, SHORT, str(tmp_path / folder), str(rows), str(more)]

    def output_of(*arguments):
        return subprocess.run(
            command(*arguments), check=True, stdout=subprocess.PIPE, text=True, env=env
        ).stdout

    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("plain", "short"):
        (tmp_path / name).mkdir()
    killed = subprocess.Popen(
        command("short", 8_192, BOUND), stdout=subprocess.PIPE, text=True, env=env
    )
    for line in killed.stdout:
        if "it is tried again with 4096" in line:
            assert "(RESOURCE_EXHAUSTED: Out of memory allocating" in line
            break
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    again = output_of("short", 8_192, BOUND)
    assert "micro_rows is 4096 as before" in again
    assert "tried again" not in again
    assert again.splitlines()[-1] == output_of("plain", 4_096, 0).splitlines()[-1]


def test_the_first_step_of_rl_is_tried_again_too(tmp_path, monkeypatch, capsys):
    config = replace(tiny_rl.CONFIG, steps=2, eval_every=0)
    calls = failing(monkeypatch, lambda call, rows: rows > 3)
    params = tiny_rl.lively_params()
    halved = train_rl(tiny_rl.tiny_job(tmp_path / "halved", config), params)
    assert set(calls) == {6, 3}
    assert "rl: a step with micro_rows 6 does not fit" in capsys.readouterr().out
    config = replace(config, micro_rows=3)
    plain = train_rl(tiny_rl.tiny_job(tmp_path / "plain", config), params)
    assert fingerprint(halved.params) == fingerprint(plain.params)
    assert (halved.micro_rows, halved.rewards) == (3, plain.rewards)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_auto_takes_what_is_predicted_to_fit(rows, tmp_path, monkeypatch, capsys):
    single = memory.Step(CLASSIC, CLASSIC_OPTIM, rows=1, platform="cpu", compute_bytes=4)
    enough = predict(with_rows(single, rows, 8)).peak
    on_a_machine_of(int(enough / (1 - memory.MARGIN)) + 1, monkeypatch)
    calls = failing(monkeypatch, lambda call, rows: False)
    job = tiny_job(tmp_path, train=replace(TRAIN, micro_rows="auto", steps=1))
    assert loop.fit(job, random_params(CLASSIC)).micro_rows == rows
    assert calls == [rows]
    assert f"test: micro_rows is {rows} (auto), predicted to take" in capsys.readouterr().out


def test_auto_is_refused_where_a_single_row_does_not_fit(tmp_path, monkeypatch):
    on_a_machine_of(1_000, monkeypatch)
    job = tiny_job(tmp_path, train=replace(TRAIN, micro_rows="auto"))
    with pytest.raises(OutOfMemory, match=r'test\.micro_rows is "auto", and a single row'):
        loop.fit(job, random_params(CLASSIC))


def test_another_word_than_auto_is_refused():
    with pytest.raises(ConfigError, match=r"micro_rows is 'many'; it must be a number or \"auto"):
        replace(TRAIN, micro_rows="many")


def test_a_later_step_that_runs_out_of_memory_keeps_its_advice(tmp_path, monkeypatch):
    failing(monkeypatch, lambda call, rows: call == 3)
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
