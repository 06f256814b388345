"""A conversation with a run's model, and the questions and conversations of a pipe."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from jaxchat.config.operations import Weights
from jaxchat.config.schema import CHAT_STAGES
from jaxchat.errors import ConfigError
from jaxchat.evals.chat import Sampling
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.layerwise import LayerwiseEngine
from jaxchat.inference.request import ROOM
from jaxchat.inference.transcript import PartStream, printable
from jaxchat.model.backend import PLAIN, backend
from jaxchat.model.capabilities import with_weights
from jaxchat.runs.opening import check_stage, find_model, load_model
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import Context
from jaxchat.runs.stages import BY_NAME
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import (
    ConversationError,
    Message,
    Part,
    check_conversation,
    parse_completion,
    render_prompt,
)

BYTE_ORDER_MARK = "\ufeff"
PREFIX_BYTES = 256 * 10**6  # of what a conversation began with, so that a turn reads what is new
LONGEST = 1 << 24  # bytes of a line: no context holds as much
_CONVERSATION = re.compile(r'\{.*"messages"\s*:', re.DOTALL)  # or one that is broken


@dataclass(frozen=True)
class Answer:
    """The assistant's answer to one question, and its cost."""

    parts: tuple[Part, ...]
    finish_reason: Literal["stop", "length", "interrupted"]
    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def text(self) -> str:
        """The answer without calls of tools and their results."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def to_json(self) -> dict[str, object]:
        """The fields that `jaxchat chat --json` prints."""
        fields = {**vars(self), "parts": list(self.parts), "seconds": round(self.seconds, 3)}
        return {"content": self.text, **fields}


class MessageTooLongError(ValueError):
    """One message that leaves no room for an answer."""


@dataclass
class Chat:
    """A conversation with a model, which remembers as much of it as the context holds."""

    engine: Engine
    tokenizer: Tokenizer
    context: int  # T, ids of prompt and answer together
    sampling: Sampling
    notice: Callable[[str], object] = lambda _: None
    system: str = ""  # stands before the first message
    messages: list[Message] = field(default_factory=list)
    last: Answer | None = None  # the newest, perhaps interrupted

    def ask(self, text: str) -> Generator[Part, None, None]:
        """Streams the answer to `text` in pieces of its parts; closing the iterator stops it.

        An answer that is stopped is remembered that far. Raises MessageTooLongError when the
        message alone leaves less than a quarter of the context, and then forgets it.
        """
        self.messages.append({"role": "user", "content": text})
        prompt = self._prompt()
        request = Request(
            tokens=tuple(prompt),
            max_tokens=min(self.sampling.max_tokens, self.context - len(prompt)),
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            min_p=self.sampling.min_p,
            repetition_penalty=self.sampling.repetition_penalty,
            seed=self.sampling.seed + len(self.messages) // 2,
        )
        stream, said, whole = PartStream(self.tokenizer), list[int](), False
        began = time.monotonic()
        try:
            self.engine.prepare(request)
            for ids in self.engine.stream(request):
                said += ids
                yield from map(_harmless, stream.feed(ids))
            whole = True
            yield from map(_harmless, stream.close())
        finally:
            self._remember(prompt, said, time.monotonic() - began, whole=whole)

    def begin(self, messages: Sequence[Message]) -> None:
        """Begins with the messages of a conversation, without its system message."""
        self.messages[:] = [message for message in messages if message["role"] != "system"]

    def forget(self) -> None:
        """Restarts the conversation; the system message stays."""
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


@dataclass(kw_only=True)
class RunChat(Chat):
    """A chat with the model of a run's stage."""

    run: Context
    stage: str

    @property
    def name(self) -> str:
        """RUN/STAGE."""
        return f"{self.run.root.name}/{self.stage}"

    @property
    def description(self) -> str:
        """The model, and the run's others that chat."""
        others = [name for name in CHAT_STAGES if name in self.run.done and name != self.stage]
        other = f"; {' and '.join(others)} with /stage" if others else ""
        return f"{self.name}, the model of {BY_NAME[self.stage].title}{other}"

    def switch(self, stage: str) -> None:
        """Continues the conversation with the model of another stage of the run.

        Raises ArtifactError when that stage is not complete.
        """
        check_stage(self.run, stage, CHAT_STAGES)
        self.engine.set_params(load_model(self.run.root, stage, self.run.config.model))
        self.stage = stage


def load(
    root: Path,
    name: str | None,
    stage: str | None,
    sampling: Sampling,
    weights: Weights = "auto",
    *,
    once: bool = False,
) -> RunChat:
    """Opens a run of the home `root` and one of its chat models, by default the last and the best.

    `once`: for one question, answered as soon as can be; its weights are read once that is asked.
    Raises ArtifactError when there is no such run, or the stage is not complete; ConfigError where
    the device takes no such weights.
    """
    compute = with_weights(PLAIN, weights)
    context, chosen = find_model(root, name, stage)
    model = context.config.model
    tokenizer = tokenizer_of(context)
    read = partial(load_model, context.root, chosen, model)
    settings: dict[str, Any] = {"prefix_bytes": PREFIX_BYTES, "compute": compute}
    engine = (
        LayerwiseEngine(read, model, tokenizer, **settings)
        if once and weights == "auto" and backend().shares_host
        else Engine(read(), model, tokenizer, slots=1, **settings)
    )
    return RunChat(engine, tokenizer, model.sequence_len, sampling, run=context, stage=chosen)


class Line(NamedTuple):
    """A line of a pipe: a question, or why it is none."""

    number: int  # from 1, empty lines counted
    text: str  # the question; of a conversation, its last message
    before: tuple[Message, ...] = ()  # a conversation's earlier messages, a system message first
    is_conversation: bool = False
    error: str = ""

    @property
    def system(self) -> str:
        """The system message of a conversation; "": it has none."""
        first = self.before[0] if self.before else None
        return str(first["content"]) if first and first["role"] == "system" else ""


def read_lines(stream: IO[Any]) -> Iterator[Line]:
    """The lines as they come, without empty ones; a byte order mark and a CR at the end go."""
    source = getattr(stream, "buffer", stream)  # bytes, so that one bad line is only one
    number = 0
    while line := source.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and line[-1:] not in ("\n", b"\n"):
            while (rest := source.readline(LONGEST)) and rest[-1:] not in ("\n", b"\n"):
                pass
            size = f"{LONGEST // 2**20} MB"
            yield Line(number, "", error=f"it is longer than {size}, which no context holds")
        elif (read := _read(number, line)) is not None:
            yield read


def read_whole(stream: IO[Any] | None) -> str:
    """All of a pipe as one question. Raises ConfigError where it is not UTF-8."""
    whole = b"" if stream is None else getattr(stream, "buffer", stream).read()
    try:
        return _text(whole)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"stdin is not UTF-8 text ({error.reason} at byte {error.start}); convert it, as "
            "with: iconv -f LATIN1 -t UTF-8"
        ) from error


def _text(line: bytes | str) -> str:
    text = line.decode() if isinstance(line, bytes) else line
    return text.removeprefix(BYTE_ORDER_MARK)


def _read(number: int, line: bytes | str) -> Line | None:
    try:
        text = _text(line).strip()
    except UnicodeDecodeError as error:
        shown = error.object.decode(errors="replace").strip()
        return Line(number, shown, error=f"it is not UTF-8 (at its byte {error.start + 1})")
    if not text:
        return None
    if not text.startswith("{"):
        return Line(number, text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _CONVERSATION.match(text) is None:  # a question that begins with a brace
            return Line(number, text)
        why = str(error) if isinstance(error, ValueError) else "nested too deeply"
        return Line(number, text, error=f"it is a conversation that is no JSON: {why}")
    if "messages" not in value:
        return Line(number, text)
    try:
        messages = check_conversation(value)["messages"]
    except ConversationError as error:
        return Line(number, text, error=str(error))
    *before, last = messages
    if last["role"] != "user" or not isinstance(last["content"], str):
        why = f"its last message is of the {last['role']}; it must be the user's, to be answered"
        return Line(number, text, error=why)
    return Line(number, last["content"], tuple(before), is_conversation=True)
