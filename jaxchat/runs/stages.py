"""The stages of a run, from text to report: what each is called, depends on, and is run by.

Importing this imports nothing heavy; a stage's function is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jaxchat.config.fields import hashed_settings
from jaxchat.config.schema import MODELS, RLConfig, RunConfig, TrainConfig
from jaxchat.errors import ConfigError

# How a stage is computed, saved and watched. It resumes with other values: on other devices, with
# less memory, after a spike.
NON_SEMANTIC_FIELDS = (
    "micro_rows", "save_every", "keep", "keep_every", "spike", "rollbacks",
    "sample_every", "core_every", "core_examples",
)  # fmt: skip

Run = Callable[..., dict[str, Any]]  # (Context) -> results, a JSON object
Settings = Callable[[RunConfig], tuple[object, ...]]


@dataclass(frozen=True)
class Stage:
    """A row of the table of contents.

    `run(context)` makes the artefact in `context.folder(name)`. Of its results, `artifact` is a
    hash of what was made; `parts` may hold hashes of parts of it.
    """

    name: str
    title: str
    run: Run | str  # or "module.function", below jaxchat.runs
    settings: Settings  # the parts of the configuration that it depends on
    after: tuple[str, ...] = ()  # whose artefacts it reads; `rows:text`: the part `text` of `rows`
    description: str = ""
    # (Context) -> whether what a complete stage read outside the run has changed since; or its name
    outdated: Callable[..., bool] | str = lambda context: False
    collective: bool = False  # run by every process, else by process 0 alone
    incremental: bool = False  # saves parts with what each depends on: only force clears its folder
    mirrored: bool = True  # copied to mirror.url; else it is made again from what is
    tables: tuple[str, ...] = ()  # of the configuration, shown by the report
    trained: str = ""  # how its weights were trained, for the card of an exported model

    @property
    def heading(self) -> str:
        """The title at the start of a line."""
        return self.title.capitalize()


def training_settings(train: TrainConfig | RLConfig) -> dict[str, Any]:
    """The settings that decide what a stage learns."""
    values = hashed_settings(train)
    return {name: value for name, value in values.items() if name not in NON_SEMANTIC_FIELDS}


def _data(c: RunConfig) -> tuple[object, ...]:
    from jaxchat.data.inputs import chat_names

    return c.data, c.tokenizer.max_chars, c.model.sequence_len, chat_names(c)


def _tokenizer(c: RunConfig) -> tuple[object, ...]:
    from jaxchat.data.prepare import spoken

    return c.tokenizer, spoken(c.mid), c.seed


def _fine_tuned(stage: str) -> Settings:
    """The settings of mid, sft or rl; a warm start counts only where there is one."""

    def settings(c: RunConfig) -> tuple[object, ...]:
        train = training_settings(getattr(c, stage))
        warm = ("warm start",) if c.starts_warm(stage) else ()
        return c.optim_of(stage), train, c.compute.fp8, c.seed, *warm

    return settings


def _rewarded(rl: RLConfig) -> tuple[str, ...]:
    """The settings that decide the mean reward, as `hashed_settings` would have them."""
    return (rl.task, f"top_k {rl.top_k}") if rl.top_k else (rl.task,)


STAGES = (
    Stage(
        "data", "text", "data_stages.run_data", _data,
        description="find text and conversations, download what is needed first",
        outdated="data_stages.is_outdated", tables=("data",),
    ),
    Stage(
        "tokenizer", "tokenizer", "data_stages.run_tokenizer", _tokenizer, ("data:text",),
        description="train the byte-level BPE tokenizer (bpe_rs)", tables=("tokenizer",),
    ),
    Stage(
        "rows", "tokenized rows", "data_stages.run_rows",
        lambda c: (
            c.model.sequence_len, training_settings(c.mid), training_settings(c.sft), c.seed,
        ),
        ("data", "tokenizer"), mirrored=False,
        description="tokenize and pack text and conversations into rows",
    ),
    Stage(
        "base", "base model", "train_stages.run_base",
        lambda c: (c.model, c.optim, training_settings(c.base), c.compute.fp8, c.seed),
        ("rows:text", "tokenizer"), collective=True,
        description="pretrain the transformer on text", tables=("model", "optim", "base"),
        trained="pretrained on text; it continues texts and does not chat",
    ),
    Stage(
        "mid", "midtraining", "train_stages.run_mid", _fine_tuned("mid"),
        ("base", "rows:mid", "tokenizer"), collective=True,
        description="midtrain on conversations, tool use and multiple choice",
        tables=("mid", "mid_optim"), trained="pretrained, and midtrained on conversations",
    ),
    Stage(
        "sft", "supervised fine-tuning", "train_stages.run_sft", _fine_tuned("sft"),
        ("mid", "rows:sft", "tokenizer"), collective=True,
        description="fine-tune on conversations", tables=("sft", "sft_optim"),
        trained="pretrained, midtrained and fine-tuned on conversations",
    ),
    Stage(
        "rl", "reinforcement learning", "train_stages.run_rl",
        lambda c: (*_fine_tuned("rl")(c), c.eval.slots),
        ("sft", "data", "tokenizer"), collective=True,
        description="reinforce what solves problems, the calculator in the loop",
        tables=("rl", "rl_optim"),
        trained="pretrained, fine-tuned on conversations, and trained by reinforcement learning",
    ),
    Stage(
        "eval", "evaluation", "eval_stages.run_eval",
        lambda c: (c.eval, c.seed, c.base.eval_rows, *_rewarded(c.rl)),
        (*MODELS, "rows:text", "data", "tokenizer"),
        description="evaluate base, mid, sft and rl on what was held out",
        outdated="eval_stages.is_outdated", incremental=True, tables=("eval",),
    ),
    Stage(
        "report", "report", "report.files.run_report", lambda c: (c,), ("eval",), mirrored=False,
        description="write the report: report.html, report.md, report.json",
    ),
)  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}


def check_names(names: Iterable[str], stages: Iterable[Stage] = STAGES) -> set[str]:
    """The names, if all are of `stages`. Raises ConfigError for another one."""
    chosen, known = set(names), [stage.name for stage in stages]
    if unknown := chosen.difference(known):
        raise ConfigError(f"there is no stage {min(unknown)!r}; the stages are {', '.join(known)}.")
    return chosen
