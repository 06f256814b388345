"""An engine for one answer: short questions are answered by programs of one layer each.

Most of the time from a question on the command line to its answer is XLA's, compiling programs that
are run a few times. Layers that are alike share a program here, a prompt is read like an answer,
token by token, and there is no random number where none is drawn.

Axes: B batch, which is 1; D width, G key/value heads, K head size, S slots of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxchat.config.derive import middle_layer
from jaxchat.config.schema import ModelConfig
from jaxchat.inference import jitted
from jaxchat.inference.engine import Engine
from jaxchat.inference.jitted import DecodeOutput
from jaxchat.inference.request import Request
from jaxchat.inference.sampling import greedy, likeliest, sample, uniforms
from jaxchat.inference.sequence import SequenceState
from jaxchat.model import layerwise
from jaxchat.model.backend import Compute
from jaxchat.model.gpt import param_shapes
from jaxchat.model.kv_cache import Cache, View
from jaxchat.tokenizer.bpe import Tokenizer

MOST_READ = 32  # tokens of a prompt; a longer one is read faster at once, even if that is compiled


@partial(jax.jit, static_argnames=("slots", "config", "compute"))
def start(
    params: Any, tokens: ArrayLike, length: Array, previous: Array, *,
    slots: tuple[int, ...], config: ModelConfig, compute: Compute,
) -> tuple[layerwise.Start, Array, Array]:  # fmt: skip
    """What a step begins with; and `length` and `previous` of the cache after it."""
    found = layerwise.start(params, jnp.asarray(tokens), length, previous, slots, config, compute)
    return found, length + 1, found.embedded[:, 0].astype(previous.dtype)


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="kept")
def layer(
    params: Any, number: ArrayLike, x: Array, start: layerwise.Start, kept: Any,
    tokens: ArrayLike, position: Array, *, config: ModelConfig, compute: Compute,
) -> tuple[Array, Any]:  # fmt: skip
    """See `model.layerwise`."""
    number, tokens = jnp.asarray(number), jnp.asarray(tokens)
    return layerwise.layer(params, number, x, start, kept, tokens, position, config, compute)


@partial(jax.jit, static_argnames=("config", "compute", "draws", "truncate"))
def end(
    params: Any, x: Array, middle: Array, slots: ArrayLike, position: Array, *,
    config: ModelConfig, compute: Compute, draws: bool, truncate: bool,
) -> DecodeOutput:  # fmt: skip
    """The token of a step at `position`, of one packed slot, as a dispatch of one step."""
    _, active, _, forced_count, forced, settings = jitted.unpacked_slots(jnp.asarray(slots))
    logits = lax.optimization_barrier(layerwise.logits(params, x, middle, config, compute))
    if draws:
        uniform = uniforms(settings, position + 1)
        token, logprob = sample(logits, settings, uniform, truncate=truncate)
    else:
        token, logprob = greedy(logits)
    token = jnp.where(forced_count > 0, forced[:, 0], token)
    found = DecodeOutput(token, logprob, active, *likeliest(logits, 0))
    return DecodeOutput(*(x[None] for x in found))


class LayerwiseEngine(Engine):
    """Answers one request after the other, as an engine of one slot.

    For a CPU: elsewhere a step is too short to be begun in parts.
    """

    _is_layerwise = False  # whether the request in the slot is answered layer by layer

    def __init__(
        self, read: Callable[[], Any], config: ModelConfig, tokenizer: Tokenizer, **settings: Any
    ) -> None:
        """`read` gives the weights; it is called while the first programs are compiled."""
        self._read_weights: Callable[[], Any] | None = read
        super().__init__(None, config, tokenizer, slots=1, **settings)

    def set_params(self, params: Any) -> None:
        if params is None:  # to compile, shapes will do
            here = jax.sharding.SingleDeviceSharding(self.device)
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, self.compute.dtype, sharding=here),
                param_shapes(self.config),
            )
            self._shared.set_params(shapes)
        else:
            self._read_weights = None
            super().set_params(params)
        self._parts = layerwise.parts_of(self.params, self.config)

    def _have_weights(self) -> None:
        if self._read_weights is not None:
            self.set_params(self._read_weights())

    def prepare(self, request: Request) -> None:
        if self._takes(request):
            step = partial(self._step_shapes, request)
            self._compile([step], meanwhile=self._have_weights)
        else:
            self._have_weights()
            super().prepare(request)

    def _step_shapes(self, request: Request) -> None:
        assert self._ahead is not None  # it is for `_compile`
        self._kept = self._ahead.placed(self._room_for(request))
        self._step(request, 0, jitted.packed_slots([None], 1))

    def _takes(self, request: Request) -> bool:
        """Whether a request is answered layer by layer."""
        short = len(request.tokens) <= MOST_READ and request.n == 1
        return short and not (
            request.changes_logits or request.alternatives or request.grammar is not None
        )

    def _room_for(self, request: Request) -> Cache:
        """The shapes of a cache for a prompt and all of its answer."""
        length = self._length_for(min(len(request.tokens) + request.max_tokens, self.max_len))
        shapes: Cache = jax.eval_shape(partial(self._new_cache, length))
        return shapes

    def _make_cache(self) -> None:
        """Where an ordinary request comes: to make it is a program, too."""
        self._cache_length, self._underused_steps = self._cache_lengths[0], 0
        self._cache = self._kept = None  # type: ignore[assignment]

    def _admit(self) -> None:
        self._have_weights()
        if self._rows[0] is None and self._waiting:
            request = self._waiting[0].request
            self._is_layerwise = self._takes(request)
            if self._is_layerwise:
                self._rows[0] = self._waiting.popleft()
                zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._room_for(request))
                self._kept = jax.device_put(zeros, self.device)
                for token in request.tokens[:-1]:
                    self._read_token(token)
            elif self._cache is None:
                super()._make_cache()
        super()._admit()

    def _decode(self, rows: list[SequenceState]) -> None:
        if not self._is_layerwise:
            super()._decode(rows)
            return
        output = self._step(rows[0].request, rows[0].last, jitted.packed_slots(rows, 1))
        self._in_flight = output, list(self._rows)

    def _step(self, request: Request, token: int, slots: ArrayLike) -> DecodeOutput:
        """The token after `token`, as a dispatch of one step."""
        x, middle, position = self._read_token(token)
        output: DecodeOutput = self._call(
            end, self._parts.head, x, middle, slots, position, draws=request.temperature > 0,
            truncate=request.truncates, config=self.config, compute=self.compute,
        )  # fmt: skip
        return output

    def _read_token(self, token: int) -> tuple[Array, Array, Array]:
        """Reads a token into the cache: the residual after all layers and after the middle one, and
        the token's position.
        """
        settings = {"config": self.config, "compute": self.compute}
        tokens, position = np.array([token], np.int32), self._kept.length
        slots = tuple(k.shape[2] for k in self._kept.k)
        embedding = self._parts.embedding, tokens, position, self._kept.previous
        first, length, previous = self._call(start, *embedding, slots=slots, **settings)
        x = middle = first.x
        kept = list(zip(self._kept.k, self._kept.v, strict=True))
        for number, params in enumerate(self._parts.layers):
            rope, visible = first.view
            here = first._replace(view=View(rope, visible[number : number + 1]))
            place = np.int32(number)
            x, kept[number] = self._call(
                layer, params, place, x, here, kept[number], tokens, position, **settings
            )
            middle = x if number == middle_layer(self.config.n_layer) else middle
        keys, values = zip(*kept, strict=True)
        self._kept = Cache(keys, values, length, previous)
        return x, middle, position
