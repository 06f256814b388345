"""nanochat's engine, run in a process of its own with a Python that has torch, to compare with.

The script that does it is in the checkout of this project (`bench/nanochat_peer`), not in its
packages.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxchat
from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ConfigError

SCRIPT = Path(jaxchat.__file__).resolve().parents[1] / "bench" / "nanochat_peer" / "generate.py"
SETTINGS = "sequence_len vocab_size n_layer n_head n_kv_head n_embd window_pattern".split()


def write_model(path: Path, model: ModelConfig, params: Any) -> None:
    """Writes an .npz of parameters in nanochat's names and layout, and their sizes as JSON."""
    arrays = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = tuple(str(key.key) for key in keys)
        value = np.asarray(leaf, np.float32)
        value = value.T if names[-1] == "kernel" else value
        arrays[f"weight/{nanochat_name(names)}"] = value.reshape(value.shape or (1,))
    settings = json.dumps({"model": {name: getattr(model, name) for name in SETTINGS}})
    np.savez(path, allow_pickle=False, settings=np.array(settings), **arrays)


def check_checkout(checkout: Path) -> None:
    """Raises ConfigError where there is no checkout of nanochat, or none of jaxchat around us."""
    if not SCRIPT.is_file():
        raise ConfigError(f"--nanochat needs a checkout of jaxchat: there is no {SCRIPT}.")
    if not (checkout / "nanochat" / "engine.py").is_file():
        raise ConfigError(
            f"{checkout} is no checkout of nanochat: it has no nanochat/engine.py; give --nanochat "
            "the folder that git clone made."
        )


def generate(
    checkout: Path,
    python: str,
    model: ModelConfig,
    params: Any,
    *,
    batches: Sequence[int],
    prompt: int,
    tokens: int,
) -> dict[int, dict[str, float]]:
    """For each batch size `prefill_seconds` and `decode_tokens_per_second` of nanochat's engine.

    Raises ConfigError as `check_checkout` does, and where there is no such Python or it fails.
    """
    check_checkout(checkout)
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "model.npz", Path(folder) / "out.json"
        write_model(file, model, params)
        command = [
            python, str(SCRIPT), "--nanochat", str(checkout), "--model", str(file),
            "--batch", ",".join(map(str, batches)), "--prompt", str(prompt),
            "--tokens", str(tokens), "--out", str(out),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"nanochat's engine could not be run ({error}); --nanochat names a checkout of it "
                "and --nanochat-python a Python that has torch."
            ) from error
        told = json.loads(out.read_text(encoding="utf-8"))
    return {int(batch): figures for batch, figures in told.items()}
