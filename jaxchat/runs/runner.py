"""Runs the stages of a run in order, skips what is done, and goes on where it stopped (layer 4).

A stage's folder holds `done.json` once the stage is complete: the hash of its inputs (settings and
the artefacts it was made from), its time and its results. A stage is skipped when the hash is still
the same, and begins anew when it is not.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from jaxchat.runs.run_dir import DONE
from jaxchat.train.profiling.request import Request, for_stage

FORMAT = "jaxchat-stage-1"
SETTINGS, CHANGED = "other settings", "other artefacts"  # why a record is stale


@dataclass(frozen=True)
class Inputs:
    """What a stage depends on.

    `settings(config)` are the parts of the configuration, `after` the stages whose artefacts it
    reads: `rows:text` is of `rows` only the part `text`.
    """

    name: str
    settings: Callable[[RunConfig], tuple[object, ...]]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A row in the table of contents.

    `run(context)` makes the artefact in `context.folder(name)` and returns its results, a JSON
    object whose `artifact` is a hash of what was made; `parts` may name hashes of parts of it.
    `settings` and `after` are as `Inputs` has them. `outdated(context)` says of
    a complete stage whether what it read outside the run has changed since.
    Of several processes, all run it where it is done `together`, else process 0 alone. An
    `incremental` one keeps parts with what each depends on: only force clears its folder.
    """

    name: str
    title: str
    run: Callable[[Context], dict[str, Any]]
    settings: Callable[[RunConfig], tuple[object, ...]]
    after: tuple[str, ...] = ()
    outdated: Callable[[Context], bool] = lambda context: False
    together: bool = False
    incremental: bool = False


@dataclass(frozen=True)
class Network:
    """How datasets are asked for; it changes nothing that is made of them."""

    base_url: str | None = None  # of a plain server, instead of the hub
    offline: bool = False


DEFAULT_NETWORK = Network()


class Context:
    """What stages share: the configuration, the run's folder, and what is done so far.

    Of several processes, which are the `group`, only process 0 knows what is done.

    `profiles` are the steps that `--profile` asks to record; they change nothing that is made.
    `preparer` makes rows of text meanwhile; `close` ends it.
    """

    def __init__(
        self,
        config: RunConfig,
        root: Path,
        profiles: Sequence[Request] = (),
        network: Network = DEFAULT_NETWORK,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.config = config
        self.root = root
        self.profiles = profiles
        self.network = network
        self.group = group
        self.preparer: Preparer | None = None
        self.done: dict[str, dict[str, Any]] = {}
        self.said: set[str] = set()  # what is said once, however many stages find it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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


def needs(stage: Stage | Inputs, config: RunConfig) -> tuple[str, ...]:
    """The stages whose artefacts a stage reads in a run; those before an imported one are not."""
    return tuple(dict.fromkeys(need.partition(":")[0] for need in _needs(stage, config)))


def _needs(stage: Stage | Inputs, config: RunConfig) -> list[str]:
    """Likewise, as `after` has them: artefacts, or parts of them."""
    if config.imported.brings(stage.name):
        return []
    return [n for n in stage.after if not config.leaves_out(n.partition(":")[0])]


def _artifact(need: str, context: Context) -> str:
    """The hash of an artefact or of a part; of a stage that tells no such part, of all of it."""
    name, _, part = need.partition(":")
    made = context.done[name]["results"]
    return str(made.get("parts", {}).get(part, made["artifact"]))


def imported_hash(stage: str, config: RunConfig) -> str:
    """Stands in the record of an imported artefact for the hash of its inputs."""
    return sha256_text(FORMAT, stage, to_json(config.model), to_json(config.imported))


def input_hash(stage: Stage | Inputs, context: Context) -> str:
    """The hash of all a stage depends on; where files of the user's own are is no part of it."""
    if context.config.imported.brings(stage.name):
        return imported_hash(stage.name, context.config)
    return _hash(stage, context, without_places(context.config))


def _hash(stage: Stage | Inputs, context: Context, config: RunConfig) -> str:
    settings = [_as_text(part) for part in stage.settings(config)]
    artifacts = [_artifact(need, context) for need in _needs(stage, context.config)]
    return sha256_text(FORMAT, stage.name, *settings, *artifacts)


def is_of(inputs: str, stage: Stage | Inputs, context: Context) -> bool:
    """Whether a record's hash is that of all a stage depends on.

    Until November 2026 it had the places of the user's own files; so it may still be.
    """
    if inputs == input_hash(stage, context):
        return True
    own = not context.config.imported.brings(stage.name)
    return own and inputs == _hash(stage, context, context.config)


def settings_hash(stage: Stage | Inputs, config: RunConfig) -> str:
    """The hash of the settings a stage depends on, whatever it is made from."""
    settings = stage.settings(without_places(config))
    return sha256_text(FORMAT, stage.name, *map(_as_text, settings))


def read_current(stages: Iterable[Stage | Inputs], context: Context) -> dict[str, str]:
    """Reads into `context.done` the records of the stages that a run would skip.

    Returns why it would make others again though they have a record: SETTINGS, they were made with
    other ones; the stage they were made from, which is to be made again; or CHANGED, it was.
    """
    stale: dict[str, str] = {}
    for stage in stages:
        record = read_done(context.root, stage.name)
        if record is None:
            continue
        missing = [n for n in needs(stage, context.config) if n not in context.done]
        if not missing and is_of(record["inputs"], stage, context):
            context.done[stage.name] = record
        else:
            stale[stage.name] = _why(stage, record, missing, stale, context.config)
    return stale


def _why(
    stage: Stage | Inputs,
    record: Mapping[str, Any],
    missing: Sequence[str],
    stale: Mapping[str, str],
    config: RunConfig,
) -> str:
    """Why a record is stale: for itself, else as what it was made from."""
    if config.imported.brings(stage.name):
        return SETTINGS
    if record.get("settings") != json.loads(json.dumps(recorded_settings(stage, config))):
        return SETTINGS
    return stale.get(missing[0], missing[0]) if missing else CHANGED


def recorded_settings(stage: Stage | Inputs, config: RunConfig) -> list[Any]:
    """The settings a stage depends on, as its record has them."""
    return [
        dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part  # type: ignore[arg-type]
        for part in stage.settings(config)
    ]


def _as_text(setting: object) -> str:
    if dataclasses.is_dataclass(setting):
        return json.dumps(hashed_settings(setting), sort_keys=True)
    return json.dumps(setting, sort_keys=True) if isinstance(setting, dict) else repr(setting)


def read_done(root: Path, stage: str) -> dict[str, Any] | None:
    """A stage's record, or None when it is not complete. Raises ArtifactError when damaged."""
    path = done_file(root, stage)
    if not path.exists():
        return None
    record: dict[str, Any] = read_json(path)
    of_format = isinstance(record, dict) and record.get("format") == FORMAT
    if not of_format or not {"inputs", "seconds", "results"} <= record.keys():
        raise ArtifactError(
            f"{path} is no record of format {FORMAT}; make the stage again with --force {stage}."
        )
    return record


def write_imported(
    root: Path, config: RunConfig, stage: str, artifact: str, results: Mapping[str, Any]
) -> None:
    """Writes the record of an artefact that was imported into a stage's folder."""
    parts = (config.imported, config.model)
    record = {
        "format": FORMAT,
        "stage": stage,
        "inputs": imported_hash(stage, config),
        "settings": [dataclasses.asdict(part) for part in parts],
        "seconds": 0.0,
        "results": {"artifact": artifact, **results},
    }
    write_json(done_file(root, stage), record)


def run_stages(
    stages: Iterable[Stage],
    context: Context,
    *,
    only: Iterable[str] | None = None,
    force: Iterable[str] = (),
) -> None:
    """Runs the stages that are not complete, in order.

    `only` names the stages to run (default all); one that needs an incomplete stage that was not
    named is refused. `force` names stages to do again from the start. Of several processes, process
    0 decides all this; the others do what it tells them.
    """
    stages = list(stages)
    if not context.group.leads:
        return _follow(stages, context)
    wanted = _known(only, stages) if only is not None else {stage.name for stage in stages}
    forced = _known(force, stages)
    sweep(context.root)
    for number, stage in enumerate(stages, 1):
        label = f"[{number}/{len(stages)}] {stage.title}"
        if _has_none(stage, context, label, wanted, forced):
            continue
        folder = context.folder(stage.name)
        record = None if stage.name in forced else read_done(context.root, stage.name)
        missing = [n for n in needs(stage, context.config) if n not in context.done]
        if stage.name not in wanted:
            # What was made with other settings counts as missing for the stages that were named.
            if record and not missing and _is_current(record, stage, context):
                context.done[stage.name] = record
            continue
        if missing:
            raise ConfigError(
                f"the stage {stage.name} needs {', '.join(missing)}, not complete with these "
                f"settings in {context.root}; run without --stages, or name them too."
            )
        inputs = input_hash(stage, context)
        if record is not None and _is_current(record, stage, context):
            context.done[stage.name] = record
            if record["inputs"] != inputs:
                write_json(done_file(context.root, stage.name), record | {"inputs": inputs})
            nothing = f"; not profiled (do it again with --force {stage.name})"
            asked = for_stage(context.profiles, stage.name) is not None
            print(f"{label}: complete, skipped{nothing if asked else ''}", flush=True)
            continue
        begun = _begun(folder)
        keep = begun is not None and is_of(begun, stage, context)
        _clear_stale(folder, inputs, forced=stage.name in forced, keep=keep or stage.incremental)
        print(f"{label}", flush=True)
        began = time.monotonic()
        if stage.together:
            context.group.broadcast(stage.name)
        results = stage.run(context)
        elapsed = time.monotonic() - began
        record = {
            "format": FORMAT,
            "stage": stage.name,
            "inputs": inputs,
            "settings": recorded_settings(stage, context.config),
            # Training that was interrupted counts with all its sessions.
            "seconds": max(elapsed, float(results.pop("seconds", 0.0))),
            "results": results,
        }
        write_json(done_file(context.root, stage.name), record)
        context.done[stage.name] = record
        print(f"{label}: {duration(record['seconds'])}", flush=True)
    context.group.broadcast(None)
    return None


def _follow(stages: Iterable[Stage], context: Context) -> None:
    """Runs the stages that process 0 names, until it names none."""
    by_name = {stage.name: stage for stage in stages}
    while (name := context.group.broadcast()) is not None:
        by_name[name].run(context)


def _has_none(
    stage: Stage, context: Context, label: str, wanted: set[str], forced: set[str]
) -> bool:
    """Whether a stage is imported or left out, so that nothing is to be made; it is dealt with.

    Raises ConfigError where such a stage is to be done again, or has other settings.
    """
    imported, name = context.config.imported, stage.name
    if not imported.brings(name) and not context.config.leaves_out(name):
        return False
    if not imported.stage and name in forced:
        raise ConfigError(
            f"the stage {name} cannot be forced: {name}.steps is 0, which leaves it out; give it "
            f"steps with --set {name}.steps=N."
        )
    if name in forced:
        raise ConfigError(
            f"the stage {name} cannot be forced: the run in {context.root} began with an imported "
            f"model in place of {imported.stage}."
        )
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


def _known(names: Iterable[str], stages: list[Stage]) -> set[str]:
    known = {stage.name for stage in stages}
    chosen = set(names)
    if unknown := chosen - known:
        order = ", ".join(stage.name for stage in stages)
        raise ConfigError(f"there is no stage {sorted(unknown)[0]!r}; the stages are {order}.")
    return chosen


def _is_current(record: Mapping[str, Any], stage: Stage, context: Context) -> bool:
    """Whether a complete stage was made with these settings, of what it would read now."""
    return is_of(record["inputs"], stage, context) and not stage.outdated(context)


def _begun(folder: Path) -> str | None:
    """The hash of the inputs with which a stage was begun."""
    path = folder / "begun.json"
    found = read_json(path) if path.exists() else None
    return found.get("inputs") if isinstance(found, dict) else None


def _clear_stale(folder: Path, inputs: str, *, forced: bool, keep: bool) -> None:
    """Deletes what was begun with other inputs, unless it is to `keep`.

    What an interrupted stage can resume from is kept.
    """
    if forced or not keep:
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "begun.json", {"inputs": inputs})


def results(context: Context, stage: str) -> Mapping[str, Any]:
    """The results of a stage that is complete."""
    found: Mapping[str, Any] = context.done[stage]["results"]
    return found
