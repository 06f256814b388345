"""What goes into the engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


class EngineError(ValueError):
    """A request that cannot be served; the message says why, and what to do."""


@dataclass(frozen=True)
class Request:
    """A prompt, and how to go on from it.

    Sample j of `n` depends on the tokens, the sampling settings, the seed and j alone.
    Raises EngineError when a value makes no sense.
    """

    tokens: tuple[int, ...]
    max_tokens: int  # of one completion, what tools put into it included
    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    seed: int = 0
    n: int = 1  # samples

    def __post_init__(self) -> None:
        if not self.tokens:
            raise EngineError("the prompt is empty; it needs at least one token, such as <|bos|>.")
        for name, least in (("max_tokens", 1), ("temperature", 0), ("top_k", 0), ("n", 1)):
            value = getattr(self, name)
            if not value >= least:
                raise EngineError(f"{name} is {value}; it must be at least {least}.")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


@dataclass(frozen=True)
class Completion:
    """What follows a prompt. The three tuples have one entry for each token."""

    tokens: tuple[int, ...]  # the `<|assistant_end|>` or `<|bos|>` that ended it included
    mask: tuple[int, ...]  # 1 sampled, 0 put there by a tool
    logprobs: tuple[float, ...]  # the model's, at temperature 1 over all tokens; 0 where mask is 0
    finish_reason: FinishReason
