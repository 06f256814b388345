"""What the runs of a ladder have in common, made once: text, tokenizer and rows.

A run takes a stage over from another one whose record has the hash that its own would have: the
inputs are the same, so what was made of them is. Files are linked, not copied; none is ever written
in place, so each run may be deleted by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs
from jaxchat.data.own import InputFile
from jaxchat.data.shards import TEXT_FOLDER
from jaxchat.paths import atomic_folder, sweep
from jaxchat.runs.runner import BEGUN, Context, input_hash, is_of, read_done
from jaxchat.runs.stages import BY_NAME

SHARED = ("data", "tokenizer", "rows")


def take_over(run: Path, config: RunConfig, others: Iterable[Path]) -> list[str]:
    """Gives `run` the complete stages that it would make again; their names.

    A stage that the run has begun or completed by itself stays as it is.
    """
    sweep(run / TEXT_FOLDER)  # of a process that was killed while it linked
    context, others, taken = Context(config, run), list(others), list[str]()
    for name in SHARED:
        stage = BY_NAME[name]
        own, wanted = read_done(run, name), input_hash(stage, context)
        if own is not None and is_of(own["inputs"], stage, context):
            context.done[name] = own
            continue
        if own is not None or (run / name / BEGUN).exists():
            break
        same = (o for o in others if (r := read_done(o, name)) and r["inputs"] == wanted)
        if (other := next(same, None)) is None:
            break
        if name == "rows":
            _link_text(other, run)
        _link_stage(other, run, name)
        context.done[name] = read_done(run, name) or {}
        taken.append(name)
    return taken


def _link_stage(other: Path, run: Path, name: str) -> None:
    with atomic_folder(run / name) as made:
        _link_all(other / name, made)
        if name == "data":
            inputs.write_inputs(made, _moved(inputs.read_inputs(other / name), other, run))


def _link_text(other: Path, run: Path) -> None:
    """The shards that there are; those that are missing are prepared while the run trains."""
    for shards in sorted((other / TEXT_FOLDER).glob("*/")):
        if not (run / TEXT_FOLDER / shards.name).exists():
            with atomic_folder(run / TEXT_FOLDER / shards.name) as made:
                _link_all(shards, made)


def _link_all(source: Path, target: Path) -> None:
    hidden = shutil.ignore_patterns(".*")  # locks, and what a killed process left
    shutil.copytree(source, target, copy_function=_link, ignore=hidden, dirs_exist_ok=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
    return target


def _moved(read: inputs.Inputs, other: Path, run: Path) -> inputs.Inputs:
    """The inputs with the files that lie in the other run's folder at their place in this one's."""

    def placed(files: Iterable[InputFile]) -> tuple[InputFile, ...]:
        return tuple(
            replace(
                file,
                paths=tuple(
                    run / path.relative_to(other) if path.is_relative_to(other) else path
                    for path in file.paths
                ),
            )
            for file in files
        )

    chat = {
        name: {split: placed(files) for split, files in splits.items()}
        for name, splits in read.chat.items()
    }
    return replace(read, text=placed(read.text), chat=chat)
