"""A tiny ladder, really trained: killed and given again, it ends as one left alone."""

from __future__ import annotations

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

from jaxchat.cli.main import main
from jaxchat.config.derive import flops_per_token
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.runs import run_dir
from jaxchat.runs.ladder import climb
from jaxchat.runs.ladder.recipe import Recipe, freeze
from jaxchat.runs.runner import Context

SETTINGS = (
    "data.max_chars=200000", "data.words=50", "tokenizer.vocab_size=300", "model.sequence_len=64",
    "model.n_embd=32", "model.n_head=2", "model.n_kv_head=2", "base.batch_tokens=512",
    "base.steps=12", "base.save_every=2", "base.eval_every=100", "base.eval_rows=8",
    "mid.conversations=50", "sft.conversations=50",
)  # fmt: skip
ROOT = Path(__file__).parents[3]
SECONDS = 600


def arguments(home: Path, name: str, *more: str) -> list[str]:
    return ["ladder", "run", name, "--home", str(home), "--tier", "cpu", "--depths", "1,2",
            "--seeds", "0,1", *(f"--set={setting}" for setting in SETTINGS), *more]  # fmt: skip


def started(home: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxchat", *arguments(home, name)], cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": FAST_COMPILATION}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(home: Path, name: str) -> str:
    process = started(home, name)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return output


def stopped(home: Path, name: str, when: Path, number: int) -> tuple[int, str]:
    """Gives the command, and sends a signal as soon as a file is there; its exit and output."""
    process = started(home, name)
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and not when.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A home with the ladders `alone` and `killed`; what the second one's last two lives said."""
    home = tmp_path_factory.mktemp("home")
    finished(home, "alone")
    runs = home / "runs"
    code, _ = stopped(home, "killed", runs / "killed-d2-s0/base/checkpoints/4", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert (runs / "killed-d1-s0/base/done.json").exists()
    assert not (runs / "killed-d2-s0/base/done.json").exists()
    code, said = stopped(home, "killed", runs / "killed-d1-s1/base/checkpoints/2", signal.SIGINT)
    assert code == 130, said
    assert said.rstrip().endswith("Interrupted; give the same command again to resume.")
    return home, finished(home, "killed"), finished(home, "killed")


def records(home: Path, name: str) -> dict[str, dict[str, Any]]:
    """The rungs' records by depth and seed."""
    found = {}
    for path in (home / "ladders" / name / "rungs").iterdir():
        found[path.stem.removeprefix(f"{name}-")] = json.loads(path.read_text())
    return found


def test_a_killed_ladder_ends_with_the_bits_of_one_left_alone(
    homes: tuple[Path, str, str],
) -> None:
    alone, killed = (records(homes[0], name) for name in ("alone", "killed"))
    assert sorted(alone) == sorted(killed) == ["d1-s0", "d1-s1", "d2-s0", "d2-s1"]
    for rung, record in alone.items():
        for key in ("bits_per_byte", "weights", "tokens", "flops", "text", "passes"):
            assert killed[rung][key] == record[key], f"{key} of {rung}"
    assert len({record["weights"] for record in alone.values()}) == 4
    rows = json.loads((homes[0] / "runs" / "alone-d1-s0" / "rows" / "done.json").read_text())
    text = rows["results"]["base_train"]["tokens"]
    assert alone["d1-s0"]["passes"] == alone["d1-s0"]["tokens"] / text
    assert len({record["text"]["sha256"] for record in alone.values()}) == 1


def test_complete_rungs_are_skipped_and_the_others_are_counted(
    homes: tuple[Path, str, str],
) -> None:
    _, resumed, again = homes
    assert "[rung 1/4] killed-d1-s0: complete, skipped" in resumed
    assert "[rung 3/4] killed-d1-s1: depth 1, seed 1; about " in resumed
    assert "left in all" in resumed
    assert again.count("complete, skipped") == 4
    assert "base: compiling" not in again


def test_every_rung_is_an_ordinary_run(
    homes: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    home, *_ = homes
    assert main(["runs", "--home", str(home), "--json"]) == 0
    states = {state["name"]: state for state in json.loads(capsys.readouterr().out)}
    assert len(states) == 8
    assert states["alone-d2-s1"]["complete"] == ["data", "tokenizer", "rows", "base"]
    assert main(["watch", "alone-d2-s1", "--once", "--home", str(home)]) == 0
    record = records(home, "alone")["d2-s1"]
    config = run_dir.read_config(home / "runs" / "alone-d2-s1")
    assert (config.depth, config.seed) == (2, 1)
    assert record["tokens"] == 12 * 512
    assert record["flops"] == flops_per_token(config.model) * record["tokens"]


def test_text_is_made_once_and_shared_by_links(homes: tuple[Path, str, str]) -> None:
    home, *_ = homes
    runs = {name: home / "runs" / f"alone-{name}" for name in ("d1-s0", "d2-s0", "d1-s1")}
    places = {name: (run / "data/corpus/train.jsonl").stat() for name, run in runs.items()}
    assert len({place.st_ino for place in places.values()}) == 1
    shards = [next((run / "text").glob("*/*.npy")).stat().st_ino for run in runs.values()]
    assert shards[0] == shards[1] != shards[2], "another seed has another tokenizer"
    inputs = json.loads((runs["d1-s1"] / "data/inputs.json").read_text())
    assert "alone-d1-s1" in str(inputs["text"]), "a run can be used when the others are deleted"
    assert "alone-d1-s0" not in str(inputs["text"])


def test_bits_are_those_of_the_ordinary_command(
    homes: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    home, *_ = homes
    text = home / "ladders" / "alone" / "text" / "text.jsonl"
    command = ["eval", "bpb", "--home", str(home), "--run", "alone-d2-s0", "--text", str(text)]
    assert main(command) == 0
    record = records(home, "alone")["d2-s0"]
    out = capsys.readouterr().out
    assert f"{record['bits_per_byte']:.4f} bits per byte" in out
    assert f"over {record['text']['bytes']:,} bytes" in out
    assert main([*command, "--rows", "3"]) == 2
    (home / "empty.txt").write_text("")
    assert main([*command[:-1], str(home / "empty.txt")]) == 2
    assert "holds no text to measure" in capsys.readouterr().err


def test_two_ladders_are_compared_from_their_records_alone(
    homes: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    home, *_ = homes
    assert main(["ladder", "compare", "alone", "killed", "--home", str(home)]) == 0
    said = capsys.readouterr().out
    assert "No difference between killed and alone can be shown: multiplier 1.00" in said


def test_a_ladder_at_work_and_another_recipe_are_refused(
    homes: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    home, *_ = homes
    with run_dir.locked(home / "ladders" / "alone"):
        assert main(arguments(home, "alone")) == 1
    said = capsys.readouterr().err
    assert "works on the ladder in" in said
    assert "give this ladder another name" in said
    assert main([*arguments(home, "alone"), "--set", "base.steps=13"]) == 2
    assert "was begun with another recipe (base.steps 12, not 13)" in capsys.readouterr().err


def test_the_time_left_is_that_of_equal_depths_or_planned(
    homes: tuple[Path, str, str], tmp_path: Path
) -> None:
    home, *_ = homes
    recipe = Recipe("alone", "cpu", SETTINGS, (1, 2), (0, 1))
    assert climb.seconds_left(home / "ladders" / "alone", recipe.configs()) == 0
    more = Recipe("alone", "cpu", SETTINGS, (1, 2), (0, 1, 2))
    last = [records(home, "alone")[rung]["seconds"] for rung in ("d1-s1", "d2-s1")]
    left = climb.seconds_left(home / "ladders" / "alone", more.configs())
    assert left == pytest.approx(sum(last))
    assert climb.seconds_left(tmp_path, recipe.configs()) > 0, "as planned"


def test_a_file_of_the_users_is_copied_and_another_one_is_another_ladder(tmp_path: Path) -> None:
    file, place = tmp_path / "mine.txt", tmp_path / "ladders" / "l"
    file.write_text("Ein Text, zum Messen.\n")
    recipe = Recipe("l", "cpu", SETTINGS, (1, 2), (0, 1), text=str(file))
    freeze(tmp_path, recipe, climb._text_asked(place, recipe))
    file.write_text("Another one.\n")
    with pytest.raises(ConfigError, match="another held-out text"):
        freeze(tmp_path, recipe, climb._text_asked(place, recipe))
    context = Context(recipe.config(1, 0), tmp_path)
    assert "".join(climb._text(place, recipe, context)).strip() == "Ein Text, zum Messen."
    (place / "text" / "text.jsonl").write_text('{"text": "Another one."}\n')
    with pytest.raises(ArtifactError, match="is not what the ladder began with"):
        climb._text(place, recipe, context)
