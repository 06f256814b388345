"""Runs the stages of a run in order, skips the complete ones, and resumes where it stopped.

A stage's folder holds `done.json` once the stage is complete: the hash of its inputs (settings and
the artefacts it was made from), its time and its results. A stage is skipped while the hash is
still the same, and restarts when it is not.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jaxchat.config.fields import hashed_settings
from jaxchat.config.loading import to_json
from jaxchat.config.schema import RunConfig
from jaxchat.data.registry import without_places
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.process_group import ALONE, ProcessGroup
from jaxchat.paths import read_json, remove, sha256_text, sweep, write_json
from jaxchat.progress import duration
from jaxchat.runs.background import Preparer
from jaxchat.runs.compiler import Compiler
from jaxchat.runs.run_dir import DONE
from jaxchat.runs.stages import Stage, check_names
from jaxchat.train.profiling.request import Request, for_stage

FORMAT = "jaxchat-stage-1"
BEGUN = "begun.json"  # in a stage's folder: the hash of the inputs that it was begun with
SETTINGS, CHANGED = "other settings", "other artefacts"  # why a record is stale

Record = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """How datasets are asked for; it changes nothing that is made of them."""

    base_url: str | None = None  # of a plain server, instead of the hub
    offline: bool = False


DEFAULT_NETWORK = Network()


@dataclass(eq=False)
class Context:
    """What stages share: the configuration, the run's folder, and the records of what is complete.

    Of several processes, the `group`, only process 0 has the records.
    """

    config: RunConfig
    root: Path  # the run's folder
    profiles: Sequence[Request] = ()  # steps that `--profile` records; they change no result
    network: Network = DEFAULT_NETWORK
    group: ProcessGroup = ALONE
    preparer: Preparer | None = None  # tokenizes text in the background; `close` ends it
    compiler: Compiler | None = None  # of later stages' programs
    done: dict[str, Record] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)  # messages that several stages have, printed once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        if self.compiler is not None:
            self.compiler.close()

    def await_programs(self, stage: str) -> None:
        """Before a stage needs its programs: see `compiler.Compiler.take`."""
        if self.compiler is not None:
            self.compiler.take(stage)

    def close(self) -> None:
        """Ends what still works in the background."""
        if self.preparer is not None:
            self.preparer.close()
            self.preparer = None

    def folder(self, stage: str) -> Path:
        """Where a stage's artefact lives."""
        return self.root / stage


def done_file(root: Path, stage: str) -> Path:
    """The file that says a stage is complete."""
    return root / stage / DONE


def needs(stage: Stage, config: RunConfig) -> tuple[str, ...]:
    """The stages whose artefacts a stage reads in a run; those before an imported one are not."""
    return tuple(dict.fromkeys(need.partition(":")[0] for need in _needs(stage, config)))


def _needs(stage: Stage, config: RunConfig) -> list[str]:
    """Likewise, as `after` has them: artefacts, or parts of them."""
    if config.imported.brings(stage.name):
        return []
    return [n for n in stage.after if not config.leaves_out(n.partition(":")[0])]


def _artifact(need: str, context: Context) -> str:
    """The hash of an artefact or of a part; of all of it where its stage names no such part."""
    name, _, part = need.partition(":")
    made = context.done[name]["results"]
    return str(made.get("parts", {}).get(part, made["artifact"]))


def imported_hash(stage: str, config: RunConfig) -> str:
    """Stands in the record of an imported artefact for the hash of its inputs."""
    return sha256_text(FORMAT, stage, to_json(config.model), to_json(config.imported))


def input_hash(stage: Stage, context: Context) -> str:
    """The hash of all a stage depends on; where files of the user's own are is no part of it."""
    if context.config.imported.brings(stage.name):
        return imported_hash(stage.name, context.config)
    return _hash(stage, context, without_places(context.config))


def _hash(stage: Stage, context: Context, config: RunConfig) -> str:
    artifacts = [_artifact(need, context) for need in _needs(stage, context.config)]
    return sha256_text(FORMAT, stage.name, *map(_as_text, stage.settings(config)), *artifacts)


def is_of(inputs: str, stage: Stage, context: Context) -> bool:
    """Whether a record's hash is that of all a stage depends on.

    Until November 2026 it had the places of the user's own files; so it may still be.
    """
    if inputs == input_hash(stage, context):
        return True
    own = not context.config.imported.brings(stage.name)
    return own and inputs == _hash(stage, context, context.config)


def settings_hash(stage: Stage, config: RunConfig) -> str:
    """The hash of the settings a stage depends on, whatever it is made from."""
    return sha256_text(FORMAT, stage.name, *map(_as_text, stage.settings(without_places(config))))


def read_current(stages: Iterable[Stage], context: Context) -> dict[str, str]:
    """Reads into `context.done` the records of the stages that a run would skip.

    Returns why it would run others again though they have a record: SETTINGS, they were made with
    other ones; the stage they were made from, which is to run again; or CHANGED, it has run again.
    """
    stale: dict[str, str] = {}
    for stage in stages:
        record = read_done(context.root, stage.name)
        if record is None:
            continue
        missing = _missing(stage, context)
        if not missing and is_of(record["inputs"], stage, context):
            context.done[stage.name] = record
        elif _has_other_settings(stage, record, context.config):
            stale[stage.name] = SETTINGS
        else:  # stale as what it was made from
            stale[stage.name] = stale.get(missing[0], missing[0]) if missing else CHANGED
    return stale


def _missing(stage: Stage, context: Context) -> list[str]:
    return [need for need in needs(stage, context.config) if need not in context.done]


def _has_other_settings(stage: Stage, record: Mapping[str, Any], config: RunConfig) -> bool:
    if config.imported.brings(stage.name):
        return True
    wanted: object = json.loads(json.dumps(recorded_settings(stage, config)))
    return bool(record.get("settings") != wanted)


def recorded_settings(stage: Stage, config: RunConfig) -> list[Any]:
    """The settings a stage depends on, as its record has them."""
    return [
        dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part  # type: ignore[arg-type]
        for part in stage.settings(config)
    ]


def _as_text(setting: object) -> str:
    if dataclasses.is_dataclass(setting):
        return json.dumps(hashed_settings(setting), sort_keys=True)
    return json.dumps(setting, sort_keys=True) if isinstance(setting, dict) else repr(setting)


def read_done(root: Path, stage: str) -> Record | None:
    """A stage's record, or None when it is not complete. Raises ArtifactError when damaged."""
    path = done_file(root, stage)
    if not path.exists():
        return None
    record: Record = read_json(path)
    of_format = isinstance(record, dict) and record.get("format") == FORMAT
    if not of_format or not {"inputs", "seconds", "results"} <= record.keys():
        raise ArtifactError(
            f"{path} is no record of format {FORMAT}; make the stage again with --force {stage}."
        )
    return record


def write_done(
    root: Path, stage: str, inputs: str, settings: Sequence[Any], seconds: float, results: Record
) -> Record:
    """Writes a stage's record, which makes it complete; returns it."""
    record = {
        "format": FORMAT,
        "stage": stage,
        "inputs": inputs,
        "settings": settings,
        "seconds": seconds,
        "results": results,
    }
    write_json(done_file(root, stage), record)
    return record


def write_imported(
    root: Path, config: RunConfig, stage: str, artifact: str, results: Mapping[str, Any]
) -> None:
    """Writes the record of an artefact that was imported into a stage's folder."""
    settings = [dataclasses.asdict(part) for part in (config.imported, config.model)]
    inputs = imported_hash(stage, config)
    write_done(root, stage, inputs, settings, 0.0, {"artifact": artifact, **results})


def run_stages(
    stages: Iterable[Stage],
    context: Context,
    *,
    only: Iterable[str] | None = None,
    force: Iterable[str] = (),
) -> None:
    """Runs the stages that are not complete, in order.

    `only` names the stages to run (default all); one that needs an incomplete stage that was not
    named is refused. `force` names stages to restart. Of several processes, process 0 decides all
    this and the others follow it.
    """
    stages = list(stages)
    if not context.group.leads:
        by_name = {stage.name: stage for stage in stages}
        while (name := context.group.broadcast()) is not None:
            _function(by_name[name].run)(context)
        return
    wanted = {stage.name for stage in stages} if only is None else check_names(only, stages)
    forced = check_names(force, stages)
    sweep(context.root)
    for number, stage in enumerate(stages, 1):
        label = f"[{number}/{len(stages)}] {stage.title}"
        if _skip_absent(stage, context, label, wanted, forced):
            continue
        record = None if stage.name in forced else read_done(context.root, stage.name)
        missing = _missing(stage, context)
        current = record and not missing and _is_current(record, stage, context)
        if record and current:
            context.done[stage.name] = record
        if stage.name not in wanted:
            continue  # if it has other settings, it is missing for the stages that were named
        if missing:
            raise ConfigError(
                f"the stage {stage.name} needs {', '.join(missing)}, not complete with these "
                f"settings in {context.root}; run without --stages, or name them too."
            )
        inputs = input_hash(stage, context)
        if record and current:
            _skip_complete(record, stage, context, inputs, label)
            continue
        _clear_stale(stage, context, inputs, forced=stage.name in forced)
        print(label, flush=True)
        began = time.monotonic()
        if stage.collective:
            context.group.broadcast(stage.name)
        results = _function(stage.run)(context)
        # training that was interrupted counts with all its sessions
        seconds = max(time.monotonic() - began, float(results.pop("seconds", 0.0)))
        settings = recorded_settings(stage, context.config)
        context.done[stage.name] = write_done(
            context.root, stage.name, inputs, settings, seconds, results
        )
        print(f"{label}: {duration(seconds)}", flush=True)
    context.group.broadcast(None)


def _function(named: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function of a stage, imported where it is named."""
    return pkgutil.resolve_name(f"{__package__}.{named}") if isinstance(named, str) else named


def _skip_complete(record: Record, stage: Stage, context: Context, inputs: str, label: str) -> None:
    if record["inputs"] != inputs:  # the hash of an earlier version, see `is_of`
        write_json(done_file(context.root, stage.name), record | {"inputs": inputs})
    asked = for_stage(context.profiles, stage.name) is not None
    nothing = f"; not profiled (do it again with --force {stage.name})" if asked else ""
    print(f"{label}: complete, skipped{nothing}", flush=True)


def _skip_absent(
    stage: Stage, context: Context, label: str, wanted: set[str], forced: set[str]
) -> bool:
    """Handles stages that were imported, or that precede an imported one; returns whether it did.

    Likewise reinforcement learning of no steps. Raises ConfigError where such a stage is forced, or
    the imported artefact has other settings.
    """
    imported, name = context.config.imported, stage.name
    if not imported.brings(name) and not context.config.leaves_out(name):
        return False
    if name in forced:
        why = (
            f"the run in {context.root} began with an imported model in place of {imported.stage}."
            if imported.stage
            else f"{name}.steps is 0, which leaves it out; give it steps with --set {name}.steps=N."
        )
        raise ConfigError(f"the stage {name} cannot be forced: {why}")
    if imported.brings(name):
        record = read_done(context.root, name)
        if record is None or record["inputs"] != input_hash(stage, context):
            raise ConfigError(
                f"the imported {name} of the run in {context.root} is not that of these settings; "
                "leave out what they set of the model and the vocabulary, or import it again."
            )
        context.done[name] = record
    if name in wanted:
        why = "" if imported.leaves_out(name) else f" ({name}.steps is 0)"
        print(f"{label}: {'imported' if imported.brings(name) else f'left out{why}'}", flush=True)
    return True


def _is_current(record: Record, stage: Stage, context: Context) -> bool:
    """Whether a complete stage was made with these settings, of what it would read now."""
    return is_of(record["inputs"], stage, context) and not _function(stage.outdated)(context)


def _clear_stale(stage: Stage, context: Context, inputs: str, *, forced: bool) -> None:
    """Deletes what a stage began with other inputs; what it can resume from stays.

    An incremental stage keeps its parts, unless it is `forced`.
    """
    folder = context.folder(stage.name)
    found = read_json(folder / BEGUN) if (folder / BEGUN).exists() else None
    begun = found.get("inputs") if isinstance(found, dict) else None
    same = begun is not None and is_of(begun, stage, context)
    if forced or not (same or stage.incremental):
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    done_file(context.root, stage.name).unlink(missing_ok=True)
    write_json(folder / BEGUN, {"inputs": inputs})
