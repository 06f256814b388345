"""The GPT: Flax Linen modules inside, pure functions over a plain dict of parameters outside.

Axes: B batch, T time, D width, H query heads, G key/value heads, K head size, F hidden,
V vocabulary, L layers. Kernels are [in, out]. `rows` are any axes before the last.

    wte/embedding [V,D]      lm_head/kernel [D,V]      value_embeds_{l}/embedding [V,G*K]
    h_{l}/attn/c_q/kernel [D,H*K]    c_k, c_v [D,G*K]    c_proj [H*K,D]    ve_gate [12,G]
    h_{l}/mlp/c_fc/kernel [D,F]      c_proj [F,D]
    resid_lambdas [L]   x0_lambdas [L]   smear_gate/kernel [24,1]   smear_lambda []
    backout_lambda []

The architecture is nanochat's (github.com/karpathy/nanochat): rotary embeddings, normalised
queries and keys, relu^2, RMSNorm without weights, no biases, an untied head, capped logits. With
every switch of ModelConfig off it is that of November 2025; `config.derive` has the switches of
July and September 2026.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32, Int, Key

from jaxchat.config.derive import (
    SMEAR_GATE_CHANNELS,
    VALUE_GATE_CHANNELS,
    layer_specs,
    middle_layer,
)
from jaxchat.config.schema import ModelConfig
from jaxchat.model.attention import MAX_SCORE, causal_attention
from jaxchat.model.backend import PLAIN, Compute, MatmulPrecision
from jaxchat.model.init import Initializer, init_table, parameter
from jaxchat.model.joined import JOINED
from jaxchat.model.kernels import cached, fp8, native, norms, residual
from jaxchat.model.kernels.matmul import matmul, widened_matmul
from jaxchat.model.kernels.relu2 import relu2
from jaxchat.model.kv_cache import Cache, View, fill, view_of, write
from jaxchat.model.rope import Rope, rope_table, rotate

Params = dict[str, Any]
ROUNDED = "rounded"  # the collection of kernels as they are multiplied, beside Flax's "params"
# (layer, q [B,T,H,K], k [B,T,G,K], v [B,T,G,K]) -> (attended [B,T,H,K], what the mode saves)
Attend = Callable[[int, Array, Array, Array], tuple[Array, Any]]


def rms_norm(
    x: Float[Array, "*rows D"], config: ModelConfig, compute: Compute = PLAIN
) -> Float[Array, "*rows D"]:
    """Divides by the root mean square of the last axis; computed in float32."""
    if compute.fused:
        return norms.rms_norm(x, config.norm_epsilon)
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_epsilon)
    return (wide * scale).astype(x.dtype)


def norm_rotated(
    x: Float[Array, "B T H K"], rope: Rope, config: ModelConfig, compute: Compute = PLAIN
) -> Float[Array, "B T H K"]:
    """Queries or keys, rotated by their positions, normalised and scaled."""
    if compute.native:
        return native.norm_rope(x, *rope, config.qk_scale, config.norm_epsilon)
    if compute.fused:
        return norms.norm_rope(x, *rope, config.qk_scale, config.norm_epsilon)
    return config.qk_scale * rms_norm(rotate(x, *rope), config)


class Linear(nn.Module):
    """A float32 matrix, multiplied in the dtype of its input, or a large one in `precision`; or one
    that an engine holds in 8 bits.
    """

    out: int
    initializer: Initializer
    precision: MatmulPrecision = "default"
    bound: float | None = None  # that no value of the input exceeds, where one is known

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        kernel = parameter(self, "kernel", self.initializer, (x.shape[-1], self.out))
        if self.out == 1:  # as a product, XLA on a CPU rounds some rows otherwise than others
            column = kernel.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
            return jnp.sum(x * column, axis=-1, keepdims=True)
        rounded: fp8.Kernel | Array | None = self.get_variable(ROUNDED, "kernel")
        return matmul(x, kernel, self.precision, rounded, self.bound)


class Matrix(nn.Module):
    """A float32 matrix, and as products of fp8 take it."""

    out: int
    initializer: Initializer

    @nn.compact
    def __call__(self, width: int) -> tuple[Float32[Array, "D F"], fp8.Kernel]:
        kernel = parameter(self, "kernel", self.initializer, (width, self.out))
        return kernel, self.get_variable(ROUNDED, "kernel") or fp8.round_kernel(kernel)


class Embedding(nn.Module):
    """A table in float32, looked up in `dtype`."""

    rows: int
    width: int
    initializer: Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = parameter(self, "embedding", self.initializer, (self.rows, self.width))
        return table[tokens].astype(self.dtype)


class Attention(nn.Module):
    """Attention of one layer to the normalised x; `attend` decides what the queries see."""

    config: ModelConfig
    layer: int
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        value: Float[Array, "B T GK"] | None,
        rope: Rope,
        attend: Attend,
    ) -> tuple[Float[Array, "B T D"], Any]:
        config, init, width = self.config, init_table(self.config), self.config.n_embd
        size, groups = config.head_dim, config.n_kv_head
        bound = math.sqrt(width) if self.compute.fused else None  # of what is normalised
        normed = rms_norm(x, config, self.compute)

        def heads(name: str, count: int) -> Array:
            initializer = init.get(name, init["c_q"])  # a joined kernel is never initialised
            y = Linear(count * size, initializer, self.compute.matmul, bound, name=name)(normed)
            return y.reshape(*y.shape[:-1], count, size)

        counts = {"c_q": config.n_head, "c_k": groups, "c_v": groups}
        if self.has_variable("params", JOINED):
            first, second = config.n_head, config.n_head + groups
            q, k, v = jnp.split(heads(JOINED, second + groups), (first, second), axis=-2)
        elif self.compute.native and native.takes_products(width, groups * size):
            all_three = [Matrix(n * size, init[c], name=c)(width)[0] for c, n in counts.items()]
            ys = native.linear(x, tuple(all_three), config.norm_epsilon)
            q, k, v = (y.reshape(*y.shape[:-1], -1, size) for y in ys)
        else:
            q, k, v = (heads(name, count) for name, count in counts.items())
        if value is not None:
            channels = normed[..., : min(VALUE_GATE_CHANNELS, width)]
            gate = 3.0 * nn.sigmoid(Linear(groups, init["ve_gate"], name="ve_gate")(channels))
            v = v + gate[..., None] * value.reshape(v.shape)
        q, k = (norm_rotated(a, rope, config, self.compute) for a in (q, k))
        y, saved = attend(self.layer, q, k, v)
        y = y.reshape(*y.shape[:-2], -1)
        return Linear(width, init["c_proj"], self.compute.products, name="c_proj")(y), saved


class MLP(nn.Module):
    """x + the normalised x -> F = 4D -> D, with relu^2 between."""

    config: ModelConfig
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config, init, width = self.config, init_table(self.config), self.config.n_embd
        is_native = self.compute.native and native.takes_products(width)
        if is_native or (self.compute.fused_fp8 and fp8.takes(width, 4 * width)):
            up = Matrix(4 * width, init["c_fc"], name="c_fc")(width)
            down = Matrix(width, init["c_proj"], name="c_proj")(4 * width)
            if is_native:
                return native.mlp(x, up[0], down[0], config.norm_epsilon)
            return x + fp8.relu2_mlp(rms_norm(x, config, self.compute), up, down)
        y = rms_norm(x, config, self.compute)
        y = Linear(4 * width, init["c_fc"], self.compute.matmul, name="c_fc")(y)
        y = relu2(y) if self.compute.lean_relu2 else jnp.square(nn.relu(y))
        return x + Linear(width, init["c_proj"], self.compute.matmul, name="c_proj")(y)


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual and added to it."""

    config: ModelConfig
    layer: int
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        value: Float[Array, "B T GK"] | None,
        rope: Rope,
        attend: Attend,
    ) -> tuple[Float[Array, "B T D"], Any]:
        part = Attention(self.config, self.layer, self.compute, name="attn")
        y, saved = part(x, value, rope, attend)
        return MLP(self.config, self.compute, name="mlp")(x + y), saved


class GPT(nn.Module):
    """Tokens -> normalised features; the head is `unembed`."""

    config: ModelConfig
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        rope: Rope,
        previous: Float[Array, "B D"],
        attend: Attend,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], list[Any]]:
        """Features, embeddings before smear, and what `attend` saved of each layer.

        `previous` is the embedding before, or 0.
        """
        config, init = self.config, init_table(self.config)
        norm = functools.partial(rms_norm, config=config, compute=self.compute)
        embedded = norm(self._table("wte", config.n_embd, "wte")(tokens))
        x = self._smear(embedded, previous) if config.smear else embedded
        fused, dtype = self.compute.fused, self.compute.scalars
        # Kept, as XLA would otherwise compute it again from the embeddings wherever it is used
        start = x = jax.lax.optimization_barrier(x) if fused else x
        mix = residual.mix if fused else residual.plain_mix
        if config.residual_scalars:
            shape = (config.n_layer,)
            share = parameter(self, "resid_lambdas", init["resid_lambdas"], shape).astype(dtype)
            first = parameter(self, "x0_lambdas", init["x0_lambdas"], shape).astype(dtype)
        saved = []
        middle = x
        for layer, spec in enumerate(layer_specs(config)):
            if config.residual_scalars:
                x = mix(x, start, share[layer], first[layer])
            value = None
            if spec.value_embedding:
                width = config.n_kv_head * config.head_dim
                value = self._table(f"value_embeds_{layer}", width, "value_embeds")(tokens)
            block = Block(config, layer, self.compute, name=f"h_{layer}")
            x, state = block(x, value, rope, attend)
            saved.append(state)
            if layer == middle_layer(config.n_layer):
                middle = x
        if config.backout:
            back = parameter(self, "backout_lambda", init["backout_lambda"], ()).astype(dtype)
            x = mix(x, middle, jnp.ones((), dtype), -back) if fused else x - back * middle
        return norm(x), embedded, saved

    def _table(self, name: str, width: int, init: str) -> Embedding:
        table = init_table(self.config)[init]
        return Embedding(self.config.vocab_size, width, table, self.compute.dtype, name=name)

    def _smear(
        self, x: Float[Array, "B T D"], previous: Float[Array, "B D"]
    ) -> Float[Array, "B T D"]:
        """Adds a gated share of the embedding before each."""
        init, dtype = init_table(self.config), self.compute.scalars
        strength = parameter(self, "smear_lambda", init["smear_lambda"], ()).astype(dtype)
        channels = x[..., : min(SMEAR_GATE_CHANNELS, self.config.n_embd)]
        gate = nn.sigmoid(Linear(1, init["smear_gate"], name="smear_gate")(channels))
        gate = strength * gate.astype(dtype)
        before = jnp.concatenate([previous[:, None, :], x[:, :-1]], axis=1)
        return (x.astype(dtype) + gate * before.astype(dtype)).astype(x.dtype)


@functools.partial(jax.jit, static_argnames="config")
def init_params(key: Key[Array, ""], config: ModelConfig) -> Params:
    """The initial parameters in float32, equal in distribution to nanochat's.

    Raises ValueError when qk_scale would let exp(score) overflow.
    """
    bound = config.head_dim**0.5 * config.qk_scale**2
    if bound > MAX_SCORE:
        raise ValueError(
            f"model.qk_scale is {config.qk_scale} with heads of {config.head_dim}, so scores reach "
            f"{bound:.0f}; at most {MAX_SCORE:.0f} is supported. Choose a smaller qk_scale."
        )
    stem, head = jax.random.split(key)
    tokens = jnp.zeros((1, 1), jnp.int32)
    rope = rope_table(tokens, config, jnp.float32)
    params = GPT(config).init(stem, tokens, rope, jnp.zeros((1, config.n_embd)), _see_itself)
    kernel = init_table(config)["lm_head"](head, (config.n_embd, config.vocab_size))
    return {**params["params"], "lm_head": {"kernel": kernel}}


def param_shapes(config: ModelConfig) -> Params:
    """Shapes and types of the parameters; none is made."""
    shapes: Params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return shapes


def _see_itself(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """The shape of attention, for the initialisation."""
    return q, None


def apply(
    params: Params,
    tokens: Int[Array, "B T"],
    rope: Rope,
    previous: Float[Array, "B D"] | None,
    attend: Attend,
    config: ModelConfig,
    compute: Compute,
    rounded: Params | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], list[Any]]:
    """`GPT.__call__` with these parameters; `previous` is 0 by default."""
    if previous is None:
        previous = jnp.zeros((tokens.shape[0], config.n_embd), compute.dtype)
    model, variables = GPT(config, compute), {"params": params, ROUNDED: rounded or {}}
    result: Any = model.apply(variables, tokens, rope, previous, attend)
    return result  # type: ignore[no-any-return]


def _whole_rows(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    compute: Compute,
    rounded: Params | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], list[Any]]:
    """`apply` to whole rows from position 0; saves each layer's (k, v)."""
    specs = layer_specs(config)

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        window = specs[layer].window
        return causal_attention(q, k, v, window=window, implementation=compute.attention), (k, v)

    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    rope = rope_table(positions, config, compute.dtype)
    # Kept, as XLA on a CPU would otherwise take each cosine again wherever it is used
    rope = rope if compute.fused else jax.lax.optimization_barrier(rope)
    return apply(params, tokens, rope, None, attend, config, compute, rounded)


def features(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    compute: Compute = PLAIN,
    rounded: Params | None = None,
) -> Float[Array, "B T D"]:
    """Tokens -> normalised features in compute.dtype, for `unembed` or a loss.

    `rounded` are the kernels as they are multiplied, if at hand, of a `round_kernels`.
    """
    return _whole_rows(params, tokens, config, compute, rounded)[0]


def unembed(
    params: Params, x: Float[Array, "*rows D"], config: ModelConfig, compute: Compute = PLAIN
) -> Float32[Array, "*rows V"]:
    """Features -> capped logits."""
    logits = widened_matmul(x, params["lm_head"]["kernel"], compute.matmul)
    return config.softcap * jnp.tanh(logits / config.softcap)


def forward(
    params: Params, tokens: Int[Array, "B T"], config: ModelConfig, compute: Compute = PLAIN
) -> Float32[Array, "B T V"]:
    """Tokens -> capped logits."""
    return unembed(params, features(params, tokens, config, compute), config, compute)


def prefill(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    cache: Cache,
    config: ModelConfig,
    compute: Compute = PLAIN,
) -> tuple[Float32[Array, "B V"], Cache]:
    """Reads prompts into an empty cache: logits after each row's last token, and the cache.

    Tokens are padded on the right (with anything); row b has lengths[b] real ones. Where that
    is 0 the logits mean nothing. What the cache held before is forgotten. It must have room for T
    positions.
    """
    x, embedded, saved = _whole_rows(params, tokens, config, compute)
    rows = jnp.arange(tokens.shape[0])
    store = cache.previous.dtype

    def layers(side: int) -> tuple[Array, ...]:
        return tuple(
            fill(pair[side].astype(store), lengths, old.shape[2])
            for pair, old in zip(saved, cache.k, strict=True)
        )

    last = jnp.maximum(lengths - 1, 0)
    previous = jnp.where(lengths[:, None] > 0, embedded[rows, last], 0.0)
    new = Cache(layers(0), layers(1), lengths, previous.astype(store))
    return unembed(params, x[rows, last], config, compute), new


def decode(
    params: Params,
    tokens: Int[Array, " B"],
    cache: Cache,
    config: ModelConfig,
    compute: Compute = PLAIN,
    *,
    active: Bool[Array, " B"] | None = None,
    view: View | None = None,
) -> tuple[Float32[Array, "B V"], Cache]:
    """One more token in each row: logits, and the cache with the token in it.

    Rows may stand at different positions; `view` is from there, if at hand. Rows where `active`
    is False stay as they are: their logits mean nothing, and what was written for them lies beyond
    what they see.

    Rows of which nothing is kept make them compute.decode_rows, but in the cache: of one row a
    GPU's XLA makes no matrix product, but writes all products of two numbers and then sums.
    """
    position, dtype, store = cache.length, compute.dtype, cache.previous.dtype
    batch = tokens.shape[0]
    extra = max(0, compute.decode_rows - batch)
    if view is None:
        view = view_of(position, [k.shape[2] for k in cache.k], config, dtype)

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        keys = write(cache.k[layer], k[:batch, 0].astype(store), position)
        values = write(cache.v[layer], v[:batch, 0].astype(store), position)
        seen = view.visible[layer]
        y = cached.cached_attention(q[:batch, 0], keys.astype(dtype), values.astype(dtype), seen)
        return pad(y[:, None]), (keys, values)

    def pad(rows: Array) -> Array:
        return jnp.pad(rows, ((0, extra), *((0, 0),) * (rows.ndim - 1))) if extra else rows

    inputs = (tokens[:, None], view.rope, cache.previous.astype(dtype))
    ids, rope, previous = jax.tree.map(pad, inputs)
    x, embedded, saved = apply(params, ids, rope, previous, attend, config, compute)
    grows = jnp.ones_like(position, bool) if active is None else active
    new = Cache(
        k=tuple(k for k, _ in saved),
        v=tuple(v for _, v in saved),
        length=position + grows.astype(position.dtype),
        previous=jnp.where(grows[:, None], embedded[:batch, 0].astype(store), cache.previous),
    )
    return unembed(params, x[:, 0], config, compute)[:batch], new
