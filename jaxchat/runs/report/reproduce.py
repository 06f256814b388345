"""The command that makes a run again: a tier, and what was set otherwise."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ConfigError

# What other settings are derived from comes first: once these are set, the others may follow.
# Those of a group are set together, for only together they may fit.
_GROUPS = (
    ("run.preset", "run.depth", "run.data_ratio", "run.seed", "run.name", "tokenizer.vocab_size"),
    ("model.",),
    ("base.batch_tokens",),
    ("",),
)


def command(config: RunConfig, configs: Path) -> str:
    """The shortest `run_speedrun.py` command that gives exactly `config`.

    `configs` is the folder of the tiers. Empty where there is none, or where no tier with overrides
    comes out the same.
    """
    best: tuple[str, list[str]] | None = None
    # The tier of the run's name first: once it fits, others are soon seen to need more.
    for path in sorted(configs.glob("*.toml"), key=lambda p: (_tier(p) != config.name, p.name)):
        overrides = _overrides(config, path, len(best[1]) if best else None)
        if overrides is not None:
            best = _tier(path), overrides
    if best is None:
        return ""
    words = ["python", "run_speedrun.py", "--tier", best[0]]
    for override in best[1]:
        words += ["--set", override]
    return shlex.join(words)


def _tier(path: Path) -> str:
    return path.stem.removeprefix("tier_")


def _overrides(config: RunConfig, path: Path, fewer_than: int | None) -> list[str] | None:
    """`key=value` for all in which the tier in `path` differs; None if it takes too many."""
    wanted, chosen = settings(config), list[str]()
    try:
        got = settings(loading.load(path))
        for group in _GROUPS:
            changes = [
                f"{key}={_toml(value)}"
                for key, value in wanted.items()
                if key.startswith(group) and got[key] != value
            ]
            chosen += changes
            if fewer_than is not None and len(chosen) >= fewer_than:
                return None
            if changes:
                got = settings(loading.load(path, chosen))
        return chosen if got == wanted else None
    except ConfigError:  # what this tier sets and what was wanted do not go together
        return None


def settings(config: RunConfig) -> dict[str, Any]:
    """All settings by `table.key`, as --set names them; names to shares stay together."""
    return flat(dataclasses.asdict(config))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of a configuration as JSON."""
    found: dict[str, Any] = {}
    for table, values in config.items():
        if isinstance(values, Mapping):
            found |= {f"{table}.{key}": value for key, value in values.items()}
        else:
            found[f"run.{table}"] = values
    return found


def _toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, Mapping):
        bare = re.compile(r"[A-Za-z0-9_-]+")
        keys = (key if bare.fullmatch(key) else _toml(key) for key in value)
        items = (f"{key} = {_toml(item)}" for key, item in zip(keys, value.values(), strict=True))
        return "{" + ", ".join(items) + "}"
    return json.dumps(value, ensure_ascii=False)  # of anything else JSON is TOML
