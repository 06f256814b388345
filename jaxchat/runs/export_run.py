"""Writes a stage of a run into a folder of its own, for others to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.checkpoints import huggingface, native
from jaxchat.checkpoints.tensors import SAFETENSORS
from jaxchat.errors import ConfigError
from jaxchat.paths import atomic_folder, atomic_open
from jaxchat.runs import run_dir
from jaxchat.runs.opening import check_stage, load_model, open_run
from jaxchat.runs.report import card
from jaxchat.runs.report.files import gather_run
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.tokenizer.huggingface import OWN_FILE

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
README = "README.md"
# All that an export writes: a folder that holds anything else is never replaced.
FILES = {
    README, SAFETENSORS, "tokenizer.json", huggingface.CONFIG, "generation_config.json",
    "tokenizer_config.json", "chat_template.jinja", "chat_template_training.jinja",
    f"{huggingface.GENERATE}/generate.py", f"{huggingface.GENERATE}/calculator.py",
    native.FILE, OWN_FILE,
}  # fmt: skip


def export_model(
    root: Path,
    name: str | None,
    stage: str,
    folder: Path,
    *,
    kind: str = "hf",
    dtype: str = "float32",
    licence: str = "",
    force: bool = False,
) -> int:
    """Exports a stage of the run called `name`, or the last; returns the bytes written.

    The folder gets its name when it is complete. Raises ConfigError for a folder that is there
    already and for a model that the format cannot hold, ArtifactError for a stage that is not
    complete.
    """
    _check_target(folder, force)
    context = open_run(run_dir.find(root, name))
    config, run = context.config, context.root
    check_stage(context, stage)
    if kind != "jaxchat":
        huggingface.refuse_obstacles(config.model)  # before the weights are read
    params: Any = jax.device_get(load_model(run, stage, config.model))
    tokenizer, results = tokenizer_of(context), context.done[stage]["results"]
    params, config = native.of_tokenizer(params, config, tokenizer)
    made = gather_run(run)
    with atomic_folder(folder) as temporary:
        if kind != "jaxchat":
            huggingface.write_huggingface_model(
                temporary, params, config.model, tokenizer, stage, DTYPES[dtype], mlx=kind == "mlx"
            )
        else:
            native.write_native(temporary, params, config, tokenizer, stage, results)
        with atomic_open(temporary / README) as file:
            file.write(card.render_card(made, config, stage, folder, kind=kind, licence=licence))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_target(folder: Path, force: bool) -> None:
    """Raises ConfigError for a folder that is not to be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    foreign = not folder.is_dir() or {path.relative_to(folder).as_posix() for path in files} - FILES
    if foreign or not force:
        reason = (
            "it holds more than an export writes, so that not even --force replaces it"
            if foreign
            else "--force replaces it"
        )
        raise ConfigError(f"{folder} is there already; name another folder ({reason}).")
