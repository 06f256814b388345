"""One sampler for all rows of a batch, each with its own settings.

Axes: B batch, V vocabulary. What a row draws depends on its logits, its seed and its position
alone, never on the rows beside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int32, Key, UInt32

SMALLEST = 2.0**-126  # temperature: a processor may take what is less for 0


class Sampling(NamedTuple):
    """How each row is sampled."""

    temperature: Float32[Array, " B"]  # 0 takes the likeliest token
    top_k: Int32[Array, " B"]  # only the k likeliest tokens, 0: all
    top_p: Float32[Array, " B"]  # only the likeliest tokens that together reach p, 1: all
    seed: UInt32[Array, " B"]
    stream: Int32[Array, " B"]  # which of several samples with one seed


def uniforms(rows: Sampling, position: Int32[Array, " B *rest"]) -> Float32[Array, " B *rest"]:
    """What `sample` chooses by: a number in [0, 1) for each row and position, the same.

    `jax.random.uniform` of `token_key`, to the bit: for a CPU JAX makes a loop of each of its three
    hashes, which took a quarter of the time to compile a program that decodes.
    """
    shape = (-1,) + (1,) * (position.ndim - 1)
    seed, stream = (x.reshape(shape).astype(jnp.uint32) for x in (rows.seed, rows.stream))
    zero = jnp.zeros(position.shape, jnp.uint32)
    key = (zero, zero + seed)
    for number in (stream, position.astype(jnp.uint32)):
        key = _threefry(*key, zero, zero + number)
    first, second = _threefry(*key, zero, zero)
    one = jnp.uint32(0x3F800000)  # the bits of 1.0; behind them 23 of a fraction
    bits = (first ^ second) >> jnp.uint32(9) | one
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0


@jax.jit
def _threefry(
    key: UInt32[Array, "*shape"],
    key2: UInt32[Array, "*shape"],
    x: UInt32[Array, "*shape"],
    y: UInt32[Array, "*shape"],
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
    3"), as `jax.random` has it: two words of noise for two of a counter.
    """
    keys = key, key2, key ^ key2 ^ jnp.uint32(0x1BD11BDA)
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(turn) | y >> jnp.uint32(32 - turn))
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def token_key(seed: Array, stream: Array, position: Array) -> Key[Array, ""]:
    """The key of one token.

    The weights of a run with this seed begin with keys of the same tree, since `split(key)[i]` is
    `fold_in(key, i)`; but none has the key of a token (`tests/inference/test_sampling.py`).
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)


def sample(
    logits: Float[Array, "B V"],
    rows: Sampling,
    uniform: Float32[Array, " B"],
    *,
    truncate: bool,
    shaped: Float32[Array, "B V"] | None = None,
    least: Float32[Array, " B"] | None = None,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """The next token of each row, and its log-probability in nats.

    `uniform` is that of the chosen token's position (see `uniforms`). The log-probability is the
    model's: at temperature 1 and over all tokens, whatever the row was sampled with. Where
    `truncate` is False top_k and top_p are not looked at, which saves sorting the vocabulary.

    The token is drawn from `shaped` where that is given (see `changes` and `masks`), and never one
    that has -inf there. `least` is the log of min_p: after the temperature and before top_k and
    top_p, as vLLM has it, tokens are dropped of which the probability is less than min_p of the
    likeliest's.
    """
    logits = logits.astype(jnp.float32)
    model, logits = logits, logits if shaped is None else shaped
    best = _argmax(logits)
    warm = rows.temperature > 0
    # 0 for the likeliest token and below 0 for the others, before a small temperature makes large
    # numbers of them. The likeliest is known by its index: XLA may compute the logits twice, each
    # time rounded in another way, so that even their maximum less itself need not be 0.
    temperature = jnp.maximum(jnp.where(warm, rows.temperature, 1.0), SMALLEST)
    gaps = jnp.minimum(logits - jnp.max(logits, axis=-1, keepdims=True), 0.0)
    is_best = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] == best[:, None]
    scaled = jnp.where(is_best, 0.0, gaps / temperature[:, None])
    if least is not None:
        scaled = jnp.where(scaled >= least[:, None], scaled, -jnp.inf)
    weights = jnp.exp(scaled)
    if truncate:
        lowest = _lowest_kept(scaled, rows.top_k, rows.top_p)
        weights = jnp.where(scaled >= lowest[:, None], weights, 0.0)
    token = jnp.where(warm, _draw(weights, uniform), best)
    if shaped is not None:  # a cumulative sum of rounded numbers may move where nothing is added
        weight = jnp.take_along_axis(weights, token[:, None], axis=-1)[:, 0]
        token = jnp.where(weight > 0, token, best)
    chosen = jnp.take_along_axis(model, token[:, None], axis=-1)[:, 0]
    return token, _log_probability(chosen, model)


def greedy(
    logits: Float32[Array, "B V"],
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """What `sample` returns at temperature 0; less to compile."""
    token = _argmax(logits)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, _log_probability(chosen, logits)


def likeliest(
    logits: Float32[Array, "B V"], count: int
) -> tuple[Int32[Array, "B {count}"], Float32[Array, "B {count}"]]:
    """The likeliest tokens of each row, best first, and their log-probabilities.

    Those are at temperature 1, in nats.
    """
    if not count:
        shape = (logits.shape[0], 0)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    best, tokens = jax.lax.top_k(logits, count)
    return tokens, jax.vmap(_log_probability, in_axes=(1, None), out_axes=1)(best, logits)


def _log_probability(
    chosen: Float32[Array, " B"], logits: Float32[Array, "B V"]
) -> Float32[Array, " B"]:
    """Of tokens with logits `chosen` among `logits`; never above 0 by rounding."""
    return jnp.minimum(chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)


def _argmax(logits: Float32[Array, "B V"]) -> Int32[Array, " B"]:
    """The first of the likeliest tokens.

    In two levels, blocks and then tokens: XLA compiles `argmax` of a whole vocabulary to something
    much slower on a CPU. Always a token of a high logit, whatever was rounded in which way: a
    comparison with the maximum could find none.
    """
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    index = block * blocks.shape[2] + jnp.argmax(inside, axis=-1)
    return index.astype(jnp.int32)


def _blocks(rows: Float32[Array, "B V"], filler: float) -> Float32[Array, "B blocks size"]:
    """Rows cut into blocks, the last one filled up."""
    batch, vocab = rows.shape
    size = _block_size(vocab)
    padding = -vocab % size
    if padding:
        rows = jnp.pad(rows, ((0, 0), (0, padding)), constant_values=filler)
    return rows.reshape(batch, -1, size)


def _draw(weights: Float32[Array, "B V"], uniform: Float32[Array, " B"]) -> Int32[Array, " B"]:
    """Inverts the cumulative distribution of the weights at `uniform`.

    In two levels, blocks of tokens and then tokens, since a cumulative sum over a whole vocabulary
    is slow; and with one random number a row instead of Gumbel noise for every token.
    """
    blocks = _blocks(weights, 0.0)
    count, size = blocks.shape[1:]
    sums = jnp.sum(blocks, axis=-1)
    target = uniform * jnp.sum(sums, axis=-1)
    block = _first_above(sums, target)
    before = jnp.where(jnp.arange(count)[None, :] < block[:, None], sums, 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * size + _first_above(inside, target - jnp.sum(before, axis=-1))


def _block_size(vocab: int) -> int:
    """About the square root, and if possible a divisor, so that nothing is copied to pad it."""
    root = math.isqrt(vocab - 1) + 1
    near = range(root, root // 4, -1)
    return next((size for size in near if vocab % size == 0), root)


def _first_above(
    weights: Float32[Array, "B N"], target: Float32[Array, " B"]
) -> Int32[Array, " B"]:
    """The first index at which the cumulative sum of the weights exceeds the target.

    Where rounding leaves none, the last that has any weight.
    """
    index = jnp.sum(jnp.cumsum(weights, axis=-1) <= target[:, None], axis=-1, dtype=jnp.int32)
    order = jnp.arange(weights.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(weights > 0, order[None, :], 0), axis=-1)
    return jnp.minimum(index, last)


def _lowest_kept(
    scaled: Float32[Array, "B V"], top_k: Int32[Array, " B"], top_p: Float32[Array, " B"]
) -> Float32[Array, " B"]:
    """The lowest of scaled logits that is kept; ties with it are kept too.

    First the top_k likeliest; then, of their probabilities, the fewest that reach top_p.
    """
    vocab = scaled.shape[1]
    ordered = -jnp.sort(-scaled, axis=-1)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    kept = jnp.arange(vocab)[None, :] < count[:, None]
    probs = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    reached = jnp.cumsum(probs, axis=-1) - probs  # by the tokens before
    kept &= (reached < top_p[:, None]) | (top_p[:, None] >= 1.0)
    kept |= jnp.arange(vocab)[None, :] == 0
    lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)
    return jnp.where((top_k > 0) | (top_p < 1.0), lowest, -jnp.inf)
