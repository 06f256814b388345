"""Text from token ids that come one after the other."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class DecodeStream:
    """Turns ids into text as they arrive, whole UTF-8 characters only.

    `decode_bytes` gives the bytes of ids. What `feed` and `close` return, joined, is the text of
    all ids: a character of several tokens comes with its last one, and bytes that never become a
    character as U+FFFD.
    """

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes]) -> None:
        self._decode_bytes = decode_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Sequence[int]) -> str:
        """The text that new ids complete. Raises what `decode_bytes` raises."""
        return self._decoder.decode(self._decode_bytes(ids))

    def close(self) -> str:
        """What is left of an unfinished character; the stream starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
