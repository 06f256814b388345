"""From tokens to the text that is sent: whole characters, without stop texts, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxchat.inference.stop_strings import StopFinder
from jaxchat.serve.ticket import News
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part, PartParser, PartType


@dataclass
class Delta:
    """A piece of one part, with what is told of its tokens."""

    part: PartType
    text: str = ""
    opens: bool = False  # a part begins here, even where it stays empty
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def says(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.text or self.opens or self.logprobs)


class Speech:
    """One sample while it is spoken. The texts of all deltas, joined, are its parts.

    A character of several tokens comes with its last one. Text that may be the beginning of a stop
    text comes when that is decided.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._parser = PartParser(tokenizer)
        self._finder = StopFinder(stop)
        self._kind: PartType = "text"

    def feed(self, news: News) -> list[Delta]:
        """What new tokens say; the last of them with all that was held back."""
        deltas = [Delta(self._kind)]
        for number, token in enumerate(news.tokens):
            added, *opened = self._parser.feed(token)
            deltas[-1].text += self._say(added["text"])
            for part in opened:
                deltas[-1].text += self._release()
                deltas += self._switch(part["type"])
            if self._logprobs:
                deltas[-1].logprobs.append(self._entry(news, number))
        if news.finish_reason is not None:
            deltas[-1].text += self._say(self._parser.close()["text"]) + self._release()
        return [delta for delta in deltas if delta.says]

    def _say(self, text: str) -> str:
        return self._finder.feed(text) if self._kind == "text" else text

    def _release(self) -> str:
        """What was held back of a text that ends here."""
        return self._finder.close() if self._kind == "text" else ""

    def _switch(self, kind: PartType) -> list[Delta]:
        # Between two calls in a row an empty text tells one from the other.
        again = [Delta("text", opens=True)] if kind == self._kind != "text" else []
        self._kind = kind
        return [*again, Delta(kind, opens=kind != "text")]

    def _entry(self, news: News, number: int) -> dict[str, Any]:
        """What is told of a token, as OpenAI has it, with its id and whether it was sampled."""
        token, logprob = news.tokens[number], news.logprobs[number]
        others = news.alternatives[number] if number < len(news.alternatives) else ()
        return {
            **self._named(token, logprob),
            "top_logprobs": [self._named(other, value) for other, value in others],
            "jaxchat": {"id": token, "sampled": bool(news.mask[number])},
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.decode_bytes([token])
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(data),
        }


LOWEST_LOGPROB = -9999.0  # for a probability of 0: JSON has no infinity, and so OpenAI writes it


def join(deltas: Sequence[Delta]) -> list[Part]:
    """The parts that deltas add up to, without empty text."""
    parts: list[Part] = []
    for delta in deltas:
        if parts and parts[-1]["type"] == delta.part and not (delta.opens and delta.part != "text"):
            parts[-1]["text"] += delta.text
        else:
            parts.append({"type": delta.part, "text": delta.text})
    return [part for part in parts if part["text"] or part["type"] != "text"]
