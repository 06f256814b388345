"""Training with the preset of September 2026: stopped and resumed, on a mesh, and end to end."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_training import VOCAB, T, random_params, tiny_job

import run_speedrun
from jaxchat.checkpoints.save import hash_params
from jaxchat.config.derive import derive_horizon, derive_model
from jaxchat.config.schema import MeshConfig
from jaxchat.data.loader import RowSource
from jaxchat.parallel.mesh import make_mesh
from jaxchat.runs import runner
from jaxchat.signals import Interrupted
from jaxchat.tokenizer import Tokenizer
from jaxchat.train.loop import FitJob, fit

pytestmark = pytest.mark.usefixtures("optax_promotion")

SIZES = {"n_head": 4, "n_kv_head": 2, "n_embd": 32, "window_pattern": "SL", "short_window": 5}
MODEL = dataclasses.replace(derive_model(2, "september", VOCAB, T), **SIZES)
OPTIM = dataclasses.replace(
    derive_horizon(derive_model(12, "september", VOCAB), "september", 12.0).optim,
    warmup_steps=2, momentum_warmup_steps=5,
)  # fmt: skip


def job_in(folder: Path, **changes: Any) -> FitJob:
    return tiny_job(folder, model=MODEL, optim=OPTIM, **changes)


class Stopping(RowSource):
    """Rows that send SIGTERM while those of step 6 are read."""

    reads = 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        Stopping.reads += 1
        if Stopping.reads == 6 * 8 + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def test_a_stopped_run_resumes_and_a_mesh_gives_the_same(tmp_path: Path) -> None:
    whole = fit(job_in(tmp_path / "whole"), random_params(MODEL))
    with pytest.raises(Interrupted):
        fit(job_in(tmp_path / "stopped", rows=Stopping), random_params(MODEL))
    resumed = fit(job_in(tmp_path / "stopped"), random_params(MODEL, seed=9))
    assert hash_params(resumed.params) == hash_params(whole.params)
    assert resumed.loss == whole.loss

    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    shared = fit(job_in(tmp_path / "mesh", mesh=mesh), random_params(MODEL))
    assert shared.loss == pytest.approx(whole.loss, rel=1e-4)


@pytest.mark.slow
def test_from_text_to_a_report_with_five_special_tokens(tmp_path: Path, capsys: Any) -> None:
    settings = [
        "run.preset=september", "tokenizer.tool_tokens=false", "tokenizer.vocab_size=600",
        "model.short_window=64", "run.depth=2", "data.max_chars=400_000",
        "base.steps=3", "mid.steps=3", "sft.steps=3", "rl.steps=1", "rl.task=choice",
        "mid.conversations=400", "mid.mixture={identity=1,spelling=1,choice=1}",
        "sft.conversations=300", "sft.mixture={identity=1,choice=1}",
        "rl.problems_per_step=2", "rl.samples_per_problem=2", "rl.eval_every=0", "rl.micro_rows=4",
        "rl.max_new_tokens=8", 'eval.tasks=["choice"]', "eval.problems=4", "eval.slots=4",
        "eval.max_new_tokens=8", "eval.reward_samples=2",
    ]  # fmt: skip
    command = ["--tier", "cpu", "--home", str(tmp_path), "--offline"]
    for setting in settings:
        command += ["--set", setting]
    assert run_speedrun.main(command) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "cpu"
    report = json.loads((run / "report.json").read_text())
    assert report["run"]["preset"] == "september"
    assert not Tokenizer.load(run / "tokenizer").has_tools
    for stage in ("base", "mid", "sft"):
        done = runner.read_done(run, stage)
        assert done is not None
        assert np.isfinite(done["results"]["loss"])
