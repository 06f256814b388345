"""The host's side of one completion: what it has so far, and its tool calls.

A model calls a tool by sampling `<|python_start|>`, code, `<|python_end|>`. The row then stands
still until the host has run the tool and queued `<|output_start|>`, the output and
`<|output_end|>`; these are fed through decode steps like sampled tokens, but were not chosen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxchat.infer.request import Alternatives, Completion, FinishReason, Request
from jaxchat.infer.stops import StopWatch
from jaxchat.tokenizer.bpe import Tokenizer

Tool = Callable[[str], str]  # code -> output
TOOL_FAILED = "error"


class Specials(NamedTuple):
    """Ids of the tokens that the engine reacts to."""

    bos: int
    assistant_end: int
    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Specials:
        """The ids in a tokenizer."""
        return cls(*(tokenizer.special(f"<|{name}|>") for name in cls._fields))

    @property
    def stops(self) -> tuple[int, int]:
        """The tokens that end a completion."""
        return self.assistant_end, self.bos


@dataclass(frozen=True)
class Toolbox:
    """The tool, and how its input and output are written in tokens."""

    tool: Tool
    tokenizer: Tokenizer
    specials: Specials

    def answer(self, code: Sequence[int]) -> list[int]:
        """The tokens that follow a call of `code`. A tool that raises answers "error"."""
        try:
            output = self.tokenizer.encode(self.tool(self.tokenizer.decode(code)))
        except Exception:  # the tool may be anyone's: whatever it raises, the row goes on
            output = self.tokenizer.encode(TOOL_FAILED)
        return [self.specials.output_start, *output, self.specials.output_end]


@dataclass(eq=False)
class Row:
    """One sample of a request while it grows."""

    request: Request
    stream: int  # which of the request's n samples
    limit: int  # tokens it may have
    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    stops: StopWatch | None = None
    code: list[int] | None = None  # the tool call being sampled
    forced: deque[int] = field(default_factory=deque)  # tokens the tool put in the queue
    finish_reason: FinishReason | None = None

    @property
    def position(self) -> int:
        """Positions the cache holds: the prompt and all tokens but the last."""
        return len(self.request.tokens) + len(self.tokens) - 1

    @property
    def completion(self) -> Completion:
        """The finished completion."""
        assert self.finish_reason is not None
        return Completion(
            tuple(self.tokens), tuple(self.mask), tuple(self.logprobs), self.finish_reason,
            tuple(self.alternatives),
        )  # fmt: skip

    def take(
        self, token: int, logprob: float, toolbox: Toolbox, alternatives: Alternatives = ()
    ) -> None:
        """Adds the next token; runs the tool when a call is complete, and notices the end."""
        chosen = not self.forced
        if self.forced:
            self.forced.popleft()
        self.tokens.append(token)
        self.mask.append(int(chosen))
        self.logprobs.append(logprob if chosen else 0.0)
        self.alternatives.append(alternatives[: self.request.alternatives] if chosen else ())
        specials = toolbox.specials
        said_stop = self.stops is not None and self.stops.feed(token)
        if said_stop or (chosen and token in specials.stops):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        elif chosen and token == specials.python_start:
            self.code = []
        elif chosen and token == specials.python_end and self.code is not None:
            self.forced.extend(toolbox.answer(self.code))
            self.code = None
        elif self.code is not None:
            self.code.append(token)
