"""A stage whose optimizer starts with the averages of the stage before it."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_training import MODERN, MODERN_OPTIM, TOKENIZER, TRAIN, random_params, tiny_job

from jaxchat.checkpoints.save import Checkpoints, hash_params, remove_checkpoints
from jaxchat.config.schema import MeshConfig, StageOptimConfig
from jaxchat.data.loader import RowSource
from jaxchat.errors import ArtifactError
from jaxchat.optim.muon import MomentumState
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh
from jaxchat.signals import Interrupted
from jaxchat.train.loop import FitJob, PreviousStage, fit
from jaxchat.train.step import init_state

pytestmark = pytest.mark.usefixtures("optax_promotion")

LATER = StageOptimConfig(warmdown_ratio=0.5, warm_start=True).within(MODERN_OPTIM)


def base_job(folder: Path, **changes: Any) -> FitJob:
    return tiny_job(folder, model=MODERN, optim=MODERN_OPTIM, title="base", **changes)


def later_job(base: FitJob, name: str = "later", **changes: Any) -> FitJob:
    before = PreviousStage(base.folder, base.optim)
    settings = {"optim": LATER, "before": before, "folder": base.folder.parent / name, **changes}
    return replace(base, title="mid", **settings)


def momentum_of(job: FitJob, step: int) -> Any:
    """Muon's average in a checkpoint."""
    optimizer = make_optimizer(job.model, job.optim, 1)
    like = init_state(random_params(job.model), optimizer, job.mesh)
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(step, like)

    def is_it(node: Any) -> bool:
        return isinstance(node, MomentumState)

    found = [node for node in jax.tree.leaves(state.opt_state, is_leaf=is_it) if is_it(node)]
    return jax.tree.map(np.asarray, found[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitJob, Any]:
    job = base_job(tmp_path_factory.mktemp("base"))
    with jax.numpy_dtype_promotion("standard"):
        return job, fit(job, random_params(MODERN)).params


def test_a_stage_starts_where_the_averages_were(base: tuple[FitJob, Any]) -> None:
    job, params = base
    later = later_job(job, train=replace(TRAIN, steps=1, save_every=1))
    cold = later_job(job, "cold", before=None, train=later.train)
    fit(later, params)
    fit(cold, params)
    warm, fresh = momentum_of(later, 1), momentum_of(cold, 1)
    before = momentum_of(job, TRAIN.steps)
    assert int(warm.steps) == 1, "its schedule started anew"

    def check(w: np.ndarray, f: np.ndarray, b: np.ndarray) -> None:
        # m <- beta m + (1 - beta) g: the same gradient in both, 0 or base's average before
        np.testing.assert_allclose(w - f, 0.95 * b, rtol=1e-4, atol=1e-7)

    jax.tree.map(check, warm.momentum, fresh.momentum, before.momentum)


class StoppingRows(RowSource):
    """Rows that ask for a stop after a number of reads."""

    left = 60

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def test_a_warm_stage_that_is_interrupted_ends_as_if_it_was_not(base: tuple[FitJob, Any]) -> None:
    job, params = base
    whole = fit(later_job(job, "whole"), params)
    stopped = later_job(job, "stopped", rows=StoppingRows(job.folder.parent / "rows", TOKENIZER))
    with pytest.raises(Interrupted):
        fit(stopped, params)
    resumed = fit(later_job(job, "stopped"), params)
    assert hash_params(resumed.params) == hash_params(whole.params)


def test_the_mesh_may_be_another_than_that_of_the_stage_before(base: tuple[FitJob, Any]) -> None:
    job, params = base
    alone = fit(later_job(job, "alone"), params)
    eight = later_job(
        job, "eight", mesh=make_mesh(MeshConfig()), train=replace(TRAIN, micro_rows=1)
    )
    together = fit(eight, params)
    assert together.loss == pytest.approx(alone.loss, rel=1e-4)


def test_one_checkpoint_is_kept_for_the_stage_after(
    base: tuple[FitJob, Any], tmp_path: Path
) -> None:
    job = base_job(tmp_path, train=replace(TRAIN, steps=3, save_every=1, keep=3))
    fit(job, random_params(MODERN))
    folder = job.folder / "checkpoints"
    remove_checkpoints(folder, last=False)
    assert [path.name for path in folder.iterdir()] == ["3"]
    fit(later_job(job), random_params(MODERN))
    remove_checkpoints(folder, last=True)
    assert not folder.exists()
    with pytest.raises(ArtifactError, match=r"mid_optim.warm_start=false"):
        fit(later_job(job, "again"), random_params(MODERN))
