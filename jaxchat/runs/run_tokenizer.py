"""The tokenizer of a run: apart from its other inputs, which need far more imports."""

from __future__ import annotations

import functools
from pathlib import Path

from jaxchat.errors import ArtifactError
from jaxchat.runs.runner import Context
from jaxchat.tokenizer.bpe import Tokenizer


@functools.cache
def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of a run, read once.

    Raises ArtifactError when it is missing or damaged.
    """
    try:
        return Tokenizer.load(folder)
    except ValueError as error:
        raise ArtifactError(f"{error}; make it again with --force tokenizer.") from error


def tokenizer_of(context: Context) -> Tokenizer:
    """The run's tokenizer."""
    return tokenizer_in(context.folder("tokenizer"))
