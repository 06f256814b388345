"""The host's state of one completion: its tokens so far, and its tool calls.

A model calls a tool by sampling `<|python_start|>`, code, `<|python_end|>`. The sequence then
pauses until the host has run the tool and queued `<|output_start|>`, the output and
`<|output_end|>`; these are fed through decode steps like sampled tokens, but were not chosen.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxchat.errors import TokenizerError
from jaxchat.inference.grammar import Matcher
from jaxchat.inference.request import Alternatives, Completion, FinishReason, Request
from jaxchat.inference.stop_strings import StopWatch
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tools.executor import TOOL_FAILED, Call


class Specials(NamedTuple):
    """Ids of the tokens that the engine reacts to."""

    bos: int
    user_end: int
    assistant_end: int
    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Specials:
        """The ids in a tokenizer; -1, which no token has, for those of tools where it has none."""
        return cls(*(tokenizer.specials.get(f"<|{name}|>", -1) for name in cls._fields))

    @property
    def stops(self) -> tuple[int, int]:
        """The tokens that end a completion."""
        return self.assistant_end, self.bos


@dataclass(eq=False)
class SequenceState:
    """One sample of a request while it grows."""

    request: Request
    stream: int  # which of the request's n samples
    limit: int  # tokens it may have
    known: int = 0  # tokens of its prompt that another prompt had read before
    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    stops: StopWatch | None = None
    code: list[int] | None = None  # the tool call being sampled
    call: Call | None = None  # the tool call that it waits for
    forced_tokens: deque[int] = field(default_factory=deque)  # a tool's or the grammar's, to come
    matcher: Matcher | None = None  # of its grammar
    finish_reason: FinishReason | None = None

    @property
    def position(self) -> int:
        """Positions the cache holds: the prompt and all tokens but the last."""
        return len(self.request.tokens) + len(self.tokens) - 1

    @property
    def last(self) -> int:
        """The last token, which the cache does not hold."""
        return self.tokens[-1] if self.tokens else self.request.tokens[-1]

    @property
    def waits(self) -> bool:
        """Whether it is paused until a tool has answered."""
        return self.call is not None

    @property
    def completion(self) -> Completion:
        """The finished completion."""
        assert self.finish_reason is not None
        mask, logprobs = tuple(self.mask), tuple(self.logprobs)
        others = tuple(self.alternatives)
        return Completion(tuple(self.tokens), mask, logprobs, self.finish_reason, others)

    def append(
        self, token: int, logprob: float, alternatives: Alternatives, specials: Specials
    ) -> list[int] | None:
        """Adds the next token, and notices the end; the code of a tool call that it completes."""
        chosen = not self.forced_tokens
        if self.forced_tokens:
            self.forced_tokens.popleft()
        elif self.matcher is not None:
            drawn, left = token, self.limit - len(self.tokens)
            token, forced = self.matcher.advance(drawn, left)
            chosen = token == drawn
            self.forced_tokens.extend(forced)
        self.tokens.append(token)
        self.mask.append(int(chosen))
        self.logprobs.append(logprob if chosen else 0.0)
        self.alternatives.append(alternatives[: self.request.alternatives] if chosen else ())
        early = len(self.tokens) <= self.request.min_tokens
        stopped = self.stops is not None and self.stops.feed(token, early=early)
        ended = token in specials.stops and (chosen or self.matcher is not None)
        ended |= chosen and token in self.request.stop_token_ids
        failed = self.matcher is not None and self.matcher.failed
        if stopped or (ended and not failed):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit or failed:
            self.finish_reason = "length"
        elif chosen and token == specials.python_start:
            self.code = []
        elif chosen and token == specials.python_end and self.code is not None:
            code, self.code = self.code, None
            return code
        elif self.code is not None:
            self.code.append(token)
        return None

    def answer(self, tokenizer: Tokenizer, specials: Specials) -> None:
        """Queues the output of its tool call, if that has ended."""
        if self.call is None or self.call.output is None:
            return
        try:
            ids = tokenizer.encode(self.call.output)
        except TokenizerError:  # half of a surrogate pair
            ids = tokenizer.encode(TOOL_FAILED)
        self.forced_tokens.extend([specials.output_start, *ids, specials.output_end])
        self.call = None
