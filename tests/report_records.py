"""The records of a small run, as the pipeline and the loops write them."""

from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.evals.scores import Score
from jaxchat.runs import run_dir, runner
from jaxchat.runs.stages import BY_NAME
from jaxchat.train.metrics import MetricsLog

CONFIGS = Path(__file__).parent.parent / "configs"
ENVIRONMENT = {
    "python": "3.12.1",
    "platform": "Linux",
    "processor": "a processor",
    "cores": 2,
    "memory_bytes": 8_000_000_000,
    "devices": ["cpu: cpu", "cpu: cpu"],
    "packages": {"jax": "0.10.2"},
}
GIT = {"commit": "0123abc", "dirty": True}
HOSTILE = (
    "</p></details><script>alert(1)</script><img src=\"x\" onerror='alert(1)'>&amp; \x1b[2J\u202e"
)


def make_config(*overrides: str) -> RunConfig:
    """The small tier, with changes."""
    return loading.load(CONFIGS / "tier_cpu.toml", overrides)


def score(right: int, total: int) -> dict[str, Any]:
    return Score(right, total).to_json()


def evaluation(bits: float, right: int, **more: Any) -> dict[str, Any]:
    return {"bits_per_byte": bits, "tasks": {"spelling": score(right, 200)}, **more}


def core() -> dict[str, Any]:
    """Two tasks: 60% where guessing gives 50%, and 30% where it gives nothing."""
    tasks = {
        "winograd": {"accuracy": 0.6, "centered": 0.2, "low": 0.5, "high": 0.7, "problems": 100},
        "squad": {"accuracy": 0.3, "centered": 0.3, "low": 0.2, "high": 0.4, "problems": 90},
    }
    return {"core": 0.25, "tasks": tasks}


def models(*, right: int = 171) -> dict[str, Any]:
    """What eval records of two models."""
    parts = [
        {"type": "python", "text": "37 * 24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "The answer is 888."},
    ]
    return {
        "base": evaluation(1.75, 0, samples=[{"prompt": "Once", "completion": " upon"}]),
        "rl": evaluation(
            1.8125,
            right,
            reward=score(301, 400),
            samples=[{"question": "What is 37 * 24?", "parts": parts}],
        ),
    }


def make_done(**evaluated: Any) -> dict[str, dict[str, Any]]:
    """Stage -> record, without those of mid and sft."""
    data = {"characters": 10_000, "sources": {"stdlib": {"documents": 3, "chars": 10_000}}}
    stages: dict[str, tuple[float, dict[str, Any]]] = {
        "data": (1.5, {"artifact": "x", **data}),
        "rows": (2.0, {"artifact": "y", "base_train": {"rows": 1_000, "tokens": 257_000}}),
        "base": (60.25, {"artifact": "z", "steps": 8, "tokens": 16_384, "loss": 3.217}),
        "eval": (30.0, {"artifact": "e", "models": models(**evaluated)}),
    }
    return {name: {"seconds": s, "results": results} for name, (s, results) in stages.items()}


def log_steps(folder: Path, steps: int, *, seconds: float = 0.5, timed: bool = True) -> None:
    """metrics.jsonl of a loop: the loss falls by 0.25 a step from 6; bits per byte every fourth."""
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(steps):
        time = {"time": (step + 1) * seconds} if timed else {}
        log.write({"step": step, **time, "loss": 6 - step / 4, "grad_norm": 1.0, "weight": 2048.0})
        if step % 4 == 3:
            log.write({"step": step, **time, "bits_per_byte": 3 - step / 8})


def write_run(root: Path, config: RunConfig, done: dict[str, dict[str, Any]]) -> Path:
    """A run's folder with its configuration, the records and what base logged.

    Stages that others need are as complete as these, and took no time.
    """
    run_dir.write_config(root, config)
    needed = {need for name in done for need in _all_needs(name, config)}
    write_records(root, config, {name: done.get(name, EMPTY) for name in {*needed, *done}})
    log_steps(root / "base", 8)
    return root


EMPTY = {"seconds": 0.0, "results": {"artifact": "of a stage that others need"}}


def _all_needs(name: str, config: RunConfig) -> set[str]:
    direct = runner.needs(BY_NAME[name], config)
    return {*direct, *(far for need in direct for far in _all_needs(need, config))}


def write_records(root: Path, config: RunConfig, done: dict[str, dict[str, Any]]) -> None:
    """The stages' records, as the pipeline writes them."""
    context = runner.Context(config, root)
    for name, stage in BY_NAME.items():
        if name not in done:
            continue
        whole = {
            "format": runner.FORMAT,
            "stage": name,
            "inputs": runner.input_hash(stage, context),
            "settings": runner.recorded_settings(stage, config),
            **done[name],
        }
        paths.write_json(runner.done_file(root, name), whole)
        context.done[name] = whole
