"""The benchmarks' arithmetic and tables; that they run is in the slow tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxchat.config.machine import bf16_peak

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
SMALL = "--depth 1 --width 32 --seq-len 16 --vocab 300 --batch 128 --micro-rows 4 --steps 2".split()

# nanochat in miniature: what bench/nanochat_step.py asks of its checkout, without torch
PEER = """#!{python}
import json, sys
case = json.loads(sys.argv[3])
assert sys.argv[1].endswith("nanochat_step.py") and sys.argv[2] == "CHECKOUT", sys.argv
assert (case["rows"], case["micro"], case["dtype"]) == (8, 4, "float32"), case
print("compiling", file=sys.stderr)
print(json.dumps(dict(step_ms=4.0, tokens_per_second=32_000.0, model_flops=2e9,
                      compile_seconds=9.0, memory_bytes=1e9, loss=5.0)))
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The modules of bench/, which is no package."""
    sys.path.insert(0, str(ROOT / "bench"))
    import gpu_parts
    import gpu_table
    import measure
    import train_step

    modules = (gpu_parts, gpu_table, measure, train_step)
    yield {module.__name__: module for module in modules}
    sys.path.remove(str(ROOT / "bench"))


def figures(bench: Any, name: str, rate: float, **changes: Any) -> Any:
    values = {
        "step_ms": 4096e3 / rate, "tokens_per_second": rate, "model_flops": rate * 2e6,
        "compile_seconds": 10.0, "memory_bytes": 2e9, "peak_flops": 1e11, **changes,
    }  # fmt: skip
    return bench["measure"].Figures(name=name, **values)


def test_a_case_has_whole_micro_batches(bench: Any) -> None:
    case = bench["measure"].Case(4, batch=4096, seq_len=512, micro_rows=2)
    assert (case.rows, case.micro) == (8, 2)
    for batch, micro in ((4000, 2), (4096, 3), (256, 0)):
        with pytest.raises(ValueError, match=f"a batch of {batch} tokens is no whole number"):
            _ = bench["measure"].Case(4, batch=batch, seq_len=512, micro_rows=micro).rows


def test_the_width_is_the_depths_unless_it_is_given(bench: Any) -> None:
    case = bench["measure"].Case
    model = bench["measure"].run_config(case(4, width=256, seq_len=512, vocab=8192)).model
    assert (model.n_embd, model.n_head, model.head_dim, model.value_embeds) == (256, 2, 128, True)
    model = bench["measure"].run_config(case(20, preset="classic")).model
    assert (model.n_embd, model.n_head, model.value_embeds) == (1280, 10, False)


def test_the_table_has_both_and_the_ratio(bench: Any) -> None:
    case = bench["measure"].Case(4, width=256, seq_len=512, vocab=8192, batch=4096)
    found = [figures(bench, "jaxchat", 4096.0), figures(bench, "nanochat", 2048.0)]
    lines = bench["train_step"].render(case, found).splitlines()
    assert lines[0].startswith("d4 modern, width 256, T=512, V=8192, 4096 tokens a step")
    assert lines[1].split() == ["jaxchat", "nanochat", "ratio"]
    assert lines[2].split() == ["tokens/s", "4,096", "2,048", "2.00"]
    assert lines[5].split()[:4] == ["of", "a", "peak", "of"]
    assert lines[6].split() == ["MFU", "%", "8.2", "4.1", "2.00"]
    assert lines[-1].split() == ["by", "XLA's", "account", "-", "-"]
    reported = bench["train_step"].to_json(case, found)
    assert reported["ratio"] == 2.0
    assert reported["figures"]["jaxchat"]["mfu"] == pytest.approx(0.08192)


def test_the_table_of_a_gpu_keeps_what_failed(bench: Any) -> None:
    step = {"kind": "step", "name": "d20 plain", "device": "NVIDIA X", "before_ms": 453.0}
    good = {**figures(bench, "d20", 150_000.0, planned_bytes=48e9).to_json(), **step}
    compiled = {"kind": "compiled", "name": "d20 plain", "compile_seconds": 36.0, "recomputed": 6}
    bad = {**step, "name": "d20 32 rows", "failure": "out of memory"}
    note = {"kind": "note", "text": "decode: no time left"}
    lines = bench["gpu_table"].render([compiled, good, bad, note]).splitlines()
    assert lines[0] == "NVIDIA X"
    (row,) = (line.split() for line in lines if line.startswith("d20 plain"))
    assert row[:6] == ["d20", "plain", "27.3", "0.0", "453.0", "150,000"]
    assert row[7:10] == ["48.0", "10.0", "6"]
    assert "d20 32 rows: out of memory" in lines
    assert lines[-1] == "decode: no time left"


def test_the_table_says_whether_fp8_was_there(bench: Any) -> None:
    step = {"kind": "step", "device": "NVIDIA X", **figures(bench, "x", 150_000.0).to_json()}
    rows = [
        {**step, "name": "d20 fp8"},
        {"kind": "compiled", "name": "d20 fp8", "fp8_products": 360, "recomputed": 0},
    ]
    lines = bench["gpu_table"].render(rows).splitlines()
    (row,) = (line.split() for line in lines if line.startswith("d20 fp8"))
    assert row[-3:-1] == ["0", "360"]


def test_the_programs_of_a_gpu_are_the_most_important_first(bench: Any) -> None:
    names = list(bench["gpu_parts"].programs(smoke=False))
    assert names[0].startswith("tier 100")
    assert names[-1].startswith("d20 32 rows")
    for program in bench["gpu_parts"].programs(smoke=False).values():
        assert program.case.rows * 2_048 == 65_536
        assert bench["measure"].run_config(program.case).model.n_layer == program.case.depth
    assert all(p.case.depth == 1 for p in bench["gpu_parts"].programs(smoke=True).values())


def test_recomputed_operations_are_counted(bench: Any) -> None:
    text = """
  %fusion.remat = f32[8]{0} fusion(%a)
  ROOT %dot.2.remat2 = f32[8,8]{1,0} dot(%fusion.remat, %b)
  %add.1 = f32[8]{0} add(%fusion.remat, %c)
"""
    assert len(bench["gpu_parts"].RECOMPUTED.findall(text)) == 2


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v3", None),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind: str, peak: float | None) -> None:
    assert bf16_peak(kind) == peak


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "100", "--seq-len", "64"], "no whole number of micro-batches"),
        (["--preset", "classic", "--nanochat", "x"], "--preset must be modern"),
        (["--width", "258"], "the head size 129 is odd"),
    ],
)
def test_bad_arguments_exit_with_2(
    bench: Any, arguments: list[str], said: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as caught:
        bench["train_step"].main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_measured_beside_its_peer(tmp_path: Path) -> None:
    peer = tmp_path / "python"
    peer.write_text(PEER.format(python=sys.executable))
    peer.chmod(0o755)
    command = [sys.executable, ROOT / "bench" / "train_step.py", *SMALL, "--json"]
    done = subprocess.run(
        [*command, "--nanochat", "CHECKOUT", "--torch-python", peer],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)
    ours = reported["figures"]["jaxchat"]
    assert reported["ratio"] == ours["tokens_per_second"] / 32_000
    assert ours["tokens_per_second"] == pytest.approx(128 / ours["step_ms"] * 1e3)
    assert 0 < ours["mfu"] < 1
    assert ours["compile_seconds"] > 0 < ours["planned_bytes"] < ours["memory_bytes"]


# nanochat that compiles, waits for its turn, and is measured
WAITING_PEER = """#!{python}
import json, pathlib, sys, time
go = pathlib.Path(sys.argv[4])
go.with_suffix(".ready").touch()
while not go.exists():
    time.sleep(0.1)
print(json.dumps(dict(step_ms=4.0, tokens_per_second=32_000.0, model_flops=2e9, spread_ms=0.1,
                      compile_seconds=9.0, memory_bytes=1e9, loss=5.0)))
"""


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_miniature(tmp_path: Path) -> None:
    peer = tmp_path / "python"
    peer.write_text(WAITING_PEER.format(python=sys.executable))
    peer.chmod(0o755)
    command = [ROOT / "bench" / "gpu.sh", "--smoke", "--seconds", "3000", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*command, "--steps", "2", "--nanochat", "CHECKOUT", "--torch-python", peer],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert not [r for r in results if "failure" in r]
    steps = [r for r in results if r["kind"] == "step"]
    names = [r["name"] for r in steps]
    assert names[0] == "nanochat"  # alone, after everything is compiled
    assert [name.removesuffix(" plain").removesuffix(" fused") for name in names[1:]]
    assert names[1].startswith("tier 100")
    assert max(r["at"] for r in results if r["kind"].startswith("compiled")) <= steps[0]["at"]
    assert all(r["tokens_per_second"] > 0 for r in steps)
    assert [r["batch"] for r in results if r["kind"] == "decode"] == [1, 8, 64]
    first = [r for r in results if r["kind"] == "first token"]
    assert [len(r["seconds"]) for r in first] == [5, 5]
    archives = {path.name for path in (tmp_path / "out").glob("*.tgz")}
    assert {"trace_decode_1.tgz", "trace_decode_8.tgz"} < archives
    assert "tier 100" in done.stdout
