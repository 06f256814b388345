"""The stages data, tokenizer and rows: from files of text and conversations to packed rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxchat.config.machine import cores
from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.chat import build_chat_rows
from jaxchat.data.inputs import own_files_changed
from jaxchat.data.shards import delete_other_rows, prepare_text, text_hash
from jaxchat.errors import ConfigError
from jaxchat.evals import compression
from jaxchat.evals.compression import fetch_vocabularies, vocabulary_folder
from jaxchat.paths import sha256_text
from jaxchat.runs import eval_stages
from jaxchat.runs.inputs import home_of, hub_of, text_folder, text_of
from jaxchat.runs.run_tokenizer import tokenizer_in, tokenizer_of
from jaxchat.runs.runner import Context


def run_data(context: Context) -> dict[str, Any]:
    """Finds the text and the conversations, and fetches what is needed first."""
    hub = hub_of(context)
    eval_stages.find_bundle(context)  # what is wrong with it is said before anything is fetched
    found = inputs.gather(context.config, context.folder("data"), hub)
    eval_stages.fetch_bundle(context)
    if context.config.data.is_dataset:
        fetch_vocabularies(hub, context.config.eval.vocabularies_url)
    return found


def is_outdated(context: Context) -> bool:
    """Whether files of the user's own are other ones than those that were found."""
    return own_files_changed(context.config, context.folder("data"))


def run_tokenizer(context: Context) -> dict[str, Any]:
    """Trains the tokenizer, and measures how it compresses."""
    read = inputs.read_inputs(context.folder("data"))
    tokenizer_in.cache_clear()
    results = prepare.train_tokenizer(context.config, read, context.folder("tokenizer"))
    peers = vocabulary_folder(home_of(context.root))
    measured = compression.survey({context.config.name: tokenizer_of(context)}, folder=peers)
    return results | {"compression": [result.to_json() for result in measured]}


def run_rows(context: Context) -> dict[str, Any]:
    """Renders and packs conversations; the first rows of text, or all where they are few."""
    config, tokenizer, folder = context.config, tokenizer_of(context), context.folder("rows")
    read = inputs.read_inputs(context.folder("data"))
    text = text_folder(context)
    counts = dict[str, int]()  # rows of text by name
    if config.data.source == "machine":
        made = prepare_text(config, read, tokenizer, text, hub_of(context), workers=cores())
        counts["base_train"] = made.training.rows
    delete_other_rows(text)
    rows = text_of(context)
    counts["base_heldout"] = len(rows.held_out)
    if not len(rows.held_out):
        raise ConfigError(_no_held_out(config, read))
    by_split: dict[Any, Any] = {"train": rows.train, "test": rows.held_out}
    chat = build_chat_rows(config, read, tokenizer, by_split, folder)
    if config.imported.trains("base"):
        rows.train.take(np.arange(1), config.seed)  # waits until training can begin
    else:
        context.close()  # no further shards are read
    row_tokens = config.model.sequence_len + 1
    digest = text_hash(read, tokenizer, row_tokens)
    parts = {"text": digest, **chat.pop("parts")}
    tokens = {name: count * row_tokens for name, count in counts.items()}
    return {
        **{n: {"rows": counts[n], "tokens": t, "trained_tokens": t} for n, t in tokens.items()},
        **chat,
        "parts": parts,
        "artifact": sha256_text(*parts.values()),
    }


def _no_held_out(config: RunConfig, read: inputs.Inputs) -> str:
    """What to do where the text that is held out fills no row."""
    more = {
        "machine": f"raise data.max_chars (it is {config.data.max_chars})",
        "folder": "put more text at the end of the folder, by name",
    }.get(config.data.source, "name another shard with data.held_out_shard")
    return (
        f"the held-out text, {read.text[-1].name}, does not fill one row of "
        f"{config.model.sequence_len + 1} tokens; {more}, or lower model.sequence_len."
    )
