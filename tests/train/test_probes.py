"""Samples and CORE while a model trains: what is logged, and that nothing else changes by it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from finished_run import tiny_tokenizer
from hub_replica import TASKS
from tiny_training import CLASSIC, TRAIN, VOCAB, random_params, tiny_job

from jaxchat.checkpoints.save import hash_params
from jaxchat.config import loading
from jaxchat.evals.chat import COMPLETIONS
from jaxchat.runs import run_dir
from jaxchat.runs.report.curves import make_curve
from jaxchat.runs.report.drawings import Drawn, stage_figures
from jaxchat.runs.runner import Context
from jaxchat.runs.stages import training_settings
from jaxchat.runs.train_stages import Probe, probe_of
from jaxchat.signals import Interrupted
from jaxchat.train.loop import FitJob, fit
from jaxchat.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("optax_promotion")

WATCHED = replace(TRAIN, sample_every=3, core_every=6, core_examples=5)
DOCUMENT = {
    "run": {"name": "tiny", "depth": CLASSIC.n_layer},
    "tokenizer": {"vocab_size": VOCAB},
    "model": {"n_embd": 32, "n_head": 2, "n_kv_head": 2, "sequence_len": 128},
    "eval": {"bundle": str(TASKS)},
}


@pytest.fixture
def watched(tmp_path: Path) -> FitJob:
    """The job of the tests of `fit`, asked for samples and for CORE."""
    config = replace(loading.from_document(DOCUMENT, "tiny"), base=WATCHED)
    run = run_dir.folder(tmp_path / "home", config.name)
    tiny_tokenizer().save(run / "tokenizer")
    job = replace(tiny_job(tmp_path), train=WATCHED)
    probe = probe_of(Context(config, run), "base", WATCHED, job.mesh, job.dtype)
    return replace(job, probe=probe)


def logged(job: FitJob, *names: str) -> list[dict[str, Any]]:
    """The records that have any of these, but for their times."""
    records = read_metrics(job.folder / "metrics.jsonl")
    found = [record for record in records if any(name in record for name in names)]
    return [{k: v for k, v in record.items() if k != "time"} for record in found]


def stopping_at(step: int, probe: Probe) -> Callable[[int, Any], dict[str, Any]]:
    """The probe, after which the process is asked to end, as Ctrl-C does."""

    def asked(done: int, params: Any) -> dict[str, Any]:
        found = probe(done, params)
        if done == step:
            raise KeyboardInterrupt
        return found

    return asked


def test_samples_and_core_are_logged_and_training_is_the_same_to_the_bit(
    watched: FitJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fit(tiny_job(tmp_path / "plain"), random_params(CLASSIC))
    result = fit(watched, random_params(CLASSIC))
    assert hash_params(result.params) == hash_params(plain.params)
    names = "loss", "bits_per_byte"
    assert logged(watched, *names) == logged(tiny_job(tmp_path / "plain"), *names)

    sampled = logged(watched, "samples")
    assert [record["step"] + 1 for record in sampled] == [3, 6, 9], "the last is the evaluation's"
    assert [s["prompt"] for s in sampled[0]["samples"]] == list(COMPLETIONS)
    (cored,) = logged(watched, "core")
    assert cored["step"] + 1 == 6
    name = "CORE of 4 of 22 tasks, at most 5 examples a task, not comparable"
    assert cored["core_name"] == name
    printed = capsys.readouterr().out
    assert f"base after step 6: {name}: {cored['core']:.4f}" in printed
    assert f"base after step 3: {COMPLETIONS[0]} |> " in printed

    curve = make_curve(read_metrics(watched.folder / "metrics.jsonl"), 128)
    assert curve["probed"]["step"] == [6]
    figures = stage_figures("base", "Base model", [Drawn("base", "base", curve)])
    assert any("core meanwhile over tokens" in figure for figure in figures)


def test_stopped_while_it_is_asked_it_resumes_with_the_same_records(
    watched: FitJob, tmp_path: Path
) -> None:
    assert watched.probe is not None
    stopped = replace(watched, probe=stopping_at(6, watched.probe))
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit(stopped, random_params(CLASSIC))
    assert max(record["step"] for record in logged(watched, "loss")) < TRAIN.steps - 1
    resumed = fit(watched, random_params(CLASSIC))
    records = logged(watched, "loss", "core", "samples")

    shutil.rmtree(watched.folder)
    whole = fit(watched, random_params(CLASSIC))
    assert hash_params(resumed.params) == hash_params(whole.params)
    assert records == logged(watched, "loss", "core", "samples")


def test_nothing_that_is_learned_depends_on_it() -> None:
    assert training_settings(WATCHED) == training_settings(TRAIN)
    assert jax.tree.leaves(training_settings(replace(TRAIN, steps=13))) != jax.tree.leaves(
        training_settings(TRAIN)
    )
