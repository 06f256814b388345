"""Talking to a run's model in the terminal (layer 4)."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxchat import runs
from jaxchat.home import ArtifactError
from jaxchat.infer.engine import Engine, Request
from jaxchat.infer.transcript import Transcript, printable
from jaxchat.pipeline import Context, input_hash, needs, read_done
from jaxchat.run_inputs import tokenizer_of
from jaxchat.scaling import count_params
from jaxchat.stages import STAGES, load_model
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat import Message, parse_completion, render_prompt
from jaxchat.train.fit import Interrupted, stop_requests

TALKERS = ("rl", "sft", "mid")  # stages whose models talk, best first
ROOM = 4  # at least 1 / ROOM of the context is kept for the answer
HELP = "/new forgets what was said, /quit leaves; Ctrl-C stops an answer."


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    temperature: float = 0.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0


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
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, in pieces as it comes; closing the iterator stops it.

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
        transcript, said = Transcript(self.tokenizer), list[int]()
        try:
            for ids in self.engine.stream(request):
                said += ids
                if piece := printable(transcript.feed(ids)):
                    yield piece
            if piece := printable(transcript.close()):
                yield piece
        finally:
            content = parse_completion(said, self.tokenizer)
            self.messages.append({"role": "assistant", "content": content})

    def _prompt(self) -> list[int]:
        """The ids of the conversation, without its oldest turns where it has become too long."""
        limit = self.context - self.context // ROOM
        while len(prompt := render_prompt(self.messages, self.tokenizer)) > limit:
            if len(self.messages) == 1:
                self.messages.clear()
                raise MessageTooLongError(
                    f"your message is {len(prompt)} tokens long; at most {limit} leave room for an "
                    "answer. Please shorten it."
                )
            del self.messages[:2]
            self.notice("(the context is full: the oldest turn is forgotten)")
        return prompt


@dataclass(frozen=True)
class Loaded:
    """A model that can talk, and where it comes from."""

    run: Path
    stage: str
    parameters: int
    chat: Chat


def load(root: Path, name: str | None, stage: str | None, sampling: Sampling) -> Loaded:
    """Opens a run of the home `root`: the named one or the last, its best or the named stage.

    Raises ArtifactError when there is no such run, or the stage is not complete.
    """
    context, chosen = find_model(root, name, stage)
    model = context.config.model
    params: Any = load_model(context.root, chosen, model)
    tokenizer = tokenizer_of(context)
    engine = Engine(params, model, tokenizer, slots=1)
    chat = Chat(engine, tokenizer, model.sequence_len, sampling)
    return Loaded(context.root, chosen, count_params(model)["total"], chat)


def find_model(
    root: Path, name: str | None, stage: str | None, among: Sequence[str] = TALKERS
) -> tuple[Context, str]:
    """A run of the home `root`, the named one or the last; its named stage or the first complete.

    Raises ArtifactError when there is no such run, or the stage is not complete.
    """
    run = runs.find(root, name)
    context = open_run(run)
    complete = [talker for talker in among if talker in context.done]
    if not complete or (stage or complete[0]) not in complete:
        there = (
            f"complete there: {', '.join(complete)}" if complete else "no model there is complete"
        )
        raise ArtifactError(
            f"the run in {run} has no model {stage or 'to talk to'} ({there}); go on with it: give "
            "its run_speedrun.py command again."
        )
    return context, stage or complete[0]


def open_run(run: Path) -> Context:
    """A run with the stages that are complete under its own configuration."""
    context = Context(runs.read_config(run), run)
    for stage in STAGES:
        record = read_done(run, stage.name)
        known = all(name in context.done for name in needs(stage, context.config))
        if record is not None and known and record["inputs"] == input_hash(stage, context):
            context.done[stage.name] = record
    return context


def answer_once(chat: Chat, prompt: str) -> int:
    """Prints the answer to one prompt; the exit code."""
    try:
        for piece in chat.ask(prompt):
            print(piece, end="", flush=True)
    except MessageTooLongError as error:
        print(f"jaxchat: {error}", file=sys.stderr)
        return 2
    print()
    return 0


def converse(chat: Chat) -> int:
    """Reads questions from the terminal, or a line each from a pipe, until the end of input."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (its import gives input() line editing and history)

        print(HELP)
    chat.notice = print
    while True:
        try:
            text = input("\n> " if interactive else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")
            continue
        if text == "/quit":
            return 0
        if text == "/new":
            chat.messages.clear()
            print("(a new conversation)")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            _answer(chat, text)
    print()
    return 0


def _answer(chat: Chat, text: str) -> None:
    """Prints an answer. A signal only ends it: raised in the engine, it would break the cache."""
    with stop_requests() as stop, contextlib.closing(chat.ask(text)) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
                if stop():
                    print(" (stopped)", end="")
                    break
            print()
        except MessageTooLongError as error:
            print(f"({error})")
    if stop() == signal.SIGTERM:
        raise Interrupted(stop())
