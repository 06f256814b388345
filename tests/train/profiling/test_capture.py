"""Steps are recorded while they train, and read again: real traces of this machine."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxchat.cli.main import main
from jaxchat.config.derive import flops_per_token
from jaxchat.config.schema import MeshConfig, ModelConfig, OptimConfig
from jaxchat.errors import ArtifactError
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.train.profiling.capture import Capture, recorded
from jaxchat.train.profiling.request import parse
from jaxchat.train.profiling.summary import Profile, read_profile, render, to_json
from jaxchat.train.step import init_state, make_train_step

MODEL = ModelConfig(vocab_size=300, sequence_len=16, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
ROWS, T = 8, 16
COMPILATION = "/jax/core/compile/backend_compile_duration"


class Training:
    """A step over two devices, its state and its batches."""

    def __init__(self) -> None:
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:2])
        optimizer = make_optimizer(MODEL, OptimConfig(), 20)
        self.step = make_train_step(MODEL, optimizer, self.mesh)
        params = gpt.init_params(jax.random.key(0), MODEL)
        self.state: Any = init_state(params, optimizer, self.mesh)

    def run(self, capture: Capture | None, steps: range) -> list[float]:
        """The losses of these steps."""
        losses = []
        with recorded(self.step, capture, steps.start) as step:
            for number in steps:
                rng = np.random.default_rng(number)
                tokens = rng.integers(0, 300, (1, ROWS, T + 1)).astype(np.int32)
                batch = {"tokens": tokens, "mask": np.ones_like(tokens, np.float32)}
                self.state, metrics = step(self.state, put_batch(self.mesh, batch))
                losses.append(float(metrics["loss"]))
        return losses


@pytest.fixture(scope="module")
def compiled() -> Iterator[list[str]]:
    """The programs that were compiled, in order."""
    names: list[str] = []

    def note(event: str, seconds: float, **about: Any) -> None:
        if event == COMPILATION:
            names.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="module")
def training(compiled: list[str]) -> Training:
    with jax.numpy_dtype_promotion("standard"):
        return Training()


@pytest.fixture(scope="module")
def folder(
    training: Training, compiled: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Steps 3 and 4 of 6, recorded."""
    folder = tmp_path_factory.mktemp("run") / "profile" / "base"
    compiled.clear()
    with jax.numpy_dtype_promotion("standard"):
        training.run(Capture(parse("3:5"), "base", folder, MODEL), range(1, 6))
    return folder


@pytest.fixture(scope="module")
def profile(folder: Path) -> Profile:
    return read_profile(folder)


def test_the_step_is_compiled_once(folder: Path, compiled: list[str]) -> None:
    assert (folder / "step.hlo.txt").exists()
    assert [name for name in compiled if "step" in name] == ["jit(step)"]


def test_a_profile_is_whole(folder: Path) -> None:
    assert not list(folder.parent.glob(".*")), "temporary folders are left"
    names = {path.name.split(".", 1)[-1] for path in folder.rglob("*") if path.is_file()}
    assert {"xplane.pb", "hlo.txt", "json"} <= names
    assert list(folder.rglob("perfetto_trace.json.gz"))
    assert (folder / "step.hlo.txt").read_text().startswith("HloModule jit_step")
    facts = json.loads((folder / "profile.json").read_text())
    assert facts["step_tokens"] == ROWS * T
    assert facts["flops_per_token"] == flops_per_token(MODEL)
    assert (facts["stage"], facts["start"], facts["stop"]) == ("base", 3, 5)


def test_the_time_of_the_recorded_steps_adds_up(profile: Profile) -> None:
    parts = profile.breakdown
    assert len(parts.steps) == 2, "steps 3 and 4, and no other"
    assert profile.devices == ("cpu:0", "cpu:1")
    given = sum(o.share for o in parts.operations)
    assert given + parts.within + parts.between == pytest.approx(parts.total)
    assert sum(parts.steps) <= parts.total
    assert {"matmul", "attention", "elementwise, sums", "lookups", "collectives"} <= set(
        parts.by_class()
    )


def test_the_products_of_the_model_are_all_there(profile: Profile) -> None:
    parts = profile.breakdown
    executed = {o.operation.source: 0 for o in parts.operations}
    for o in parts.operations:
        executed[o.operation.source] += o.operation.flops * o.count // 2
    linear = sum(flops for source, flops in executed.items() if "model/gpt.py" in source)
    # forward, and two products backward, of the four projections and the MLP; half the rows each
    assert linear == 3 * 2 * (12 * 32 * 32) * ROWS * T // 2
    head = sum(flops for source, flops in executed.items() if "model/loss.py" in source)
    assert head == 3 * 2 * (32 * 300) * ROWS * T // 2


def test_the_page_has_every_section(profile: Profile) -> None:
    page = render(profile, top=5)
    assert page.startswith("base, from step 3, 2 executions of jit_step on cpu:0 of 2\n")
    for phrase in ("128 tokens a step", "GFLOP/s", "host gaps", "gaps within steps", " others"):
        assert phrase in page or phrase.replace("G", "M") in page, page
    assert re.search(r"\d% .*jaxchat/\w+/\w+\.py:\d+\n", page), page  # a line of the source
    sources = {o.operation.source.partition(":")[0] for o in profile.breakdown.operations}
    assert {"jaxchat/model/gpt.py", "jaxchat/optim/muon.py", "jaxchat/model/loss.py"} <= sources
    assert len(page.split("\n\n")[-1].splitlines()) == 1 + 5 + 1


def test_the_command_prints_page_and_json(folder: Path, profile: Profile, capsys: Any) -> None:
    assert main(["profile", str(folder), "--device", "1"]) == 0
    assert "on cpu:1 of 2" in capsys.readouterr().out
    assert main(["profile", str(folder), "--json", "--top", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == to_json(profile, 3)
    assert len(printed["operations"]) == 3
    assert main(["profile", str(folder), "--device", "2"]) == 1
    assert "cpu:0, cpu:1); there is no number 2" in capsys.readouterr().err


def test_a_trace_without_hlo_is_read_by_names(folder: Path, tmp_path: Path) -> None:
    trace = next(folder.rglob("*.xplane.pb"))
    (tmp_path / trace.name).write_bytes(trace.read_bytes())
    profile = read_profile(tmp_path)
    assert len(profile.breakdown.steps) == 2
    assert "classes are guessed from names" in render(profile)
    (tmp_path / "step.hlo.txt").write_text("half a fi")
    with pytest.raises(ArtifactError, match=r"step\.hlo\.txt: this is no HLO text.*record"):
        read_profile(tmp_path)


@pytest.mark.usefixtures("optax_promotion")
def test_a_recording_changes_nothing(tmp_path: Path) -> None:
    plain, watched = Training(), Training()
    capture = Capture(parse("1:3"), "mid", tmp_path / "profile", MODEL)
    assert watched.run(capture, range(4)) == plain.run(None, range(4))


@pytest.mark.usefixtures("optax_promotion")
def test_steps_recorded_on_a_gpu_have_a_program_of_their_own(
    compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options of a GPU, which a CPU's compiler takes too."""
    plain, watched = Training(), Training()
    expected = plain.run(None, range(5))
    monkeypatch.setitem(BACKENDS, "cpu", replace(BACKENDS["cpu"], traced=BACKENDS["gpu"].traced))
    assert BACKENDS["gpu"].traced == (("xla_gpu_enable_command_buffer", ""),)
    watched.run(None, range(1))
    compiled.clear()
    capture = Capture(parse("2:4"), "base", tmp_path / "profile", MODEL)
    assert watched.run(capture, range(1, 5)) == expected[1:]
    # once, for both recorded steps; the others find the program of before
    assert [name for name in compiled if "step" in name] == ["jit(step)"]
    assert len(read_profile(capture.folder).breakdown.steps) == 2


@pytest.mark.usefixtures("optax_promotion")
def test_other_processes_run_the_program_and_record_nothing(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(BACKENDS, "cpu", replace(BACKENDS["cpu"], traced=BACKENDS["gpu"].traced))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    capture = Capture(parse("1:2"), "base", tmp_path / "profile", MODEL)
    with recorded(training.step, capture, 0) as step:
        assert step is not training.step
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("optax_promotion")
def test_a_recording_cut_short_leaves_nothing_and_can_be_repeated(
    training: Training, tmp_path: Path, capsys: Any
) -> None:
    capture = Capture(parse("2:9"), "sft", tmp_path / "profile" / "sft", MODEL)
    training.run(capture, range(1, 5))
    assert not list((tmp_path / "profile").iterdir())
    assert capsys.readouterr().out == (
        "no profile of sft: it was to record steps 2 to 8, and this process did not make them "
        "all (it stands at step 5).\n"
    )
    training.run(Capture(parse("5:6"), "sft", capture.folder, MODEL), range(5, 7))
    assert "profile of sft, steps 5: " in capsys.readouterr().out
    assert (capture.folder / "profile.json").exists()


@pytest.mark.usefixtures("optax_promotion")
def test_steps_that_are_past_are_not_recorded(
    training: Training, tmp_path: Path, capsys: Any
) -> None:
    training.run(Capture(parse("1:3"), "rl", tmp_path / "rl", MODEL), range(2, 4))
    assert "did not make them all (it stands at step 4)" in capsys.readouterr().out
    assert not (tmp_path / "rl").exists()
