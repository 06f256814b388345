"""How far a run has come, read from the files it has written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxchat.config.schema import MODELS as TRAINED
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError
from jaxchat.runs import run_dir
from jaxchat.runs.ladder import recipe
from jaxchat.runs.runner import done_file
from jaxchat.runs.stages import BY_NAME
from jaxchat.train.metrics import read_metrics

STEP = frozenset({"loss", "reward"})  # what a record of a step has, of training or of RL
State = Literal["running", "stopped", "complete"]


@dataclass(frozen=True)
class RunState:
    """How far a run has come."""

    folder: Path
    state: State
    stage: str  # the one at work, or that the run stopped in; the last, when all are complete
    complete: tuple[str, ...]  # names of the stages with a record
    # the stage that `records` are of: the one at work or, where that trains nothing, the last
    # before it that does; "" where none has logged anything
    logged: str
    records: Sequence[Mapping[str, Any]]  # what that stage has logged, oldest first
    steps: int  # of the logged stage in all; 0: not known
    changed: float  # when the run last wrote something, in seconds since 1970

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def step(self) -> int:
        """Steps done in the logged stage; what is only measured before or behind one is none."""
        trained = (r for r in self.records if "step" in r and not STEP.isdisjoint(r))
        return max((int(r["step"]) + 1 for r in trained), default=0)

    @property
    def progress(self) -> str:
        """Steps done and in all, for people; of which stage, where that is not the one at work."""
        of = f"/{self.steps:,}" if self.steps else ""
        return f"{self.step:,}{of}" + (f" ({self.logged})" if self.logged != self.stage else "")

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        found = [r[name] for r in self.records if r.get(name) is not None]
        return float(found[-1]) if found else None

    @property
    def rate(self) -> float | None:
        """Steps a second, of the last ones; None when that is not known."""
        timed = [r for r in self.records if "time" in r and "step" in r][-50:]
        if len(timed) < 2 or timed[-1]["time"] <= timed[0]["time"]:
            return None
        first, last = timed[0], timed[-1]
        return int(last["step"] - first["step"]) / float(last["time"] - first["time"])

    @property
    def seconds_left(self) -> float | None:
        """Until the stage is done, at the rate of its last steps; None when that is not known."""
        if self.logged != self.stage or not self.steps or not self.rate:
            return None
        return (self.steps - self.step) / self.rate


def read_state(run: Path) -> RunState:
    """The state of the run in a folder. Raises ArtifactError when it has no configuration."""
    config = run_dir.read_config(run)
    complete = tuple(name for name in BY_NAME if done_file(run, name).exists())
    busy = run_dir.is_busy(run)
    wanted = _stages(run, config)
    left = [name for name in wanted if name not in complete]
    stage = left[0] if left else wanted[-1]
    logged, records = _records(run, stage)
    return RunState(
        folder=run,
        state="running" if busy else "stopped" if left else "complete",
        stage=stage,
        complete=complete,
        logged=logged,
        records=records,
        steps=_steps(config, logged, records),
        changed=_changed(run),
    )


def read_states(root: Path) -> tuple[list[RunState], list[str]]:
    """All runs of the home `root`, the newest first, and what is wrong with unreadable ones."""
    states, wrong = [], []
    for run in run_dir.all_runs(root).values():
        try:
            states.append(read_state(run))
        except ArtifactError as error:
            wrong.append(str(error))
    return sorted(states, key=lambda state: -state.changed), wrong


def _stages(run: Path, config: RunConfig) -> list[str]:
    """The stages of a run that is complete; a ladder's ends with base, unless it was continued."""
    names = [name for name in BY_NAME if not config.leaves_out(name)]
    later = any((run / name).exists() for name in names if name not in recipe.STAGES)
    return list(recipe.STAGES) if recipe.is_rung(run) and not later else names


def _records(run: Path, stage: str) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The stage whose log shows the progress of a run that is at `stage`, and that log."""
    order = list(BY_NAME)
    for name in reversed(order[: order.index(stage) + 1]):
        records = read_metrics(run / name / "metrics.jsonl") if name in TRAINED else []
        if records or (name == stage and name in TRAINED):  # one that begins has logged nothing yet
            return name, records
    return "", []


def _steps(config: RunConfig, stage: str, records: Sequence[Mapping[str, Any]]) -> int:
    if not stage:
        return 0
    logged = (int(r["steps"]) for r in reversed(records) if "steps" in r)
    return next(logged, int(getattr(config, stage).steps))


def _changed(run: Path) -> float:
    """When the newest of the files that show progress was written; all files would be slow."""
    files = [
        run / run_dir.CONFIG,
        *run.glob("*/metrics.jsonl"),
        *run.glob("*/*.json"),
        *run.glob("*/parts/*.json"),
    ]
    found = [file.stat().st_mtime for file in files if file.exists()]
    return max(found, default=time.time())
