"""Frozen, validated configuration. Defaults live here and nowhere else.

A published run is a TOML file in `configs/`; `config.loading` reads it, derives from `depth` what
the file does not say, and builds the dataclasses below. Everything here imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from jaxchat.config import numbers
from jaxchat.errors import ConfigError

MODELS = ("base", "mid", "sft", "rl")  # the stages that make weights
# The tasks that are generated, as `tasks.TASKS` has them, which is too much to import for a plan
GENERATED = (
    "identity", "arithmetic", "arithmetic_two_step", "spelling", "counting", "choice", "facts",
    "repeat",
)  # fmt: skip
PRESETS = ("classic", "modern")
TRACKERS = ("tensorboard", "wandb", "trackio")
# the documentation of this machine, datasets of the hub (`data.registry`), a folder of one's own
TEXT_SOURCES = ("machine", "fineweb_edu", "climbmix", "folder")
GENERATED_PROBLEMS = 256  # of a task without end, where nobody says how many
NOWHERE = "none"  # as an address: it is not fetched


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(table: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value > 0, f"{table}.{name} is {value}; it must be greater than 0.")


def _not_negative(table: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value >= 0, f"{table}.{name} is {value}; it must be 0 or greater.")


def _in_range(table: str, config: object, allowed: numbers.Range, *names: str) -> None:
    for name in names:
        try:
            allowed.check(getattr(config, name), f"{table}.{name}")
        except numbers.NumberError as error:
            raise ConfigError(str(error)) from error


def _one_of(table: str, config: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _check(
        value in allowed, f"{table}.{name} is {value!r}; it must be one of {', '.join(allowed)}."
    )


def later(default: Any) -> Any:
    """A field added when runs had been made already: at its default it is left out of hashes."""
    return field(default=default, metadata={"later": True})


def hashed_settings(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as its hash has them (see `later`)."""
    unset = {
        f.name
        for f in dataclasses.fields(config)
        if f.metadata.get("later") and getattr(config, f.name) == f.default
    }
    values: dict[str, Any] = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in unset}


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. `classic` leaves every switch off, `modern` turns all of them on.

    Axes: L layers, D width, H query heads, G key/value heads, V vocabulary.
    """

    vocab_size: int = 65_536
    sequence_len: int = 2_048
    n_layer: int = 20
    n_head: int = 10
    n_kv_head: int = 10
    n_embd: int = 1_280
    rope_base: float = 10_000.0
    softcap: float = 15.0  # logits are softcap * tanh(logits / softcap)
    norm_epsilon: float = 1.1920929e-07  # float32's, which is what torch takes when none is given
    qk_scale: float = 1.0  # multiplies q and k after QK-norm
    window_pattern: str = "L"  # tiled over layers: S short window, L full; the last layer is L
    value_embeds: bool = False  # gated value embeddings on alternating layers
    residual_scalars: bool = False  # learned per-layer scalars on the residual and on x0
    smear: bool = False  # mixes the previous token's embedding into this one
    backout: bool = False  # subtracts the middle layer's residual before the head
    init: str = "classic"  # "classic" or "modern": the table of initial standard deviations

    def __post_init__(self) -> None:
        _positive("model", self, "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
        _positive("model", self, "rope_base", "softcap", "norm_epsilon", "qk_scale")
        _check(self.sequence_len >= 2, f"model.sequence_len is {self.sequence_len}; at least 2.")
        _check(
            self.n_embd % self.n_head == 0,
            f"model.n_embd is {self.n_embd} and model.n_head is {self.n_head}; "
            "the width must be a multiple of the number of heads.",
        )
        _check(
            self.n_head % self.n_kv_head == 0,
            f"model.n_head is {self.n_head} and model.n_kv_head is {self.n_kv_head}; "
            "query heads must be a multiple of key/value heads.",
        )
        _check(
            self.head_dim % 2 == 0,
            f"the head size {self.head_dim} is odd; rotary embeddings need an even one.",
        )
        _check(
            bool(self.window_pattern) and set(self.window_pattern) <= {"S", "L"},
            f"model.window_pattern is {self.window_pattern!r}; it is made of the letters S and L.",
        )
        _one_of("model", self, "init", PRESETS)

    @property
    def head_dim(self) -> int:
        """K, the size of one head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer of base (`jaxchat.optim`): the Muon and AdamW chain, its rates and schedules.

    Later stages have the same chain, with rates and schedules of their own: StageOptimConfig.
    Rates are those of a batch and width for which they were tuned; `recipe` scales them to the
    run's, so what stands here is what the optimizer uses. Adam rates are still multiplied by
    (D / 768) ** -0.5 where `optim.table` says so.
    """

    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    scalar_lr: float = 0.5
    weight_decay: float = 0.0  # Muon's
    groups: str = "classic"  # betas and decays of the Adam groups: see optim/table.py
    orthogonalizer: str = "newton_schulz"  # or "polar_express"
    equilibrate_rows: bool = False
    renormalize: bool = False
    normuon: bool = False
    cautious_decay: bool = False
    normuon_beta2: float = 0.9
    momentum_start: float = 0.85
    momentum: float = 0.95
    momentum_end: float = 0.95  # reached at the end of the warmdown
    momentum_warmup_steps: int = 300
    decay_schedule: str = "constant"  # or "cosine", to 0 at the horizon
    warmup_steps: int = 0
    warmdown_ratio: float = 0.2
    final_lr_frac: float = 0.0
    grad_clip: float = 1.0  # by global norm; 0 turns it off

    def __post_init__(self) -> None:
        _not_negative("optim", self, "matrix_lr", "embedding_lr", "unembedding_lr", "scalar_lr")
        _not_negative("optim", self, "weight_decay", "warmup_steps", "grad_clip", "final_lr_frac")
        _not_negative("optim", self, "momentum_warmup_steps")
        _one_of("optim", self, "groups", PRESETS)
        _one_of("optim", self, "orthogonalizer", ("newton_schulz", "polar_express"))
        _one_of("optim", self, "decay_schedule", ("constant", "cosine"))
        for name in ("momentum", "momentum_start", "momentum_end", "normuon_beta2"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"optim.{name} is {value}; it must be in [0, 1).")
        _check(
            0 <= self.warmdown_ratio <= 1,
            f"optim.warmdown_ratio is {self.warmdown_ratio}; it must be in [0, 1].",
        )

    def warmdown_steps(self, steps: int) -> float:
        """How many of a stage's steps the warmdown takes: whole ones, as nanochat's base_train."""
        return round(self.warmdown_ratio * steps)


@dataclass(frozen=True)
class LaterOptimConfig(OptimConfig):
    """The whole optimizer of mid, sft or rl."""

    def warmdown_steps(self, steps: int) -> float:
        """Exactly the ratio: nanochat's later scripts have schedules of the share that is done."""
        return self.warmdown_ratio * steps


@dataclass(frozen=True)
class StageOptimConfig:
    """What the optimizer of mid, sft or rl does not share with base's, as OptimConfig has it.

    Nothing of it comes from base unasked: `scaling.derive_stage_optim` has each stage's defaults.
    """

    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    scalar_lr: float = 0.5
    weight_decay: float = 0.0
    momentum_start: float = 0.95
    momentum: float = 0.95
    momentum_end: float = 0.95
    momentum_warmup_steps: int = 0
    decay_schedule: str = "constant"
    warmup_steps: int = 0
    warmdown_ratio: float = 1.0
    final_lr_frac: float = 0.0
    grad_clip: float = 0.0
    warm_start: bool = False  # with the averages of gradients of the stage before, not with zeros

    @classmethod
    def like(cls, optim: OptimConfig) -> StageOptimConfig:
        """Rates and schedules as base has them."""
        shared = {f.name for f in dataclasses.fields(cls)} - {"warm_start"}
        return cls(**{name: getattr(optim, name) for name in shared})

    def within(self, optim: OptimConfig) -> LaterOptimConfig:
        """The whole optimizer of a stage: base's chain with these rates and schedules.

        Raises ConfigError for values that OptimConfig refuses.
        """
        values = {**dataclasses.asdict(optim), **dataclasses.asdict(self)}
        del values["warm_start"]
        return LaterOptimConfig(**values)


@dataclass(frozen=True)
class TokenizerConfig:
    """How the tokenizer is trained."""

    vocab_size: int = 65_536
    max_chars: int = 2_000_000_000  # characters of training text it sees

    def __post_init__(self) -> None:
        # 256 bytes and nine special tokens
        _check(
            self.vocab_size >= 265,
            f"tokenizer.vocab_size is {self.vocab_size}; 256 bytes and 9 special tokens need 265.",
        )
        _positive("tokenizer", self, "max_chars")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how much of it is used."""

    source: str = "machine"  # the documentation every Python carries; or one of TEXT_SOURCES
    max_chars: int = 12_000_000  # of the machine's text
    shards: int = 0  # of a source of shards, beside the one held out; 0: all
    held_out_shard: int = later(-1)  # which of a source's shards is held out; -1: the last
    folder: str = ""  # of the user's own text, with source = "folder"
    words: int = 6_000  # words of the text that the spelling problems draw from
    persona: str = ""  # a TOML file that says who the model is (`tasks.persona`); "": jaxchat

    @property
    def is_dataset(self) -> bool:
        """Whether the text is a dataset's, which comes over the network."""
        return self.source not in ("machine", "folder")

    def __post_init__(self) -> None:
        _one_of("data", self, "source", TEXT_SOURCES)
        _positive("data", self, "max_chars", "words")
        _not_negative("data", self, "shards")
        _check(
            self.held_out_shard >= -1,
            f"data.held_out_shard is {self.held_out_shard}; it is the number of a shard, from 0 "
            "on, or -1 for the last.",
        )
        _check(
            (self.source == "folder") == bool(self.folder),
            f"data.source is {self.source!r} and data.folder is {self.folder!r}; a folder is named "
            'with data.source = "folder" (or --data-dir), and only with it.',
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training stage (base, mid or sft) over the common `fit` loop."""

    steps: int = 0  # 0: as many as one pass over the stage's rows takes
    batch_tokens: int = 524_288  # tokens of one optimizer step, over all devices
    micro_rows: int = 32  # rows one device takes at once; the rest is accumulated
    lr_scale: float = 1.0  # multiplies every rate of [optim], or of [mid_optim], [sft_optim]
    # of mid and sft: how often each dataset of the hub, or file of one's own, is read
    epochs: Mapping[str, float] = field(default_factory=dict)
    conversations: int = 0  # generated problems; without `epochs`, one to three a conversation
    mixture: Mapping[str, float] = field(default_factory=dict)  # generated task -> share
    text_share: float = 0.0  # of the conversations' rows, added as rows of text: less is forgotten
    eval_every: int = 250
    eval_rows: int = 2_048
    save_every: int = 1_000
    keep: int = 2  # newest checkpoints
    keep_every: int = 0  # steps; checkpoints at its multiples stay, also when the stage is complete
    # A loss so many times the mean of the last 50 is divergence, as one that is not finite is
    spike: float = 0.0  # 0: however high it is
    rollbacks: int = (
        0  # batches that may be left out, from the last checkpoint on, when they diverge
    )
    # Meanwhile, for the log: nothing that is learned depends on it
    sample_every: int = later(0)  # steps between samples of the model; 0: none
    core_every: int = later(0)  # steps between evaluations of CORE; 0: none
    core_examples: int = later(500)  # of each of its tasks; 0: all
    # of mid and sft: the loss is a mean over the learned tokens of so many conversations, and then
    # over such groups; 0: over all learned tokens of a step
    loss_group: int = later(0)

    def __post_init__(self) -> None:
        _not_negative("train", self, "keep_every", "rollbacks")
        _not_negative("train", self, "sample_every", "core_every", "core_examples")
        _positive("train", self, "keep")
        _check(
            self.spike == 0 or self.spike > 1,
            f"train.spike is {self.spike}; a factor above 1, or 0 for none.",
        )
        _not_negative("train", self, "steps", "conversations", "lr_scale", "text_share")
        _not_negative("train", self, "loss_group")
        _positive("train", self, "batch_tokens", "micro_rows", "eval_every", "eval_rows")
        _positive("train", self, "save_every")
        for name, share in self.mixture.items():
            _check(share > 0, f"train.mixture.{name} is {share}; a share must be greater than 0.")
        for name, epochs in self.epochs.items():
            _check(epochs > 0, f"train.epochs.{name} is {epochs}; it must be greater than 0.")


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning: the simplified GRPO."""

    steps: int = 60  # 0: the stage is left out, and the run ends with sft's model
    task: str = "arithmetic"
    problems_per_step: int = 16
    samples_per_problem: int = 16
    max_new_tokens: int = 256
    temperature: float = 1.0
    micro_rows: int = 64
    lr_scale: float = 0.05
    save_every: int = 20
    eval_every: int = 60  # steps between evaluations of pass@k on held-out problems; 0: never
    eval_problems: int = 400
    eval_samples: int = 8  # of each
    top_k: int = later(0)  # samples are drawn from so many of the likeliest tokens; 0: all
    # the loss is a mean over the sampled tokens of so many of a problem's samples (of all, where
    # there are fewer), and then over such groups; 0: over all sampled tokens of a step
    loss_group: int = later(0)

    def __post_init__(self) -> None:
        _not_negative("rl", self, "steps")
        _positive("rl", self, "problems_per_step", "max_new_tokens", "temperature")
        _positive("rl", self, "micro_rows", "lr_scale", "save_every")
        _positive("rl", self, "eval_problems", "eval_samples")
        _not_negative("rl", self, "eval_every", "top_k", "loss_group")
        _in_range("rl", self, numbers.TEMPERATURE, "temperature")
        _in_range("rl", self, numbers.COUNT, "max_new_tokens")
        _check(
            self.samples_per_problem >= 2,
            f"rl.samples_per_problem is {self.samples_per_problem}; an advantage is a reward less "
            "its group's mean, so a group needs at least 2.",
        )
        _check(
            not self.loss_group or self.samples_per_problem % self.samples_averaged == 0,
            f"rl.loss_group is {self.loss_group} and rl.samples_per_problem is "
            f"{self.samples_per_problem}; the samples of a problem must divide into such groups.",
        )

    @property
    def samples_averaged(self) -> int:
        """The samples of a problem whose tokens are averaged first; 0: all of a step's are."""
        return min(self.loss_group, self.samples_per_problem)


@dataclass(frozen=True)
class EvalConfig:
    """What the evaluation stage measures."""

    tasks: tuple[str, ...] = ("identity", "arithmetic", "spelling", "counting", "choice")
    problems: int = 200  # held-out problems a task; 0: all of a dataset
    max_new_tokens: int = 256
    slots: int = 64  # conversations the engine decodes at once
    reward_samples: int = 4  # samples per problem, temperature 1, for the mean reward of [rl]
    # Folder of CORE's tasks, on which the base model is evaluated. "": the one of the home, which a
    # run on a dataset's text fetches; without it CORE is left out
    bundle: str = ""
    bundle_url: str = later("")  # where that is fetched; "": nanochat's address; none: it is not
    core_examples: int = later(0)  # of each of CORE's tasks; 0: all, as CORE is defined
    # GPT-2's and GPT-4's files, which such a run compares its tokenizer with; "": tiktoken's store
    vocabularies_url: str = later("")
    models: tuple[str, ...] = later(MODELS)  # that answer the tasks; the others have bits per byte
    generated_problems: int = later(0)  # of a generated task; 0: as `problems`, else the usual
    reward_problems: int = later(0)  # for the mean reward; 0: as `problems`, else 400
    # of each split of the text, for bits per byte; 0: base.eval_rows rows
    text_tokens: int = later(0)

    def __post_init__(self) -> None:
        _positive("eval", self, "max_new_tokens", "slots", "reward_samples")
        _not_negative("eval", self, "problems", "generated_problems", "reward_problems")
        _not_negative("eval", self, "text_tokens", "core_examples")
        for name in self.models:
            _check(name in MODELS, f"eval.models has {name!r}; there are {', '.join(MODELS)}.")

    @property
    def generated(self) -> int:
        """Problems of a task that is generated without end: never all."""
        return self.generated_problems or self.problems or GENERATED_PROBLEMS

    @property
    def rewarded(self) -> int:
        """Problems for the mean reward, each sampled several times: all only when asked for."""
        return self.reward_problems or self.problems or 400


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each named axis; `data = 0` takes all that the others leave."""

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    host_devices: int = 0  # virtual devices on a machine without accelerators; 0: one

    def __post_init__(self) -> None:
        _not_negative("mesh", self, "data", "host_devices")
        _positive("mesh", self, "fsdp", "tensor")


@dataclass(frozen=True)
class ComputeConfig:
    """How training computes: precision, sizes and compiler, not what. Weights are always fp32."""

    fp8: bool = False  # the blocks' matrices of 128 or more: an H100, RTX 40 or newer
    # Of float32 activations, on a CPU: "plain" is float32, "bfloat16" rounds what is multiplied and
    # sums in float32, "auto" does that where the processor is made for it (AVX-512 BF16, AMX).
    products: str = "auto"
    loss_chunk_rows: int = 0  # tokens whose logits are held at once; 0: as the device likes it
    compiler_options: tuple[str, ...] = ()  # XLA's, as "name=value", beside those tried anyway

    def __post_init__(self) -> None:
        _one_of("compute", self, "products", ("auto", "plain", "bfloat16"))
        _not_negative("compute", self, "loss_chunk_rows")
        for option in self.compiler_options:
            name, equals, value = option.partition("=")
            _check(
                bool(equals) and name.isidentifier() and bool(value),
                f"compute.compiler_options has {option!r}; each must be of the form name=value, "
                "for example xla_gpu_enable_triton_gemm=false.",
            )


DEFAULT_COMPUTE = ComputeConfig()


def check_heads(model: ModelConfig, tensor: int) -> None:
    """Raises ConfigError where a tensor axis of so many devices does not divide the heads."""
    for name, heads in (("n_head", model.n_head), ("n_kv_head", model.n_kv_head)):
        if heads % tensor:
            fits = [n for n in range(1, heads + 1) if not model.n_head % n | model.n_kv_head % n]
            raise ConfigError(
                f"model.{name} is {heads} and mesh.tensor is {tensor}: heads must divide by the "
                f"tensor axis; set mesh.tensor to one of {', '.join(map(str, fits))}."
            )


@dataclass(frozen=True)
class ImportedConfig:
    """The model from elsewhere that a run begins with, which `jaxchat import` puts there."""

    stage: str = ""  # whose place it takes; "": there is none
    weights: str = ""  # sha256 of its parameters
    tokenizer: str = ""  # sha256 of its tokenizer

    def __post_init__(self) -> None:
        _one_of("imported", self, "stage", ("", *MODELS))

    def brings(self, stage: str) -> bool:
        """Whether what a stage would make was imported."""
        return bool(self.stage) and stage in ("tokenizer", self.stage)

    def leaves_out(self, stage: str) -> bool:
        """Whether a stage comes before the imported one, so that the run does not have it."""
        return bool(self.stage) and stage in MODELS[: MODELS.index(self.stage)]

    def trains(self, stage: str) -> bool:
        """Whether the run trains a stage of MODELS itself."""
        return not self.brings(stage) and not self.leaves_out(stage)


@dataclass(frozen=True)
class HardwareConfig:
    """What `--plan` reckons with; nothing else reads it."""

    name: str = "NVIDIA H100 80GB"
    devices: int = 8
    peak_flops: float = 989e12  # per device, dense bf16
    utilization: float = 0.45  # share of the peak that training reaches (MFU)
    memory_bytes: float = 80e9  # per device
    compute_bytes: int = 2  # of an activation: 2 in bf16, 4 in fp32
    dollars_per_hour: float = 24.0  # for all devices together; 0: one's own machine

    def __post_init__(self) -> None:
        _positive("hardware", self, "devices", "peak_flops", "utilization", "memory_bytes")
        _positive("hardware", self, "compute_bytes")
        _not_negative("hardware", self, "dollars_per_hour")


@dataclass(frozen=True)
class TrackConfig:
    """Who gets the metrics beside metrics.jsonl; it changes nothing that is made."""

    trackers: tuple[str, ...] = ()  # of TRACKERS

    def __post_init__(self) -> None:
        for name in self.trackers:
            _check(
                name in TRACKERS,
                f"track.trackers has {name!r}; there are {', '.join(TRACKERS)}.",
            )
        _check(
            len(set(self.trackers)) == len(self.trackers),
            f"track.trackers is {', '.join(self.trackers)}; name each once.",
        )


@dataclass(frozen=True)
class MirrorConfig:
    """Where a copy of the run is kept, for another machine to go on; it changes nothing made."""

    url: str = ""  # s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, a folder's absolute path; "": nowhere
    every: int = 60  # seconds between two looks for what is new

    def __post_init__(self) -> None:
        _check(
            not self.url or "://" in self.url or self.url.startswith("/"),
            f"mirror.url is {self.url!r}; it must be like s3://BUCKET/PREFIX, or a folder's "
            "absolute path.",
        )
        _positive("mirror", self, "every")


NOT_MIRRORED = MirrorConfig()
NOT_TRACKED = TrackConfig()
NOT_IMPORTED = ImportedConfig()
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeConfig:
    """`jaxchat serve`: where it listens, and what it allows."""

    host: str = "127.0.0.1"
    port: int = 8_000  # 0: any that is free
    slots: int = 0  # answers of a model decoded at once, on each device; 0: as suits the device
    queue: int = 256  # requests that may wait
    queue_seconds: float = 60.0  # that a request may wait
    grace_seconds: float = 10.0  # for answers under way, when the server is told to end
    messages: int = 256  # of one request
    characters: int = 400_000  # of all its messages
    body_bytes: int = 4_000_000
    body_seconds: float = 20.0  # in which a request must have arrived
    samples: int = 8  # n
    max_tokens: int = 0  # of an answer; 0: what the context leaves
    temperature: float = 0.8  # where a request names none
    top_k: int = 0  # likewise; 0: all
    connections: int = 1_024
    warm_up: bool = True  # compiles everything before it is ready
    hosts: tuple[str, ...] = ()  # names in the Host header that are accepted beside its own
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask (CORS)
    behind_proxy: bool = False  # clients are told apart by what a proxy on this machine says

    def __post_init__(self) -> None:
        _in_range("serve", self, numbers.PORT, "port")
        _positive("serve", self, "queue", "queue_seconds", "messages", "characters")
        _positive("serve", self, "body_bytes", "body_seconds", "samples", "connections")
        _in_range("serve", self, numbers.WHOLE, "slots", "max_tokens", "top_k")
        _in_range("serve", self, numbers.SECONDS, "grace_seconds", "queue_seconds", "body_seconds")
        _in_range("serve", self, numbers.API_TEMPERATURE, "temperature")
        _check(bool(self.host), "serve.host is empty; name an address, such as 127.0.0.1.")
        for origin in self.origins:
            _check(
                origin.startswith(("http://", "https://")) and not origin.endswith("/"),
                f"serve.origins has {origin!r}; an origin is of the form https://example.org.",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK


@dataclass(frozen=True)
class RunConfig:
    """A whole run, from text to report."""

    name: str
    preset: str
    depth: int
    seed: int
    data_ratio: float  # training tokens per scaling parameter
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
    imported: ImportedConfig = NOT_IMPORTED
    track: TrackConfig = NOT_TRACKED
    mirror: MirrorConfig = NOT_MIRRORED
    mid_optim: StageOptimConfig = StageOptimConfig()
    sft_optim: StageOptimConfig = StageOptimConfig()
    rl_optim: StageOptimConfig = StageOptimConfig()

    def __post_init__(self) -> None:
        check_heads(self.model, self.mesh.tensor)
        _check(
            not self.base.loss_group,
            f"base.loss_group is {self.base.loss_group}; text has no conversations to group: set "
            "it for mid or sft.",
        )
        _check(
            self.rl.top_k <= self.model.vocab_size,
            f"rl.top_k is {self.rl.top_k}; the vocabulary has {self.model.vocab_size} tokens (0 "
            "takes all).",
        )
        _check(
            not self.rl_optim.warm_start,
            "rl_optim.warm_start is true; reinforcement learning starts with a fresh optimizer: "
            "set it to false.",
        )
        for stage in MODELS:
            try:
                self.optim_of(stage)
            except ConfigError as error:
                raise ConfigError(str(error).replace("optim.", f"{stage}_optim.", 1)) from error

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
        """Whether the run does not have a stage: what comes before an imported one, or RL."""
        no_rl = stage == "rl" and not self.rl.steps and not self.imported.brings("rl")
        return no_rl or self.imported.leaves_out(stage)


T = TypeVar("T")


def unknown_key(where: str, key: str, known: list[str]) -> ConfigError:
    """The error for a key nobody reads, with the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}."
    return ConfigError(f"{where} has the unknown key {key!r}; {hint}")


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Makes the dataclass `cls` from a TOML table.

    Raises ConfigError for a key that is no field and for a value of another type. Integers are
    accepted where a float is expected; lists become tuples; numbers must be finite.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise unknown_key(where, key, list(fields))
        values[key] = _convert(value, hints[key], f"{where}.{key}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise ConfigError(
                f"{where} is {numbers.cut(repr(value))}, of type {type(value).__name__}; "
                f"it must be of type {hint.__name__}."
            )
        if hint is float and not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; it must be a finite number.")
        if hint is int and not numbers.INTEGER.holds(value):
            told = f"{where} is {numbers.cut(str(value))}; it must be {numbers.INTEGER.told}."
            raise ConfigError(told)
        return value
    if hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{where} is {value!r}; it must be a list of strings.")
        return tuple(value)
    if not isinstance(value, Mapping):  # the one kind left: names to shares
        raise ConfigError(f"{where} is {value!r}; it must be a table of numbers.")
    return {key: _convert(item, float, f"{where}.{key}") for key, item in value.items()}
