"""The tier of $100, shortened, over a replica of the hub: every stage and every dataset."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hub_replica
import pytest
from compilation import FAST_COMPILATION
from hub_server import Fault, HubServer

from jaxchat.cli import main
from jaxchat.evals.scores import chatcore
from jaxchat.runs.opening import open_run
from jaxchat.runs.stages import BY_NAME
from jaxchat.tools.sandbox import levels
from jaxchat.train.metrics import read_metrics

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "run.depth": 2,
    "model.sequence_len": 64,
    "model.n_embd": 32,
    "model.n_head": 2,
    "model.n_kv_head": 2,
    "tokenizer.vocab_size": 512,
    "data.shards": 5,
    "rl.steps": 2,
    "rl.problems_per_step": 2,
    "rl.samples_per_problem": 2,
    "rl.max_new_tokens": 16,
    "rl.micro_rows": 4,
    "rl.eval_every": 2,
    "rl.eval_problems": 2,
    "rl.eval_samples": 2,
    "eval.generated_problems": 3,
    "eval.reward_problems": 2,
    "eval.text_tokens": 512,
    "eval.max_new_tokens": 16,
    "eval.slots": 4,
    "eval.reward_samples": 2,
    "rl.task": "gsm8k",
    "data.words": 50,
    "base.core_every": 2,
    "base.core_examples": 5,
    "mid.conversations": 300,
    "sft.conversations": 60,
    **{
        f"{stage}.{key}": value
        for stage in ("base", "mid", "sft")
        for key, value in {
            "steps": 4, "batch_tokens": 512, "micro_rows": 4, "eval_rows": 8, "save_every": 2,
        }.items()
    },
}  # fmt: skip


@pytest.fixture
def hub(replica: Path) -> Iterator[HubServer]:
    with hub_replica.served(replica) as server:
        yield server


def start(home: Path, hub: HubServer, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    there = {
        "eval.bundle_url": hub_replica.bundle_url(hub),
        "eval.vocabularies_url": f"{hub.url}/plain",
    }
    changes = [f"--set={key}={value}" for key, value in (SMALL | there | settings).items()]
    return subprocess.Popen(
        [sys.executable, ROOT / "run_speedrun.py", "--tier=100", "--home", home, *changes,
         *arguments],
        env=os.environ | {"HF_ENDPOINT": hub.url, "XLA_FLAGS": FAST_COMPILATION},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def results(home: Path, stage: str) -> dict[str, object]:
    done: dict[str, dict[str, object]] = json.loads(
        (home / "runs" / "100" / stage / "done.json").read_text()
    )
    return done["results"]


def check_core(home: Path, out: str) -> None:
    """CORE while base trained, of base at the end, in the report and on the terminal."""
    logged = read_metrics(home / "runs" / "100" / "base" / "metrics.jsonl")
    (meanwhile,) = [record for record in logged if "core" in record]
    assert meanwhile["step"] + 1 == 2
    models = results(home, "eval")["models"]
    assert isinstance(models, dict)
    assert [name for name, record in models.items() if "core" in record] == ["base"]
    name = "CORE of 4 of 22 tasks, not comparable"
    assert models["base"]["core"]["name"] == name
    assert name in out
    printed = (home / "runs" / "100" / "report.md").read_text()
    assert f"### CORE of base: {name}" in printed
    assert re.search(r"\| copying +\|", printed)
    assert (home / "eval_bundle.json").exists()


def check_report(run: Path) -> None:
    """Whole tasks by stage, both means of them, and both splits of the text."""
    report = json.loads((run / "report.json").read_text())
    rows = {row["name"]: row["values"] for row in report["metrics"]}
    totals = {"arc_easy": 20, "arc_challenge": 20, "mmlu": 60, "gsm8k": 20, "counting": 3}
    sandboxed = levels.detect().name != "none"
    totals |= {"humaneval": 1} if sandboxed else {}
    for name, total in totals.items():
        printed = {model: value["total"] for model, value in rows[name].items()}
        assert printed == dict.fromkeys(("mid", "sft", "rl"), total), name
    assert list(rows["bits per byte"]) == ["base", "mid", "sft", "rl"]
    assert rows["bits per byte, train"]["base"]["total"] == 512
    assert {value["total"] for value in rows["mean reward"].values()} == {4}
    if sandboxed:
        assert list(rows["ChatCORE"]) == list(rows["ChatCORE + counting"]) == ["mid", "sft", "rl"]
        accuracies = {name: rows[name]["sft"]["value"] for name in totals}
        assert rows["ChatCORE"]["sft"]["value"] == chatcore(accuracies)
    text = (run / "report.md").read_text()
    for name in rows:
        assert f"| {name} " in text


def test_every_stage_runs_on_every_dataset_and_again_without_a_network(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(tmp_path, hub)
    out, printed = process.communicate()
    assert process.returncode == 0, printed
    assert "The report:" in out
    check_core(tmp_path, out)
    assert "tokenizers are not compared with GPT-2's and GPT-4's" in out, "the network was used"
    assert out.endswith("This is the model of rl; --stage sft or mid talks to another.\n")
    mid, sft = results(tmp_path, "rows")["mid_train"], results(tmp_path, "rows")["sft_train"]
    assert isinstance(mid, dict)
    assert isinstance(sft, dict)
    # all of SmolTalk (120), MMLU and GSM8K (60 each); of generated problems what 300 gives
    assert mid["conversations"] == 120 + 60 + 60 + 300
    # ARC twice and GSM8K, 2.2% of SmolTalk, 60 generated
    assert sft["conversations"] == 60 + 60 + 60 + round(120 * 0.021723) + 60
    named = json.loads((tmp_path / "runs" / "100" / "data" / "inputs.json").read_text())
    assert sorted(named["chat"]) == [
        "arc_challenge", "arc_easy", "gsm8k", "humaneval", "mmlu", "smoltalk",
    ]  # fmt: skip
    assert len(named["text"]) == 6

    check_report(tmp_path / "runs" / "100")
    complete = open_run(tmp_path / "runs" / "100").done
    assert list(complete) == list(BY_NAME), "the run's own configuration is another one"

    first = results(tmp_path, "base")["artifact"]
    asked = len(hub.asked)
    again = start(tmp_path, hub, "--offline", "--force=data", "--force=rows", "--force=base",
                  "--stages=data,tokenizer,rows,base")  # fmt: skip
    _, printed = again.communicate()
    assert again.returncode == 0, printed
    assert len(hub.asked) == asked, f"it asked for {hub.asked[asked:]}"
    assert results(tmp_path, "base")["artifact"] == first, "the same data gave other weights"
    (text,) = (tmp_path / "runs" / "100" / "text").glob("*/")
    before = {path: path.stat().st_mtime_ns for path in text.iterdir()}
    mixed = start(tmp_path, hub, "--offline", "--stages=data,tokenizer,rows",
                  **{"mid.epochs.smoltalk": 0.5})  # fmt: skip
    _, printed = mixed.communicate()
    assert mixed.returncode == 0, printed
    assert {path: path.stat().st_mtime_ns for path in text.iterdir()} == before, (
        "other conversations had the text tokenized again"
    )
    assert main.main(["data", "--home", str(tmp_path), "show", "gsm8k", "-n", "1"]) == 0
    assert "+ <|python_start|>" in capsys.readouterr().out


@pytest.fixture(scope="module")
def long_replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of more shards than a window of shuffling has."""
    folder = tmp_path_factory.mktemp("replica")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_replica, "SHARDS", 11)
        patch.setattr(hub_replica, "DOCUMENTS", 12)
        hub_replica.build(folder)
    return folder


@pytest.mark.slow
def test_training_begins_before_the_last_shard_is_there_and_survives_being_killed(
    long_replica: Path, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"data.shards": 11, "base.steps": 60, "tokenizer.max_chars": 1}
    only = "--stages=data,tokenizer,rows,base"
    with hub_replica.served(long_replica) as hub:
        process = start(tmp_path / "whole", hub, only, **settings)
        _, printed = process.communicate()
        assert process.returncode == 0, printed
    want = results(tmp_path / "whole", "base")["artifact"]

    home = tmp_path / "killed"
    run = home / "runs" / "100"
    with hub_replica.served(long_replica) as hub:
        hub.fail("shard_00010.parquet", *[Fault(stall=True, cut=100)] * 20)
        process = start(home, hub, only, **settings)
        log = run / "base" / "metrics.jsonl"
        began = time.monotonic()
        while not (log.exists() and log.read_text().count('"loss"') >= 3):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < began + 300, "training waits for all shards"
            time.sleep(0.05)
        there = {path.name for path in run.glob("text/*/shard_*.json")}
        assert there, "nothing has been prepared"
        assert "shard_00010.json" not in there
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hub_replica.served(long_replica) as hub:
        process = start(home, hub, only, **settings)
        _, printed = process.communicate()
        assert process.returncode == 0, printed
    assert results(home, "base")["artifact"] == want, "other weights than left alone"
