"""The value of `--profile`; without jax, so that the command line can read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxchat.config.schema import MODELS
from jaxchat.errors import ConfigError

HLO, RECORD = "step.hlo.txt", "profile.json"
HELP = (
    "record steps A to B-1 (such as 10:13) of every training stage that runs, or of one "
    "(mid:10:13), into profile/STAGE of the run's folder; read them with: jaxchat profile"
)


@dataclass(frozen=True)
class Request:
    """Steps `start` to `stop` - 1 of a stage are recorded; of every stage where it is None."""

    start: int
    stop: int
    stage: str | None = None

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ConfigError(
                f"--profile starts at step {self.start}; step 0 is where XLA compiles, so start at "
                "1 or later, for example 10:13."
            )
        if self.stop <= self.start:
            raise ConfigError(
                f"--profile goes from step {self.start} to {self.stop}; the end is not recorded "
                f"itself, so it must be greater, for example {self.start}:{self.start + 3}."
            )
        if self.stage is not None and self.stage not in MODELS:
            raise ConfigError(
                f"--profile names the stage {self.stage!r}; those that train are "
                f"{', '.join(MODELS)}."
            )

    @property
    def steps(self) -> str:
        """The steps in words."""
        last = self.stop - 1
        return f"{self.start}" if last == self.start else f"{self.start} to {last}"


def parse(text: str) -> Request:
    """`10:13` or `mid:10:13`. Raises ConfigError."""
    found = re.fullmatch(r"(?:([a-z]+):)?(\d{1,9}):(\d{1,9})", text)
    if found is None:
        raise ConfigError(
            f"--profile is {text!r}; it must be START:STOP, such as 10:13, or STAGE:START:STOP, "
            "such as mid:10:13."
        )
    return Request(int(found[2]), int(found[3]), found[1])


def for_stage(requests: Sequence[Request], stage: str) -> Request | None:
    """The request that holds for a stage: one that names it, else one that names none."""
    named = [r for r in requests if r.stage == stage]
    general = [r for r in requests if r.stage is None and stage in MODELS]
    return next(iter(named + general), None)


def folder(run: Path, stage: str) -> Path:
    """The folder of the profile of a run's stage."""
    return run / "profile" / stage
