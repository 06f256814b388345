"""From depth to all numbers of a model and its training, as pure functions.

Sources: nanochat of November 2025 (`classic`), July 2026 (`modern`) and September 2026
(`september`, an unmerged branch) for the reference values and the rules; Power Lines (arXiv
2505.13738) for batch size against horizon; arXiv 2405.13698 for keeping B / (rate * decay *
horizon) constant; muP (arXiv 2203.03466) for rates that fall with the width; PaLM (arXiv
2204.02311) for FLOPs per token.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jaxchat.config.schema import ModelConfig, OptimConfig, StageOptimConfig
from jaxchat.errors import ConfigError

ASPECT_RATIO = 64  # width per layer
HEAD_DIM = 128
REFERENCE_DEPTH = 12  # where the rates of 2026, the decay and the batch were tuned
REFERENCE_BATCH = 2**19  # tokens
BATCH_EXPONENT = 0.383  # best batch grows as horizon ** 0.383
# training tokens per scaling parameter
DATA_RATIO = {"classic": 20.0, "modern": 12.0, "september": 12.0}


def derive_model(depth: int, preset: str, vocab_size: int, sequence_len: int = 2048) -> ModelConfig:
    """The architecture of a depth: width 64 per layer, rounded up to whole heads of 128."""
    if depth < 1:
        raise ConfigError(f"depth is {depth}; a model needs at least 1 layer.")
    width = depth * ASPECT_RATIO
    heads = math.ceil(width / HEAD_DIM)
    if preset == "classic" and width % heads:
        raise ConfigError(
            f"depth {depth} of the classic preset has a width {width} that its {heads} heads do "
            "not divide; choose an even depth."
        )
    model = ModelConfig(
        vocab_size=vocab_size,
        sequence_len=sequence_len,
        n_layer=depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=heads * HEAD_DIM,
    )
    if preset == "classic":
        # In November 2025 the width was not rounded up: an odd depth had narrower heads.
        return dataclasses.replace(model, n_embd=width)
    modern = dataclasses.replace(
        model,
        rope_base=100_000.0,
        qk_scale=1.2,
        window_pattern="SSSL",
        value_embeds=True,
        residual_scalars=True,
        smear=True,
        backout=True,
        init="modern",
    )
    if preset == "modern":
        return modern
    return dataclasses.replace(modern, smear=False, value_embeds_std=1.0, short_window=512)


def has_value_embedding(layer: int, n_layer: int) -> bool:
    """Whether a layer has a value embedding: every second one, the last always."""
    return layer % 2 == (n_layer - 1) % 2


def value_layers(model: ModelConfig) -> int:
    """The number of layers with a value embedding."""
    layers = model.n_layer if model.value_embeds else 0
    return sum(has_value_embedding(layer, model.n_layer) for layer in range(layers))


def short_window(model: ModelConfig) -> int:
    """Keys to the left an S layer sees: as given, or a quarter of the context in tiles of 128."""
    return model.short_window or math.ceil(model.sequence_len / 4 / 128) * 128


def windows(model: ModelConfig) -> tuple[int, ...]:
    """Keys to the left each layer sees; `sequence_len` for a full layer."""
    pattern = model.window_pattern
    short = min(short_window(model), model.sequence_len)
    sizes = [
        short if pattern[layer % len(pattern)] == "S" else model.sequence_len
        for layer in range(model.n_layer)
    ]
    sizes[-1] = model.sequence_len
    return tuple(sizes)


def middle_layer(n_layer: int) -> int:
    """The layer whose output `backout` subtracts: the last itself where there are one or two."""
    return n_layer // 2


VALUE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24


@dataclass(frozen=True)
class LayerSpec:
    """What distinguishes one layer from another."""

    window: int  # keys it sees to the left of its own
    value_embedding: bool


def layer_specs(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """One LayerSpec a layer, first to last."""
    return tuple(
        LayerSpec(
            window=window,
            value_embedding=config.value_embeds and has_value_embedding(layer, config.n_layer),
        )
        for layer, window in enumerate(windows(config))
    )


def count_params(model: ModelConfig) -> dict[str, int]:
    """Parameters by group, with `total`; no array is made."""
    d, kv = model.n_embd, model.n_kv_head * model.head_dim
    valued = value_layers(model)
    gates = valued * min(VALUE_GATE_CHANNELS, d) * model.n_kv_head
    counts = {
        "wte": model.vocab_size * d,
        "lm_head": model.vocab_size * d,
        "matrices": model.n_layer * (2 * d * d + 2 * d * kv + 8 * d * d) + gates,
        "value_embeds": valued * model.vocab_size * kv,
        "scalars": (2 * model.n_layer if model.residual_scalars else 0)
        + (min(SMEAR_GATE_CHANNELS, d) + 1 if model.smear else 0)
        + (1 if model.backout else 0),
    }
    counts["total"] = sum(counts.values())
    return counts


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations of one token's forward and backward pass.

    6 per parameter that multiplies (embeddings are looked up), and 12 * H * K * window for the
    scores and their use in each layer. A short window can exceed T: it counts as T.
    """
    counts = count_params(model)
    smear_gate = min(SMEAR_GATE_CHANNELS, model.n_embd) if model.smear else 0
    matmul = counts["matrices"] + counts["lm_head"] + smear_gate
    attention = sum(12 * model.n_head * model.head_dim * window for window in windows(model))
    return 6 * matmul + attention


def scaling_params(model: ModelConfig, preset: str) -> int:
    """The parameters the horizon is a multiple of: all (classic), or matrices and head."""
    counts = count_params(model)
    return counts["total"] if preset == "classic" else counts["matrices"] + counts["lm_head"]


@dataclass(frozen=True)
class Horizon:
    """Batch, steps and optimizer of a base model."""

    batch_tokens: int
    steps: int
    optim: OptimConfig
    rate_scale: float = 1.0  # factor of the batch on the rates

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.batch_tokens * self.steps


def derive_horizon(model: ModelConfig, preset: str, ratio: float, batch_tokens: int = 0) -> Horizon:
    """Batch, steps, rates and decay of a base model; `ratio` is tokens per scaling parameter.

    A given batch (`batch_tokens`, 0: derive it) decides steps, rates and decay in turn.
    """
    target = ratio * scaling_params(model, preset)
    if preset == "classic":
        batch = batch_tokens or REFERENCE_BATCH
        return Horizon(batch, int(target) // batch, OptimConfig())
    reference_model = derive_model(REFERENCE_DEPTH, preset, model.vocab_size, model.sequence_len)
    reference = ratio * scaling_params(reference_model, preset)
    target = int(target)
    best_batch = REFERENCE_BATCH * (target / reference) ** BATCH_EXPONENT
    batch = batch_tokens or 2 ** round(math.log2(best_batch))
    scale = math.sqrt(batch / REFERENCE_BATCH)
    optim = OptimConfig(
        matrix_lr=0.02 * scale,
        embedding_lr=0.3 * scale,
        unembedding_lr=0.008 * scale,
        scalar_lr=0.5 * scale,
        weight_decay=0.28 * scale * reference / target,
        groups="modern",
        orthogonalizer="polar_express",
        equilibrate_rows=True,
        renormalize=True,
        normuon=True,
        cautious_decay=True,
        momentum=0.97,
        momentum_end=0.90,
        momentum_warmup_steps=400,
        decay_schedule="cosine",
        warmup_steps=40,
        warmdown_ratio=0.65,
        final_lr_frac=0.05,
        grad_clip=0.0,
    )
    if preset == "september":  # muP
        optim = dataclasses.replace(optim, head_width_power=-1.0, embedding_width_power=0.0)
    return Horizon(batch, target // batch, optim, scale)


def derive_stage_optim(
    stage: str, preset: str, optim: OptimConfig, rate_scale: float
) -> StageOptimConfig:
    """Rates and schedules of mid, sft or rl, as nanochat's scripts of the preset's month have them.

    Rates are those of base's optimizer `optim` without what its batch multiplies them by; of the rl
    of 2026 they are constants. 2026 has no midtraining: here it is trained like SFT. September has
    no rl either: here it is July's. Sources: mid_train, chat_sft and chat_rl of November 2025;
    chat_sft and chat_rl of July 2026; chat_train of September.
    """
    rates: dict[str, Any] = {
        name: getattr(optim, name) / rate_scale
        for name in ("matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr")
    }
    warming: dict[str, Any] = {"momentum_start": 0.85, "momentum_warmup_steps": 300}
    if stage == "rl":  # linearly to 0 from the first step
        return StageOptimConfig(**rates) if preset == "classic" else StageOptimConfig()
    if preset == "modern":
        return StageOptimConfig(**rates, **warming, warmdown_ratio=0.5, warm_start=True)
    if preset == "september":
        return StageOptimConfig(**rates, **warming, warmup_ratio=0.05, warmdown_ratio=0.5)
    if stage == "mid":
        return StageOptimConfig(**rates, **warming, warmdown_ratio=0.2)
    return StageOptimConfig(**rates)
