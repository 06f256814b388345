"""Checkpoints: bit for bit, or a clear refusal."""

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CLASSIC, CLASSIC_OPTIM, random_params

from jaxchat.checkpoints.save import Checkpoints, fingerprint, hash_params, load_params, save_params
from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ArtifactError
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.optim.stacking import STACKS, stack
from jaxchat.parallel.mesh import make_mesh, replicated
from jaxchat.train.step import TrainState, init_state

# Where Orbax cannot restore, it leaves coroutines that were never awaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Collects what these tests leave, lest a later one be blamed."""
    yield
    gc.collect()


ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def make_state(seed: int = 0) -> TrainState:
    """A whole training state, optimizer included, with no zeros in it."""
    optimizer = make_optimizer(CLASSIC, CLASSIC_OPTIM, 10)
    shapes = jax.eval_shape(lambda: init_state(random_params(CLASSIC), optimizer))
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.asarray(100 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree.map(fill, shapes), replicated(ONE))


def real_state(shape: tuple[int, int, int], seed: int = 0) -> TrainState:
    """A state as it lies on a mesh of eight devices, with no zeros but those of the filling."""
    mesh, optimizer = make_mesh(MeshConfig(*shape)), make_optimizer(CLASSIC, CLASSIC_OPTIM, 10)
    state = init_state(random_params(CLASSIC, seed), optimizer, mesh)
    # the optimizer's moments: any function of the parameters will do
    view = stack(state.params, 8)
    _, moments = jax.jit(optimizer.update)(view, state.opt_state, view)
    layout = jax.tree.map(lambda x: x.sharding, state.opt_state)
    return state._replace(opt_state=jax.device_put(moments, layout))


def assert_identical(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def damage(folder: Path, which: int) -> Path:
    """Flips a bit in the middle of a file of array data; the largest is file 0."""
    files = sorted(folder.rglob("d/*"), key=lambda path: -path.stat().st_size)
    data = bytearray(files[which].read_bytes())
    data[len(data) // 2] ^= 1
    files[which].write_bytes(data)
    return files[which]


def test_a_state_comes_back_bit_for_bit_with_its_meta(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(3, state, {"seconds": 1.5})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 3
        got, meta = checkpoints.restore(3, make_state(seed=1))
    assert_identical(got, state)
    assert (meta["seconds"], meta["step"]) == (1.5, 3)


def test_what_is_donated_right_after_a_save_is_saved_as_it_was(tmp_path: Path) -> None:
    state = make_state()
    want = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 4):
            checkpoints.save(step, state, {})
            zeros = overwrite(state)
            assert not np.asarray(zeros.params["wte"]["embedding"]).any()
            checkpoints.wait()
            assert_identical(checkpoints.restore(step, zeros)[0], want)
            state = jax.device_put(want, replicated(ONE))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_checkpoint_moves_to_another_mesh(tmp_path: Path) -> None:
    state = make_state()
    eight = make_mesh(MeshConfig(data=8))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        got, _ = checkpoints.restore(1, jax.device_put(make_state(1), replicated(eight)))
    assert_identical(got, state)
    assert got.params["wte"]["embedding"].sharding == replicated(eight)


@pytest.mark.usefixtures("optax_promotion")
def test_a_split_state_comes_back_on_its_own_mesh_and_on_others(tmp_path: Path) -> None:
    state = real_state((2, 2, 2))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        same, _ = checkpoints.restore(1, real_state((2, 2, 2), seed=1))
        assert_identical(same, state)
        jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(b)), same, state)
        # on one device the stacks need no filling
        optimizer = make_optimizer(CLASSIC, CLASSIC_OPTIM, 10)
        one, _ = checkpoints.restore(1, init_state(random_params(CLASSIC, 1), optimizer, ONE))
    assert_identical(one.params, state.params)
    for got, want in zip(
        jax.tree.leaves(one.opt_state), jax.tree.leaves(state.opt_state), strict=True
    ):
        whole = np.asarray(want)
        np.testing.assert_array_equal(got, whole[: len(got)] if got.ndim else whole)
        assert not whole.ndim or not whole[len(got) :].any(), "more than filling was left out"
    assert fingerprint(one) == fingerprint(state)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    wider = jax.tree.map(lambda x: np.zeros((*x.shape, 2), x.dtype), make_state())
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(), {})
        checkpoints.wait()
        for other in (wider, {"other": np.zeros(3, np.float32)}):
            with pytest.raises(ArtifactError, match=r"checkpoints/1 cannot be read .* --force"):
                checkpoints.restore(1, other)


def test_a_save_below_the_newest_step_is_no_silent_success(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, {"x": jnp.ones(3)}, {})
        with pytest.raises(ArtifactError, match=r"step 2 was not saved, for .* has one of step 3;"):
            checkpoints.save(2, {"x": jnp.zeros(3)}, {})
        checkpoints.wait()
        assert checkpoints.latest() == 3


SAVED = {"layer": {"old": jnp.ones((2, 3))}, "opt": {STACKS: {"m": jnp.ones((4, 2, 2))}}}


def of_shapes(matrix: dict[str, Any], stack: tuple[int, ...]) -> dict[str, Any]:
    """A state of zeros as SAVED, of these shapes."""
    return {"layer": matrix, "opt": {STACKS: {"m": jnp.zeros(stack)}}}


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (of_shapes({"new": jnp.zeros((2, 3))}, (4, 2, 2)), "layer.new is missing there"),
        (of_shapes({}, (4, 2, 2)), r"layer.old is float32 \[2, 3\] there and missing here"),
        (
            of_shapes({"old": jnp.zeros((2, 4))}, (4, 2, 2)),
            r"layer.old is float32 \[2, 3\] there and float32 \[2, 4\] here",
        ),
        (of_shapes({"old": jnp.zeros((5, 3))}, (4, 2, 2)), r"layer.old is .* \[5, 3\] here"),
        (
            of_shapes({"old": jnp.zeros((2, 3), jnp.bfloat16)}, (4, 2, 2)),
            "layer.old is .* and bfloat16",
        ),
        (of_shapes({"old": jnp.zeros((2, 3))}, (4, 2, 3)), r"opt.*.m is float32 \[2, 2\] there"),
    ],
    ids=["renamed", "missing", "wider", "taller", "rounded", "stack of other matrices"],
)
def test_names_and_shapes_are_those_that_were_saved(
    tmp_path: Path, like: dict[str, Any], reason: str
) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, SAVED, {})
        checkpoints.wait()
        with pytest.raises(ArtifactError, match=rf"it is of another model: {reason}.*--force"):
            checkpoints.restore(1, like)


@pytest.mark.parametrize("size", [4, 6])
def test_only_the_first_axis_of_the_stacks_may_differ(tmp_path: Path, size: int) -> None:
    state = of_shapes({"old": jnp.ones((2, 3))}, (4, 2, 2))
    filled = jnp.zeros((4, 2, 2)).at[:3].set(2.0)  # the last matrix is filling
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {**state, "opt": {STACKS: {"m": filled}}}, {})
        checkpoints.wait()
        got, _ = checkpoints.restore(1, of_shapes({"old": jnp.zeros((2, 3))}, (size, 2, 2)))
        with pytest.raises(ArtifactError, match="its fingerprint is not the one"):
            checkpoints.restore(1, of_shapes({"old": jnp.zeros((2, 3))}, (2, 2, 2)))
    assert got["opt"][STACKS]["m"].shape == (size, 2, 2)
    np.testing.assert_array_equal(got["opt"][STACKS]["m"][:3], 2.0)
    assert not got["opt"][STACKS]["m"][3:].any()


@pytest.mark.parametrize("file", range(3))
def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path, file: int) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(), {})
    damaged = damage(tmp_path / "checkpoints" / "1", file)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(ArtifactError, match=r"checkpoints/1 .*--force") as caught:
            checkpoints.restore(1, make_state(1))
        assert "\n" not in str(caught.value), damaged


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any, str]:
    params = random_params(CLASSIC)
    digest = save_params(tmp_path / "model", params, {"stage": "base"})
    return tmp_path / "model", params, digest


def test_weights_come_back_bit_for_bit(saved: tuple[Path, Any, str]) -> None:
    folder, params, digest = saved
    got, meta = load_params(folder, random_params(CLASSIC, 1))
    assert_identical(got, params)
    assert meta["stage"] == "base"
    assert meta["sha256"] == digest == hash_params(got)


def test_the_hash_sees_names_shapes_types_and_bits() -> None:
    trees = [
        {"a": jnp.zeros(4)}, {"b": jnp.zeros(4)}, {"a": jnp.zeros((2, 2))},
        {"a": jnp.zeros(4, jnp.int32)}, {"a": -jnp.zeros(4)}, {"a": {"a": jnp.zeros(4)}},
        {"a": jnp.zeros(2), "b": jnp.zeros(2)},
    ]  # fmt: skip
    assert len({hash_params(tree) for tree in trees}) == len(trees)


@pytest.mark.parametrize("file", range(3))
def test_a_flipped_bit_in_the_weights_is_found(saved: tuple[Path, Any, str], file: int) -> None:
    folder, params, _ = saved
    damaged = damage(folder / "params", file)
    with pytest.raises(
        ArtifactError, match=r"model/params/.* missing or damaged .*--force"
    ) as caught:
        load_params(folder, params)
    assert "\n" not in str(caught.value), damaged


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "jaxchat-checkpoint-0"}'])
def test_weights_whose_meta_is_damaged_are_refused(
    saved: tuple[Path, Any, str], content: str
) -> None:
    folder, params, _ = saved
    (folder / "meta.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"model.*--force"):
        load_params(folder, params)


@pytest.mark.parametrize(
    "change", [{"n_embd": 64}, {"n_layer": 3}, {"n_layer": 1}, {"smear": True}, {"vocab_size": 301}]
)
def test_weights_of_another_model_are_refused(
    saved: tuple[Path, Any, str], change: dict[str, Any]
) -> None:
    other = random_params(dataclasses.replace(CLASSIC, **change))
    with pytest.raises(ArtifactError, match=r"weights in .*model cannot be read .*--force"):
        load_params(saved[0], other)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"meta\.json does not exist"):
        load_params(tmp_path / "model", random_params(CLASSIC))


def test_the_fingerprint_sees_names_shapes_types_and_every_bit() -> None:
    trees = [
        {"a": jnp.zeros(4)}, {"b": jnp.zeros(4)}, {"a": jnp.zeros((2, 2))},
        {"a": jnp.zeros(4, jnp.int32)}, {"a": -jnp.zeros(4)}, {"a": {"a": jnp.zeros(4)}},
        {"a": jnp.zeros(2), "b": jnp.zeros(2)}, {"a": jnp.arange(4.0)},
        {"a": jnp.arange(4.0)[::-1]},
    ]  # fmt: skip
    seen = {fingerprint(tree) for tree in trees}
    assert len(seen) == len(trees)
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for place in range(15):
        for bit in (0, 13, 31):
            flipped = array.copy()
            flipped.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
            seen.add(fingerprint({"a": flipped}))
    assert len(seen) == len(trees) + 45
