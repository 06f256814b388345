"""The JSON that is sent: completions, chunks of a stream, usage."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxchat.inference.request import FinishReason
from jaxchat.serve.models import ServedModel
from jaxchat.serve.speech import Delta, join
from jaxchat.serve.ticket import Ticket

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


@dataclass(frozen=True)
class Head:
    """What every chunk of an answer carries."""

    model: ServedModel
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def json(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The object, with its choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.model.fingerprint,
            "choices": choices,
        }

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[dict[str, Any]] | None = None,
    ) -> bytes:
        """A chunk of one choice as an event."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        return event(self.json("chat.completion.chunk", [choice]))

    def usage_chunk(self, used: dict[str, Any]) -> bytes:
        """The last chunk, where the usage was asked for."""
        return event({**self.json("chat.completion.chunk", []), "usage": used})


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def delta_json(delta: Delta, *, parts: bool) -> dict[str, Any] | None:
    """A delta as it is sent; None where a client that knows no parts is told nothing."""
    told: dict[str, Any] = {}
    if delta.part == "text" and (delta.text or delta.logprobs):
        told["content"] = delta.text
    if parts:
        told["part"] = {"type": delta.part, "text": delta.text}
    return told if told or delta.logprobs else None


def choice_json(
    index: int, deltas: Sequence[Delta], finish_reason: FinishReason, *, parts: bool, logprobs: bool
) -> dict[str, Any]:
    """A whole choice."""
    said = join(deltas)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(part["text"] for part in said if part["type"] == "text"),
        "refusal": None,
    }
    if parts:
        message["parts"] = said
    entries = [entry for delta in deltas for entry in delta.logprobs] if logprobs else None
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(entries),
        "finish_reason": finish_reason,
    }


def _logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": list(entries), "refusal": None}


def usage(ticket: Ticket, tokens: int) -> dict[str, Any]:
    """What an answer of so many tokens, of all choices together, has taken.

    Seconds count from the first slot; `tokens_per_second` is over all of them.
    """
    times, prompt = ticket.times, len(ticket.request.tokens)
    started = times.queued if times.started is None else times.started
    first = started if times.first is None else times.first
    ended = first if times.ended is None else times.ended
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "jaxchat": {
            "queue_seconds": round(started - times.queued, 6),
            "prompt_seconds": round(first - started, 6),
            "seconds": round(ended - started, 6),
            "tokens_per_second": round(tokens / max(ended - started, 1e-6), 3),
            "context": ticket.model.context,
        },
    }
