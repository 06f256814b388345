"""`jaxchat doctor --compile` and `--plan --compile`: which programs, and what is said of them.

What is compiled is tested in tests/train/compiled; here a program stands for each.
"""

import importlib.util
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from jaxchat.cli import doctor
from jaxchat.cli.main import main
from jaxchat.config import loading
from jaxchat.config.derive import flops_per_token
from jaxchat.errors import ConfigError
from jaxchat.runs.doctor import compiled, compiled_text
from jaxchat.runs.plan import compiled as plan_compiled
from jaxchat.runs.plan import show
from jaxchat.train.compiled.counts import ELEMENTWISE, PRODUCT, Collective, Counts, Kernel
from jaxchat.train.compiled.engine import EngineShape
from jaxchat.train.compiled.program import Program, StepShape
from jaxchat.train.compiled.targets import TARGETS
from jaxchat.train.profiling.hlo import Instruction

SPEEDRUN = Path(__file__).parents[2] / "run_speedrun.py"
TIER = loading.find_tier("100")
H100 = TARGETS["h100"]
# The keys that the base step alone had
KEYS = {
    "format", "tier", "stage", "kind", "devices", "fits", "usable_bytes", "memory_bytes",
    "argument_bytes", "temporary_bytes", "predicted_bytes", "compile_seconds", "counts", "ceilings",
    "seconds", "mfu",
}  # fmt: skip


def small_kernel(kind: str, flops: int, fine: int, times: int) -> Kernel:
    return Kernel(Instruction("k", "fusion", (), (), ""), kind, "rest", times, flops, fine, fine)


def program_of(memory: int = 60_000_000_000, **held: int) -> Program:
    counts = Counts(
        products=429, product_flops=int(189e12), fp8_products=0, fp8_flops=0, recomputed=2,
        recomputed_flops=int(1e12), attention_calls=40, attention_flops=int(24e12),
        attention_bytes=int(40e9), naive=int(290e9), fine=int(240e9), kernels=769, tanh=0,
        parts={"loss": (84, int(27e9)), "relu^2": (80, int(68e9))},
        collectives=(
            Collective("all-gather-start.1", 10**9, 1, 3, int(716e9), 0),
            Collective("all-gather-start", 10**9, 1, 0, 0, 0),
            Collective("psum.3", 4, 1, 0, 0, 0),
        ),
        launches=1_238, naive_parts={"loss": int(36e9), "relu^2": int(68e9)},
    )  # fmt: skip
    small = (small_kernel(PRODUCT, 0, 3_300_000, 800), small_kernel(ELEMENTWISE, 0, 1_000, 2_400))
    return Program(counts, memory // 3, memory - memory // 3, 42.0, small, held)


@pytest.fixture
def compiling(monkeypatch):
    """Stands for the compiler; returns what it was asked for."""
    asked = []

    def step(config, target, stage, *, tokens, beside=None):
        asked.append((stage, tokens, beside))
        program = program_of(parameters=10**9, optimizer=10**9, batch=10**6)
        return replace(program, beside=replace(program, seconds=30.0) if beside else None)

    def engine(config, target, shape):
        asked.append(shape)
        return program_of(memory=3_000_000_000, parameters=1_100_000_000, batch=500)

    monkeypatch.setattr(compiled, "compile_step", step)
    monkeypatch.setattr(compiled, "compile_prefill", engine)
    monkeypatch.setattr(compiled, "compile_decode", engine)
    for module in (doctor, show):
        monkeypatch.setattr(module, "configure_compiling", lambda mesh: None)
    return asked


def works_of(tier, *settings, wanted=()):
    config = compiled.settled(loading.load(loading.find_tier(tier), settings), H100)
    return [(work.what, work.stages, work.shape) for work in compiled.plan_works(config, wanted)]


def test_a_program_that_several_stages_run_is_compiled_once():
    rollouts = EngineShape(slots=64, positions=512, prompt=128, truncate=True)
    answers = EngineShape(slots=64, positions=1_024, prompt=128)
    assert works_of("100") == [
        ("step", ("base", "mid"), StepShape(1, 256, 2_048, shards=8)),
        ("step", ("sft",), StepShape(1, 8, 2_048, shards=8)),
        ("step", ("rl",), StepShape(1, 256, 512, shards=8, advantages=True)),
        ("prefill", ("rl", "eval", "chat"), rollouts),
        ("decode", ("rl",), rollouts),
        ("decode", ("eval",), answers),
        ("decode", ("chat",), replace(answers, slots=1)),
    ]
    alike = works_of("100", "rl.top_k=0", "eval.max_new_tokens=256", wanted=("rl", "eval"))
    assert alike[-1] == ("decode", ("rl", "eval"), replace(rollouts, truncate=False))


def test_a_decay_is_work_and_a_schedule_is_none():
    """Later stages of modern have base's batch, but no decay of the matrices."""
    steps = [stages for what, stages, _ in works_of("gpt2") if what == "step"]
    assert steps == [("base",), ("mid", "sft"), ("rl",)]


def test_what_a_run_leaves_out_is_not_compiled():
    without = works_of("100", "rl.steps=0")
    assert [stages for _, stages, _ in without] == [
        ("base", "mid"), ("sft",), ("eval", "chat"), ("eval",), ("chat",),
    ]  # fmt: skip
    assert [stages for _, stages, _ in works_of("100", wanted=("mid", "chat"))] == [
        ("mid",), ("chat",), ("chat",),
    ]  # fmt: skip


def test_rows_that_suit_the_device_are_numbers_before_anything_is_compiled():
    auto = [f'{stage}.micro_rows="auto"' for stage in ("base", "mid", "sft", "rl")]
    shapes = {stages[0]: shape for what, stages, shape in works_of("1000", *auto) if what == "step"}
    assert shapes["base"].device_rows in (8, 16)
    assert shapes["rl"].device_rows >= 1
    assert shapes["rl"].accumulation * shapes["rl"].rows >= 256


def test_the_json_of_base_keeps_its_keys_and_has_every_program(compiling, capsys):
    assert main(["doctor", "--tier", "100", "--compile", "h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= KEYS
    assert (found["stage"], found["stages"]) == ("base", ["base", "mid"])
    assert found["predicted_bytes"].keys() >= {"parameters", "optimizer", "activations", "peak"}
    assert found["seconds"].keys() == {"products", "attention", "elementwise", "step"}
    assert found["beside"]["compile_seconds"] == 30
    assert found["all_fit"]
    assert [one["program"] for one in found["programs"]] == [
        "step", "step", "step", "prefill", "decode", "decode", "decode",
    ]  # fmt: skip
    assert all(one.keys() >= KEYS for one in found["programs"])
    rl, decode = found["programs"][2], found["programs"][4]
    assert rl["other_bytes"] > 2 * 560_988_160, "the engine's weights, and its cache"
    assert decode["kernels_a_step"] == 1_238 / 8
    assert decode["seconds"]["step"] == pytest.approx(3_200 * 4.9e-6 / 8)
    assert [beside for *_, beside in compiling[:3]] == [compiled.LIBRARY_PRODUCTS, None, None]


def test_the_table_says_what_is_in_each_program(compiling, capsys):
    assert main(["doctor", "--tier", "100", "--compile", "h100"]) == 0
    out, progress = capsys.readouterr()
    assert progress.splitlines()[0] == "compiling 1 of 7: step of base, mid ..."
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("Tier 100 on 8 x NVIDIA H100 80GB HBM3: all fits; compiled in ")
    assert any(line.startswith("step of 32 x 2,048 base, mid 60.0 GB 67") for line in lines)
    assert "recomputed to save memory 2 1 TFLOP" in lines
    assert "all-gather 2 2.0 GB 3 kernels, 1.0 ms 1" in lines
    assert "loss 84 27.0 GB 36.0 GB" in lines
    assert "XLA's two forms default xla_gpu_enable_triton_gemm=false" in lines
    assert "Decode of 64 x 512, in rl" in lines
    assert any("tokens a second" in line for line in lines)
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_program_that_does_not_fit_is_named_and_is_a_failure(compiling, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "compile_step", lambda *_, **__: program_of(90 * 10**9))
    assert main(["doctor", "--tier", "100", "--compile", "h100", "--stages", "sft,chat"]) == 1
    assert "does NOT fit: step of 1 x 2,048; compiled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stages", "tokenizer"), "nothing of 'tokenizer' is compiled; choose among base, mid,"),
        (("--stages", "rl", "--set", "rl.steps=0"), "the tier 100 has no program of rl"),
    ],
)
def test_stages_without_a_program_are_a_usage_error(compiling, capsys, arguments, said):
    assert main(["doctor", "--tier", "100", "--compile", "h100", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the wheels are here"
)
def test_without_the_wheels_it_is_one_sentence_that_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "configure_compiling", lambda mesh: None)
    assert main(["doctor", "--tier", "100", "--compile", "h100"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "compiling for NVIDIA H100 80GB HBM3 needs wheels that are not installed" in said
    assert 'pip install "jaxchat[aot]"' in said


def test_a_tpus_time_is_said_to_be_not_validated_and_only_its_base_step_is_compiled(compiling):
    config = loading.load(TIER)
    (found,) = compiled.compile_all(config, "100", "v6e-8", both_forms=True)
    assert found.time
    assert compiling == [("base", 2_048, None)]
    assert "A step's time is NOT validated" in compiled_text.render([found])


def test_flops_of_short_rows_are_those_of_what_they_see():
    model = loading.load(TIER).model
    whole = compiled.Work("step", ("base",), StepShape(2, 4, 2_048))
    assert compiled.model_flops(model, whole) == 2 * 4 * 2_048 * flops_per_token(model)
    short = compiled.Work("step", ("rl",), StepShape(1, 1, 512, advantages=True))
    rows = replace(model, sequence_len=512)  # without windows
    assert compiled.model_flops(model, short) == 512 * flops_per_token(rows)
    decode = compiled.Work("decode", ("chat",), EngineShape(4, 512, 64))
    assert compiled.model_flops(model, decode) == pytest.approx(4 * flops_per_token(rows) / 3)


# ---------------------------------------------------------------------------- the plan


def run_plan(*arguments: str) -> int:
    return int(runpy.run_path(str(SPEEDRUN))["main"](["--tier", "100", *arguments]))


def test_a_plan_has_the_time_and_cost_of_what_was_compiled(compiling, capsys):
    assert run_plan("--compile", "h100") == 0
    out = capsys.readouterr().out
    assert out.startswith("100: 560,988,160 parameters")
    text = out[out.index("Compiled  Tier 100") :]
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["base"][1:4] == ["21,400", "408.8", "ms"]
    assert lines["total"][-1].startswith("$")
    assert "Training, by what was compiled" in text
    assert all(beside is None for *_, beside in compiling[:3]), "a plan asks for one form"


def test_a_plan_as_json_has_what_was_compiled(compiling, capsys):
    assert run_plan("--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["format"] == "jaxchat-plan-1"
    assert plain["memory"]["fits"]
    assert "compiled" not in plain
    assert run_plan("--plan", "--json", "--compile", "h100", "--stages", "data,base,rl") == 0
    found = json.loads(capsys.readouterr().out)
    facts = found.pop("compiled")
    assert found == plain
    base, rl = facts["training"]
    assert [one["stages"] for one in facts["programs"]] == [["base"], ["rl"], ["rl"], ["rl"]]
    assert base["seconds"] == pytest.approx(21_400 * facts["programs"][0]["seconds"]["step"])
    assert base["dollars"] == pytest.approx(24 * base["seconds"] / 3600)
    prefill, decode = (facts["programs"][n]["seconds"]["step"] for n in (2, 3))
    assert rl["sampling"] == pytest.approx(2 * prefill + 256 * decode), "2 prompts a device"


def test_the_price_of_another_card_is_not_known(compiling):
    config = loading.load(TIER)
    _, times = plan_compiled.compile_plan(config, "100", "h200", ["base"])
    assert [one.dollars for one in times] == [0]
    assert times[0].seconds > 0


def test_an_unknown_stage_is_refused_before_anything_is_compiled(compiling):
    with pytest.raises(ConfigError, match="nothing of 'bse'"):
        compiled.compile_all(loading.load(TIER), "100", "h100", ["bse"])
    assert not compiling
