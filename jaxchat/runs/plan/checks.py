"""What a run would refuse, checked before it begins: names, sizes, files of the user's own.

Where no such files are named, nothing heavy is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jaxchat.config.schema import RunConfig
from jaxchat.config.task_names import CALLING, GENERATED, GRADED_CALLS, UNGRADED
from jaxchat.data import registry
from jaxchat.data.registry import chat_source, own_file
from jaxchat.errors import ConfigError


def check_names(config: RunConfig) -> None:
    """Raises ConfigError for tasks and datasets that do not exist, or need tokens of tools.

    Those of conversations, and tokens that the tokenizer is without.
    """
    chats = [name for name, source in registry.SOURCES.items() if source.kind == "chat"]
    every, talks = (*GENERATED, *chats), _talks(config)
    read = [n for n in (*talks, *config.eval.tasks, config.rl.task) if n in chats]
    # settings, the tasks they name, and those they may name
    named: list[tuple[str, Iterable[str], tuple[str, ...]]] = []
    for stage in ("mid", "sft"):
        # the tokenizer is trained on what midtraining generates, before anything is read
        spoken = stage == "mid" and not config.imported.stage
        known = GENERATED if spoken else (*GENERATED, *dict.fromkeys(read))
        if config.imported.trains(stage):
            named.append((f"{stage}.mixture", getattr(config, stage).mixture, known))
    named += [("eval.tasks", config.eval.tasks, every), ("rl.task", (config.rl.task,), every)]
    for setting, names, known in named:
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"there is no task {name!r}; the tasks are {', '.join(known)} ({setting} names "
                    "it)."
                )
    for name in talks:
        chat_source(name)
    _check_answers(config)
    _check_tool_tokens(config)


def _check_answers(config: RunConfig) -> None:
    """Raises ConfigError for a task without answers to check, or to learn from by trying."""
    rewarded = () if config.leaves_out("rl") else (config.rl.task,)
    for setting, names in (("eval.tasks", config.eval.tasks), ("rl.task", rewarded)):
        for name in set(names) & set(UNGRADED):
            raise ConfigError(
                f"{name} has conversations but no answers to check; take it out of {setting}."
            )
    for name in rewarded:
        if name in registry.SOURCES and set(registry.SOURCES[name].rows) == {"test"}:
            raise ConfigError(
                f"{name} has no problems to train on, only those of the evaluation; choose another "
                "rl.task."
            )


def _check_tool_tokens(config: RunConfig) -> None:
    """Raises ConfigError where tasks call the calculator and the tokenizer has no tokens for it."""
    if config.tokenizer.tool_tokens:
        return
    named: list[tuple[str, Iterable[str]]] = []
    for stage, train in (("mid", config.mid), ("sft", config.sft)):
        if config.imported.trains(stage):
            trained = {**train.mixture, **train.epochs}
            named.append((f"[{stage}]", [name for name in trained if name in CALLING]))
    task = [] if config.leaves_out("rl") else [config.rl.task]
    for setting, names in (("rl.task", task), ("eval.tasks", config.eval.tasks)):
        named.append((setting, [name for name in names if name in GRADED_CALLS]))
    if found := [f"{setting} has {', '.join(names)}" for setting, names in named if names]:
        raise ConfigError(
            f"tokenizer.tool_tokens is false, and {'; '.join(found)}: their answers call the "
            "calculator. Leave them out, or set tokenizer.tool_tokens=true."
        )


def _talks(config: RunConfig) -> list[str]:
    """Datasets and files of conversations that are trained on."""
    trained = registry.chat_stages(config).values()
    return list(dict.fromkeys(name for train in trained for name in train.epochs))


def check_sizes(config: RunConfig) -> None:
    """Raises ConfigError for a step of training that no rows fill exactly, on any devices."""
    row = config.model.sequence_len
    for stage in ("base", "mid", "sft"):
        tokens = getattr(config, stage).batch_tokens
        if config.imported.trains(stage) and tokens % row:
            near = max(row, tokens // row * row)
            raise ConfigError(
                f"{stage}.batch_tokens is {tokens:,}, no multiple of model.sequence_len, "
                f"{row:,}; set {stage}.batch_tokens={near}, for example."
            )


def check_files(config: RunConfig) -> None:
    """Raises what a run would for files of the user's own: the text, the persona, the talks."""
    data = config.data
    if data.source == "folder" and not (folder := _path(data.folder)).exists():
        raise ConfigError(f"{folder} is no folder; name the one that holds the files of text.")
    if data.persona:
        from jaxchat.tasks.persona import read_persona

        read_persona(_path(data.persona))
    for name in _talks(config):
        if chat_source(name) is None:
            from jaxchat.tasks.conversations import Custom

            Custom([own_file(name)])


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()
