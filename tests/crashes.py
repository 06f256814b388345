"""Runs that are killed at chosen moments, and what is left of them.

The process kills itself: `crash/sitecustomize.py` tells how. So a moment between a write and a
rename, or within a save, is met exactly, and again with the same seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compilation import FAST_COMPILATION

from jaxchat.signals import REQUEUE

ROOT = Path(__file__).parent.parent
STAGES = ("data", "tokenizer", "rows", "base", "mid", "sft", "rl", "eval", "report")
SAVING = ".orbax-checkpoint-tmp"
MOST_SECONDS = 1_800  # of one life, on a busy machine
KEPT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # each life compiles the same


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after an event happens to a path for the `count`-th time in one process."""

    event: str  # of the audit hooks, or "start"
    path: str = ""  # below the home, without what is drawn at random
    count: int = 1
    delay: float = 0.0
    number: int = signal.SIGKILL  # of the signal


@dataclass(frozen=True)
class Death:
    """A process that was killed, and amid what."""

    moment: Moment
    stage: str
    saving: bool  # a checkpoint, or weights, were half written
    downloading: bool  # a file of a dataset was half there
    renaming: bool  # it was about to rename


@dataclass(frozen=True)
class Crashing:
    """A run in a home of its own that dies and is started again with the same command."""

    home: Path
    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.home / "runs" / self.name

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Gives the command."""
        path = [str(ROOT / "tests" / "crash"), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run_speedrun.py"), "--home", str(self.home),
             *self.arguments],
            env=os.environ | {"XLA_FLAGS": FAST_COMPILATION} | KEPT
            | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "CRASH_HOME": str(self.home)}
            | self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, **environment: str) -> str:
        """Runs to the end; what it said."""
        process = self.start(**environment)
        output, _ = process.communicate(timeout=MOST_SECONDS)
        assert process.returncode == 0, f"the run failed:\n{output}"
        return output

    def events(self) -> list[Moment]:
        """Runs to the end; all that happened to files, in order."""
        log = self.home.with_suffix(".events")
        self.finish(CRASH_LOG=str(log))
        return [Moment(*line.split(" ", 1)) for line in log.read_text().splitlines()]

    def live(self, *moments: Moment) -> Death | None:
        """Runs until the first of the moments; None where the run ended, and well, before that.

        Where it is a helper of the run that dies, the run itself is killed with it.
        """
        report = self.home.with_suffix(".report")
        report.unlink(missing_ok=True)
        process = self.start(
            CRASH_PLAN=json.dumps([asdict(m) for m in moments]), CRASH_REPORT=str(report)
        )
        deadline = time.monotonic() + MOST_SECONDS
        while process.poll() is None and not report.exists():
            assert time.monotonic() < deadline, f"it hangs: {process.communicate()[0]}"
            time.sleep(0.005)
        if not report.exists():
            output, _ = process.communicate()
            assert process.returncode == 0, f"the run failed:\n{output}"
            return None
        moment = Moment(**json.loads(report.read_text()))
        if moment.number == signal.SIGKILL:
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=MOST_SECONDS)
        if moment.number != signal.SIGKILL:
            assert process.returncode == REQUEUE, f"it ended with another code:\n{output}"
            assert "Interrupted; give the same command again" in output
        return self._look(moment)

    def _look(self, moment: Moment) -> Death:
        begun = [s for s in STAGES if (self.run / s / "begun.json").exists()]
        done = [s for s in STAGES if (self.run / s / "done.json").exists()]
        return Death(
            moment,
            stage=next((s for s in begun if s not in done), "between stages"),
            saving=any(self.run.glob(f"*/checkpoints/*{SAVING}"))
            or any(self.run.glob(f"*/.model.*/*{SAVING}")),
            downloading=any(path.stat().st_size for path in self.home.glob("data/**/*.part")),
            renaming=moment.event == "os.rename" and not moment.delay,
        )

    def figures(self) -> dict[str, Any]:
        """All results of all stages: hashes of artefacts, losses, scores, samples; no times."""
        records = {s: json.loads((self.run / s / "done.json").read_text()) for s in STAGES}
        return {stage: record["results"] for stage, record in records.items()}

    def files(self) -> dict[str, bytes | None]:
        """Path -> bytes of all that was made; None where times or Orbax's names are in them."""
        free = ("done.json", "metrics.jsonl", "progress.log", ".lock")
        return {
            path.relative_to(self.home).as_posix(): (
                None if path.name in free or path.parent.name == "parts" else path.read_bytes()
            )
            for path in self.home.rglob("*")
            if path.is_file()
            and not {"xla", "params", "checkpoints"} & set(path.relative_to(self.home).parts)
            # names and times of their own; the report has times, and weights their own hash
            and path.suffix not in (".html", ".md", ".part")
            # of a record of a download; nobody knows whether another process is at work on it
            and not (path.suffix == ".tmp" and "data" in path.relative_to(self.home).parts[:1])
            and not (path.name == "report.json" or path.name == "meta.json")
            and not (path.suffix == ".json" and path.name.startswith("."))
        }


def assert_as_alone(killed: Crashing, alone: Crashing, deaths: Iterable[Death]) -> None:
    """Bit for bit: weights, figures, files; nothing is left behind."""
    after = "; ".join(f"{d.stage} {d.moment}" for d in deaths)
    expected, found = alone.figures(), killed.figures()
    for stage in STAGES:
        assert found[stage] == expected[stage], f"{stage} differs after {after}"
    want, got = alone.files(), killed.files()
    other = sorted(want.keys() ^ got.keys())
    assert not other, f"{other} are there in one alone after {after}"
    differ = [name for name in want if want[name] != got[name]]
    assert not differ, f"{differ} differ after {after}"
    assert not list(killed.run.rglob(".*.tmp")), f"temporary files were left after {after}"


def warmed(alone: Crashing, home: Path) -> Crashing:
    """The same run in a new home that has the programs which `alone` compiled."""
    return Crashing(home, alone.name, alone.arguments, alone.environment)


def draw_moments(events: Sequence[Moment], rng: random.Random) -> list[Moment]:
    """Moments of every kind, in the order in which a run meets them."""

    def some(
        count: int, delay: float, *, event: str = "", of: str = ""
    ) -> list[tuple[int, Moment]]:
        found = [i for i, e in enumerate(events) if event in e.event and of in e.path]
        times = (rng.uniform(0, delay) for _ in range(count))
        drawn = [(i, events[i], t) for i, t in zip(rng.choices(found, k=count), times, strict=True)]
        return [(i, Moment(e.event, e.path, 1, t)) for i, e, t in drawn]

    moments = [
        *some(10, 0.06, event="os.mkdir", of=SAVING),  # amid a save
        *some(8, 0, event="os.rename"),
        *some(2, 0, event="os.rename", of=SAVING.removeprefix(".")),
        *some(4, 0.4, event="open", of=".part"),  # amid a download
        *some(4, 2.0, event="os.rename", of="/eval/"),  # amid an evaluation
        *some(4, 0),  # anywhere
    ]
    return [moment for _, moment in sorted(moments, key=lambda pair: pair[0])]
