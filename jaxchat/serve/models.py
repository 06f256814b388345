"""The models that are served: a run's stage each, with an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.service import Service
from jaxchat.serve.failures import ApiError
from jaxchat.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model under its name. `open_engine` makes its engine."""

    run: str
    stage: str
    config: ModelConfig
    tokenizer: Tokenizer
    parameters: int
    created: int  # seconds since 1970
    fingerprint: str  # of the weights
    context: int  # T, tokens of prompt and answer together
    open_engine: Callable[[], Service]

    @property
    def id(self) -> str:
        """The name that clients use."""
        return f"{self.run}/{self.stage}"

    def card(self, *, default: bool) -> dict[str, Any]:
        """What /v1/models tells of it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "jaxchat",
            "jaxchat": {
                "run": self.run,
                "stage": self.stage,
                "parameters": self.parameters,
                "depth": self.config.n_layer,
                "context": self.context,
                "vocab_size": self.config.vocab_size,
                "tools": ["calculator"],
                "default": default,
            },
        }


def choose(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """The named model, or the first. Raises ApiError 404, with those there are."""
    if not name:
        return models[0]
    for model in models:
        if model.id == name:
            return model
    there = ", ".join(model.id for model in models)
    raise ApiError(
        404,
        f"there is no model {name!r}; the models here are {there}.",
        code="model_not_found",
        param="model",
    )
