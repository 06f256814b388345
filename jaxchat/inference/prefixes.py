"""What prompts began with: the chunks that were read, kept for prompts that begin likewise.

A conversation's next turn, a system message, few-shot examples: a prompt then reads only what is
new to it. Whether a chunk was kept or not, the answer is the same to the last bit (`model.chunks`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.inference import jitted
from jaxchat.inference.request import Request
from jaxchat.model.backend import Compute, bucket
from jaxchat.model.chunks import CHUNK, LEAST, Prefix, chunk_size, prefix_size
from jaxchat.model.kv_cache import Cache


class Prefixes:
    """Chunks by all tokens up to their ends; those that were not used for longest are dropped.

    One thread at a time may use it.
    """

    def __init__(self, limit: int) -> None:
        """At most `limit` bytes are kept; 0: nothing, and prompts are read as a whole."""
        self.limit, self.bytes = limit, 0
        self._chunks: OrderedDict[bytes, Prefix] = OrderedDict()  # the least recently used first

    def find(self, tokens: Sequence[int], ends: Sequence[int]) -> list[Prefix]:
        """The chunks that are known of the beginning of `tokens`, which end at `ends`."""
        found: list[Prefix] = []
        for key in _keys(tokens, ends):
            if key not in self._chunks:
                break
            found.append(self._chunks[key])
        return found

    def keep(self, tokens: Sequence[int], ends: Sequence[int], chunks: Sequence[Prefix]) -> None:
        """Keeps the first chunks of `tokens`, and drops others where memory is short.

        Later chunks count as used less recently, so that none is kept whose beginning is gone.
        """
        for key, chunk in reversed(list(zip(_keys(tokens, ends), chunks, strict=False))):
            if key not in self._chunks:
                self.bytes += _bytes(chunk)
            self._chunks[key] = chunk
            self._chunks.move_to_end(key)
        while self.bytes > self.limit:
            self.bytes -= _bytes(self._chunks.popitem(last=False)[1])

    def clear(self) -> None:
        """Drops all."""
        self._chunks.clear()
        self.bytes = 0


def _keys(tokens: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """A key for each chunk: all tokens up to its end."""
    data = np.asarray(tokens, np.int32).tobytes()
    return [data[: 4 * end] for end in ends]


def _bytes(chunk: Prefix) -> int:
    return sum(leaf.nbytes for leaf in chunk)


class DeviceState:
    """What the engines of one device share: its weights, and the prompt that was prefilled last.

    One request's samples may go to several engines; its prompt is prefilled once all the same.
    """

    def __init__(self, prefix_bytes: int = 0) -> None:
        """At most `prefix_bytes` of what prompts began with are kept."""
        self.params: Any = None  # None: not set yet
        self.prefixes = Prefixes(prefix_bytes)
        self._prompt: tuple[Request, tuple[Cache, int]] | None = None

    def set_params(self, params: Any) -> None:
        """Takes other weights; what was prefilled with the old ones is of no use."""
        self.params = params
        self.forget()

    def prompt(
        self, request: Request, prefill: Callable[[], tuple[Cache, int]]
    ) -> tuple[Cache, int]:
        """The cache after a request's prompt, and how many tokens of it were kept from others.

        `prefill` makes it where another request was the last.
        """
        if self._prompt is None or self._prompt[0] is not request:
            self._prompt = request, prefill()
        return self._prompt[1]

    def forget(self) -> None:
        """Drops what was read of prompts: the weights are others, or an error may have taken it."""
        self._prompt = None
        self.prefixes.clear()


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a function."""
    return function(*args, **kwargs)


class Reader(NamedTuple):
    """Reads prompts in chunks: the weights and the shapes that all of them share."""

    params: Any
    config: ModelConfig
    compute: Compute
    context: int  # positions of a prompt, at most
    device: jax.Device
    call: Callable[..., Any] = call  # calls a jitted function

    def read(
        self, tokens: Sequence[int], ends: Sequence[int], known: Sequence[Prefix] = ()
    ) -> tuple[Cache, list[Prefix]]:
        """The cache after `tokens`, and their whole chunks, which end at `ends`; `known` are the
        first of these.

        The programs depend on the tokens alone, so what was known changes no bit.
        """
        starts = [0, *(end for end in ends if end < len(tokens))]
        pieces = [tokens[start:end] for start, end in zip_longest(starts, ends)]
        reach = [
            start + chunk_size(len(piece)) for start, piece in zip(starts, pieces, strict=True)
        ]
        sizes = [prefix_size(most, self.context) for most in accumulate(reach, max)]
        row = self.empty(sizes[min(len(known), len(sizes) - 1)])
        chunks: list[Prefix] = []
        for number, (start, piece, size) in enumerate(zip(starts, pieces, sizes, strict=True)):
            if size > row.kv.shape[3]:
                row = self.call(jitted.resize_prefix, row, size=size)
            if number < len(known):
                chunk = known[number]
                row = self.call(jitted.append_chunk, row, chunk, np.int32(start))
            else:
                padded = jitted.padded(piece, chunk_size(len(piece)))
                row, chunk = self.call(
                    jitted.read_chunk, self.params, *padded, np.int32(start), row,
                    config=self.config, compute=self.compute,
                )  # fmt: skip
            chunks.append(chunk)
        room = bucket(len(tokens), jitted.MIN_PROMPT, self.context)
        held = np.array([len(tokens)], np.int32)
        cache = self.call(jitted.cache_of, row, held, room=room, config=self.config)
        return cache, chunks[: len(ends)]

    def empty(self, size: int) -> Prefix:
        """Room for `size` positions, on the device."""
        row: Prefix = self.call(
            jitted.empty_prefix, size=size, config=self.config, compute=self.compute
        )
        is_compiled_only = isinstance(row.kv, jax.ShapeDtypeStruct)
        return row if is_compiled_only else jax.device_put(row, self.device)


def prefix_sizes(context: int) -> list[int]:
    """The positions that a row may have."""
    sizes = (prefix_size(end, context) for end in range(CHUNK, context + CHUNK, CHUNK))
    return list(dict.fromkeys(sizes))


def prompts_to_read(context: int, mark: int) -> list[tuple[int, ...]]:
    """Prompts that together need every program of `Reader`: once read, and once more where their
    chunks are known. Some are beyond the context, where that is no multiple of a chunk.
    """
    lengths = [CHUNK]
    for size in prefix_sizes(context)[1:]:
        before = (size // CHUNK - 1) * CHUNK
        lengths += [before + piece for piece in jitted.buckets(LEAST, CHUNK)]
    prompts = [(0,) * (length - 1) + (mark,) for length in lengths]
    for room in jitted.buckets(2 * CHUNK, context):  # whose last chunk is padded beyond it
        prompts.append((0,) * (room - LEAST // 2 - 1) + (mark,) + (0,) * (LEAST // 4))
    return prompts
