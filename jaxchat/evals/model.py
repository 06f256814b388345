"""The model that an evaluation measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jax.sharding import Mesh

from jaxchat.config.schema import ModelConfig
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class EvalModel:
    """A model, and how it is computed on whole rows."""

    load: Callable[[], Any]  # reads the weights, once, when they are first needed
    config: ModelConfig
    tokenizer: Tokenizer
    compute: Compute = PLAIN
    mesh: Mesh | None = None  # over which rows are split; None: the first device alone
    digest: str = ""  # of the weights

    @cached_property
    def params(self) -> Any:
        """The weights, on `mesh` as in training."""
        return self.load()
