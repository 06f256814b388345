"""The evaluation of a run: a part at a time, none of them twice."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from compilation import FAST_COMPILATION
from finished_run import random_params

from jaxchat.checkpoints.save import save_params
from jaxchat.cli import main
from jaxchat.config import loading
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.paths import read_json, write_json
from jaxchat.runs import eval_stages, run_dir, runner, stages
from jaxchat.runs.report.files import gather_run, write_run

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "run.name=x", "data.max_chars=300000", "data.words=100", "tokenizer.vocab_size=400",
    "run.depth=1", "model.n_embd=32", "model.n_head=2", "model.n_kv_head=2",
    "model.sequence_len=64", "base.eval_rows=8", "mid.conversations=300", "sft.conversations=60",
    'eval.tasks=["spelling", "counting"]', "eval.problems=3", "eval.max_new_tokens=6",
    "eval.reward_samples=2", "eval.slots=4", "rl.max_new_tokens=6",
)  # fmt: skip
TASKS = ["task-spelling", "task-counting"]
PARTS = {
    "base": ["bits-heldout", "bits-train", *TASKS, "samples"],
    "mid": ["bits-heldout", *TASKS, "samples"],
    "sft": ["bits-heldout", *TASKS, "reward", "samples"],
    "rl": ["bits-heldout", *TASKS, "reward", "samples"],
}
ANSWERED = {f"{model}-{task}" for model in MODELS for task in TASKS}


def make_config(*changes: str) -> RunConfig:
    return loading.load(ROOT / "configs" / "tier_cpu.toml", [*SMALL, *changes])


def evaluate(home: Path, *changes: str, models: str = "random", **options: Any) -> dict[str, Any]:
    """Runs the stages up to the evaluation, models made at random; what it found of each model."""
    config = make_config(*changes)

    def make(name: str) -> Any:
        def run(context: runner.Context) -> dict[str, Any]:
            params = random_params(MODELS.index(name), config)
            save_params(context.folder(name) / "model", params, {"stage": name})
            return {"artifact": f"{name} {models}"}

        return run

    run = home / "runs" / "x"
    run_dir.write_config(run, config)
    replaced = [
        dataclasses.replace(one, run=make(one.name)) if one.name in MODELS else one
        for one in stages.STAGES[:-1]
    ]
    with runner.Context(config, run) as context:
        runner.run_stages(replaced, context, **options)
    found: dict[str, Any] = context.done["eval"]["results"]["models"]
    return found


def parts(home: Path) -> dict[str, int]:
    """When each part was written, by its name."""
    files = (home / "runs" / "x" / "eval" / "parts").glob("*.json")
    return {file.stem: file.stat().st_mtime_ns for file in files}


def again(home: Path, before: dict[str, int]) -> set[str]:
    """The parts that were written since."""
    now = parts(home)
    assert before.keys() <= now.keys(), "parts are gone"
    return {name for name, at in now.items() if before.get(name) != at}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home with an evaluated run, and what was found."""
    home = tmp_path_factory.mktemp("home")
    return home, evaluate(home)


def test_a_model_has_its_parts_and_a_record_of_them(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    home, found = evaluated
    assert set(parts(home)) == {f"{m}-{name}" for m, names in PARTS.items() for name in names}
    assert list(found) == list(MODELS)
    for model, record in found.items():
        assert record["bits_per_byte"] > 0
        assert record["bits_per_byte_tokens"] == 8 * 64
        assert ("bits_per_byte_train" in record) == (model == "base")
        assert {name: task["total"] for name, task in record["tasks"].items()} == {
            "spelling": 3, "counting": 3,
        }  # fmt: skip
        assert record["tools"]["calls"] == sum(t["calls"] for t in record["tasks"].values())
        assert record.get("reward", {}).get("total") == (6 if model in ("sft", "rl") else None)
        assert record["samples"]
    for name, (one, other) in {"bits": ("base", "mid"), "samples": ("mid", "sft")}.items():
        key = "bits_per_byte" if name == "bits" else "samples"
        assert found[one][key] != found[other][key], f"{one} and {other} share their {name}"


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("eval.slots=8", set()),
        ("eval.problems=2", ANSWERED | {"sft-reward", "rl-reward"}),
        ("eval.max_new_tokens=7", ANSWERED),
        ("eval.reward_samples=3", {"sft-reward", "rl-reward"}),
        ("eval.reward_problems=2", {"sft-reward", "rl-reward"}),
        ("eval.text_tokens=192", {*(f"{m}-bits-heldout" for m in MODELS), "base-bits-train"}),
        ('eval.tasks=["spelling", "counting", "identity"]', {f"{m}-task-identity" for m in MODELS}),
        ('eval.tasks=["counting"]', set()),
        ('eval.models=["sft", "rl"]', set()),
    ],
)  # fmt: skip
def test_another_setting_measures_only_the_parts_it_concerns(
    evaluated: tuple[Path, dict[str, Any]], change: str, redone: set[str]
) -> None:
    home, first = evaluated
    evaluate(home)  # as the first time, whatever ran before
    before = parts(home)
    found = evaluate(home, change)
    assert again(home, before) == redone
    if change == 'eval.models=["sft", "rl"]':
        assert {m for m, record in found.items() if "tasks" in record} == {"sft", "rl"}
    if change == 'eval.tasks=["counting"]':
        assert [list(record["tasks"]) for record in found.values()] == [["counting"]] * 4
    assert evaluate(home) == first, "the same settings found something else"


def test_other_weights_are_measured_and_force_measures_everything(
    evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    home, _ = evaluated
    evaluate(home)
    before = parts(home)
    evaluate(home, "sft.lr_scale=0.3", models="others")  # of sft, and of rl after it
    assert again(home, before) == {f"{m}-{name}" for m in ("sft", "rl") for name in PARTS[m]}
    assert (
        "base: there already, not done again: bits-heldout, bits-train" in capsys.readouterr().out
    )
    (home / "runs" / "x" / "eval" / "parts" / "base-task-old.json").write_text("{}")
    before = parts(home)
    evaluate(home, "sft.lr_scale=0.3", models="others", force=["eval"])
    assert set(parts(home)) == {f"{m}-{name}" for m, names in PARTS.items() for name in names}
    assert all(at != before[name] for name, at in parts(home).items()), "some are as they were"


def test_a_damaged_part_is_measured_again(evaluated: tuple[Path, dict[str, Any]]) -> None:
    home, _ = evaluated
    first = evaluate(home)
    path = home / "runs" / "x" / "eval" / "parts" / "mid-samples.json"
    for text in ("{", "[]", '{"key": "x"}'):
        path.write_text(text)
        (home / "runs" / "x" / "eval" / "done.json").unlink()
        assert evaluate(home) == first, text


def test_killed_while_it_evaluates_it_does_no_part_twice(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    home, _ = evaluated
    run = home / "runs" / "x"
    first = evaluate(home)
    for path in (run / "eval" / "parts").glob("*.json"):
        path.unlink()
    (run / "eval" / "done.json").unlink()
    changes = [f"--set={change}" for change in SMALL]
    command = [sys.executable, ROOT / "run_speedrun.py", "--tier=cpu", "--home", home, *changes,
               "--stages=eval"]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    began = time.monotonic()
    while len(parts(home)) < 4:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < began + 120, "nothing is evaluated"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = parts(home)
    assert len(before) < sum(map(len, PARTS.values())), "it was complete before it was killed"
    so_far = gather_run(run)
    assert so_far["missing"]["eval"] == "under way: base evaluated"
    bits = so_far["metrics"][0]["values"]["base"]["value"]
    # The process has one device, this one eight, which sum in another order.
    assert bits == pytest.approx(first["base"]["bits_per_byte"], rel=1e-5)
    found = evaluate(home)
    assert found["base"]["bits_per_byte"] == bits
    assert {m: record["tasks"] for m, record in found.items()} == {
        m: record["tasks"] for m, record in first.items()
    }
    assert not again(home, before) & before.keys(), "it was measured twice"


def test_without_rl_there_is_neither_its_model_nor_its_reward(
    evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    home, _ = evaluated
    evaluate(home)
    found = evaluate(home, "rl.steps=0")
    assert "reinforcement learning: left out (rl.steps is 0)" in capsys.readouterr().out
    assert list(found) == ["base", "mid", "sft"]
    assert not any("reward" in record for record in found.values())
    printed = gather_run(home / "runs" / "x")
    assert not {"rl", "eval"} & printed["missing"].keys(), "a model that is left out is missed"
    with pytest.raises(ValueError, match=r"rl cannot be forced: rl\.steps is 0"):
        evaluate(home, "rl.steps=0", force=["rl"])


def test_more_problems_by_hand_enter_the_report(
    evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    home, _ = evaluated
    evaluate(home)
    run = home / "runs" / "x"

    def answers(*arguments: str) -> tuple[int, int]:
        """Answers to spelling and counting that the report tells of sft."""
        common = [
            "eval",
            "--home",
            str(home),
            "chat",
            "-i",
            "sft",
            "-a",
            "spelling",
            "--slots",
            "4",
        ]
        if arguments:
            assert main.main([*common, *arguments]) == 0
        rows = {row["name"]: row["values"] for row in gather_run(run)["metrics"]}
        return rows["spelling"]["sft"]["total"], rows["counting"]["sft"]["total"]

    assert answers() == (3, 3)
    assert answers("--max-problems=2", "--max-tokens=6") == (3, 3), "fewer have replaced more"
    assert answers("--max-problems=5", "--max-tokens=5") == (3, 3), "shorter answers have entered"
    assert answers("--max-problems=5", "--max-tokens=6", "--samples=2") == (3, 3)
    assert answers("--max-problems=5", "--max-tokens=6") == (5, 3)
    assert answers("--max-problems=4", "--max-tokens=6") == (5, 3), "a later one took its place"
    assert answers("--max-problems=5", "--max-tokens=6", "--samples=2") == (5, 3)
    longer = json.loads((run / "config.json").read_text())
    longer["eval"]["max_new_tokens"] = 7
    kept = (run / "config.json").read_text()
    write_json(run / "config.json", longer)
    assert not [m for m in gather_run(run)["metrics"] if m["name"] == "spelling"], (
        "its answers are shorter than the run's settings ask for"
    )
    (run / "config.json").write_text(kept)
    for path in (run / "eval").glob("chat-sft-spelling-*.json"):
        write_json(path, read_json(path) | {"weights": "of another model"})
    assert answers() == (3, 3), "what other weights did is reported of these"


def test_an_evaluation_under_way_tells_only_what_its_settings_ask_for(
    evaluated: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = evaluated
    evaluate(home)
    answer = eval_stages.evaluate_task

    def stopped(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_stages, "evaluate_task", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(home, "eval.max_new_tokens=8")
    printed = gather_run(home / "runs" / "x")
    names = [row["name"] for row in printed["metrics"]]
    assert "bits per byte" in names
    assert "spelling" not in names, "answers to other settings are reported as those of these"
    run_dir.write_config(home / "runs" / "x", make_config("eval.max_new_tokens=9"))
    assert "eval" not in gather_run(home / "runs" / "x")["stages"]
    assert not gather_run(home / "runs" / "x")["metrics"]
    monkeypatch.setattr(eval_stages, "evaluate_task", answer)
    evaluate(home)


def test_a_record_from_before_there_were_parts_makes_a_report(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    home, _ = evaluated
    evaluate(home)
    path = home / "runs" / "x" / "eval" / "done.json"
    done = read_json(path)
    old = {
        model: {key: record[key] for key in ("bits_per_byte", "tasks", "tools", "samples")}
        for model, record in done["results"]["models"].items()
    }
    done["results"]["models"] = old
    kept = path.read_text()
    path.write_text(json.dumps(done))
    printed = write_run(home / "runs" / "x")
    names = [row["name"] for row in printed["metrics"]]
    assert names == ["bits per byte", "spelling", "counting"]
    path.write_text(kept)
