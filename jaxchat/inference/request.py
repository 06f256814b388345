"""What goes into the engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxchat.config import numbers
from jaxchat.inference.grammar import CompiledGrammar

FinishReason = Literal["stop", "length"]
Alternatives = tuple[tuple[int, float], ...]  # (id, log-probability), likeliest first

ROOM = 4  # 1 / ROOM of the context is reserved for the answer to a prompt that is cut
MAX_STOPS = 16  # stop texts of a request
MAX_STOP_IDS = 16  # and stop tokens
MAX_BIASES = 300  # tokens with a bias, as OpenAI has it
MAX_ALTERNATIVES = 20  # reported for each token
RANGES = {
    "max_tokens": numbers.COUNT,
    "temperature": numbers.TEMPERATURE,
    "top_k": numbers.TOP_K,
    "top_p": numbers.TOP_P,
    "n": numbers.COUNT,
    "alternatives": numbers.Range(0, MAX_ALTERNATIVES),
    "min_p": numbers.MIN_P,
    "repetition_penalty": numbers.REPETITION_PENALTY,
    "frequency_penalty": numbers.PENALTY,
    "presence_penalty": numbers.PENALTY,
    "min_tokens": numbers.WHOLE,
}


class EngineError(ValueError):
    """A request that cannot be served; the message says why, and what to do."""


@dataclass(frozen=True)
class Request:
    """A prompt, and how to continue it.

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
    # Texts at which an answer ends, the token that completes one included; only what the assistant
    # says is looked at, not calls of tools and what they answer.
    stop: tuple[str, ...] = ()
    include_stop: bool = False  # a text made of the answer has the stop text or token too
    alternatives: int = 0  # for each sampled token: the n likeliest in its place
    # What follows changes what is drawn, not the log-probabilities (see `inference.changes`).
    min_p: float = 0.0  # only tokens of at least this share of the likeliest's probability
    repetition_penalty: float = (
        1.0  # above 1: tokens of the prompt or the answer become less likely
    )
    frequency_penalty: float = 0.0  # subtracted from a logit for each time the answer has its token
    presence_penalty: float = 0.0  # once, if the answer has it
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit)
    ignore_eos: bool = False  # the model cannot end the answer
    min_tokens: int = 0  # before which neither the model nor a stop ends the answer
    stop_token_ids: tuple[int, ...] = ()  # that end it where the model chooses one
    grammar: CompiledGrammar | None = None  # which the answer follows; then it calls no tools

    def __post_init__(self) -> None:
        if not self.tokens:
            raise EngineError("the prompt is empty; it needs at least one token, such as <|bos|>.")
        for name, allowed in RANGES.items():
            try:
                allowed.check(getattr(self, name), name)
            except numbers.NumberError as error:
                raise EngineError(str(error)) from error
        if isinstance(self.stop, str) or len(self.stop) > MAX_STOPS or not all(self.stop):
            raise EngineError(
                f"stop is {self.stop!r}; it must be a tuple of at most {MAX_STOPS} texts, none of "
                "them empty."
            )
        for name, most, unit in (
            ("logit_bias", MAX_BIASES, "tokens"),
            ("stop_token_ids", MAX_STOP_IDS, "ids"),
        ):
            if (count := len(getattr(self, name))) > most:
                raise EngineError(f"{name} has {count} {unit}; at most {most} are allowed.")
        for token, bias in self.logit_bias:
            try:
                numbers.BIAS.check(bias, f"logit_bias of token {token}")
            except numbers.NumberError as error:
                raise EngineError(str(error)) from error
        if self.min_tokens > self.max_tokens:
            raise EngineError(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; it must not be "
                "above that."
            )

    @property
    def truncates(self) -> bool:
        """Whether tokens are kept from being drawn: nothing is drawn at a temperature of 0."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1.0)

    @property
    def penalizes(self) -> bool:
        """Whether what is drawn depends on what the text has."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are drawn from other logits than the model's, or by min_p."""
        drawn = self.min_p > 0 and self.temperature > 0
        held = self.ignore_eos or self.min_tokens > 0
        return drawn or held or self.penalizes or bool(self.logit_bias)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the vocabulary that it names beside the prompt's."""
        return (*(token for token, _ in self.logit_bias), *self.stop_token_ids)


@dataclass(frozen=True)
class Completion:
    """What follows a prompt. The tuples have one entry for each token."""

    tokens: tuple[int, ...]  # the `<|assistant_end|>` or `<|bos|>` that ended it included
    mask: tuple[int, ...]  # 1 sampled, 0 put there by a tool
    logprobs: tuple[float, ...]  # the model's, at temperature 1 over all tokens; 0 where mask is 0
    finish_reason: FinishReason
    # As many as the request asked for, at temperature 1; none where mask is 0.
    alternatives: tuple[Alternatives, ...] = ()


def cut_prompt(
    tokens: tuple[int, ...], *, max_tokens: int, context: int, bos: int
) -> tuple[int, ...]:
    """A prompt that leaves room for an answer in the context.

    Where it leaves less than a quarter of the context (or than max_tokens, if that is less), its
    oldest tokens are dropped, but not a `<|bos|>` at its start.
    """
    room = min(max_tokens, max(1, context // ROOM))
    extra = len(tokens) + room - context
    first = int(tokens[0] == bos)
    return tokens if extra <= 0 else tokens[:first] + tokens[first + extra :]
