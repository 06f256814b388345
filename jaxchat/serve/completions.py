"""The answer to /v1/completions: texts continued, and the tokens of prompts scored."""

from __future__ import annotations

import asyncio
import codecs
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxchat.config.operations import ServeConfig
from jaxchat.evals.token_scores import TokenScores
from jaxchat.inference.engine import Request
from jaxchat.inference.grammar import CompiledGrammar
from jaxchat.inference.request import FinishReason
from jaxchat.serve.models import ServedModel
from jaxchat.serve.prompt import engine_request, too_long
from jaxchat.serve.scheduler import Scheduler
from jaxchat.serve.schema import ApiError
from jaxchat.serve.scoring import PendingScores
from jaxchat.serve.streaming import (
    LOWEST_LOGPROB,
    Answer,
    ClientGone,
    Detokenizer,
    PendingRequest,
    TokenDelta,
    ending,
    event,
)
from jaxchat.serve.texts import CompletionRequest
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import PartParser

Prompt = tuple[str, list[int]]  # text and ids


@dataclass
class Piece:
    """A piece of a choice: its text, and the entries of its tokens."""

    text: str = ""
    entries: list[tuple[str, float | None, dict[str, float] | None, int]] = field(
        default_factory=list
    )  # token, log-probability, the likeliest, place in the choice's text
    finish_reason: FinishReason | None = None

    @property
    def logprobs(self) -> dict[str, list[Any]]:
        """The entries in OpenAI's format of completions."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        columns = zip(*self.entries, strict=True) if self.entries else [()] * len(names)
        return {name: list(column) for name, column in zip(names, columns, strict=True)}


class TextChoice:
    """One choice while it grows."""

    def __init__(
        self, tokenizer: Tokenizer, request: Request | None, likeliest: int | None
    ) -> None:
        """`likeliest` are listed for each token; None: no entries. No request: no stops."""
        self._tokenizer, self._count = tokenizer, likeliest
        request = request or Request((tokenizer.bos,), 1)
        self._detokenizer = Detokenizer.of(tokenizer, request, logprobs=likeliest is not None)
        self._parser = PartParser(tokenizer)
        self._length = 0  # characters so far

    def echo(self, prompt: Prompt, scores: TokenScores | None) -> Piece:
        """The prompt, with entries where there are scores."""
        self._length = len(prompt[0])
        return Piece(
            prompt[0], [] if scores is None else list(self._prompt_entries(prompt, scores))
        )

    def _prompt_entries(
        self, prompt: Prompt, scores: TokenScores
    ) -> Iterator[tuple[str, float | None, dict[str, float] | None, int]]:
        text, ids = prompt
        utf8, place = codecs.getincrementaldecoder("utf-8")(errors="replace"), 0
        added = ids[0] == self._tokenizer.bos and not text.startswith("<|bos|>")
        for number, token in enumerate(ids):
            data = self._tokenizer.decode_bytes([token])
            logprob, top = None, None
            if number:
                logprob = max(float(scores.logprobs[number - 1]), LOWEST_LOGPROB)
                top = self._top(likeliest(scores, number - 1, self._count or 0), token, logprob)
            yield named(data), logprob, top, place
            if number or not added:
                place += len(utf8.decode(data))

    def feed(self, new: TokenDelta) -> Piece:
        """New tokens; those of tools have entries and no text."""
        deltas = self._detokenizer.feed(new)
        piece = Piece(
            "".join(delta.text for delta in deltas if delta.part == "text"),
            finish_reason=new.finish_reason,
        )
        for number, token in enumerate(new.tokens):
            place = self._length
            added, *_ = self._parser.feed(token)
            self._length += len(added["text"]) if added["type"] == "text" else 0
            if self._count is None:
                continue
            logprob = max(new.logprobs[number], LOWEST_LOGPROB)
            others = new.alternatives[number] if number < len(new.alternatives) else ()
            name = named(self._tokenizer.decode_bytes([token]))
            piece.entries.append((name, logprob, self._top(others, token, logprob), place))
        return piece

    def _top(
        self, others: Sequence[tuple[int, float]], token: int, logprob: float
    ) -> dict[str, float]:
        """The likeliest by their names, and the token itself, which may not be one of them."""
        top: dict[str, float] = {}
        for other, value in (*others, (token, logprob)):
            top.setdefault(named(self._tokenizer.decode_bytes([other])), max(value, LOWEST_LOGPROB))
        return top


def named(data: bytes) -> str:
    r"""A token as text; one that is none by itself as OpenAI writes it, such as bytes:\xe2\x82."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def likeliest(scores: TokenScores, place: int, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest ids after a token of a prompt, and their log-probabilities."""
    ids, values = scores.likeliest[place, :count], scores.likeliest_logprobs[place, :count]
    return list(zip(ids.tolist(), values.tolist(), strict=True))


class TextCompletion(Answer):
    """The choices of all prompts: whole, or as events. Choice i * n + j is sample j of prompt i."""

    def __init__(
        self,
        body: CompletionRequest,
        prompts: Sequence[Prompt],
        model: ServedModel,
        config: ServeConfig,
        scheduler: Scheduler,
        client: str = "",
        grammar: CompiledGrammar | None = None,
    ) -> None:
        """Submits what is asked for. Raises ApiError where it cannot be served."""
        super().__init__([], scheduler.cancel)
        self._body, self._prompts, self._model = body, prompts, model
        self._scheduler, self._grammar = scheduler, grammar
        self._scores: PendingScores | None = None
        self._numbers: list[int] = []  # the prompt of each request
        self._at_once: dict[int, Request] = {}  # prompts whose one token the scores give
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._tokens = 0
        planned = [self._plan(ids, config) for _, ids in prompts]
        requests = list[PendingRequest]()
        for number, request in enumerate(planned):
            if request is not None and body.scores_prompt and is_greedy_token(request):
                self._at_once[number] = request
            elif request is not None:
                requests.append(PendingRequest(model, request, client))
                self._numbers.append(number)
        self._requests = requests
        try:
            self._submit()
        except ApiError:
            self._cancel()
            raise

    def _plan(self, ids: Sequence[int], config: ServeConfig) -> Request | None:
        """The engine's request for a prompt; None where nothing is to be generated."""
        if self._body.max_tokens != 0:
            return engine_request(self._body, ids, self._model, config, self._grammar)
        if len(ids) > self._model.context:
            raise too_long(len(ids), self._model.context, "prompt")
        return None

    def _submit(self) -> None:
        if self._body.scores_prompt:
            ids = [ids for _, ids in self._prompts]
            self._scores = PendingScores(ids, self._body.alternatives)
            self._scheduler.submit_scores(self._scores, self._model)
        for pending in self._requests:
            self._scheduler.submit(pending)

    def _cancel(self) -> None:
        super()._cancel()
        if self._scores is not None:
            self._scheduler.cancel_scores(self._scores)

    def _abandon(self) -> None:
        super()._abandon()
        if self._scores is not None:
            self._scores.post(ClientGone())

    async def _pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Pieces with the numbers of their choices, as they come."""
        samples = self._body.n or 1
        counted = self._body.logprobs
        requests = {n: p.request for n, p in zip(self._numbers, self._requests, strict=True)}
        choices = [
            TextChoice(self._model.tokenizer, requests.get(number // samples), counted)
            for number in range(samples * len(self._prompts))
        ]
        scores = None if self._scores is None else await self._scores.scores()
        if self._body.echo:
            yield await asyncio.to_thread(self._echoes, choices, scores)
        if self._body.max_tokens == 0:
            yield [(number, Piece(finish_reason="length")) for number in range(len(choices))]
        if scores is not None and self._at_once:
            first = [(n, self._first(scores[n])) for n in self._at_once]
            yield [(n, choices[n].feed(delta)) for n, delta in first]
        async for number, delta in merged(self._requests):
            index = self._numbers[number] * samples + delta.index
            self._tokens += len(delta.tokens)
            pieces = delta.split() if self._body.stream else [delta]
            yield [(index, choices[index].feed(piece)) for piece in pieces]

    def _echoes(
        self, choices: Sequence[TextChoice], scores: Sequence[TokenScores] | None
    ) -> list[tuple[int, Piece]]:
        samples = len(choices) // len(self._prompts)
        found = []
        for index, choice in enumerate(choices):
            number = index // samples
            scored = None if scores is None else scores[number]
            found.append((index, choice.echo(self._prompts[number], scored)))
        return found

    def _first(self, scores: TokenScores) -> TokenDelta:
        """The likeliest token after a prompt, as an engine would give it."""
        others = likeliest(scores, -1, max(1, self._body.alternatives))
        token, logprob = others[0]
        stops = (self._model.tokenizer.special("<|assistant_end|>"), self._model.tokenizer.bos)
        self._tokens += 1
        shown = tuple(others[: self._body.alternatives])
        reason: FinishReason = "stop" if token in stops else "length"
        return TokenDelta(0, [token], [1], [logprob], [shown], reason)

    async def whole(self) -> dict[str, Any]:
        found: dict[int, Piece] = {}
        async for pieces in self._pieces():
            for number, piece in pieces:
                one = found.setdefault(number, Piece())
                one.text += piece.text
                one.entries += piece.entries
                one.finish_reason = piece.finish_reason
        choices = [self._choice(number, piece) for number, piece in sorted(found.items())]
        return {**self._json(choices), "usage": self._usage()}

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for pieces in self._pieces():
            yield b"".join(event(self._json([self._choice(n, p)])) for n, p in pieces)
        yield ending(self._body, {**self._json([]), "usage": self._usage()})

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": number,
            "text": piece.text,
            "logprobs": None if self._body.logprobs is None else piece.logprobs,
            "finish_reason": piece.finish_reason,
        }

    def _json(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": self._model.fingerprint,
            "choices": choices,
        }

    def _usage(self) -> Mapping[str, Any]:
        prompt = sum(len(ids) for _, ids in self._prompts)
        total = prompt + self._tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": sum(row.known for row in self._requests)},
        }


def is_greedy_token(request: Request) -> bool:
    """Whether only the likeliest token is asked for, which scores of the prompt say as well."""
    plain = Request(request.tokens, 1, seed=request.seed, alternatives=request.alternatives)
    return request == plain


async def merged(
    requests: Sequence[PendingRequest],
) -> AsyncIterator[tuple[int, TokenDelta]]:
    """New tokens of several requests as they come, with the number of the request."""
    queue: asyncio.Queue[tuple[int, TokenDelta | ApiError | None]] = asyncio.Queue()

    async def read(number: int, pending: PendingRequest) -> None:
        try:
            async for delta in pending.deltas():
                queue.put_nowait((number, delta))
            queue.put_nowait((number, None))
        except ApiError as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(read(*numbered)) for numbered in enumerate(requests)]
    left = len(tasks)
    try:
        while left:
            number, new = await queue.get()
            if isinstance(new, ApiError):
                raise new
            if new is None:
                left -= 1
            else:
                yield number, new
    finally:
        for task in tasks:
            task.cancel()
