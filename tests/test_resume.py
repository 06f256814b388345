"""A run killed with SIGKILL in every stage ends with the figures of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("data", "tokenizer", "rows", "base", "mid", "sft", "rl", "eval", "report")
TRAINED = ("base", "mid", "sft", "rl")
TINY = [
    *("run.depth=2", "model.n_embd=32", "model.sequence_len=128", "tokenizer.vocab_size=400"),
    *("data.max_chars=400000", "data.words=300", "eval.problems=4", "eval.max_new_tokens=16"),
    *("eval.slots=8", "eval.reward_samples=2", "base.steps=14", "base.eval_rows=16"),
    *("mid.conversations=200", "mid.steps=14", "mid.eval_rows=8"),
    *("sft.conversations=100", "sft.steps=14", "sft.eval_rows=8"),
    *("rl.steps=6", "rl.problems_per_step=2", "rl.samples_per_problem=4"),
    *("rl.max_new_tokens=16", "rl.micro_rows=8", "rl.save_every=2"),
    *("rl.eval_every=3", "rl.eval_problems=2", "rl.eval_samples=2"),
    *(f"{stage}.save_every=4" for stage in ("base", "mid", "sft")),
    *(f"{stage}.eval_every=7" for stage in ("base", "mid", "sft")),
    *(f"{stage}.batch_tokens=512" for stage in ("base", "mid", "sft")),
    *(f"{stage}.micro_rows=4" for stage in ("base", "mid", "sft")),
]


def start(home: Path) -> subprocess.Popen[str]:
    """The CPU tier, shrunk until it takes seconds."""
    settings = [part for setting in TINY for part in ("--set", setting)]
    command = [sys.executable, "run_speedrun.py", "--tier", "cpu", "--home", str(home), *settings]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for a run to end well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"the run failed:\n{output}"


def kill_inside(home: Path, stage: str, rng: random.Random) -> bool:
    """Starts the run and kills it with SIGKILL inside `stage`; False if that ended too early."""
    run = home / "runs" / "cpu"
    process = start(home)
    steps = rng.randint(1, 5) if stage in TRAINED else 0
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (run / stage / "done.json").exists():
                return False
            if (run / stage / "begun.json").exists() and steps_of(run / stage) >= steps:
                time.sleep(0 if stage in TRAINED else rng.uniform(0, 0.1))
                return not (run / stage / "done.json").exists()
            time.sleep(0.002)
        raise AssertionError(f"{stage} was never reached: {process.communicate()[0]}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def steps_of(folder: Path) -> int:
    """Training steps that metrics.jsonl tells of."""
    log = folder / "metrics.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def figures(home: Path) -> dict[str, object]:
    """All results of all stages: hashes of artefacts, losses, scores, samples; no times."""
    run = home / "runs" / "cpu"
    return {s: json.loads((run / s / "done.json").read_text())["results"] for s in STAGES}


def test_a_run_killed_in_every_stage_ends_with_the_figures_of_one_left_alone(
    tmp_path: Path,
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(alone))
    rng = random.Random(0)
    inside = [stage for stage in STAGES[:-1] if kill_inside(killed, stage, rng)]
    # The shortest stages can end between two looks; training cannot.
    assert set(TRAINED) <= set(inside), f"killed only inside {inside}"
    finish(start(killed))
    expected, found = figures(alone), figures(killed)
    for stage in STAGES:
        assert found[stage] == expected[stage], f"{stage} differs after being killed in {inside}"
    assert not list(killed.rglob(".*.tmp")), "temporary files were left behind"

    again = start(killed)
    output, _ = again.communicate(timeout=120)
    assert output.count("complete, skipped") == len(STAGES), f"a stage ran again:\n{output}"
