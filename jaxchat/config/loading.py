"""Reads a run's TOML file and overrides into a RunConfig."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxchat.config.derive import DATA_RATIO, derive_horizon, derive_model, derive_stage_optim
from jaxchat.config.fields import build, check_keys, convert, kinds, plain
from jaxchat.config.operations import About
from jaxchat.config.schema import (
    MODELS,
    ModelConfig,
    OptimConfig,
    RunConfig,
    StageOptimConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxchat.data.files.compressed import Unreadable
from jaxchat.data.files.text import read_text
from jaxchat.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"  # of the checkout
RUN_KEYS = {name: kind for name, kind in kinds(RunConfig).items() if not isinstance(kind, type)}
RUN_KEYS["name"] = str
TABLES = {name: kind for name, kind in kinds(RunConfig).items() if name not in RUN_KEYS}


def tiers(folder: Path = CONFIGS) -> dict[str, Path]:
    """Name -> file of every published configuration."""
    files = {path.stem.removeprefix("tier_"): path for path in sorted(folder.glob("*.toml"))}
    return dict(sorted(files.items(), key=lambda item: (len(item[0]), item[0] != "cpu")))


def find_tier(name: str, folder: Path = CONFIGS) -> Path:
    """The file of a published configuration. Raises ConfigError, with those that there are."""
    found = tiers(folder)
    if name in found:
        return found[name]
    there = f"the tiers are {', '.join(found)}."
    if not found:
        there = f"{folder} has none: install jaxchat from a checkout with pip install --editable ."
    raise ConfigError(f"there is no tier {name!r}; {there}")


def load(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads `path`, applies `key=value` overrides such as `base.steps=100`, derives the rest.

    Raises ConfigError for a missing file, bad TOML, an unknown key or a value out of range.
    """
    return from_document(apply_overrides(read_toml(path, "config"), overrides), path.name)


def about(path: Path) -> About:
    """What the file of a tier says of its results. Raises ConfigError as `load` does."""
    return _about(read_toml(path, "config"), path.name)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """The document in a file of the user's; `kind` names it in the message of the ConfigError."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"the {kind} {path} cannot be read: {error.strerror}.") from error
    except Unreadable as error:
        raise ConfigError(f"the {kind} {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the {kind} {path} is not valid TOML: {error}.") from error


def apply_overrides(document: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the TOML document with each `table.key=value` set; values are TOML or bare text."""
    result: dict[str, Any] = copy.deepcopy(dict(document))
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not key:
            raise ConfigError(
                f"the override {override!r} is not of the form table.key=value, "
                "for example base.steps=100."
            )
        *parents, last = _key_path(key, override)
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"the override {override!r} goes into {parent!r}, no table.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:  # no TOML, or a number of more digits than Python reads
            value = text
        is_text = _is_text((*parents, last)) and not isinstance(value, str)
        node[last] = text if is_text else value  # run.name=2026-11-27 is a name, no date
    return result


def own_text(folder: str) -> list[str]:
    """The overrides that make a run pretrain on the text files of a folder."""
    return ['data.source="folder"', f"data.folder={json.dumps(folder)}", "data.shards=0"]


def of_imported(config: RunConfig) -> list[str]:
    """The overrides that give another configuration the imported model of this one."""
    tables = {"model": asdict(config.model), "imported": asdict(config.imported)}
    values = {
        "run.preset": config.preset,
        "run.depth": config.depth,
        "tokenizer.vocab_size": config.tokenizer.vocab_size,
        "tokenizer.tool_tokens": config.tokenizer.tool_tokens,
        **{f"{n}.{key}": value for n, t in tables.items() for key, value in t.items()},
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _key_path(key: str, override: str) -> list[str]:
    """`a.b` and `a."b.c"` as TOML has them."""
    try:
        node = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"the override {override!r} has a key that is not TOML's; put a name with other "
            "characters than letters, digits, - and _ in double quotes."
        ) from error
    path: list[str] = []
    value: Any = node
    while isinstance(value, dict):
        ((name, value),) = value.items()
        path.append(name)
    return path


def _is_text(path: tuple[str, ...]) -> bool:
    """Whether the setting `table.key` is a text."""
    if len(path) != 2:
        return False
    table, key = path
    known = RUN_KEYS if table == "run" else kinds(TABLES[table]) if table in TABLES else {}
    return plain(known.get(key))[0] is str


def from_document(document: Mapping[str, Any], where: str) -> RunConfig:
    """Builds the RunConfig from a parsed TOML document called `where` in errors."""
    if "base_optim" in document:
        raise ConfigError(f"{where} has the unknown key 'base_optim'; base's optimizer is [optim].")
    names = [*TABLES, "run", "about"]
    check_keys(document, names, where)
    tables = {name: document.get(name, {}) for name in names}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: {name} is {table!r}; it must be a table, [{name}].")
    _about(document, where)
    run = _run_table(tables["run"], where)
    preset, given = run["preset"], tables["model"]
    tokenizer = build(TokenizerConfig, tables["tokenizer"], "tokenizer")
    if not kinds(ModelConfig).keys() <= given.keys():
        given = {**asdict(derive_model(run["depth"], preset, tokenizer.vocab_size)), **given}
    model = build(ModelConfig, given, "model")
    if model.vocab_size != tokenizer.vocab_size or model.n_layer != run["depth"]:
        raise ConfigError(
            f"{where}: the model has vocab_size {model.vocab_size} and n_layer {model.n_layer}; "
            "set them as tokenizer.vocab_size and run.depth, from which the model takes them."
        )
    run.setdefault("data_ratio", DATA_RATIO[preset])
    # A batch of the user's own has other rates than the derived one.
    own_batch = "batch_tokens" in tables["base"]
    batch = build(TrainConfig, tables["base"], "base").batch_tokens if own_batch else 0
    horizon = derive_horizon(model, preset, run["data_ratio"], batch)
    optim = build(OptimConfig, {**asdict(horizon.optim), **tables["optim"]}, "optim")
    derived = {
        "model": asdict(model),
        "optim": asdict(optim),
        "base": {"batch_tokens": horizon.batch_tokens, "steps": horizon.steps},
        **{
            f"{stage}_optim": asdict(derive_stage_optim(stage, preset, optim, horizon.rate_scale))
            for stage in MODELS[1:]
        },
    }
    built = {
        name: build(cls, {**derived.get(name, {}), **tables[name]}, name)
        for name, cls in TABLES.items()
    }
    return RunConfig(**run, **built)


def _about(document: Mapping[str, Any], where: str) -> About:
    return build(About, document.get("about", {}), f"{where} [about]")


def _run_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    check_keys(table, RUN_KEYS, f"{where} [run]")
    for key in ("name", "depth"):
        if key not in table:
            raise ConfigError(f"{where} has no run.{key}; every run needs one.")
    run = {"preset": "classic", "seed": 0, **table}
    return {key: convert(value, RUN_KEYS[key], f"run.{key}") for key, value in run.items()}


def to_json(config: object) -> str:
    """A config as canonical JSON, for hashes and reports."""
    return json.dumps(asdict(config), sort_keys=True)  # type: ignore[call-overload]


def from_json(text: str) -> RunConfig:
    """The RunConfig that `to_json` wrote. Raises ConfigError for anything else."""
    try:
        document = json.loads(text)
        tables = {
            name: build(cls, document.pop(name), name)
            for name, cls in TABLES.items()
            if name in document  # a run from before a table existed has its defaults
        }
        for stage in MODELS[1:]:  # once, all stages had the rates and schedules of base
            tables.setdefault(f"{stage}_optim", StageOptimConfig.like(tables["optim"]))
        return RunConfig(**document, **tables)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"this is no configuration of a run ({error}).") from error
