"""What came of a ladder: the records of its rungs, and two ladders compared, as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.saved import read_record
from jaxchat.runs.ladder import frontier, recipe
from jaxchat.runs.ladder.frontier import Frontier, Rung

FORMAT = "jaxchat-rung-1"
RUNGS = "rungs"
COMPARED = "jaxchat-ladders-1"
_FIELDS = (
    "format", "run", "depth", "seed", "tokens", "passes", "flops", "seconds", "tokens_per_second",
    "bits_per_byte", "text", "weights", "git",
)  # fmt: skip

Record = dict[str, Any]


def rung_file(place: Path, name: str) -> Path:
    """Where the record of a rung's run is, in the folder of its ladder."""
    return place / RUNGS / f"{name}.json"


def read_rung(place: Path, name: str) -> Record | None:
    """The record of a rung's run; None where it is missing or damaged."""
    found = read_record(rung_file(place, name), *_FIELDS)
    return found if found is not None and found["format"] == FORMAT else None


@dataclass(frozen=True)
class Ladder:
    """A ladder as far as it has come."""

    place: Path
    record: Record  # its recipe
    runs: tuple[Record, ...]  # of the rungs that are complete, in their order

    @property
    def name(self) -> str:
        """The name of the ladder."""
        return str(self.record["name"])

    @property
    def missing(self) -> list[str]:
        """The runs that are not complete."""
        there = {run["run"] for run in self.runs}
        return [name for name in _run_names(self.record) if name not in there]

    @property
    def text(self) -> str:
        """The hash of the text that it is measured on; "" where nothing is yet."""
        return str(self.runs[0]["text"]["sha256"]) if self.runs else ""

    @property
    def rungs(self) -> list[Rung]:
        """The depths that any run of is complete."""
        found = []
        for depth in self.record["depths"]:
            runs = [run for run in self.runs if run["depth"] == depth]
            if runs:
                bits = tuple(run["bits_per_byte"] for run in runs)
                seconds = tuple(map(steps_seconds, runs))
                found.append(Rung(depth, float(runs[0]["flops"]), bits, seconds))
        return found


def steps_seconds(run: Mapping[str, Any]) -> float:
    """How long a run's steps took, without compiling, evaluating and whatever was done beside."""
    return float(run["tokens"] / run["tokens_per_second"])


def _run_names(record: Mapping[str, Any]) -> list[str]:
    every = recipe.rungs(record["depths"], record["seeds"], record.get("once", ()))
    return [f"{record['name']}-d{depth}-s{seed}" for depth, seed in every]


def read_ladder(root: Path, name: str) -> Ladder:
    """The ladder called `name`. Raises ArtifactError where there is none, or it is damaged."""
    place = recipe.find(root, name)
    record = recipe.read_record(place)
    runs = (read_rung(place, run) for run in _run_names(record))
    return Ladder(place, record, tuple(run for run in runs if run is not None))


def progress(ladder: Ladder) -> Record:
    """What a ladder is of, and how many of its runs are complete, as JSON."""
    fixed = {key: ladder.record[key] for key in ("name", "tier", "depths", "seeds")}
    done = len(ladder.runs)
    return {**fixed, "complete": done, "runs": done + len(ladder.missing)}


def to_json(ladder: Ladder) -> Record:
    """The recipe, every complete run, and each depth's mean, deviation and time."""
    return {
        "format": COMPARED,
        "name": ladder.name,
        "recipe": ladder.record,
        "rungs": [summary(ladder, rung) for rung in ladder.rungs],
        "runs": list(ladder.runs),
        "missing": ladder.missing,
        "notes": remarks(ladder),
    }


def summary(ladder: Ladder, rung: Rung) -> Record:
    """What came of a depth; `deviation` is that between seeds, None where there is one."""
    runs = [run for run in ladder.runs if run["depth"] == rung.depth]
    first = runs[0]
    return {
        "depth": rung.depth,
        "parameters": first["parameters"],
        "tokens": first["tokens"],
        "passes": first["passes"],
        "flops": rung.flops,
        "seeds": len(rung.bits),
        "bits_per_byte": statistics.fmean(rung.bits),
        "deviation": statistics.stdev(rung.bits) if len(rung.bits) > 1 else None,
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "tokens_per_second": statistics.fmean(run["tokens_per_second"] for run in runs),
    }


def remarks(ladder: Ladder) -> list[str]:
    """What a reader of the figures has to know."""
    found = []
    if ladder.missing:
        found.append(f"Not complete: {', '.join(ladder.missing)}.")
    repeated = [run["depth"] for run in ladder.runs if (run["passes"] or 0) > 1]
    if repeated:
        depths = ", ".join(map(str, sorted(set(repeated))))
        found.append(f"Repeated text: depth {depths} read its training text more than once.")
    for what, key in (("commits", _commit), ("machines or devices", _machine)):
        if len({key(run) for run in ladder.runs}) > 1:
            found.append(f"The runs were made with several {what}.")
    if any(run["git"]["dirty"] for run in ladder.runs):
        found.append("Some runs were made with changes that no commit has.")
    return found


def _commit(run: Mapping[str, Any]) -> str:
    return str(run["git"]["commit"])


def _machine(run: Mapping[str, Any]) -> str:
    return f"{run['processor']} {run['devices']}"


def compare(baseline: Ladder, others: Sequence[Ladder], degree: int = 1) -> Record:
    """The multipliers of other ladders against a baseline, as JSON.

    Raises ConfigError where they were measured on different text, and ArtifactError where the
    baseline has no frontier or another has no run.
    """
    for other in others:
        if not other.runs or not baseline.runs:
            empty = other if baseline.runs else baseline
            raise ArtifactError(
                f"the ladder {empty.name} has no complete run; give its jaxchat ladder run again."
            )
        if other.text != baseline.text:
            raise ConfigError(
                f"the ladders {baseline.name} and {other.name} were measured on different text; "
                "make one of them again under a new name, with --text and the other's file "
                f"{baseline.place / 'text' / 'text.jsonl'}."
            )
    line = frontier_of(baseline, degree)
    comparisons = sum(frontier.number_of(other.rungs) for other in others)
    return {
        "format": COMPARED,
        "baseline": to_json(baseline),
        "degree": line.degree,
        "comparisons": comparisons,
        "level": 1 - (1 - frontier.LEVEL) / comparisons,
        "misfit": math.expm1(line.misfit),
        "variants": [_variant(baseline, other, line, comparisons) for other in others],
    }


def frontier_of(baseline: Ladder, degree: int) -> Frontier:
    """The frontier of a ladder. Raises ArtifactError where it has none."""
    try:
        return frontier.fit(baseline.rungs, degree)
    except ValueError as error:
        raise ArtifactError(
            f"the ladder {baseline.name} is no baseline: {error}; complete it, or make one with "
            "more --depths."
        ) from error


def _variant(baseline: Ladder, other: Ladder, line: Frontier, comparisons: int) -> Record:
    found = [asdict(one) for one in frontier.multipliers(line, other.rungs, comparisons)]
    if {*map(_machine, baseline.runs)} != {*map(_machine, other.runs)}:
        for one in found:
            one["time"] = None  # times of other machines
    return {**to_json(other), "multipliers": found}
