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
    import gpu
    import measure
    import train_step

    yield {"gpu": gpu, "measure": measure, "train_step": train_step}
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
    step = {"kind": "step", "name": "d20", "dtype": "bfloat16", "device": "NVIDIA X"}
    good = {**figures(bench, "d20", 150_000.0).to_json(), **step, "rows": 16}
    table = bench["gpu"].render(
        [good, {**step, "rows": 32, "failure": "out of memory"}], ["fp8: left out"]
    )
    lines = table.splitlines()
    assert lines[0] == "NVIDIA X"
    assert lines[3].split()[:4] == ["d20", "16", "bfloat16", "150,000"]
    assert lines[4].split() == ["d20", "32", "bfloat16", "out", "of", "memory"]
    assert lines[-1] == "fp8: left out"


def test_the_table_says_whether_fp8_was_there(bench: Any) -> None:
    step = {"kind": "step", "dtype": "bfloat16", "device": "NVIDIA X", "rows": 16}
    step |= figures(bench, "d20", 150_000.0).to_json()
    good, bad = ({**step, "name": name, "fp8_products": n} for name, n in (("a", 360), ("b", 0)))
    lines = bench["gpu"].render([good, bad, {**step, "name": "c"}], []).splitlines()
    assert lines[-2:] == ["a, 16 rows: 360 products in fp8", "b, 16 rows: NOTHING IS IN FP8"]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
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


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_miniature(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = subprocess.run(
        [ROOT / "bench" / "gpu.sh", "--smoke", "--seconds", "3000", "--json", file],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["results"]
    steps = [r for r in results if r["kind"] == "step"]
    assert [(r["name"], r["rows"]) for r in steps] == [("d12", 2), ("d12", 4)]
    assert all(r["tokens_per_second"] > 0 for r in steps)
    attention = [r for r in results if r["kind"] == "attention" and "failure" not in r]
    assert {r["name"] for r in attention} >= {"blocked", "jax xla"}
    assert "d12" in done.stdout
