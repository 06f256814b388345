"""A run killed wherever it hurts ends with the bits of one that was left alone."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import hub_replica
import pytest
from crashes import SAVING, STAGES, Crashing, Death, Moment, assert_as_alone, draw_moments, warmed
from hub_server import Fault
from test_real_tier import SMALL

SHRUNK = {
    "run.depth": 2,
    "model.n_embd": 32,
    "model.sequence_len": 128,
    "tokenizer.vocab_size": 400,
    "data.max_chars": 400_000,
    "data.words": 300,
    "eval.problems": 4,
    "eval.max_new_tokens": 16,
    "eval.slots": 8,
    "eval.reward_samples": 2,
    "base.eval_rows": 16,
    "mid.conversations": 200,
    "mid_optim.warm_start": "true",
    "sft_optim.warm_start": "true",
    "sft.conversations": 100,
    "rl.steps": 6,
    "rl.problems_per_step": 2,
    "rl.samples_per_problem": 4,
    "rl.max_new_tokens": 16,
    "rl.micro_rows": 8,
    "rl.save_every": 2,
    "rl.eval_every": 3,
    "rl.eval_problems": 2,
    "rl.eval_samples": 2,
    **{
        f"{stage}.{key}": value
        for stage in ("base", "mid", "sft")
        for key, value in {
            "steps": 14, "save_every": 4, "eval_every": 7, "batch_tokens": 512, "micro_rows": 4,
        }.items()
    },
}  # fmt: skip
# One in every kind of work; two are a scheduler's notice, the others SIGKILL.
MOMENTS = (
    Moment("os.rename", "/runs/cpu/tokenizer/tokenizer.json", number=signal.SIGTERM),
    Moment("os.rename", "/runs/cpu/rows/mid_train"),
    Moment("os.mkdir", f"/runs/cpu/base/checkpoints/8{SAVING}", delay=0.02),
    Moment("os.rename", f"/runs/cpu/mid/checkpoints/4{SAVING}/state"),
    Moment("os.rename", "/runs/cpu/sft/model", number=signal.SIGUSR1),
    Moment("open", "/runs/cpu/rl/metrics.jsonl", count=4),
    Moment("os.rename", "/runs/cpu/eval/parts/mid-task-spelling.json"),
)


def arguments(tier: str, settings: dict[str, object]) -> tuple[str, ...]:
    return ("--tier", tier, *(f"--set={key}={value}" for key, value in settings.items()))


def test_a_run_killed_in_every_kind_of_work_ends_like_one_left_alone(tmp_path: Path) -> None:
    alone = Crashing(tmp_path / "alone", "cpu", arguments("cpu", SHRUNK))
    alone.finish()
    kept = sorted(alone.home.glob("runs/cpu/*/checkpoints/*"))
    assert [str(path.relative_to(alone.home / "runs/cpu")) for path in kept] == [
        "base/checkpoints/14", "mid/checkpoints/14",
    ], "the optimizers that mid and sft start with"  # fmt: skip
    killed = warmed(alone, tmp_path / "killed")
    deaths = [killed.live(moment) for moment in MOMENTS]
    met = [death for death in deaths if death is not None]
    assert len(met) == len(MOMENTS), f"it was killed only at {met}"
    assert [death.stage for death in met] == [
        "tokenizer",
        "rows",
        "base",
        "mid",
        "sft",
        "rl",
        "eval",
    ]
    assert met[2].saving
    killed.finish()
    assert_as_alone(killed, alone, met)
    printed = killed.finish()
    assert printed.count("complete, skipped") == len(STAGES), f"a stage ran again:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_50_random_moments_ends_like_one_left_alone(
    tmp_path: Path, seed: int
) -> None:
    """Over the replica of the hub. A run that ends before 50 is compared, and another begun."""
    rng = random.Random(seed)
    hub_replica.build(tmp_path / "replica")
    with hub_replica.served(tmp_path / "replica") as hub:
        # a file takes long enough to be killed in
        for path in [name for repo in hub.repos.values() for name in repo.files]:
            hub.fail(path, *[Fault(pause=0.03)] * 1_000)
        there = {"eval.bundle_url": hub_replica.bundle_url(hub), "eval.vocabularies_url": "none"}
        alone = Crashing(
            tmp_path / "alone", "100", arguments("100", SMALL | there), {"HF_ENDPOINT": hub.url}
        )
        events = alone.events()
        began = time.monotonic()
        again = warmed(alone, tmp_path / "again")
        again.finish()
        lasted = time.monotonic() - began
        assert_as_alone(again, alone, [])
        moments: list[Moment] = []
        deaths: list[Death] = []
        homes = 0
        print(f"seed {seed}; a run of warm programs takes {lasted:.0f} s", flush=True)
        while len(deaths) < 50:
            homes += 1
            killed = warmed(alone, tmp_path / f"killed_{homes}")
            before, death = len(deaths), None
            while len(deaths) < 50:
                moments = moments or draw_moments(events, rng)
                # where the run is past that moment, it dies some time later
                death = killed.live(moments.pop(0), Moment("start", delay=rng.uniform(2, lasted)))
                print(f"{len(deaths)}, home {homes}: {death}", flush=True)
                if death is None:
                    break
                deaths.append(death)
            killed.finish()
            assert_as_alone(killed, alone, deaths[before:])
        print(f"{len(deaths)} kills in {homes} homes:", Counter(d.stage for d in deaths))
        for what in ("saving", "downloading", "renaming"):
            count = sum(getattr(death, what) for death in deaths)
            print(f"{what}: {count}")
            assert count >= 2, f"seed {seed} met no moment amid {what}"
        assert {"base", "mid", "sft", "rl", "eval"} <= {death.stage for death in deaths}
