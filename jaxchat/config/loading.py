"""Reads a run's TOML file and overrides into a RunConfig (layer 0)."""

from __future__ import annotations

import copy
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from jaxchat.config import numbers
from jaxchat.config.derive import DATA_RATIO, derive_horizon, derive_model, derive_stage_optim
from jaxchat.config.schema import (
    MODELS,
    PRESETS,
    ComputeConfig,
    DataConfig,
    EvalConfig,
    HardwareConfig,
    ImportedConfig,
    MeshConfig,
    MirrorConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    RunConfig,
    StageOptimConfig,
    TokenizerConfig,
    TrackConfig,
    TrainConfig,
    build,
    unknown_key,
)
from jaxchat.data.files.compressed import Unreadable
from jaxchat.data.files.text import read_text
from jaxchat.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"  # of the checkout
RUN_KEYS = {"name": str, "preset": str, "depth": int, "seed": int, "data_ratio": float}
TABLES = {
    "model": ModelConfig,
    "optim": OptimConfig,
    "tokenizer": TokenizerConfig,
    "data": DataConfig,
    "base": TrainConfig,
    "mid": TrainConfig,
    "sft": TrainConfig,
    "rl": RLConfig,
    "eval": EvalConfig,
    "mesh": MeshConfig,
    "hardware": HardwareConfig,
    "compute": ComputeConfig,
    "imported": ImportedConfig,
    "track": TrackConfig,
    "mirror": MirrorConfig,
    "mid_optim": StageOptimConfig,
    "sft_optim": StageOptimConfig,
    "rl_optim": StageOptimConfig,
}


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
    try:
        document = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}.") from error
    except Unreadable as error:
        raise ConfigError(f"the config {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}.") from error
    return from_document(apply_overrides(document, overrides), path.name)


def apply_overrides(document: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the TOML document with each `table.key=value` set; values are TOML or bare text."""
    result: dict[str, Any] = copy.deepcopy(dict(document))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"the override {override!r} is not of the form table.key=value, "
                "for example base.steps=100."
            )
        *parents, last = _key_path(key.strip(), override)
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"the override {override!r} goes into {parent!r}, no table.")
        value = _parse_value(text.strip())
        is_text = _is_text((*parents, last)) and not isinstance(value, str)
        node[last] = text.strip() if is_text else value  # run.name=2026-11-27 is a name, no date
    return result


def own_text(folder: str) -> list[str]:
    """The overrides that make a run pretrain on the text files of a folder."""
    return ['data.source="folder"', f"data.folder={json.dumps(folder)}", "data.shards=0"]


def of_imported(config: RunConfig) -> list[str]:
    """The overrides that give another configuration the imported model of this one."""
    tables = {"model": config.model, "imported": config.imported}
    values = {
        "run.preset": config.preset,
        "run.depth": config.depth,
        "tokenizer.vocab_size": config.tokenizer.vocab_size,
        **{f"{n}.{key}": value for n, t in tables.items() for key, value in _as_table(t).items()},
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


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or a number of more digits than Python reads
        return text


def _is_text(path: tuple[str, ...]) -> bool:
    """Whether the setting `table.key` is a text."""
    if len(path) != 2:
        return False
    table, key = path
    if table == "run":
        return RUN_KEYS.get(key) is str
    return table in TABLES and get_type_hints(TABLES[table]).get(key) is str


def from_document(document: Mapping[str, Any], where: str) -> RunConfig:
    """Builds the RunConfig from a parsed TOML document called `where` in errors."""
    names = [*TABLES, "run"]
    for name in document:
        if name == "base_optim":
            raise ConfigError(f"{where} has the unknown key {name!r}; base's optimizer is [optim].")
        if name not in names:
            raise unknown_key(where, name, names)
    tables = {name: document.get(name, {}) for name in names}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: {name} is {table!r}; it must be a table, [{name}].")
    run = _run_table(tables["run"], where)
    preset = run["preset"]
    tokenizer = build(TokenizerConfig, tables["tokenizer"], "tokenizer")
    given = tables["model"]
    if not {field.name for field in dataclasses.fields(ModelConfig)} <= given.keys():
        given = {**_as_table(derive_model(run["depth"], preset, tokenizer.vocab_size)), **given}
    model = build(ModelConfig, given, "model")
    if model.vocab_size != tokenizer.vocab_size or model.n_layer != run["depth"]:
        raise ConfigError(
            f"{where}: the model has vocab_size {model.vocab_size} and n_layer {model.n_layer}; "
            "set them as tokenizer.vocab_size and run.depth, from which the model takes them."
        )
    ratio = run.get("data_ratio", DATA_RATIO[preset])
    # A batch of the user's own has other rates than the derived one.
    batch = _train("base", tables["base"]).batch_tokens if "batch_tokens" in tables["base"] else 0
    horizon = derive_horizon(model, preset, ratio, batch)
    optim = build(OptimConfig, {**_as_table(horizon.optim), **tables["optim"]}, "optim")
    base_table = {"batch_tokens": horizon.batch_tokens, "steps": horizon.steps, **tables["base"]}
    return RunConfig(
        name=run["name"],
        preset=preset,
        depth=run["depth"],
        seed=run["seed"],
        data_ratio=ratio,
        model=model,
        optim=optim,
        tokenizer=tokenizer,
        data=build(DataConfig, tables["data"], "data"),
        base=_train("base", base_table),
        mid=_train("mid", tables["mid"]),
        sft=_train("sft", tables["sft"]),
        rl=build(RLConfig, tables["rl"], "rl"),
        eval=build(EvalConfig, tables["eval"], "eval"),
        mesh=build(MeshConfig, tables["mesh"], "mesh"),
        hardware=build(HardwareConfig, tables["hardware"], "hardware"),
        compute=build(ComputeConfig, tables["compute"], "compute"),
        imported=build(ImportedConfig, tables["imported"], "imported"),
        track=build(TrackConfig, tables["track"], "track"),
        mirror=build(MirrorConfig, tables["mirror"], "mirror"),
        **{
            f"{stage}_optim": _stage_optim(
                derive_stage_optim(stage, preset, optim, horizon.rate_scale), tables, stage
            )
            for stage in MODELS[1:]
        },
    )


def _stage_optim(
    derived: StageOptimConfig, tables: Mapping[str, Any], stage: str
) -> StageOptimConfig:
    name = f"{stage}_optim"
    return build(StageOptimConfig, {**_as_table(derived), **tables[name]}, name)


def _train(name: str, table: Mapping[str, Any]) -> TrainConfig:
    try:
        return build(TrainConfig, table, name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("train.", f"{name}.", 1)) from error


def _as_table(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _run_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    run = {"preset": "classic", "seed": 0, **table}
    for key, value in run.items():
        if key not in RUN_KEYS:
            raise unknown_key(f"{where} [run]", key, list(RUN_KEYS))
        if RUN_KEYS[key] is float and type(value) is int and abs(value) < 2**1023:
            run[key] = value = float(value)
        if type(value) is not RUN_KEYS[key]:
            shown = numbers.cut(repr(value) if isinstance(value, str) else str(value))
            quote = ": put it in double quotes" if RUN_KEYS[key] is str else ""
            raise ConfigError(
                f"run.{key} is {shown}; it must be of type {RUN_KEYS[key].__name__}{quote}."
            )
    for key in ("name", "depth"):
        if key not in run:
            raise ConfigError(f"{where} has no run.{key}; every run needs one.")
    if run["preset"] not in PRESETS:
        raise ConfigError(
            f"run.preset is {run['preset']!r}; it must be one of {', '.join(PRESETS)}."
        )
    ranges = {"seed": numbers.SEED, "depth": numbers.DEPTH, "data_ratio": numbers.RATIO}
    for key, allowed in ranges.items():
        try:
            allowed.check(run.get(key, 1), f"run.{key}")
        except numbers.NumberError as error:
            raise ConfigError(str(error)) from error
    return run


def to_json(config: object) -> str:
    """A config as canonical JSON, for hashes and reports."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)  # type: ignore[call-overload]


def from_json(text: str) -> RunConfig:
    """The RunConfig that `to_json` wrote. Raises ConfigError for anything else."""
    try:
        document = json.loads(text)
        tables: dict[str, Any] = {
            name: build(cls, document.pop(name), name)
            for name, cls in TABLES.items()
            if name in document  # a run from before a table existed has its defaults
        }
        for stage in MODELS[1:]:  # once, all stages had the rates and schedules of base
            tables.setdefault(f"{stage}_optim", StageOptimConfig.like(tables["optim"]))
        return RunConfig(**document, **tables)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"this is no configuration of a run ({error}).") from error
