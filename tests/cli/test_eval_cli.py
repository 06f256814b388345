"""`jaxchat eval`, on a model that was just made: what it prints, and what it does not do twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilation import FAST_COMPILATION

from jaxchat.cli import main

SMALL = [
    "data.max_chars=300000", "data.words=100", "tokenizer.vocab_size=400", "run.depth=2",
    "model.n_embd=32", "model.n_head=2", "model.n_kv_head=2", "model.sequence_len=128",
    "base.steps=2", "base.batch_tokens=1024", "base.eval_rows=8",
    "mid.steps=2", "mid.conversations=300", "mid.eval_rows=8", "mid.batch_tokens=1024",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run whose stages up to `mid` are complete."""
    home = tmp_path_factory.mktemp("home")
    script = Path(__file__).parent.parent.parent / "run_speedrun.py"
    done = subprocess.run(
        [sys.executable, script, "--tier=cpu", "--home", home, "--stages",
         "data,tokenizer,rows,base,mid", *(f"--set={change}" for change in SMALL)],
        env=os.environ | {"XLA_FLAGS": FAST_COMPILATION}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home


def test_what_is_finished_is_kept_and_printed_again(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--home", str(made), "chat", "-a", "spelling", "--max-problems", "3",
               "--max-tokens", "8", "--samples", "4", "--slots", "8"]  # fmt: skip
    assert main.main(command) == 0
    reported = capsys.readouterr().out
    assert reported.split("\n")[0].split() == [
        "task", "samples", "accuracy", "95%", "interval", "centred", "pass@2", "pass@4",
    ]  # fmt: skip
    assert reported.split("\n")[1].split()[:2] == ["spelling", "12"]
    assert main.main([*command[:3], "chat", "-i", "mid", "-a", "Spelling", *command[6:]]) == 0
    assert capsys.readouterr().out == reported, "its other spelling is another task"
    (kept,) = (made / "runs" / "cpu" / "eval").glob("chat-mid-spelling-*.json")
    before = kept.stat().st_mtime_ns
    assert main.main(command) == 0
    assert capsys.readouterr().out == reported
    assert kept.stat().st_mtime_ns == before, "it was done again"
    assert main.main([*command, "--temperature", "0.5"]) == 0
    assert kept.stat().st_mtime_ns == before, "other sampling took the first result's place"
    assert len(list(kept.parent.glob("chat-mid-spelling-*.json"))) == 2
    assert json.loads(kept.read_text())["result"]["total"] == 12
    for damaged in ("[]", "{}", "{"):
        kept.write_text(damaged)
        assert main.main(["report", "--home", str(made)]) == 0
        assert f"{kept} is left out of the report" in capsys.readouterr().out
        assert main.main(command) == 0
        assert capsys.readouterr().out == reported, "a damaged file is no loss"


def test_what_is_evaluated_by_hand_is_in_the_report_of_a_run_without_an_evaluation(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--home", str(made), "chat", "-a", "counting", "--max-problems", "2",
               "--max-tokens", "256", "--slots", "2"]  # fmt: skip
    assert main.main(command) == 0
    capsys.readouterr()
    assert main.main(["report", "--home", str(made)]) == 0
    out = capsys.readouterr().out
    assert "counting" in out, "what was measured by hand is not in the report"
    assert "Evaluation: not run yet" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["chat", "-a", "spellling"], 2, "there is no task 'spellling'; there are smoltalk, mmlu"),
        (["chat", "-a", "GSM8K"], 1, "gsm8k has not been downloaded; run: jaxchat data --home "),
        (["chat", "-a", "smoltalk"], 1, " download smoltalk"),
        (["chat", "--stage", "rl"], 1, "has no model rl (complete there: mid)"),
        (["chat", "--run", "other"], 1, "there is no run 'other'"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    made: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["eval", "--home", str(made), *arguments]) == code
    reported = capsys.readouterr().err.strip()
    assert said in reported
    assert "\n" not in reported
    assert "--offline" not in reported, "nobody gave it"


def test_samples_of_the_base_model_are_continuations(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["eval", "--home", str(made), "samples", "--stage", "base"]) == 0
    assert capsys.readouterr().out.startswith("prompt: Return the number of\ncompletion: ")
