"""Ladders in a home as they are when all runs are done, without any training."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxchat.paths import write_json
from jaxchat.runs.ladder import recipe, results
from jaxchat.runs.ladder.recipe import Recipe

DEPTHS, SEEDS = (1, 2, 3), (0, 1, 2)


def write_ladder(
    home: Path,
    name: str,
    *,
    gain: float = 1.0,
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = SEEDS,
    noise: float = 0.001,
    missing: int = 0,
    overrides: Sequence[str] = (),
    once: Sequence[int] = (),
    **more: object,
) -> Path:
    """A ladder whose bits per byte are a power law of `gain` times its FLOPs; its folder.

    The last `missing` runs are not complete; `more` is in every run's record.
    """
    made = Recipe(name, "cpu", tuple(overrides), tuple(depths), tuple(seeds), once=tuple(once))
    recipe.freeze(home, made, {"held_out_bytes": made.text_bytes})
    place, rng = recipe.folder(home, name), np.random.default_rng(len(name))
    for depth, seed in made.rungs[: len(made.rungs) - missing]:
        flops = 1e12 * 5.0**depth
        record = {
            "format": results.FORMAT,
            "run": made.run_name(depth, seed),
            "depth": depth,
            "seed": seed,
            "parameters": 100_000 * depth,
            "steps": 100 * depth,
            "tokens": 204_800 * depth,
            "passes": 0.5 * depth - 0.1,
            "flops": flops,
            "seconds": 60.0 * depth,
            "tokens_per_second": 204_800 / 50,
            "bits_per_byte": 8 * (gain * flops) ** -0.05 * math.exp(noise * rng.normal()),
            "text": {"sha256": "a" * 64, "bytes": 300_000, "tokens": 100_000},
            "weights": "b" * 64,
            "devices": ["cpu: cpu"],
            "processor": "a processor",
            "packages": {"jax": "0.10.2"},
            "git": {"commit": "0123abc", "dirty": False},
            **more,
        }
        write_json(results.rung_file(place, record["run"]), record)
    return place
