"""Programs for H100s compiled by XLA's own compiler for them: needs the wheels of the extra `aot`.

Each test compiles in a process of its own, in which the CPU is one device and XLA optimizes as
usual. Without the wheels all are skipped, and say so.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("jax_cuda13_plugin", "nvidia.cudnn", "nvidia.cu13")


def _missing() -> list[str]:
    found = {}
    for name in NEEDED:
        try:
            found[name] = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found[name] = None
    return [name for name, spec in found.items() if spec is None]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_missing()), reason=f"the extra aot lacks {', '.join(_missing())}"),
]
ROOT = Path(__file__).parents[3]
SMALL = ("run.depth=2", "tokenizer.vocab_size=4096")
WIDE = (
    "run.depth=2", "tokenizer.vocab_size=8192", "model.n_embd=1280", "model.n_head=10",
    "model.n_kv_head=10",
)  # fmt: skip


def run(*command: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS",)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2_000:]
    return done.stdout


def doctor(*arguments: str, settings: tuple[str, ...]) -> Any:
    changed = [part for setting in settings for part in ("--set", setting)]
    command = ("-m", "jaxchat", "doctor", "--tier", "100", "--compile", "h100", "--json")
    return json.loads(run(*command, *arguments, *changed))


def test_a_step_for_eight_cards_has_cudnns_attention_and_fits_as_predicted() -> None:
    found = doctor("--stages", "base", settings=WIDE)
    counts = found["counts"]
    assert found["devices"] == 8
    assert counts["attention_calls"] == 4, "a layer's forward and backward"
    assert counts["recomputed"] == 0
    assert counts["fp8_products"] == 0
    assert any("reduce-scatter" in one["name"] for one in counts["collectives"])
    assert found["predicted_bytes"]["peak"] == pytest.approx(found["memory_bytes"], rel=0.07)
    assert sum(found["held_bytes"].values()) == found["argument_bytes"]
    beside = found["beside"]["counts"]
    assert beside["attention_calls"] == 4
    assert beside["product_flops"] == pytest.approx(counts["product_flops"], rel=0.01)
    assert beside["fine"] != counts["fine"], "the other form has other kernels"


def test_an_engine_has_cudnns_attention_for_prompts_and_a_count_of_kernels() -> None:
    prefill, decode = doctor("--stages", "chat", settings=SMALL)["programs"]
    assert prefill["counts"]["attention_calls"] == 1, "the last layer's output is not needed"
    assert 20 <= decode["kernels_a_step"] <= 120
    assert decode["counts"]["collectives"] == []
    assert decode["seconds"]["step"] >= decode["kernels_a_step"] * 4.9e-6


FP8 = """
from jaxchat.config import loading
from jaxchat.parallel.launch_env import configure_compiling
config = loading.load(loading.find_tier("100"), {settings})
configure_compiling(config.mesh)
from jaxchat.runs.doctor.compiled import compile_tier
counts = compile_tier(config, "100", "h100").program.counts
print(counts.fp8_products, counts.fp8_flops)
"""


def test_the_products_of_layers_and_the_logits_are_counted_in_fp8() -> None:
    products, flops = map(int, run("-c", FP8.format(settings=[*SMALL, "compute.fp8=true"])).split())
    tokens, layers, head = 32 * 2_048, 2 * 12 * 128**2, 128 * 4_096
    assert flops == tokens * (6 * layers + 2 * head), "all of layers, the logits of the head"
    assert products >= 2 * 6, "XLA joins small ones that share an operand"


SHORT = """
import dataclasses
import jaxchat.train.compiled.program as program
from jaxchat.config import loading
from jaxchat.parallel.launch_env import configure_compiling
from jaxchat.train.compiled.targets import TARGETS
from jaxchat.train.recomputed import recomputation
config = loading.load(loading.find_tier("100"), {settings})
configure_compiling(config.mesh)
texts, parse = [], program.parse
program.parse = lambda text: (texts.append(text), parse(text))[1]
small = dataclasses.replace(TARGETS["h100"], memory={memory})
program.compile_step(config, small)
print(recomputation("base", texts[0], 32, 1))
"""


def test_a_real_step_that_is_short_of_memory_is_said_to_compute_products_twice() -> None:
    said = run("-c", SHORT.format(settings=[*SMALL], memory=int(0.65e9)))
    assert said.startswith("base: for lack of memory XLA computes ")
    assert " products twice, " in said
    assert "--set base.micro_rows=16 saves the memory for that" in said
