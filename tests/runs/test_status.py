"""The state of runs: how far they have come, and whether a process works on them."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from finished_run import finish_run, tiny_config, tiny_tokenizer
from ladder_records import write_ladder
from rich.console import Console

from jaxchat.cli.main import main
from jaxchat.errors import BusyError
from jaxchat.runs import run_dir, watch
from jaxchat.runs.report.curves import moving_mean
from jaxchat.runs.status import read_state, read_states


@pytest.fixture
def root(tmp_path):
    finish_run(tmp_path, tiny_config(), tiny_tokenizer())
    return tmp_path


def interrupt(run, records):
    """Makes it a run that stopped in its base stage."""
    for stage in ("base", "mid", "sft", "rl", "eval", "report"):
        (run / stage / "done.json").unlink()
    log(run, records)


def log(run, records, stage="base"):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run / stage / "metrics.jsonl").write_text(lines)


def training(steps, total):
    """Records as `fit` writes them, with one evaluation and two seconds a step."""
    records = [
        {"step": n, "steps": total, "time": 2.0 * n, "loss": 9.0 - 8 * n / steps}
        for n in range(steps)
    ]
    evaluated = {"step": steps - 1, "time": 2.0 * steps, "bits_per_byte": 2.5}
    return [{"step": 0, "time": 0.1, "bits_per_byte": 4.0}, *records, evaluated]


def shown(state, width=80):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(watch.view(state, width))
    return console.export_text()


def test_a_complete_run_is_complete(root):
    state = read_state(root / "runs" / "tiny")
    assert (state.name, state.state, state.stage) == ("tiny", "complete", "report")
    assert len(state.complete) == 9
    assert (state.step, state.last("loss"), state.seconds_left) == (0, None, None)


def test_a_run_that_stopped_tells_stage_step_loss_and_what_is_left(root):
    run = root / "runs" / "tiny"
    interrupt(run, training(40, 100))
    state = read_state(run)
    assert (state.state, state.stage, state.step, state.steps) == ("stopped", "base", 40, 100)
    assert state.last("loss") == pytest.approx(1.2)
    assert state.last("bits_per_byte") == 2.5
    assert state.seconds_left == pytest.approx(120, rel=0.05)
    assert abs(state.changed - time.time()) < 60


def test_a_rung_of_a_ladder_is_complete_with_its_base_model(root):
    write_ladder(root, "mine")
    run = (root / "runs" / "tiny").rename(root / "runs" / "other-d1-s0")
    for stage in ("mid", "sft", "rl", "eval", "report"):
        shutil.rmtree(run / stage, ignore_errors=True)
    assert (read_state(run).state, read_state(run).stage) == ("stopped", "mid"), "of no ladder"
    run = run.rename(root / "runs" / "mine-d1-s0")
    assert (read_state(run).state, read_state(run).stage) == ("complete", "base")
    (run / "mid").mkdir()
    assert (read_state(run).state, read_state(run).stage) == ("stopped", "mid"), "continued"
    (run / "mid").rmdir()
    (run / "base" / "done.json").unlink()
    assert (read_state(run).state, read_state(run).stage) == ("stopped", "base")


def test_what_is_measured_around_steps_is_no_step(root, capsys):
    """As RL logs: pass rates before the first step, and behind the last."""
    run, rates = root / "runs" / "tiny", {"pass@1": 0.2, "pass@4": 0.5}
    total = tiny_config().rl.steps
    steps = [{"step": n, "time": 2.0 * n, "reward": 0.1, "loss": 0.0} for n in range(total)]
    log(run, [{"step": 0, **rates}, *steps, {"step": total, **rates}], "rl")
    assert read_state(run).step == total
    assert main(["runs", "--home", str(root)]) == 0
    assert f" {total}/{total} (rl) " in capsys.readouterr().out
    log(run, [{"step": 0, **rates}], "rl")
    assert read_state(run).step == 0


def test_a_run_at_work_is_running_until_its_process_is_gone(root):
    run = root / "runs" / "tiny"
    hold = (
        "import sys, time, pathlib\nfrom jaxchat.runs import run_dir\n"
        "with run_dir.locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert read_state(run).state == "running"
        with pytest.raises(BusyError, match=f"number {process.pid}"), run_dir.locked(run):
            pass
        process.kill()
    assert read_state(run).state == "complete"
    with run_dir.locked(run):
        assert read_state(run).state == "running"


def test_looking_at_a_run_does_not_block_work_on_it(root):
    run = root / "runs" / "tiny"
    look = (
        "import sys, pathlib\nfrom jaxchat.runs import run_dir\nprint('looks', flush=True)\n"
        "while True:\n    run_dir.is_busy(pathlib.Path(sys.argv[1]))\n"
    )
    with run_dir.locked(run):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", look, str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20):
            with run_dir.locked(run):
                pass
        process.kill()


def test_runs_are_listed_newest_first_and_a_bad_one_is_named(root, capsys):
    other = root / "runs" / "other"
    other.mkdir()
    run_dir.write_config(other, tiny_config())
    old = time.time() - 7200
    for file in (root / "runs" / "tiny").rglob("*"):
        os.utime(file, (old, old))
    states, wrong = read_states(root)
    assert ([state.name for state in states], wrong) == (["other", "tiny"], [])
    assert main(["runs", "--home", str(root)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "state", "stage", "step", "loss", "bits/byte", "reward", "age"]
    assert rows[1][:3] == ["other", "stopped", "data"]
    assert rows[2][:3] == ["tiny", "complete", "report"]
    assert rows[2][-1] == "2h00m"
    (other / "config.json").write_text("{}")
    assert main(["runs", "--home", str(root), "--json"]) == 1
    captured = capsys.readouterr()
    assert [run["name"] for run in json.loads(captured.out)] == ["tiny"]
    assert "other/config.json cannot be used" in captured.err


def test_no_runs_say_how_to_make_one(tmp_path, capsys):
    assert main(["runs", "--home", str(tmp_path)]) == 0
    assert "run_speedrun.py --tier cpu" in capsys.readouterr().out


def test_the_view_has_stages_curves_and_numbers(root):
    run = root / "runs" / "tiny"
    interrupt(run, training(40, 100))
    text = shown(read_state(run))
    assert "tiny  stopped" in text
    assert "✓ rows  ▸ base  · mid" in text
    assert "training loss" in text
    assert "bits per byte, held out" in text
    assert "step 40/100  loss 1.200  bits per byte 2.500" in text
    assert max(map(len, text.splitlines())) <= 80


def test_where_a_stage_trains_nothing_the_last_that_did_is_shown(root, capsys):
    """Else a run that is evaluated, or complete, would have no curve and no loss."""
    run = root / "runs" / "tiny"
    log(run, training(40, 40), "mid")
    for stage in ("eval", "report"):
        (run / stage / "done.json").unlink()
    with run_dir.locked(run):
        state = read_state(run)
        text = shown(state)
    assert (state.stage, state.logged, state.seconds_left) == ("eval", "mid", None)
    assert "mid: training loss" in text
    assert "mid: bits per byte, held out" in text
    assert "step 40/40 (mid)  loss 1.200  bits per byte 2.500  last written" in text
    assert main(["runs", "--home", str(root)]) == 0
    row = capsys.readouterr().out.split()
    assert row[-7:-1] == ["eval", "40/40", "(mid)", "1.200", "2.500", "-"]
    # what a stage before left says nothing of one that has only begun to train
    (run / "rl" / "done.json").unlink()
    state = read_state(run)
    assert (state.stage, state.logged, state.records) == ("rl", "rl", [])


def test_a_stage_at_work_has_rate_time_left_and_gpus(root, tmp_path, monkeypatch):
    run = root / "runs" / "tiny"
    interrupt(run, training(40, 100))
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H100 80GB HBM3, 61024, 81559, 97'\necho broken\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    with run_dir.locked(run):
        text = shown(read_state(run), 120)
    assert "0.488 steps/s  2m03s left of this stage" in text
    assert text.splitlines()[-1] == "GPU 0 NVIDIA H100 80GB HBM3: 61024 of 81559 MiB, 97% busy"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert watch.gpu_memory() == []


def test_watching_is_live_until_the_run_stops(root, monkeypatch):
    """Between two looks the run continues, and then its process ends."""
    run = root / "runs" / "tiny"
    interrupt(run, training(40, 100))
    terminal = Console(force_terminal=True, width=100, height=40, file=io.StringIO())
    monkeypatch.setattr("rich.console.Console", lambda: terminal)
    held = contextlib.ExitStack()
    held.enter_context(run_dir.locked(run))
    happens = iter([lambda: log(run, training(60, 100)), held.close])
    watch.watch(run, interval=0.5, once=False, sleep=lambda seconds: next(happens)())
    printed = terminal.file.getvalue()
    assert next(happens, None) is None
    assert printed.index("step 40/100") < printed.index("step 60/100") < printed.index("stopped")


def test_watching_once_prints_the_view_and_a_missing_run_is_named(root, capsys):
    assert main(["watch", "--home", str(root), "--once"]) == 0
    assert "tiny  complete" in capsys.readouterr().out
    assert main(["watch", "other", "--home", str(root)]) == 1
    assert "no run 'other'" in capsys.readouterr().err


def test_a_smoothed_point_is_the_mean_of_the_last_ones():
    assert moving_mean([4.0, 2.0, 0.0], 2) == [4.0, 3.0, 1.0]
    assert moving_mean([4.0, 2.0, 0.0], 1) == [4.0, 2.0, 0.0]


def test_a_clock_that_was_put_back_makes_no_age_negative(root, capsys):
    """What was written before has dates in the future."""
    interrupt(root / "runs" / "tiny", training(40, 100))
    ahead = time.time() + 86_400
    for file in (root / "runs" / "tiny").rglob("*"):
        os.utime(file, (ahead, ahead))
    assert main(["runs", "--home", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["age_seconds"] == 0
    assert main(["runs", "--home", str(root)]) == 0
    assert capsys.readouterr().out.split()[-1] == "0s"
    assert "last written 0s ago" in shown(read_state(root / "runs" / "tiny"))
