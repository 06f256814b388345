"""What `jaxchat eval core` and `eval chat` saved of a run's models, and what its report uses of it.

RUN/eval/core-STAGE/result-KEY.json   of `evals.core.evaluate`
RUN/eval/chat-STAGE-TASK-KEY.json     of `jaxchat eval chat`

There is a file for each set of options; the report takes the largest of the present weights.
Earlier versions left KEY away, and had less in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.saved import core_folder, core_results, with_more
from jaxchat.paths import read_json
from jaxchat.runs.report.metrics import core_record

Saved = Mapping[str, Any]


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
    """The saved results on CORE of a model, at the length it was trained on."""
    paths = core_results(core_folder(root, stage))
    found = _results(paths, weights, "jaxchat eval core", _is_core)
    return [one for one in found if one.get("context") is None]


def _add_core(root: Path, name: str, weights: str, record: dict[str, Any]) -> None:
    """Puts in CORE where the evaluation did not measure it, or on fewer examples."""
    own = record.get("core", {})
    for saved in cores(root, name, weights):
        # what was found on another bundle does not compare, but for the whole of CORE with a part
        same = saved.get("bundle", own.get("bundle")) == own.get("bundle", saved.get("bundle"))
        whole = saved.get("complete", False) and own.get("name") != "CORE"
        found = core_record(saved)
        if (same or whole) and _examples(found) > _examples(record.get("core", {})):
            record["core"] = found


def _examples(core: Mapping[str, Any]) -> int:
    return sum(int(task["problems"]) for task in core.get("tasks", {}).values())


def _add_chat(
    root: Path, name: str, weights: str, record: dict[str, Any], max_new_tokens: int
) -> None:
    """Puts in what was found on more problems, greedily and at no fewer tokens."""
    paths = sorted((root / "eval").glob(f"chat-{name}-*.json"))
    for saved in _results(paths, weights, "jaxchat eval chat", _is_chat):
        # None: it is answered by a letter, or an earlier version decided it for itself
        tokens = saved.get("max_tokens")
        if saved["greedy"] and (math.inf if tokens is None else tokens) >= max_new_tokens:
            record |= with_more(record, saved["task"], saved["result"])


def _is_core(saved: Saved) -> bool:
    tasks = saved["tasks"].values()
    return (
        isinstance(saved["core"], int | float)
        and isinstance(saved["name"], str)
        and all(
            len(task["interval"]) == 2 and {"accuracy", "centered", "total"} <= task.keys()
            for task in tasks
        )
    )


def _is_chat(saved: Saved) -> bool:
    result = saved["result"]
    return (
        isinstance(saved["task"], str)
        and isinstance(saved["greedy"], bool)
        and isinstance(saved.get("max_tokens"), int | None)
        and isinstance(result["total"], int)
        and isinstance(result["accuracy"], int | float)
        and len(result["interval"]) == 2
    )


def _results(
    paths: Iterable[Path], weights: str, command: str, is_one: Callable[[Saved], bool]
) -> Iterator[dict[str, Any]]:
    """The results in files of these weights; a line for a file that holds none.

    Files from before results named their weights are of unknown ones and left out.
    """
    for path in paths:
        try:
            saved = read_json(path)
            old = "weights" not in saved and ("result" in saved or "core" in saved)
            usable = isinstance(saved, dict) and (
                old or (isinstance(saved["weights"], str) and is_one(saved))
            )
        except (ArtifactError, KeyError, TypeError, AttributeError, ValueError):
            usable = False
        if not usable:
            print(
                f"{path} is left out of the report: it is no result of {command}; delete it, or "
                "evaluate again.",
                flush=True,
            )
        elif saved.get("weights") == weights:
            yield saved
