"""The programs of an engine: which there are, and compiling them before a request needs them."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax

from jaxchat.inference import jitted
from jaxchat.inference.ahead import Ahead
from jaxchat.inference.masks import Packed, free_masks
from jaxchat.inference.prefixes import DeviceState, Reader, prefix_sizes, prompts_to_read
from jaxchat.inference.request import EngineError, Request
from jaxchat.inference.sequence import Specials
from jaxchat.inference.service import Service
from jaxchat.model.backend import bucket
from jaxchat.model.chunks import CHUNK, chunk_ends
from jaxchat.model.kv_cache import Cache


class Programs(Service):
    """What of an engine is about compiling; its calls of jitted functions go through `_call`."""

    device: jax.Device
    _cache: Cache  # donated by every dispatch that gives a new one
    _cache_length: int  # its positions: as many as its rows need, of `_cache_lengths`
    _cache_lengths: list[int]
    _in_flight: Any
    _most: int  # alternatives
    _shared: DeviceState
    _specials: Specials
    _steps: int  # of a dispatch
    _ahead: Ahead | None = None  # while programs are compiled that nobody calls yet

    def warm_up(
        self,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[float], object] = lambda share: None,
        *,
        rare: bool | None = None,
    ) -> None:
        if self.busy:
            raise EngineError("warm_up was called with requests under way; call it before them.")
        # a request that comes while the rare are compiled waits for one of them at most
        self._compile(list(self._programs(rare)), stopped, progress, at_once=rare is not True)

    def prepare(self, request: Request) -> None:
        read = request.tokens[:-1]
        length = max(len(read) + self._steps, bucket(len(read), jitted.MIN_PROMPT, self.max_len))
        decode = partial(self._dispatch, *self._kind([request]))
        insert = partial(self._insert_read, read)
        # the longest first
        self._compile([
            partial(self._at, self._length_for(length), decode),
            partial(self._at, self._cache_length, insert),
        ])  # fmt: skip

    def _compile(
        self,
        programs: Sequence[Callable[[], object]],
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[float], object] = lambda share: None,
        *,
        at_once: bool = True,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Compiles what the calls need: they run with shapes instead of arrays.

        `at_once`: several programs side by side. `meanwhile` is called while the last are compiled.
        """
        cache, length = self._cache, self._cache_length
        with contextlib.closing(Ahead(self.device)) as ahead:
            self._ahead = ahead
            try:
                for number, program in enumerate(programs):
                    (ahead.make_room if at_once else ahead.finish)()
                    progress(number / len(programs))
                    if stopped():
                        return
                    program()
                meanwhile()
                ahead.finish()
                progress(1.0)
            finally:
                self._ahead, self._in_flight = None, None
                self._cache, self._cache_length = cache, length

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a jitted function, or only compiles it, for what it would be called with."""
        call = function if self._ahead is None else partial(self._ahead.call, function)
        return call(*args, **kwargs)

    def _insert_read(self, tokens: tuple[int, ...]) -> None:
        self._insert(self._read(tokens)[0], [0], len(tokens) + self._steps)

    def _programs(self, rare: bool | None = None) -> Iterator[Callable[[], object]]:
        """Calls that together need every program, to prefill, insert and decode; for `_compile`.

        `rare`: only what few requests need, or only the rest.
        """
        if rare is not True:
            yield from self._dispatches((False,), (0,))  # first, as they take longest
            yield from self._common_programs()
        if rare is not False:
            yield from self._dispatches((True,), (0,))
            yield from self._dispatches((False, True), (self._most,))
            masks = free_masks(self.slots, self.config.vocab_size, self._steps)
            # rarer combinations are compiled when they come
            yield from self._dispatches((False, True), (self._most, True), (0, False, masks))

    def _common_programs(self) -> Iterator[Callable[[], object]]:
        def insert(prompt: tuple[int, ...]) -> None:
            self._insert(self._read(prompt)[0], [0])

        def read_twice(prompt: tuple[int, ...]) -> None:
            ends, reader = chunk_ends(prompt, self._specials.user_end), self._reader()
            _, chunks = reader.read(prompt, ends)
            reader.read(prompt, ends, chunks)

        prompts = [(0,) * length for length in jitted.buckets(jitted.MIN_PROMPT, self.max_len)]
        is_chunked = self._shared.prefixes.limit and self.max_len > CHUNK
        longest = CHUNK - 1 if is_chunked else self.max_len
        reads = {*map(len, prompts), longest}
        for length in sorted(reads):
            yield partial(self._read, (0,) * length)
        if is_chunked:
            for size in prefix_sizes(self.max_len):  # a row may begin with any
                yield partial(self._reader().empty, size)
            for prompt in prompts_to_read(self.max_len, self._specials.user_end):
                yield partial(read_twice, prompt)
        for length in self._cache_lengths:
            for other in self._cache_lengths:  # from there to here
                if other != length:
                    yield partial(self._at, other, partial(self._resize, length))
            for prompt in prompts:
                if self._length_for(len(prompt)) <= length:
                    yield partial(self._at, length, partial(insert, prompt))

    def _dispatches(
        self, truncate: Sequence[bool], *kinds: tuple[Any, ...]
    ) -> Iterator[Callable[[], object]]:
        """Calls that decode, with every length of the cache; `kinds` are `_dispatch`'s settings."""
        for length, first, kind in product(self._cache_lengths, truncate, kinds):
            yield partial(self._at, length, partial(self._dispatch, first, *kind))

    def _at(self, length: int, program: Callable[[], object]) -> None:
        """Runs a program with the shapes of a cache of this length."""
        assert self._ahead is not None  # it is for `_compile`
        shapes = jax.eval_shape(partial(self._new_cache, length))
        self._cache, self._cache_length = self._ahead.placed(shapes), length
        program()

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is a row, in a slot or queued."""

    @abstractmethod
    def _new_cache(self, length: int) -> Cache: ...

    @abstractmethod
    def _length_for(self, positions: int) -> int: ...

    @abstractmethod
    def _read(self, tokens: tuple[int, ...]) -> tuple[Cache, int]: ...

    @abstractmethod
    def _reader(self) -> Reader: ...

    @abstractmethod
    def _insert(self, prompt: Cache, slots: Sequence[int], reach: int = 0) -> None: ...

    @abstractmethod
    def _resize(self, length: int) -> None: ...

    @abstractmethod
    def _kind(self, requests: Sequence[Request]) -> tuple[bool, int, bool]: ...

    @abstractmethod
    def _dispatch(
        self,
        truncate: bool,
        alternatives: int,
        changed: bool = False,
        masks: Packed | None = None,
        steps: int = 0,
    ) -> None: ...
