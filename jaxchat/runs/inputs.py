"""What the stages of a run read: its rows of text, and its datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from jaxchat.data import inputs, shards
from jaxchat.data.download.hub import Hub, open_hub
from jaxchat.data.loader import HeldOutRows, ShardedRows
from jaxchat.data.shard_folder import is_whole
from jaxchat.runs.background import Preparer
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import Context


def hub_of(context: Context, *, offline: bool = False) -> Hub:
    """The client of the hub; with `offline`, it only has what was downloaded."""
    network = context.network
    return open_hub(
        home_of(context.root), base_url=network.base_url, offline=offline or network.offline
    )


def home_of(root: Path) -> Path:
    """The home of HOME/runs/NAME."""
    return root.parents[1]


class TextRows(NamedTuple):
    """Rows of a run's text; those to train on may still be coming."""

    train: ShardedRows
    held_out: HeldOutRows


def text_of(context: Context) -> TextRows:
    """The rows of text; starts background tokenization of missing shards."""
    folder, tokenizer = text_folder(context), tokenizer_of(context)
    alive = None
    if not is_whole(folder):
        if not context.group.leads:
            alive = _by_process_0
        elif context.preparer is None:
            log = folder.parent / "progress.log"
            print(f"text is prepared meanwhile; its progress is in {log}", file=sys.stderr)
            context.preparer = Preparer(_prepare_arguments(context), log)
        if context.preparer is not None:
            alive = context.preparer.ended
    return TextRows(
        ShardedRows(folder, tokenizer.hash, alive=alive),
        HeldOutRows(folder, tokenizer.hash, alive=alive),
    )


def _by_process_0() -> str | None:
    """The shards come for as long as this process lives: if they cannot, process 0 ends all."""
    return None


def text_folder(context: Context) -> Path:
    """Where the rows of the run's text are."""
    read = inputs.read_inputs(context.folder("data"))
    row_tokens = context.config.model.sequence_len + 1
    return shards.text_folder(context.root, read, tokenizer_of(context), row_tokens)


def _prepare_arguments(context: Context) -> list[str]:
    network = context.network
    home = str(home_of(context.root))
    arguments = ["data", "--home", home, "prepare", "--run", context.root.name]
    arguments += ["--offline"] if network.offline else []
    return arguments + (["--base-url", network.base_url] if network.base_url else [])
