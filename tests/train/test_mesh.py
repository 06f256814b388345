"""Every mesh computes what one device computes, and talks as little as it should."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import mesh_training
import numpy as np
import pytest
from mesh_training import MODELS, OPTIMIZERS, STEPS, fresh_state, make_batch, train
from scaling_nodes import exchanged_bytes
from tiny_training import CLASSIC, CLASSIC_OPTIM, random_params

from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.train.step import make_train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

SHAPES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (2, 4, 1)]
BY_DEFAULT = [("classic", (8, 1, 1)), ("modern", (2, 2, 2))]


@cache
def on_one_device(preset: str) -> tuple[list[float], Any]:
    return train(preset, MeshConfig(), devices=1, accumulation=1)


def assert_as_on_one_device(got: tuple[list[float], Any], preset: str) -> None:
    losses, params = on_one_device(preset)
    assert abs(losses[-1] - losses[0]) > 0.05, "no training"
    np.testing.assert_allclose(got[0], losses, rtol=2e-5)

    def check(path: Any, a: np.ndarray, b: np.ndarray) -> None:
        # Single elements whose gradient is nothing but rounding may go anywhere in Adam.
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 1e-3, f"{jax.tree_util.keystr(path)} is off by {error:.1e}"

    jax.tree_util.tree_map_with_path(check, got[1], params)


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        pytest.param(
            preset,
            shape,
            id=f"{preset}-{shape}",
            marks=[] if (preset, shape) in BY_DEFAULT else pytest.mark.slow,
        )
        for preset in ("classic", "modern")
        for shape in SHAPES
    ],
)
def test_twenty_steps_on_a_mesh_are_those_of_one_device(
    preset: str, shape: tuple[int, int, int]
) -> None:
    assert_as_on_one_device(train(preset, MeshConfig(*shape), 8, accumulation=2), preset)


# ------------------------------------------------------------------- collectives


def compiled_step(shape: tuple[int, int, int], accumulation: int) -> str:
    """The optimised HLO of a step."""
    mesh = make_mesh(MeshConfig(*shape))
    optimizer = make_optimizer(MODELS["classic"], OPTIMIZERS["classic"], STEPS)
    step: Any = make_train_step(MODELS["classic"], optimizer, mesh)
    batch = put_batch(mesh, make_batch(0, accumulation, rows=8 * accumulation))
    text: str = step.lower(fresh_state("classic", optimizer, mesh), batch).compile().as_text()
    return text


def collectives(hlo: str) -> Counter[tuple[bool, str, str]]:
    """How often each (in the entry computation, kind, shape) stands in the HLO."""
    found: Counter[tuple[bool, str, str]] = Counter()
    entry = False
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        match = re.search(
            r"= (.*?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)"
            r"(?:-start)?\(",
            line,
        )
        if match:
            shape = re.sub(r"\{[\d,]*\}|/\*.*?\*/", "", match[1])
            found[entry, match[2], shape] += 1
    return found


def test_gradients_are_reduced_once_a_step_however_many_micro_batches() -> None:
    once, often = (collectives(compiled_step((2, 4, 1), n)) for n in (1, 4))
    assert once == often, "the number of micro-batches changes what the devices exchange"
    assert all(entry for entry, _, _ in often), "a collective stands inside a loop"

    def count(kind: str) -> int:
        return sum(n for (_, which, _), n in often.items() if which == kind)

    # 5 stacks, the embedding and the head; the loss, its weight and parts of the norm are summed
    assert count("reduce-scatter") == 7
    assert not any(re.search(r"\[\d", s) for _, kind, s in often if kind == "all-reduce"), (
        "more than scalars is summed without being scattered"
    )
    assert count("all-to-all") == 5  # the updates of the stacks, back to slices of matrices
    matrices = len(jax.tree.leaves(random_params(CLASSIC)))
    assert count("all-gather") == matrices + 7  # whole parameters; the updates


@pytest.mark.slow
def test_the_updates_that_are_put_together_have_the_bytes_that_are_predicted() -> None:
    found = collectives(compiled_step((8, 1, 1), 1))
    shapes = [
        shape for (_, kind, shape), n in found.items() for _ in range(n) if kind == "all-gather"
    ]
    sizes = [re.findall(r"f32\[([\d,]+)\]", shape) for shape in shapes]
    values = sum(math.prod(map(int, dims.split(","))) for each in sizes for dims in each)
    assert 4 * values == exchanged_bytes(MODELS["classic"], 8)


@pytest.mark.slow
def test_inside_the_loop_over_micro_batches_only_the_tensor_axis_talks() -> None:
    text = compiled_step((2, 2, 2), 4)
    inside = [key for key in collectives(text) if not key[0]]
    assert inside, "the tensor axis must sum activations"
    assert {kind for _, kind, _ in inside} == {"all-reduce"}
    body = text[: text.index("ENTRY")]
    groups = set(re.findall(r"all-reduce.*?replica_groups=(\S+?),? ", body))
    # eight devices in four pairs of neighbours: the tensor axis is the innermost
    assert groups <= {"[4,2]<=[8],", "[4,2]<=[8]", "{{0,1},{2,3},{4,5},{6,7}}"}


# ------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("shape", "whole", "params"),
    [((8, 1, 1), 8, 1), ((1, 8, 1), 8, 8), ((2, 2, 2), 8, 4), ((1, 1, 8), 8, 8)],
)
def test_the_optimizers_state_is_spread_over_all_devices(
    shape: tuple[int, int, int], whole: int, params: int
) -> None:
    mesh = make_mesh(MeshConfig(*shape))
    optimizer = make_optimizer(MODELS["classic"], OPTIMIZERS["classic"], STEPS)
    state = fresh_state("classic", optimizer, mesh)

    def ways(tree: Any) -> float:
        leaves = jax.tree.leaves(tree)
        here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        return sum(leaf.size for leaf in leaves) / here

    assert ways(state.opt_state) == pytest.approx(whole, rel=0.01)
    assert ways(state.params) == pytest.approx(params, rel=0.01)


# ------------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    "shape",
    [
        (8, 1, 1),
        pytest.param((4, 1, 2), marks=pytest.mark.slow),
        pytest.param((1, 4, 2), marks=pytest.mark.slow),  # parameters cut over both
    ],
    ids=str,
)
def test_two_processes_of_four_devices_train_like_one_device(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    want = mesh_training.fit_on_one_device(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On a busy machine one process may well wait longer for the other than XLA's 30 seconds.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_timeout_seconds=600"
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    command = [sys.executable, mesh_training.__file__, str(tmp_path), str(port)]
    children = [
        subprocess.Popen(
            [*command, str(process), *map(str, shape)],
            env=os.environ | {"XLA_FLAGS": flags},
            stderr=(tmp_path / f"errors_{process}").open("w"),
        )
        for process in range(2)
    ]
    try:
        for process, child in enumerate(children):
            failed = child.wait()
            assert not failed, (tmp_path / f"errors_{process}").read_text()[-5000:]
    finally:
        for child in children:
            child.kill()
            child.wait()
    results = [
        json.loads((tmp_path / f"result_{process}.json").read_text()) for process in range(2)
    ]
    assert results[0] == results[1], "the processes do not agree"
    whole, resumed, stopped, continued = results[0]
    assert resumed == whole, "it does not continue as if nothing had happened"
    assert stopped["code"] == 75
    assert stopped["at"] in range(2, 8), "what was done when the signal came was not saved"
    assert stopped["at"] != 5, "it is the step of an ordinary checkpoint: this shows nothing"
    assert continued == whole, "stopped by a signal to one process, it continues differently"
    for name in ("losses", "bits_per_byte"):
        np.testing.assert_allclose(whole[name], want[name], rtol=2e-5)


# ------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"n_head": 6, "n_kv_head": 6},
            r"model\.n_head is 6 and mesh\.tensor is 4: .* one of 1, 2",
        ),
        ({"n_head": 4, "n_kv_head": 2}, r"model\.n_kv_head is 2 and mesh\.tensor is 4: .* 1, 2\."),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_the_numbers(
    change: dict[str, int], said: str
) -> None:
    model = replace(CLASSIC, n_embd=48, **change)
    optimizer = make_optimizer(model, CLASSIC_OPTIM, STEPS)
    with pytest.raises(ConfigError, match=said):
        make_train_step(model, optimizer, make_mesh(MeshConfig(tensor=4)))
