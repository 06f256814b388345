"""A conversation with a run's model (layer 4). `converse` is its face in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxchat.config.derive import count_params
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.request import ROOM
from jaxchat.inference.transcript import PartStream, printable
from jaxchat.runs.inputs import tokenizer_of
from jaxchat.runs.opening import CHAT_STAGES, check_stage, find_model, load_model
from jaxchat.runs.runner import Context
from jaxchat.runs.stages import STAGES
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Message, Part, parse_completion, render_prompt

TRAINED_BY = {stage.name: stage.title for stage in STAGES}


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    temperature: float = 0.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What the assistant said to one question, and what it took."""

    parts: tuple[Part, ...]
    finish_reason: Literal["stop", "length", "interrupted"]
    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def text(self) -> str:
        """What it said, without its calls of tools and their results."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")


class MessageTooLongError(ValueError):
    """One message that leaves no room for an answer."""


@dataclass
class Chat:
    """A conversation with a model; what was said is remembered as far as the context reaches."""

    engine: Engine
    tokenizer: Tokenizer
    context: int  # T, ids of prompt and answer together
    sampling: Sampling = field(default_factory=Sampling)
    notice: Callable[[str], object] = lambda _: None
    system: str = ""  # stands before the first message
    messages: list[Message] = field(default_factory=list)
    last: Answer | None = None  # the newest, as far as it came

    def ask(self, text: str) -> Generator[Part, None, None]:
        """The answer to `text`, in pieces of its parts as they come; closing the iterator stops it.

        What was said until then is remembered. Raises MessageTooLongError when the message alone
        leaves less than a quarter of the context, and then forgets it.
        """
        self.messages.append({"role": "user", "content": text})
        prompt = self._prompt()
        request = Request(
            tokens=tuple(prompt),
            max_tokens=min(self.sampling.max_tokens, self.context - len(prompt)),
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            seed=self.sampling.seed + len(self.messages) // 2,
        )
        stream, said, whole = PartStream(self.tokenizer), list[int](), False
        began = time.monotonic()
        try:
            for ids in self.engine.stream(request):
                said += ids
                yield from map(_harmless, stream.feed(ids))
            whole = True
            yield from map(_harmless, stream.close())
        finally:
            self._remember(prompt, said, time.monotonic() - began, whole=whole)

    def begin(self, messages: Sequence[Message]) -> None:
        """Begins a conversation in which something was said; its system message is not kept."""
        self.messages[:] = [message for message in messages if message["role"] != "system"]

    def forget(self) -> None:
        """Begins anew; the system message stays."""
        self.messages.clear()

    def _remember(
        self, prompt: Sequence[int], said: Sequence[int], seconds: float, *, whole: bool
    ) -> None:
        content = parse_completion(said, self.tokenizer)
        self.messages.append({"role": "assistant", "content": content})
        stops = (self.tokenizer.special("<|assistant_end|>"), self.tokenizer.bos)
        ended = bool(said) and said[-1] in stops
        self.last = Answer(
            parts=tuple(content),
            finish_reason="stop" if ended else "length" if whole else "interrupted",
            prompt_tokens=len(prompt),
            completion_tokens=len(said),
            seconds=seconds,
        )

    def _prompt(self) -> list[int]:
        """The ids of the conversation, without its oldest turns where it has become too long."""
        limit = self.context - self.context // ROOM
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        while len(prompt := render_prompt([*first, *self.messages], self.tokenizer)) > limit:
            if len(self.messages) == 1:
                self.messages.clear()
                system = " with the system message" if self.system else ""
                raise MessageTooLongError(
                    f"your message{system} is {len(prompt)} tokens long; at most {limit} leave "
                    "room for an answer. Please shorten it."
                )
            del self.messages[:2]
            self.notice("(the context is full: the oldest turn is forgotten)")
        return prompt


def _harmless(piece: Part) -> Part:
    return {"type": piece["type"], "text": printable(piece["text"])}


@dataclass(frozen=True)
class Loaded:
    """A model that can talk, and where it comes from."""

    context: Context
    stage: str
    parameters: int
    chat: Chat

    @property
    def name(self) -> str:
        """RUN/STAGE."""
        return f"{self.context.root.name}/{self.stage}"

    @property
    def described(self) -> str:
        """Which model it is, and which others of the run talk."""
        others = [name for name in CHAT_STAGES if name in self.context.done and name != self.stage]
        other = f"; {' and '.join(others)} with /stage" if others else ""
        return f"{self.name}, the model of {TRAINED_BY[self.stage]}{other}"

    def switched(self, stage: str) -> Loaded:
        """The same conversation, from now on with the model of another stage of the run.

        Raises ArtifactError when that stage is not complete.
        """
        check_stage(self.context, stage, CHAT_STAGES)
        self.chat.engine.set_params(load_model(self.context.root, stage, self.context.config.model))
        return replace(self, stage=stage)


def load(root: Path, name: str | None, stage: str | None, sampling: Sampling) -> Loaded:
    """Opens a run of the home `root`: the named one or the last that talks; its best or a stage.

    Raises ArtifactError when there is no such run, or the stage is not complete.
    """
    context, chosen = find_model(root, name, stage)
    model = context.config.model
    params: Any = load_model(context.root, chosen, model)
    tokenizer = tokenizer_of(context)
    engine = Engine(params, model, tokenizer, slots=1)
    chat = Chat(engine, tokenizer, model.sequence_len, sampling)
    return Loaded(context, chosen, count_params(model)["total"], chat)
