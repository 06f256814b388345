"""A run says which products XLA computes twice.

The program is a real one's, cut to some of its products: the step of a d2 for 8 H100s of 0.65 GB,
compiled by jax 0.12.0.1 without one. tests/train/compiled/test_wheels.py compiles the whole.
"""

from pathlib import Path

import jax
import pytest
from compilation import compilations
from tiny_training import CLASSIC, random_params, tiny_job

from jaxchat.checkpoints.save import hash_params
from jaxchat.model.backend import BACKENDS
from jaxchat.train import first_step
from jaxchat.train.loop import fit
from jaxchat.train.recomputed import recomputation

PROGRAM = Path(__file__).with_name("recomputed.hlo.txt").read_text(encoding="utf-8")


def test_it_says_how_many_and_what_to_do():
    """Of the four copies two only take the place of their originals."""
    said = recomputation("mid", PROGRAM, rows=32, accumulation=2)
    assert said.startswith("mid: for lack of memory XLA computes 2 of a step's 12 products twice, ")
    assert "--set mid.micro_rows=16 saves the memory for that, the same batch" in said
    assert "accumulated 2 times as often" in said
    assert "\n" not in said


def test_a_single_row_cannot_be_fewer():
    said = recomputation("sft", PROGRAM, rows=1, accumulation=8)
    assert said.endswith("; more devices with --set mesh.fsdp=N would save the memory for that.")


def test_of_a_program_without_them_nothing_is_said():
    assert recomputation("base", PROGRAM.replace("remat", "other"), 32, 1) == ""
    moved = PROGRAM.replace("gemm_fusion_dot.40 ", "gone.40 ").replace("_dot.34 ", "_gone.34 ")
    assert recomputation("base", moved, 32, 1) == "", "copies whose originals are gone"


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CPU's step is looked at as a GPU's is; returns the texts that were read."""
    texts = []

    def read(stage, text, rows, accumulation):
        texts.append(text)
        return recomputation(stage, text, rows, accumulation) or f"{stage}: {rows} x {accumulation}"

    monkeypatch.setattr(first_step, "backend", lambda platform: BACKENDS["gpu"])
    monkeypatch.setattr(first_step, "recomputation", read)
    return texts


@pytest.mark.usefixtures("optax_promotion")
def test_the_first_steps_program_is_read_once_and_compiled_once(
    tmp_path, capsys, monkeypatch, as_on_a_gpu
):
    with compilations() as compiled, monkeypatch.context() as on_a_cpu:
        on_a_cpu.setattr(first_step, "backend", lambda platform: BACKENDS["cpu"])
        plain, programs = fit(tiny_job(tmp_path / "plain"), random_params(CLASSIC)), compiled()
    assert not as_on_a_gpu, "on a CPU nothing is read"
    assert "test: 4 x" not in capsys.readouterr().out
    jax.clear_caches()
    with compilations() as compiled:
        read = fit(tiny_job(tmp_path / "read"), random_params(CLASSIC))
        assert compiled() == programs
    (text,) = as_on_a_gpu
    assert text.startswith("HloModule jit_step")
    assert "test: 4 x " in capsys.readouterr().out
    assert hash_params(read.params) == hash_params(plain.params)
