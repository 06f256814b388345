"""From the engine's tokens to what a client gets: text, JSON, and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jaxchat.inference.engine import Request
from jaxchat.inference.request import Alternatives, FinishReason
from jaxchat.inference.stop_strings import StopFinder
from jaxchat.serve.models import ServedModel
from jaxchat.serve.schema import ApiError, ChatRequest, GenerationRequest
from jaxchat.serve.tool_calls import CallStream, whole_calls
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part, PartParser, PartType

LOWEST_LOGPROB = -9999.0  # for a probability of 0: JSON has no infinity, and so OpenAI writes it
DONE = b"data: [DONE]\n\n"
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class TokenDelta:
    """New tokens of one sample; the sequences have one entry for each."""

    index: int  # of the sample
    tokens: Sequence[int]
    mask: Sequence[int]  # 1: sampled, 0: inserted by a tool
    logprobs: Sequence[float]
    alternatives: Sequence[Alternatives]
    finish_reason: FinishReason | None

    def split(self) -> list[TokenDelta]:
        """The same, token by token."""
        last = len(self.tokens) - 1
        if last < 1:
            return [self]
        return [
            TokenDelta(
                self.index, self.tokens[n : n + 1], self.mask[n : n + 1], self.logprobs[n : n + 1],
                self.alternatives[n : n + 1], self.finish_reason if n == last else None,
            )
            for n in range(last + 1)
        ]  # fmt: skip


Event = TokenDelta | ApiError | None  # None: the client has left


@dataclass(eq=False)
class PendingRequest:
    """A request in the scheduler, which posts its events into the server's loop.

    Its times are seconds of `time.monotonic`; None: not yet.
    """

    model: ServedModel
    request: Request
    client: str
    queued: float = field(default_factory=time.monotonic)
    started: float | None = None  # given to the engine
    first: float | None = None  # first token
    ended: float | None = None
    cancelled: bool = False
    known: int = 0  # tokens of the prompt that an earlier one had read
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def post(self, event: Event) -> None:
        """Adds an event; in the server's loop only."""
        self._events.put_nowait(event)

    async def deltas(self) -> AsyncIterator[TokenDelta]:
        """New tokens, until every sample has ended. Raises ApiError, also if the client leaves."""
        unfinished = self.request.n
        while unfinished:
            event = await self._events.get()
            if event is None:
                raise ClientGone
            if isinstance(event, ApiError):
                raise event
            unfinished -= event.finish_reason is not None
            yield event

    def usage(self, tokens: int) -> dict[str, Any]:
        """The usage of an answer of `tokens` tokens, those of all choices together.

        Seconds count from the first slot; `tokens_per_second` is over all of them.
        """
        prompt = len(self.request.tokens)
        started = self.queued if self.started is None else self.started
        first = started if self.first is None else self.first
        ended = first if self.ended is None else self.ended
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": self.known},
            "jaxchat": {
                "queue_seconds": round(started - self.queued, 6),
                "prompt_seconds": round(first - started, 6),
                "seconds": round(ended - started, 6),
                "tokens_per_second": round(tokens / max(ended - started, 1e-6), 3),
                "context": self.model.context,
            },
        }


class ClientGone(ApiError):
    """The client has left."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection.", code="client_gone")


@dataclass
class Delta:
    """A piece of one part, with the entries of its tokens."""

    part: PartType
    text: str = ""
    opens: bool = False  # a part begins here, even where it stays empty
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Detokenizer:
    """Turns the tokens of one sample into text, part by part, without stop texts.

    The texts of all deltas, joined, are its parts. A character of several tokens comes with its
    last one. Text that may be the beginning of a stop text comes when that is decided.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        *,
        logprobs: bool,
        stop_ids: Sequence[int] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        """`stop_ids` end an answer as texts do; neither does among the first `min_tokens`.

        With `include_stop` what ends it is a part of its text.
        """
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._parser = PartParser(tokenizer)
        self._finder = StopFinder(stop, included=include_stop)
        self._hidden = () if include_stop else tuple(stop_ids)
        self._early = min_tokens  # tokens left that end nothing
        self._kind: PartType = "text"

    @classmethod
    def of(cls, tokenizer: Tokenizer, request: Request, *, logprobs: bool) -> Detokenizer:
        """For a sample of a request."""
        return cls(
            tokenizer, request.stop, logprobs=logprobs, stop_ids=request.stop_token_ids,
            min_tokens=request.min_tokens, include_stop=request.include_stop,
        )  # fmt: skip

    def feed(self, new: TokenDelta) -> list[Delta]:
        """The text of new tokens; the last of them with all that was held back."""
        deltas = [Delta(self._kind)]
        for number, token in enumerate(new.tokens):
            self._early -= 1
            added, *opened = self._parser.feed(token)
            if not self._ends(new, number):
                deltas[-1].text += self._pass(added["text"])
            for part in opened:
                deltas[-1].text += self._release()
                deltas += self._switch(part["type"])
            if self._logprobs:
                deltas[-1].logprobs.append(self._entry(new, number))
        if new.finish_reason is not None:
            deltas[-1].text += self._pass(self._parser.close()["text"]) + self._release()
        return [delta for delta in deltas if delta.text or delta.opens or delta.logprobs]

    def _ends(self, new: TokenDelta, number: int) -> bool:
        """Whether a token is the stop token at an answer's end, which is not shown."""
        last = new.finish_reason == "stop" and number == len(new.tokens) - 1
        return last and bool(new.mask[number]) and new.tokens[number] in self._hidden

    def _pass(self, text: str) -> str:
        if self._kind != "text":
            return text
        return self._finder.feed(text, early=self._early >= 0)

    def _release(self) -> str:
        """What was held back of a text that ends here."""
        return self._finder.close() if self._kind == "text" else ""

    def _switch(self, kind: PartType) -> list[Delta]:
        # Between two calls in a row an empty text separates them.
        again = [Delta("text", opens=True)] if kind == self._kind != "text" else []
        self._kind = kind
        return [*again, Delta(kind, opens=kind != "text")]

    def _entry(self, new: TokenDelta, number: int) -> dict[str, Any]:
        """A token's log-probabilities in OpenAI's format, its id, and whether it was sampled."""
        token, logprob = new.tokens[number], new.logprobs[number]
        others = new.alternatives[number] if number < len(new.alternatives) else ()
        return {
            **self._named(token, logprob),
            "top_logprobs": [self._named(other, value) for other, value in others],
            "jaxchat": {"id": token, "sampled": bool(new.mask[number])},
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.decode_bytes([token])
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(data),
        }


def join(deltas: Sequence[Delta]) -> list[Part]:
    """The parts that deltas add up to, without empty text."""
    parts: list[Part] = []
    for delta in deltas:
        if parts and parts[-1]["type"] == delta.part and not (delta.opens and delta.part != "text"):
            parts[-1]["text"] += delta.text
        else:
            parts.append({"type": delta.part, "text": delta.text})
    return [part for part in parts if part["text"] or part["type"] != "text"]


class Answer(ABC):
    """What a client gets for its requests to the scheduler; they are cancelled when it leaves."""

    def __init__(
        self, pending: Sequence[PendingRequest], cancel: Callable[[PendingRequest], object]
    ) -> None:
        self._requests, self._cancel_one = pending, cancel

    async def events(self) -> AsyncIterator[bytes]:
        """The stream. An error ends it with an event of its own."""
        try:
            async for chunk in self._chunks():
                yield chunk
        except ClientGone:
            return
        except ApiError as error:
            yield self._failure(error)

    @abstractmethod
    def _chunks(self) -> AsyncIterator[bytes]:
        """The stream of an answer that does not fail. Raises ApiError."""

    def _failure(self, error: ApiError) -> bytes:
        return event(error.body)

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """The answer as one. Raises ApiError if it fails or the client leaves."""

    @contextlib.asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """While open, a client that leaves ends the generation; so does leaving the block."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self._cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel()
        self._abandon()

    def _cancel(self) -> None:
        for pending in self._requests:
            self._cancel_one(pending)

    def _abandon(self) -> None:
        """Ends what waits for events: the client has left."""
        for pending in self._requests:
            pending.post(None)


class ChatCompletion(Answer):
    """The answer to one request: whole, or as events."""

    def __init__(
        self,
        pending: PendingRequest,
        body: ChatRequest,
        cancel: Callable[[PendingRequest], object],
        functions: Sequence[str] = (),
    ) -> None:
        """`functions`: the answer is a call of one of them."""
        super().__init__([pending], cancel)
        self._pending, self._body, self._functions = pending, body, functions
        request, tokenizer = pending.request, pending.model.tokenizer
        self._samples = [
            Detokenizer.of(tokenizer, request, logprobs=bool(body.logprobs))
            for _ in range(request.n)
        ]
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._tokens = 0
        # what every chunk begins with: a token of a small model takes as long as to write this
        self._before = event(self._json("chat.completion.chunk", [])).removesuffix(b"]}\n\n")

    async def _deltas(self) -> AsyncIterator[tuple[int, list[Delta], FinishReason | None]]:
        """What each dispatch adds to a sample; in a stream every token has a delta of its own."""
        async for new in self._pending.deltas():
            self._tokens += len(new.tokens)
            sample = self._samples[new.index]
            pieces = new.split() if self._body.stream else [new]
            yield new.index, [d for piece in pieces for d in sample.feed(piece)], new.finish_reason

    async def whole(self) -> dict[str, Any]:
        samples: list[list[Delta]] = [[] for _ in self._samples]
        reasons: dict[int, FinishReason] = {}
        async for index, deltas, reason in self._deltas():
            samples[index] += deltas
            if reason is not None:
                reasons[index] = reason
        choices = []
        for index, deltas in enumerate(samples):
            parts, reason = join(deltas), reasons[index]
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if self._functions:
                calls = whole_calls(text, self._functions, complete=reason == "stop")
                message |= {"content": None, "tool_calls": calls} if calls else {}
            if self._body.parts:
                message["parts"] = parts
            choices.append(self._choice(index, "message", message, deltas, self._reason(reason)))
        usage = self._pending.usage(self._tokens)
        return {**self._json("chat.completion", choices), "usage": usage}

    async def _chunks(self) -> AsyncIterator[bytes]:
        calls = [CallStream(self._functions) for _ in self._samples if self._functions]
        for index in range(len(self._samples)):
            yield self._chunk(index, {"role": "assistant", "content": None if calls else ""})
        async for index, deltas, reason in self._deltas():
            chunks = []
            for delta in deltas:
                if calls:
                    chunks += self._call_chunks(index, calls[index].feed(delta.text), delta)
                    continue
                sent = self._delta(delta)
                if sent or delta.logprobs:
                    chunks.append(self._chunk(index, sent, [delta]))
            if reason is not None and calls:
                rest = calls[index].close(complete=reason == "stop")
                chunks += self._call_chunks(index, rest)
            if reason is not None:
                chunks.append(self._chunk(index, {}, None, self._reason(reason)))
            if chunks:
                yield b"".join(chunks)
        usage = self._pending.usage(self._tokens)
        yield ending(self._body, {**self._json("chat.completion.chunk", []), "usage": usage})

    def _reason(self, reason: FinishReason) -> str:
        return "tool_calls" if self._functions and reason == "stop" else reason

    def _call_chunks(
        self, index: int, calls: Sequence[dict[str, Any]], delta: Delta | None = None
    ) -> list[bytes]:
        """The deltas of a call, one a chunk; the first has the log-probabilities."""
        sent: list[dict[str, Any]] = [{"tool_calls": [call]} for call in calls]
        if not sent and delta is not None and delta.logprobs:
            sent = [{}]
        held = None if delta is None else [delta]
        return [self._chunk(index, one, None if n else held) for n, one in enumerate(sent)]

    def _json(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._pending.model
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": model.id,
            "system_fingerprint": model.fingerprint,
            "choices": choices,
        }

    def _chunk(
        self,
        index: int,
        sent: dict[str, Any],
        deltas: Sequence[Delta] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = self._choice(index, "delta", sent, deltas, reason)
        return self._before + to_json(choice).encode() + b"]}\n\n"

    def _choice(
        self,
        index: int,
        kind: str,
        value: dict[str, Any],
        deltas: Sequence[Delta] | None,
        reason: str | None,
    ) -> dict[str, Any]:
        """A choice, whole or of a chunk, with the log-probabilities of `deltas` if asked for."""
        logprobs = None
        if self._body.logprobs and deltas is not None:
            entries = [entry for delta in deltas for entry in delta.logprobs]
            logprobs = {"content": entries, "refusal": None}
        return {"index": index, kind: value, "logprobs": logprobs, "finish_reason": reason}

    def _delta(self, delta: Delta) -> dict[str, Any]:
        """A delta as JSON; empty where a client that did not ask for parts has nothing to read."""
        sent: dict[str, Any] = {}
        if delta.part == "text" and (delta.text or delta.logprobs):
            sent["content"] = delta.text
        if self._body.parts:
            sent["part"] = {"type": delta.part, "text": delta.text}
        return sent


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value).encode() + b"\n\n"


def ending(body: GenerationRequest, usage: dict[str, Any]) -> bytes:
    """The end of a stream of chunks: the one with the usage, if asked for, and the mark."""
    options = body.stream_options
    return (event(usage) if options is not None and options.include_usage else b"") + DONE


class EventStream(StreamingResponse):
    """Sends the events of a completion as they come."""

    def __init__(self, completion: Answer) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(completion.events(), headers=headers, media_type="text/event-stream")
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; ends early where the client leaves."""
        del scope
        async with self._completion.attended(receive):
            await self.stream_response(send)
