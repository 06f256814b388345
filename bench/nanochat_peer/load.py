"""nanochat, loaded from a checkout to be compared with: fp32, on the CPU, not compiled.

Nothing of jaxchat is imported in this folder: its scripts run under a Python that has torch, with
a checkout of github.com/karpathy/nanochat of September 2026 (`september`, commit 437943b of its
unmerged branch), July 2026 (`modern`) or November 2025 (`classic`, commit bc1fca3).
"""

from __future__ import annotations

import ast
import contextlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PRESETS = ("classic", "modern", "september")


def import_gpt(checkout: Path, *, compiled: bool = False) -> ModuleType:
    """nanochat's `gpt` module in fp32 on the CPU. Call it before anything else imports torch.

    Without `compiled`, torch.compile returns what it is given.
    """
    if not (checkout / "nanochat" / "gpt.py").is_file():
        sys.exit(f"{checkout} is no checkout of nanochat: it has no nanochat/gpt.py.")
    os.environ |= {"NANOCHAT_DTYPE": "float32", "CUDA_VISIBLE_DEVICES": ""}
    if not compiled:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    sys.path.insert(0, str(checkout))
    try:
        import torch  # noqa: F401
        from nanochat import gpt
    except ImportError as error:
        sys.exit(f"this Python cannot run nanochat ({error}); use one that has torch.")
    return gpt


@contextlib.contextmanager
def bfloat16_is_float32() -> Iterator[None]:
    """Undoes the bf16 written into the classic version: its rotary tables and its Newton-Schulz.

    The modern one takes both from NANOCHAT_DTYPE.
    """
    import torch

    dtype, cast = torch.bfloat16, torch.Tensor.bfloat16
    torch.bfloat16, torch.Tensor.bfloat16 = torch.float32, torch.Tensor.float
    try:
        yield
    finally:
        torch.bfloat16, torch.Tensor.bfloat16 = dtype, cast


class TrainingScript:
    """Pieces of nanochat's scripts/base_train.py, which as a whole would train a model.

    Its code is executed as it stands, piece by piece, in the dict `names`.
    """

    def __init__(self, checkout: Path, names: dict[str, Any]) -> None:
        self.text = (checkout / "scripts" / "base_train.py").read_text(encoding="utf-8")
        self.names = {"math": math, "print0": lambda *_: None, **names}

    def between(self, start: str, stop: str) -> None:
        """Executes from the first line that begins with `start` to the next with `stop`."""
        lines = self.text.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith(start))
        last = next(i for i, line in enumerate(lines) if i > first and line.startswith(stop))
        self._execute(lines[first:last])

    def functions(self, wanted: Iterable[str], replace: Mapping[str, str] | None = None) -> None:
        """Defines the named functions, with some text of theirs exchanged; each must occur."""
        left = set(replace or {})
        for node in ast.parse(self.text).body:
            if isinstance(node, ast.FunctionDef) and node.name in wanted:
                source = "\n".join(self.text.splitlines()[node.lineno - 1 : node.end_lineno])
                for old, new in (replace or {}).items():
                    left -= {old} if old in source else set()
                    source = source.replace(old, new)
                self._execute(source.splitlines())
        if left:
            sys.exit(f"this is another version of nanochat: base_train.py has no {left}.")

    def _execute(self, lines: list[str]) -> None:
        exec(compile("\n".join(lines), "base_train.py", "exec"), self.names)  # what we came to run

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


def make_model(gpt: ModuleType, config: Any, device: str = "cpu") -> Any:
    """A model of any version, its parameters not yet initialised where that is another call."""
    import torch

    if hasattr(gpt, "init_params"):  # September's is functional, with a shell around it
        return gpt.GPT(config, device)
    with torch.device(device):
        return gpt.GPT(config)


def parameters(model: Any) -> dict[str, Any]:
    """The parameters of a model of any version, by name."""
    return model.params if hasattr(model, "params") else dict(model.named_parameters())


def modern_run(
    gpt: ModuleType, checkout: Path, vocab_size: int, **arguments: Any
) -> TrainingScript:
    """The script of 2026 up to its optimizer and schedules, over a model without data.

    `arguments` are those of its command line. To train, put a real model in `names["model"]` and
    call `set_up_optimizer`.
    """
    import argparse

    import torch

    parsing = TrainingScript(checkout, {"argparse": argparse})
    parsing.between("parser = argparse", "args = parser")
    args = parsing["parser"].parse_args([])
    if unknown := set(arguments) - set(vars(args)):
        sys.exit(f"nanochat's base_train.py has no arguments {unknown}.")
    vars(args).update(arguments)
    names = {"args": args, "torch": torch, "vocab_size": vocab_size}
    names |= {"GPT": gpt.GPT, "GPTConfig": gpt.GPTConfig, "ddp_world_size": 1}
    names["format_record"] = lambda *_, **__: ""
    script = TrainingScript(checkout, names)
    script.functions(["build_model_meta", "build_config"])
    if "build_config" in script.names:  # September
        config = script["build_config"](args.depth)
        script.names["model"] = make_model(gpt, config, "meta")
    else:
        script.names["model"] = script["build_model_meta"](args.depth)
    script.between("# Get the parameter counts", "# ----")
    set_up_optimizer(script)
    script.between("assert args.num_iterations", "# Learning rate schedule")
    script.functions(["get_lr_multiplier", "get_muon_momentum", "get_weight_decay"])
    return script


def set_up_optimizer(script: TrainingScript) -> Any:
    """The optimizer of the script of 2026 for `names["model"]`, with the rates it derived."""
    script.between("optimizer = model.setup_optimizer(", "if resuming")
    return script["optimizer"]
