"""`run_speedrun.py` as several processes: they find each other, train as one, and end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import read_spec
from jaxchat.parallel.process_group import ProcessSpec
from jaxchat.runs import opening, run_dir, stages

ROOT = Path(__file__).resolve().parent.parent.parent
LOCAL = ROOT / "launch" / "local.py"
TOGETHER = Path(__file__).resolve().parent / "rl_together.py"
FIT_TOGETHER = TOGETHER.with_name("fit_together.py")
TRAINED = ("base", "mid", "sft", "rl")
TINY = [
    *("run.depth=2", "model.n_embd=32", "model.sequence_len=128", "tokenizer.vocab_size=400"),
    *("data.max_chars=400000", "data.words=300", "eval.problems=4", "eval.max_new_tokens=16"),
    *("eval.slots=8", "eval.reward_samples=2", 'eval.tasks=["arithmetic"]'),
    *("base.eval_rows=16", "mid.conversations=200", "mid.eval_rows=8"),
    *("sft.conversations=100", "sft.eval_rows=8"),
    *("rl.steps=2", "rl.problems_per_step=2", "rl.samples_per_problem=4", "rl.max_new_tokens=16"),
    *("rl.micro_rows=1", "rl.eval_every=0"),
    *(f"{stage}.steps=8" for stage in ("base", "mid", "sft")),
    *(f"{stage}.save_every=2" for stage in ("base", "mid", "sft")),
    *(f"{stage}.eval_every=4" for stage in ("base", "mid", "sft")),
    *(f"{stage}.batch_tokens=1024" for stage in ("base", "mid", "sft")),
    *(f"{stage}.micro_rows=1" for stage in ("base", "mid", "sft")),
]


def command(home: Path, devices: int, count: int, *more: str) -> list[str]:
    """The CPU tier, shrunk until it takes seconds, by `count` processes of `devices` devices."""
    settings = [*TINY, f"mesh.host_devices={devices}"]
    arguments = ["--tier", "cpu", "--home", str(home)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    start = [sys.executable, str(LOCAL), "-n", str(count), "--"]
    alone = [sys.executable, "run_speedrun.py"]
    return [*(start if count > 1 else alone), *arguments, *more]


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(child: subprocess.Popen[str], code: int = 0) -> str:
    out, _ = child.communicate(timeout=1200)
    assert child.returncode == code, out
    # Gloo's threads may write into each other's lines
    return re.sub(r"\[\d\] (.*(\[Gloo\]|peer ranks).*)?\n", "", out)


def weights(home: Path, stage: str) -> Any:
    run = home / "runs" / "cpu"
    return opening.load_model(run, stage, run_dir.read_config(run).model)


def figures(home: Path) -> dict[str, Any]:
    run = home / "runs" / "cpu"
    names = [stage.name for stage in stages.STAGES if (run / stage.name / "done.json").exists()]
    return {n: json.loads((run / n / "done.json").read_text())["results"] for n in names}


def test_two_processes_pretrain(tmp_path: Path) -> None:
    """What process 0 does alone it does once; the model is that of all their devices."""
    only = ("--stages", "data,tokenizer,rows,base")
    out = finish(start(tmp_path, 2, 2, *only, "--set", "base.steps=2"))
    assert "[0] base: 4 x cpu (data=4, fsdp=1, tensor=1);" in out
    assert "[4/9] base model: " in out
    assert "[1] " not in out, "process 1 prints, too"
    found = figures(tmp_path)["base"]
    assert found["steps"] == 2
    assert np.isfinite(found["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights(tmp_path, "base")))


def test_a_process_without_memory_leaves_no_other_waiting(tmp_path: Path) -> None:
    """Both take fewer rows, and come to the bits of a run that had them from the start."""
    both = [sys.executable, LOCAL, "-n", "2", "--script", FIT_TOGETHER, "--", tmp_path]
    out = subprocess.run(
        list(map(str, both)), check=True, timeout=600, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip
    assert out.count("it is tried again with 1") == 1
    found = [json.loads((tmp_path / f"result_{index}.json").read_text()) for index in range(2)]
    assert found[0] == found[1]
    assert found[0]["halved"] == found[0]["plain"]
    assert found[0]["halved"][0] == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"JAXCHAT_PROCESSES": "2", "JAXCHAT_PROCESS": "0"}, "JAXCHAT_COORDINATOR is ''"),
        ({"JAXCHAT_COORDINATOR": "node1"}, "JAXCHAT_COORDINATOR is 'node1'; it must be HOST:PORT"),
        ({"JAXCHAT_COORDINATOR": "a:99999"}, "JAXCHAT_COORDINATOR is 'a:99999'"),
        ({"JAXCHAT_COORDINATOR": "a:1", "JAXCHAT_PROCESS": "0"}, "JAXCHAT_PROCESSES is ''"),
        (
            {"JAXCHAT_COORDINATOR": "a:1", "JAXCHAT_PROCESSES": "2", "JAXCHAT_PROCESS": "2"},
            "JAXCHAT_PROCESS is '2'; it must be this process's number, 0 to 1",
        ),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        read_spec()
    assert said in str(raised.value)


def test_a_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_spec() is None
    monkeypatch.setenv("JAXCHAT_COORDINATOR", "[fe80::1]:7600")
    monkeypatch.setenv("JAXCHAT_PROCESSES", "3")
    monkeypatch.setenv("JAXCHAT_PROCESS", "2")
    assert read_spec() == ProcessSpec("fe80::1", 7600, 3, 2)
    monkeypatch.setenv("JAXCHAT_PROCESSES", "1")
    monkeypatch.setenv("JAXCHAT_PROCESS", "0")
    assert read_spec() is None


def one_by_one(homes: list[Path], *more: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit code and errors of processes that are started by hand, each with its own home."""
    sys.path.insert(0, str(LOCAL.parent))
    from local import environment, free_port

    sys.path.pop(0)
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "run_speedrun.py", "--tier", "cpu", "--home", str(home), *extra],
            cwd=ROOT, env=environment(index, len(homes), port, []), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for index, (home, extra) in enumerate(zip(homes, more, strict=True))
    ]  # fmt: skip
    ended = [child.communicate(timeout=600)[1] for child in children]
    return [(child.returncode, text) for child, text in zip(children, ended, strict=True)]


def test_processes_with_other_settings_are_refused(tmp_path: Path) -> None:
    ended = one_by_one([tmp_path, tmp_path], (), ("--set", "base.steps=3"))
    assert [code for code, _ in ended] == [2, 2]
    assert ended[0][1].startswith("jaxchat: process 1 was started with other settings")
    assert ended[1][1] == ""


@pytest.mark.slow
def test_processes_that_share_no_home_are_refused(tmp_path: Path) -> None:
    """Slow: a network file system is given a minute and a half to show a file."""
    ended = one_by_one([tmp_path / "a", tmp_path / "b"], (), ())
    assert [code for code, _ in ended] == [1, 1]
    assert "all of them need the same --home" in ended[0][1]


@pytest.mark.slow
def test_the_whole_recipe_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Killed on the way it comes to the same bits; one process with as many devices, to rounding.

    Reinforcement learning finds no signal at this size: see the next test.
    """
    whole, killed, alone = (tmp_path / name for name in ("whole", "killed", "alone"))
    finish(start(whole, 4, 2))
    kill_and_resume(killed)
    assert figures(killed) == figures(whole)
    finish(start(alone, 8, 1))
    for stage in TRAINED:

        def check(a: Any, b: Any, stage: str = stage) -> None:
            error = np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(np.asarray(b))
            assert error < 1e-4, f"{stage} is off by {error:.1e}"

        jax.tree.map(check, weights(whole, stage), weights(alone, stage))


def kill_and_resume(home: Path) -> None:
    """Kills process 1 in pretraining and process 0 in midtraining, each time to resume."""
    for number, stage in ((1, "base"), (0, "mid")):
        child = start(home, 4, 2)
        log = home / "runs" / "cpu" / stage / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("loss") >= 3):
            assert child.poll() is None, child.communicate()[0]
            time.sleep(0.01)
        os.kill(processes_of(child)[number], signal.SIGKILL)
        began = time.monotonic()
        out = finish(child, 128 + signal.SIGKILL)
        assert time.monotonic() - began < 60
        assert out.count("has ended, killed or with its machine") == 1
        assert "Traceback" not in out
    finish(start(home, 4, 2))


def processes_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The numbers of the processes that launch/local.py has started, in their order."""
    listed = subprocess.run(
        ["ps", "--ppid", str(launcher.pid), "-o", "pid="],
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(map(int, listed.stdout.split()))


@pytest.mark.slow
def test_reinforcement_learning_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """The same rollouts, whichever process sampled them, and the same weights, to rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    alone = [sys.executable, str(TOGETHER), str(one), "8"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(alone, check=True, timeout=1200, env=env)
    both = [sys.executable, str(LOCAL), "-n", "2", "--script", str(TOGETHER), "--", str(two), "4"]
    subprocess.run(both, check=True, timeout=1200, env=env)
    want = json.loads((one / "result_0.json").read_text())
    got = [json.loads((two / f"result_{index}.json").read_text()) for index in range(2)]
    assert got[0] == got[1]
    assert len(set(want["rewards"])) > 3, "nothing was learned"
    assert got[0]["rewards"] == want["rewards"]
    for a, b in zip(got[0]["log"], want["log"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
