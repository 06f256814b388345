"""The model, its gradients, the optimizer and bits per byte are nanochat's, number by number.

The numbers were computed by nanochat itself (November 2025: classic, July 2026: modern, September
2026: september) and stored by bench/nanochat_peer/golden.py, whose docstring says what is in the
files. If you meant to leave nanochat's definition of something, say so in docs/log.md; never relax
a tolerance.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gpt_reference import logits_of

from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.checkpoints.tensors import to_params
from jaxchat.config.derive import derive_horizon, derive_model
from jaxchat.config.schema import OptimConfig
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.model import gpt, rope
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.train.step import batch_loss

GOLDEN = Path(__file__).parents[1] / "golden"
PRESETS = ("classic", "modern", "september")
OURS = {"short_seq_len": "short_window"}  # nanochat's names that are not ours


@dataclasses.dataclass(frozen=True)
class Golden:
    """One preset's file."""

    preset: str
    arrays: dict[str, np.ndarray]

    @property
    def settings(self):
        return json.loads(str(self.arrays["settings"]))

    @property
    def model(self):
        model = derive_model(12, self.preset, self.settings["model"]["vocab_size"])
        sizes = {OURS.get(name, name): size for name, size in self.settings["model"].items()}
        return dataclasses.replace(model, **sizes)

    def named(self, prefix):
        """nanochat's names and arrays below `prefix/`."""
        found = {k: v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}
        return {k.removeprefix(f"{prefix}/"): v for k, v in found.items()}

    def params(self, prefix="weight"):
        return to_params(self.named(prefix), self.model, nanochat_name)

    def batch(self):
        """Rows [B, T+1] and their mask; a masked target may be any token: it takes 0."""
        targets = self.arrays["targets"]
        tokens = np.concatenate([self.arrays["tokens"], np.maximum(targets[:, -1:], 0)], axis=1)
        mask = np.concatenate([np.ones_like(targets[:, :1]), targets >= 0], axis=1)
        return {"tokens": tokens.astype(np.int32), "mask": mask.astype(np.float32)}


@pytest.fixture(scope="module", params=PRESETS)
def golden(request):
    with np.load(GOLDEN / f"nanochat_{request.param}.npz", allow_pickle=False) as file:
        return Golden(request.param, {name: file[name] for name in file.files})


def assert_trees_close(got, want, **tolerance):
    """Leaf by leaf, with the name in the message."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


def forward(golden):
    """Our logits of its rows; traced anew at each call."""
    run = jax.jit(lambda params, tokens: gpt.forward(params, tokens, golden.model))
    return run(golden.params(), golden.batch()["tokens"][:, :-1])


def test_logits(golden):
    logits = forward(golden)
    assert np.abs(golden.arrays["logits"]).max() > 12, "the softcap is not felt"
    np.testing.assert_allclose(logits, golden.arrays["logits"], atol=1e-4)


def test_the_oracle_of_every_switch_is_nanochat_too(golden):
    """test_gpt.py compares each switch alone with it."""
    logits = logits_of(golden.params(), golden.arrays["tokens"][1], golden.model)
    np.testing.assert_allclose(logits, golden.arrays["logits"][1], atol=1e-4)


def test_loss_and_gradients(golden):
    def mean(params):
        total, weight = batch_loss(params, golden.batch(), golden.model)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean))(golden.params())
    assert float(loss) == pytest.approx(float(golden.arrays["loss"]), abs=1e-5)
    want = golden.params("grad")
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(want), strict=True
    ):
        largest = np.abs(b).max()
        assert largest > 0
        np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path)
        )
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b), jax.tree_util.keystr(path)


def test_bits_per_byte(golden):
    one_by_one = [{k: v[i : i + 1] for k, v in golden.batch().items()} for i in (0, 1)]
    found = bits_per_byte(golden.params(), one_by_one, golden.arrays["token_bytes"], golden.model)
    assert found == pytest.approx(float(golden.arrays["bpb"]), abs=1e-5)


def step_gradient(gradient, step):
    """As in bench/nanochat_peer/golden.py, in nanochat's layout and with its padding."""
    return np.float32((0.1, 3.0, 1.0)[step % 3]) * np.roll(gradient, 7 * step)


def optim_config(golden):
    settings = golden.settings
    common = {**settings["optim"], "grad_clip": settings["clip"]}
    if golden.preset == "classic":
        return OptimConfig(**common)
    optim = derive_horizon(derive_model(12, golden.preset, 300), golden.preset, 12.0).optim
    common |= {"weight_decay": settings["decay"], "grad_clip": 0.0}
    return dataclasses.replace(optim, **common)


@pytest.mark.usefixtures("optax_promotion")
def test_ten_steps_of_the_optimizer(golden):
    optimizer = make_optimizer(golden.model, optim_config(golden), golden.settings["horizon"])

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, golden.params())
    state = optimizer.init(params)
    for index in range(10):
        grads = {k: step_gradient(v, index) for k, v in golden.named("grad").items()}
        params, state = step(params, state, to_params(grads, golden.model, nanochat_name))
        if index in (0, 9):
            want = golden.params(f"after{index + 1}")
            assert_trees_close(params, want, atol=1e-5, rtol=1e-6)


def test_the_classic_version_as_shipped_rounds_its_rotary_tables(golden, monkeypatch):
    """The only difference in fp32: ours are in the dtype of the computation, as since 2026."""
    if golden.preset != "classic":
        return
    tables = rope.rotary

    def rounded(positions, size, base, dtype):
        return tuple(x.astype(dtype) for x in tables(positions, size, base, jnp.bfloat16))

    monkeypatch.setattr(rope, "rotary", rounded)
    shipped = golden.arrays["logits_as_shipped"]
    assert np.abs(shipped - golden.arrays["logits"]).max() > 0.01
    np.testing.assert_allclose(forward(golden), shipped, atol=1e-4)
