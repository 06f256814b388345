"""The recipe of a ladder: a tier with settings, trained at some depths with some seeds.

HOME/ladders/NAME/ladder.json   the recipe, frozen when the ladder begins
HOME/ladders/NAME/text/         the held-out text that bits per byte are measured on
HOME/ladders/NAME/rungs/        what came of each run
HOME/runs/NAME-dD-sS/           the runs

What a tier fixes of the steps and the width is left to derivation from the depth, unless it is set
for the ladder: only so are the depths a series of one recipe.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.config import loading
from jaxchat.config.derive import middle_layer
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import read_json, sha256_text, write_json
from jaxchat.runs import provenance, run_dir, runner
from jaxchat.runs.plan import checks
from jaxchat.runs.report.reproduce import settings
from jaxchat.runs.stages import BY_NAME, NON_SEMANTIC_FIELDS

FORMAT = "jaxchat-ladder-1"
RECORD = "ladder.json"
STAGES = ("data", "tokenizer", "rows", "base")  # of a rung
DERIVED = {"base": ("steps",), "model": ("n_layer", "n_head", "n_kv_head", "n_embd")}
OWN = ("run.name", "run.depth", "run.seed")  # the ladder's to set
TABLES = (
    "run",
    "model",
    "optim",
    "tokenizer",
    "data",
    "base",
    "mid",
    "sft",
    "compute",
)  # they read
TEXT_BYTES = 1_000_000
SHOWN = 3  # settings that a sentence names


@dataclass(frozen=True)
class Recipe:
    """A ladder as it was asked for."""

    name: str
    tier: str
    overrides: tuple[str, ...]  # key=value
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    text: str = ""  # the file that bits per byte are measured on; "": the held-out text
    text_bytes: int = TEXT_BYTES  # of the held-out text
    once: tuple[int, ...] = ()  # depths that only the first seed has

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """(depth, seed) of all runs in their order."""
        return rungs(self.depths, self.seeds, self.once)

    def run_name(self, depth: int, seed: int) -> str:
        """The name of a rung's run."""
        return f"{self.name}-d{depth}-s{seed}"

    def config(self, depth: int, seed: int) -> RunConfig:
        """The configuration of a rung's run. Raises ConfigError for what cannot be."""
        path = loading.find_tier(self.tier)
        document = loading.read_toml(path, "config")
        for table, keys in DERIVED.items():
            kept = {k: v for k, v in document.get(table, {}).items() if k not in keys}
            document[table] = kept
        own = (self.run_name(depth, seed), depth, seed)
        rung = [f"{key}={json.dumps(value)}" for key, value in zip(OWN, own, strict=True)]
        changed = loading.apply_overrides(document, [*self.overrides, *rung])
        config = loading.from_document(changed, path.name)
        model = config.model
        if middle_layer(model.n_layer) == model.n_layer - 1 and "backout" not in changed["model"]:
            # x - b x, which the norm undoes but for its sign, is left out: b may drift above 1
            config = dataclasses.replace(config, model=dataclasses.replace(model, backout=False))
        return config

    def configs(self) -> list[RunConfig]:
        """The configurations of all rungs, checked. Raises ConfigError."""
        for override in self.overrides:
            key = override.partition("=")[0].strip()
            if key in OWN:
                raise ConfigError(
                    f"{key} is set; a ladder sets it for each of its runs: use NAME, --depths and "
                    "--seeds."
                )
        if unknown := sorted({*self.once} - {*self.depths}):
            raise ConfigError(
                f"--once has {_listed(unknown)}, and --depths {_listed(self.depths)}; what is "
                "trained once is one of the depths."
            )
        configs = [self.config(depth, seed) for depth, seed in self.rungs]
        for config in configs:
            checks.check_names(config)
            checks.check_sizes(config)
            _check_end(config)
        return configs


def rungs(
    depths: Sequence[int], seeds: Sequence[int], once: Collection[int]
) -> list[tuple[int, int]]:
    """(depth, seed): every depth of a seed before the next seed, then what is trained `once`."""
    several = [(depth, seed) for seed in seeds for depth in depths if depth not in once]
    return several + [(depth, seeds[0]) for depth in depths if depth in once]


def _check_end(config: RunConfig) -> None:
    """Raises ConfigError for a rung that has no end to compare."""
    if config.base.steps < 1:
        raise ConfigError(
            f"depth {config.depth} trains for no whole step of {config.base.batch_tokens:,} "
            "tokens; raise run.data_ratio, lower base.batch_tokens, or set base.steps."
        )
    if config.optim.warmdown_ratio == 0:
        raise ConfigError(
            "optim.warmdown_ratio is 0; a ladder compares models whose rate has been annealed: "
            "set it above 0."
        )


def folder(root: Path, name: str) -> Path:
    """Where the ladder called `name` lives. Raises ConfigError for a path."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f"the ladder's name is {name!r}; it names a folder: letters, digits and . _ - only."
        )
    return paths.ladders(root) / name


def is_rung(run: Path) -> bool:
    """Whether the run in a folder is a ladder's, by its name."""
    name = re.fullmatch(r"(.+)-d\d+-s\d+", run.name)
    return name is not None and (paths.ladders(run.parents[1]) / name[1] / RECORD).exists()


def names(root: Path) -> list[str]:
    """The ladders that there are."""
    return sorted(path.parent.name for path in paths.ladders(root).glob(f"*/{RECORD}"))


def find(root: Path, name: str) -> Path:
    """The folder of a ladder that is there. Raises ArtifactError, with those that there are."""
    place = folder(root, name)
    if (place / RECORD).exists():
        return place
    there = names(root)
    others = f"; the ladders there are {', '.join(there)}" if there else ""
    raise ArtifactError(
        f"there is no ladder {name!r} in {root}{others}. Make one with: jaxchat ladder run"
    )


def read_record(place: Path) -> dict[str, Any]:
    """The record of the ladder in a folder. Raises ArtifactError for anything else."""
    record: dict[str, Any] = read_json(place / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtifactError(
            f"{place / RECORD} is no ladder of format {FORMAT}; name another ladder."
        )
    return record


def freeze(root: Path, recipe: Recipe, text: Mapping[str, Any]) -> None:
    """Writes the record of a ladder that begins. `text` says what bits per byte are measured on.

    Raises ConfigError where the ladder was begun with another recipe, or the name of one of its
    runs is taken.
    """
    place, configs = folder(root, recipe.name), recipe.configs()
    wanted = _record(recipe, configs, text)
    if (place / RECORD).exists():
        if differences := _differences(read_record(place), wanted):
            raise ConfigError(
                f"the ladder {recipe.name} in {root} was begun with another recipe "
                f"({'; '.join(differences)}); give that one again, or another name."
            )
        return
    for config in configs:
        run = run_dir.folder(root, config.name)
        if (run / run_dir.CONFIG).exists() and run_dir.read_config(run) != config:
            raise ConfigError(
                f"the run {config.name} is there already with other settings; give the ladder "
                "another name."
            )
    write_json(place / RECORD, wanted)


def _record(recipe: Recipe, configs: list[RunConfig], text: Mapping[str, Any]) -> dict[str, Any]:
    hashes = [runner.settings_hash(BY_NAME[stage], c) for c in configs for stage in STAGES]
    named = ((*key.split(".", 1), key, value) for key, value in settings(configs[0]).items())
    decisive = {
        key: value
        for table, field, key, value in named
        if table in TABLES and field not in NON_SEMANTIC_FIELDS
    }
    record = {
        "format": FORMAT,
        **dataclasses.asdict(recipe),
        "text": dict(text),
        "recipe": sha256_text(*hashes),
        "settings": decisive,
        "made": {**provenance.git_state(), "packages": provenance.versions()},
    }
    del record["text_bytes"]
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of a recipe is not as it was, in words."""
    found = [
        f"{key} {_listed(there.get(key, []))}, not {_listed(wanted[key])}"
        for key in ("depths", "seeds", "once")
        if there.get(key, []) != wanted[key]
    ]
    if any(there["text"].get(key) != value for key, value in wanted["text"].items()):
        found.append("another held-out text")
    if not found and there["recipe"] != wanted["recipe"]:
        before, now = there["settings"], wanted["settings"]
        keys = [key for key in now if before.get(key) != now[key] and key not in OWN]
        changed = [f"{key} {before.get(key)}, not {now[key]}" for key in keys[:SHOWN]]
        found = changed or ["other settings"]
    return found


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values)) or "none"
