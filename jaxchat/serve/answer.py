"""An answer under way: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxchat.serve import wire
from jaxchat.serve.failures import ApiError
from jaxchat.serve.scheduler import Scheduler
from jaxchat.serve.schema import ChatRequest
from jaxchat.serve.speech import Delta, Speech
from jaxchat.serve.ticket import GoneError, Ticket


class Answer:
    """What becomes of one request. It leaves the scheduler when its client does."""

    def __init__(self, scheduler: Scheduler, ticket: Ticket, body: ChatRequest) -> None:
        self._scheduler, self._ticket, self._body = scheduler, ticket, body
        self._head = wire.Head(ticket.model)
        self._logprobs, self._parts = bool(body.logprobs), bool(body.parts)
        self._speeches = [
            Speech(ticket.model.tokenizer, ticket.request.stop, logprobs=self._logprobs)
            for _ in range(ticket.request.n)
        ]
        self._tokens = 0

    @contextlib.asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """While open, a client that leaves ends the generation; so does leaving the block."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watcher.cancel()
            self._scheduler.cancel(self._ticket)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._scheduler.cancel(self._ticket)
        self._ticket.tell(None)

    async def whole(self) -> dict[str, object]:
        """The completion. Raises ApiError when it fails or nobody wants it any more."""
        deltas: list[list[Delta]] = [[] for _ in self._speeches]
        choices: dict[int, dict[str, object]] = {}
        async for news in self._ticket.news():
            self._tokens += len(news.tokens)
            deltas[news.index] += self._speeches[news.index].feed(news)
            if news.finish_reason is not None:
                choices[news.index] = wire.choice_json(
                    news.index, deltas[news.index], news.finish_reason,
                    parts=self._parts, logprobs=self._logprobs,
                )  # fmt: skip
        told = [choices[index] for index in sorted(choices)]
        used = wire.usage(self._ticket, self._tokens)
        return {**self._head.json("chat.completion", told), "usage": used}

    async def events(self) -> AsyncIterator[bytes]:
        """The stream. An error ends it with an event of its own."""
        try:
            for index in range(len(self._speeches)):
                yield self._head.chunk(index, {"role": "assistant", "content": ""})
            async for news in self._ticket.news():
                self._tokens += len(news.tokens)
                chunks = []
                for delta in self._speeches[news.index].feed(news):
                    told = wire.delta_json(delta, parts=self._parts)
                    if told is not None:
                        entries = delta.logprobs if self._logprobs else None
                        chunks.append(self._head.chunk(news.index, told, None, entries))
                if news.finish_reason is not None:
                    chunks.append(self._head.chunk(news.index, {}, news.finish_reason))
                if chunks:
                    yield b"".join(chunks)
        except GoneError:
            return
        except ApiError as error:
            yield wire.event(error.body)
            return
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield self._head.usage_chunk(wire.usage(self._ticket, self._tokens))
        yield wire.DONE


class EventStream(Response):
    """Sends an answer's events as they come."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; ends early where the client leaves."""
        del scope
        async with self._answer.attended(receive):
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for data in self._answer.events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
