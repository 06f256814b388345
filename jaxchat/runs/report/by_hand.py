"""What `jaxchat eval core` and `eval chat` keep of a run's models, and what its report takes of it.

RUN/eval/core-STAGE/result-KEY.json   of `evals.core.kept`
RUN/eval/chat-STAGE-TASK-KEY.json     of `eval_cli`

There is a file for each set of options; the report takes the largest of the present weights.
Earlier versions left KEY away, and said less in a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.saved import core_folder, core_results, with_more
from jaxchat.paths import read_json
from jaxchat.runs.report.metrics import core_record

CHAT_KEY_CHARACTERS = 12  # of a key, in a file's name
_CORE = ("accuracy", "centered", "interval", "total")  # what the report reads of a task


def chat_file(run: Path, stage: str, task: str, key: str) -> Path:
    """Where `jaxchat eval chat` keeps what a model did at a task; `key` is of all options."""
    return run / "eval" / f"chat-{stage}-{task}-{key[:CHAT_KEY_CHARACTERS]}.json"


def add_kept(
    root: Path, config: RunConfig, models: dict[str, Any], weights: Mapping[str, str]
) -> None:
    """Puts into the records of `models` what was found by hand on more examples or problems.

    `weights` are the hashes of the run's models; one without a record gets one, where there is
    anything to put in.
    """
    for name, digest in weights.items():
        record = dict(models.get(name, {}))
        _add_core(root, name, digest, record)
        _add_chat(root, name, digest, record, config.eval.max_new_tokens)
        if record:
            models[name] = record


def cores(root: Path, stage: str, weights: str) -> list[dict[str, Any]]:
    """The results on CORE that are kept of a model, at the length it was trained on."""
    found = _objects(core_results(core_folder(root, stage)), "jaxchat eval core", _is_core)
    return [one for one in found if one["weights"] == weights and one.get("context") is None]


def _add_core(root: Path, name: str, weights: str, record: dict[str, Any]) -> None:
    """Puts in CORE where the evaluation did not measure it, or on fewer examples."""
    own = record.get("core", {})
    for told in cores(root, name, weights):
        # what was found on another bundle does not compare, but for the whole of CORE with a part
        same = told.get("bundle", own.get("bundle")) == own.get("bundle", told.get("bundle"))
        whole = told.get("complete", False) and own.get("name") != "CORE"
        found = core_record(told)
        if (same or whole) and _examples(found) > _examples(record.get("core", {})):
            record["core"] = found


def _examples(core: Mapping[str, Any]) -> int:
    return sum(int(task["problems"]) for task in core.get("tasks", {}).values())


def _add_chat(
    root: Path, name: str, weights: str, record: dict[str, Any], max_new_tokens: int
) -> None:
    """Puts in what was found on more problems, greedily and at no fewer tokens."""
    paths = sorted((root / "eval").glob(f"chat-{name}-*.json"))
    for told in _objects(paths, "jaxchat eval chat", _is_chat):
        # None: it is answered by a letter, or an earlier version decided it for itself
        tokens = told.get("max_tokens")
        whole = (math.inf if tokens is None else tokens) >= max_new_tokens
        if told["weights"] == weights and told["greedy"] and whole:
            record |= with_more(record, told["task"], told["result"])


def _is_core(told: Mapping[str, Any]) -> bool:
    return (
        isinstance(told["weights"], str)
        and isinstance(told["core"], int | float)
        and isinstance(told["name"], str)
        and all(len(task["interval"]) == 2 and set(_CORE) <= task.keys() for task in _of(told))
    )


def _of(told: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    tasks: Mapping[str, Mapping[str, Any]] = told["tasks"]
    return tasks.values()


def _is_chat(told: Mapping[str, Any]) -> bool:
    result = told["result"]
    return (
        isinstance(told["weights"], str)
        and isinstance(told["task"], str)
        and isinstance(told["greedy"], bool)
        and isinstance(told.get("max_tokens"), int | None)
        and isinstance(result["total"], int)
        and isinstance(result["accuracy"], int | float)
        and len(result["interval"]) == 2
    )


def _objects(paths: Iterable[Path], command: str, is_one: Any) -> Iterator[dict[str, Any]]:
    """The results in files; a line for one that is none, which the report goes without.

    Those of before results said whose they are, are of unknown weights and left out.
    """
    for path in paths:
        try:
            told = read_json(path)
            old = "weights" not in told and ("result" in told or "core" in told)
            usable = isinstance(told, dict) and (old or is_one(told))
        except (ArtifactError, KeyError, TypeError, AttributeError, ValueError):
            usable = False
        if not usable:
            print(
                f"{path} is left out of the report: it is no result of {command}; delete it, or "
                "evaluate again.",
                flush=True,
            )
        elif "weights" in told:
            yield told
