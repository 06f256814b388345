"""Text from token ids that come one after the other."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxchat.tokenizer.bpe import Tokenizer


class DecodeStream:
    """Turns ids into text as they arrive, whole UTF-8 characters only.

    What `feed` and `close` return, joined, is `Tokenizer.decode` of all ids: a character of several
    tokens comes with its last one, and bytes that never become a character as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Sequence[int]) -> str:
        """The text that new ids complete. Raises TokenizerError as `Tokenizer.decode` does."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def close(self) -> str:
        """What is left of an unfinished character; the stream starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
