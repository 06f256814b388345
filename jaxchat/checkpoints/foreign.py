"""A model that was read from files of another place, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxchat.config.schema import ModelConfig, RunConfig
from jaxchat.model.gpt import Params
from jaxchat.tokenizer import Tokenizer


@dataclass(frozen=True)
class ForeignModel:
    """Weights, what they are the weights of, and the tokenizer they were trained with.

    Attributes:
        format: of its files, for people.
        params: our tree of float32 NumPy arrays.
        stage: of MODELS, as far as the files say; "" where they do not.
        files: names and sha256 of the files that were read.
        notes: what a user should know of how they were read.
        config: of the whole run, where the files have it.
    """

    format: str
    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    stage: str
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    config: RunConfig | None = field(default=None)
