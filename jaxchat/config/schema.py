"""Frozen, validated configuration. Defaults live here and nowhere else.

A published run is a TOML file in `configs/`; `config.loading` reads it, derives from `depth` what
the file does not say, and builds the dataclasses below. Everything here imports nothing heavy.
"""
# annotations are not postponed: `config.fields` reads them

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from jaxchat.config import numbers
from jaxchat.config.fields import (
    Count,
    CountOrAuto,
    Decay,
    Form,
    Fraction,
    Later,
    NotNegative,
    OneOf,
    Positive,
    Settings,
    Whole,
    kinds,
)
from jaxchat.config.numbers import UNBOUNDED, Range
from jaxchat.config.operations import HardwareConfig, MirrorConfig, TrackConfig
from jaxchat.errors import ConfigError

MODELS = ("base", "mid", "sft", "rl")  # the stages that train a model
CHAT_STAGES = ("rl", "sft", "mid")  # those whose models chat, best first
PRESETS = ("classic", "modern", "september")
# the documentation of this machine, datasets of the hub (`data.registry`), a folder of one's own
TEXT_SOURCES = ("machine", "fineweb_edu", "climbmix", "folder")
GENERATED_PROBLEMS = 256  # of a task without end, by default
NOWHERE = "none"  # as an address: it is not fetched
PRODUCTS = ("auto", "plain", "bfloat16")

Preset = Annotated[str, OneOf(PRESETS)]
Constants = Annotated[str, OneOf(("classic", "modern"))]  # a table of them, of that time
Orthogonalizer = Annotated[str, OneOf(("newton_schulz", "polar_express"))]
DecaySchedule = Annotated[str, OneOf(("constant", "cosine"))]
CompilerOption = Annotated[
    str,
    Form(r"[^\W\d]\w*=.*", "like name=value, for example xla_gpu_enable_triton_gemm=false"),
]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The architecture. `classic` leaves every switch off; `config.derive` has the other presets.

    Axes: L layers, D width, H query heads, G key/value heads, V vocabulary.
    """

    table = "model"
    vocab_size: Count = 65_536
    sequence_len: Annotated[int, Range(2, UNBOUNDED)] = 2_048
    n_layer: Count = 20
    n_head: Count = 10
    n_kv_head: Count = 10
    n_embd: Count = 1_280
    rope_base: Positive = 10_000.0
    softcap: Positive = 15.0  # logits are softcap * tanh(logits / softcap)
    norm_epsilon: Positive = 1.1920929e-07  # float32's, which is torch's default
    qk_scale: Positive = 1.0  # multiplies q and k after QK-norm
    # tiled over layers: S short window, L full; the last layer is L
    window_pattern: Annotated[str, Form("[SL]+", "made of the letters S and L")] = "L"
    short_window: Later[Whole] = 0  # keys to the left an S layer sees; 0: a quarter of the context
    value_embeds: bool = False  # gated value embeddings on alternating layers
    residual_scalars: bool = False  # learned per-layer scalars on the residual and on x0
    smear: bool = False  # mixes the previous token's embedding into this one
    backout: bool = False  # subtracts the middle layer's residual before the head
    init: Constants = "classic"  # the table of initial standard deviations
    # of value embeddings, which are normal then; 0: uniform, of standard deviation D ** -0.5
    value_embeds_std: Later[NotNegative] = 0.0

    def faults(self) -> Iterator[str]:
        if self.n_embd % self.n_head:
            yield (
                f"model.n_embd is {self.n_embd} and model.n_head is {self.n_head}; "
                "the width must be a multiple of the number of heads."
            )
        if self.n_head % self.n_kv_head:
            yield (
                f"model.n_head is {self.n_head} and model.n_kv_head is {self.n_kv_head}; "
                "query heads must be a multiple of key/value heads."
            )
        if self.head_dim % 2:
            yield f"the head size {self.head_dim} is odd; rotary embeddings need an even one."

    @property
    def head_dim(self) -> int:
        """K, the size of one head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class RatesConfig(Settings):
    """Rates and schedules of the optimizer, which each stage has of its own.

    `config.derive` scales rates to the run's batch and width; these are what the optimizer uses.
    Those of head and embeddings are still multiplied by a power of the width.
    """

    table = "optim"
    matrix_lr: NotNegative = 0.02
    embedding_lr: NotNegative = 0.2
    unembedding_lr: NotNegative = 0.004
    scalar_lr: NotNegative = 0.5
    weight_decay: NotNegative = 0.0  # Muon's
    momentum_start: Decay = 0.95
    momentum: Decay = 0.95
    momentum_end: Decay = 0.95  # reached at the end of the warmdown
    momentum_warmup_steps: Whole = 0
    decay_schedule: DecaySchedule = "constant"  # cosine: to 0 at the horizon
    warmup_steps: Whole = 0
    warmup_ratio: Later[Fraction] = 0.0  # of the steps, instead of `warmup_steps`
    warmdown_ratio: Fraction = 1.0
    final_lr_frac: NotNegative = 0.0
    grad_clip: NotNegative = 0.0  # by global norm; 0 turns it off


@dataclass(frozen=True)
class OptimConfig(RatesConfig):
    """The optimizer of base (`jaxchat.optim`): the Muon and AdamW chain, its rates and schedules.

    Later stages have the same chain with rates and schedules of their own: StageOptimConfig.
    """

    momentum_start: Decay = 0.85
    momentum_warmup_steps: Whole = 300
    warmdown_ratio: Fraction = 0.2
    grad_clip: NotNegative = 1.0
    groups: Constants = "classic"  # betas and decays of Adam's groups: optim/param_groups.py
    # powers of D / 768 that the rates of head and embeddings are multiplied by
    head_width_power: Later[float] = -0.5
    embedding_width_power: Later[float] = -0.5
    orthogonalizer: Orthogonalizer = "newton_schulz"
    equilibrate_rows: bool = False
    renormalize: bool = False
    normuon: bool = False
    cautious_decay: bool = False
    normuon_beta2: Decay = 0.9

    def warmdown_steps(self, steps: int) -> float:
        """The warmdown's share of a stage's steps, in whole steps as in nanochat's base_train."""
        return round(self.warmdown_ratio * steps)


@dataclass(frozen=True)
class LaterOptimConfig(OptimConfig):
    """The whole optimizer of mid, sft or rl."""

    def warmdown_steps(self, steps: int) -> float:
        """Exactly the ratio: nanochat's later scripts schedule by the share that is done."""
        return self.warmdown_ratio * steps


@dataclass(frozen=True)
class StageOptimConfig(RatesConfig):
    """The optimizer of mid, sft or rl, as far as it is not base's.

    Nothing of it comes from base unasked: `derive_stage_optim` has each stage's defaults.
    """

    warm_start: bool = False  # gradient averages come from the stage before, not from zeros

    @classmethod
    def like(cls, optim: OptimConfig) -> Self:
        """Rates and schedules of base."""
        return cls(**{name: getattr(optim, name) for name in kinds(RatesConfig)})

    def within(self, optim: OptimConfig) -> LaterOptimConfig:
        """The whole optimizer of a stage: base's chain with these rates and schedules."""
        values = {**dataclasses.asdict(optim), **dataclasses.asdict(self)}
        del values["warm_start"]
        return LaterOptimConfig(**values)


@dataclass(frozen=True)
class TokenizerConfig(Settings):
    """Training of the tokenizer."""

    table = "tokenizer"
    vocab_size: Annotated[int, Range(265, UNBOUNDED)] = 65_536  # 256 bytes, 9 special tokens
    max_chars: Count = 2_000_000_000  # characters of training text it sees
    tool_tokens: Later[bool] = True  # false: without the four special tokens of calls and outputs


@dataclass(frozen=True)
class DataConfig(Settings):
    """The source of the text, and how much of it is used."""

    table = "data"
    source: Annotated[str, OneOf(TEXT_SOURCES)] = "machine"
    max_chars: Count = 12_000_000  # of the machine's text
    shards: Whole = 0  # of a source of shards, beside the one held out; 0: all
    # which of a source's shards is held out; -1: the last
    held_out_shard: Later[Annotated[int, Range(-1, UNBOUNDED)]] = -1
    folder: str = ""  # of the user's own text, with source = "folder"
    words: Count = 6_000  # words of the text that the spelling problems draw from
    persona: str = ""  # a TOML file that says who the model is (`tasks.persona`); "": jaxchat

    @property
    def is_dataset(self) -> bool:
        """Whether the text is a dataset's, which comes over the network."""
        return self.source not in ("machine", "folder")

    def faults(self) -> Iterator[str]:
        if (self.source == "folder") != bool(self.folder):
            yield (
                f"data.source is {self.source!r} and data.folder is {self.folder!r}; a folder is "
                'named with data.source = "folder" (or --data-dir), and only with it.'
            )


@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training stage (base, mid or sft) over the common `fit` loop."""

    table = "train"
    steps: Whole = 0  # 0: one pass over the stage's rows
    batch_tokens: Count = 524_288  # tokens of one optimizer step, over all devices
    # rows one device takes at once, the rest is accumulated; "auto": as many as should fit
    micro_rows: CountOrAuto = 32
    lr_scale: NotNegative = 1.0  # multiplies every rate of [optim], or of [mid_optim], [sft_optim]
    # of mid and sft: passes over each dataset of the hub, or file of one's own
    epochs: Mapping[str, Positive] = field(default_factory=dict)
    conversations: Whole = 0  # generated problems; without `epochs`, one to three a conversation
    mixture: Mapping[str, Positive] = field(default_factory=dict)  # generated task -> share
    text_share: NotNegative = 0.0  # rows of text added, a share of the conversations' rows
    eval_every: Count = 250
    eval_rows: Count = 2_048
    save_every: Count = 1_000
    keep: Count = 2  # newest checkpoints
    keep_every: Whole = 0  # steps; checkpoints at its multiples stay when the stage is complete
    # Loss above `spike` times the mean of the last 50 steps counts as divergence; NaN and Inf
    # always do. 0: no limit
    spike: float = 0.0
    rollbacks: Whole = 0  # diverging batches that may be skipped, from the last checkpoint on
    # Logged meanwhile; training does not depend on them
    sample_every: Later[Whole] = 0  # steps between samples of the model; 0: none
    core_every: Later[Whole] = 0  # steps between evaluations of CORE; 0: none
    core_examples: Later[Whole] = 500  # of each of its tasks; 0: all
    # of mid and sft: the loss is a mean over the learned tokens of `loss_group` conversations, and
    # then over such groups; 0: over all learned tokens of a step
    loss_group: Later[Whole] = 0

    def faults(self) -> Iterator[str]:
        if self.spike != 0 and not self.spike > 1:
            yield f"train.spike is {self.spike}; a factor above 1, or 0 for none."


@dataclass(frozen=True)
class RLConfig(Settings):
    """Reinforcement learning: the simplified GRPO."""

    table = "rl"
    steps: Whole = 60  # 0: the stage is left out, and the run ends with sft's model
    task: str = "arithmetic"
    problems_per_step: Count = 16
    # at least 2: an advantage is a reward less the mean of its problem's rewards
    samples_per_problem: Annotated[int, Range(2, UNBOUNDED)] = 16
    max_new_tokens: Annotated[int, numbers.COUNT] = 256
    temperature: Annotated[float, Range(0, numbers.TEMPERATURE.most, whole=False, open=True)] = 1.0
    micro_rows: CountOrAuto = 64
    lr_scale: Positive = 0.05
    save_every: Count = 20
    eval_every: Whole = 60  # steps between evaluations of pass@k on held-out problems; 0: never
    eval_problems: Count = 400
    eval_samples: Count = 8  # of each
    top_k: Later[Whole] = 0  # samples are drawn from the likeliest k tokens; 0: all
    # the loss is a mean over the sampled tokens of `loss_group` of a problem's samples (of all,
    # where there are fewer), and then over such groups; 0: over all sampled tokens of a step
    loss_group: Later[Whole] = 0

    def faults(self) -> Iterator[str]:
        if self.loss_group and self.samples_per_problem % self.samples_averaged:
            yield (
                f"rl.loss_group is {self.loss_group} and rl.samples_per_problem is "
                f"{self.samples_per_problem}; the samples of a problem must divide into such "
                "groups."
            )

    @property
    def samples_averaged(self) -> int:
        """The samples of a problem whose tokens are averaged first; 0: all of a step's are."""
        return min(self.loss_group, self.samples_per_problem)


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Measurements of the evaluation stage."""

    table = "eval"
    tasks: tuple[str, ...] = ("identity", "arithmetic", "spelling", "counting", "choice")
    problems: Whole = 200  # held-out problems a task; 0: all of a dataset
    max_new_tokens: Count = 256
    slots: Count = 64  # conversations the engine decodes at once
    reward_samples: Count = 4  # samples per problem, temperature 1, for the mean reward of [rl]
    # Folder of CORE's tasks, on which the base model is evaluated. "": the one of the home, which a
    # run on a dataset's text fetches; without it CORE is left out
    bundle: str = ""
    bundle_url: Later[str] = ""  # where that is fetched; "": nanochat's address; none: it is not
    core_examples: Later[Whole] = 0  # of each of CORE's tasks; 0: all, as CORE is defined
    # GPT-2's and GPT-4's files, which such a run compares its tokenizer with; "": tiktoken's store
    vocabularies_url: Later[str] = ""
    # that answer the tasks; the others have bits per byte
    models: Later[tuple[Annotated[str, OneOf(MODELS)], ...]] = MODELS
    generated_problems: Later[Whole] = 0  # of a generated task; 0: `problems`, else the default
    reward_problems: Later[Whole] = 0  # for the mean reward; 0: `problems`, else 400
    text_tokens: Later[Whole] = 0  # of each split, for bits per byte; 0: base.eval_rows rows

    @property
    def generated(self) -> int:
        """Problems of a task that is generated without end: never all."""
        return self.generated_problems or self.problems or GENERATED_PROBLEMS

    @property
    def rewarded(self) -> int:
        """Problems for the mean reward, each sampled several times: all only when asked for."""
        return self.reward_problems or self.problems or 400


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Devices along each named axis; `data = 0` takes all that the others leave."""

    table = "mesh"
    data: Whole = 0
    fsdp: Count = 1
    tensor: Count = 1
    host_devices: Whole = 0  # virtual devices on a machine without accelerators; 0: one


@dataclass(frozen=True)
class ComputeConfig(Settings):
    """Precision, sizes and compiler of training. Weights are always fp32."""

    table = "compute"
    fp8: bool = False  # large matrices, on a GPU logits too: an H100, RTX 40 or newer
    # Of float32 activations, on a CPU: "plain" is float32, "bfloat16" rounds what is multiplied and
    # sums in float32, "auto" does that where the processor is made for it (AVX-512 BF16, AMX).
    products: Annotated[str, OneOf(PRODUCTS)] = "auto"
    loss_chunk_rows: Whole = 0  # tokens whose logits are held at once; 0: suits the device
    lean_relu2: bool = False  # relu^2's gradient from its result: less memory, 1% more time
    compiler_options: tuple[CompilerOption, ...] = ()  # XLA's, beside those of the backend


DEFAULT_COMPUTE = ComputeConfig()


def check_heads(model: ModelConfig, tensor: int) -> None:
    """Raises ConfigError where a tensor axis of `tensor` devices does not divide the heads."""
    for name, heads in (("n_head", model.n_head), ("n_kv_head", model.n_kv_head)):
        if heads % tensor:
            fits = [n for n in range(1, heads + 1) if not model.n_head % n | model.n_kv_head % n]
            raise ConfigError(
                f"model.{name} is {heads} and mesh.tensor is {tensor}: heads must divide by the "
                f"tensor axis; set mesh.tensor to one of {', '.join(map(str, fits))}."
            )


@dataclass(frozen=True)
class ImportedConfig(Settings):
    """The model from elsewhere that a run starts from, put there by `jaxchat import`."""

    table = "imported"
    stage: Annotated[str, OneOf(("", *MODELS))] = ""  # whose place it takes; "": there is none
    weights: str = ""  # sha256 of its parameters
    tokenizer: str = ""  # sha256 of its tokenizer

    def brings(self, stage: str) -> bool:
        """Whether the result of a stage was imported."""
        return bool(self.stage) and stage in ("tokenizer", self.stage)

    def leaves_out(self, stage: str) -> bool:
        """Whether a stage comes before the imported one, so that the run does not have it."""
        return bool(self.stage) and stage in MODELS[: MODELS.index(self.stage)]

    def trains(self, stage: str) -> bool:
        """Whether the run trains a stage of MODELS itself."""
        return not self.brings(stage) and not self.leaves_out(stage)


@dataclass(frozen=True)
class RunConfig(Settings):
    """A whole run, from text to report."""

    table = "run"
    name: str
    preset: Preset
    depth: Annotated[int, numbers.DEPTH]
    seed: Annotated[int, numbers.SEED]
    data_ratio: Annotated[float, numbers.RATIO]  # training tokens per scaling parameter
    model: ModelConfig
    optim: OptimConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    base: TrainConfig
    mid: TrainConfig
    sft: TrainConfig
    rl: RLConfig
    eval: EvalConfig
    mesh: MeshConfig
    hardware: HardwareConfig
    compute: ComputeConfig = DEFAULT_COMPUTE
    imported: ImportedConfig = ImportedConfig()
    track: TrackConfig = field(default_factory=TrackConfig)
    mirror: MirrorConfig = field(default_factory=MirrorConfig)
    mid_optim: StageOptimConfig = StageOptimConfig()
    sft_optim: StageOptimConfig = StageOptimConfig()
    rl_optim: StageOptimConfig = StageOptimConfig()

    def faults(self) -> Iterator[str]:
        check_heads(self.model, self.mesh.tensor)
        if self.base.loss_group:
            yield (
                f"base.loss_group is {self.base.loss_group}; text has no conversations to group: "
                "set it for mid or sft."
            )
        if self.rl.top_k > self.model.vocab_size:
            yield (
                f"rl.top_k is {self.rl.top_k}; the vocabulary has {self.model.vocab_size} tokens "
                "(0 takes all)."
            )
        if self.rl_optim.warm_start:
            yield (
                "rl_optim.warm_start is true; reinforcement learning starts with a fresh "
                "optimizer: set it to false."
            )

    def optim_of(self, stage: str) -> OptimConfig:
        """The whole optimizer of a stage of MODELS."""
        if stage == "base":
            return self.optim
        own: StageOptimConfig = getattr(self, f"{stage}_optim")
        return own.within(self.optim)

    def starts_warm(self, stage: str) -> bool:
        """Whether the optimizer of a stage starts with the averages of the stage before."""
        return stage in MODELS[1:] and getattr(self, f"{stage}_optim").warm_start

    def leaves_out(self, stage: str) -> bool:
        """Whether the run does not have a stage: it comes before an imported one, or is RL's."""
        no_rl = stage == "rl" and not self.rl.steps and not self.imported.brings("rl")
        return no_rl or self.imported.leaves_out(stage)
