"""bench/tokenizer.py: it runs, its figures add up, and its extrapolation is right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "bench" / "tokenizer.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("tokenizer_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tmp_path, *arguments):
    """The figures of a run on a small text."""
    (tmp_path / "text").mkdir()
    for number in range(8):
        lines = "".join(f"{chr(97 + n % 26) * (n + number)} is a word\n" for n in range(99))
        (tmp_path / "text" / f"{number}.txt").write_text(lines)
    out = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--text", tmp_path / "text", "--vocab-size", "300"]
    command = [*map(str, command), "--json", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_scaling_extrapolates_what_follows_the_laws(bench):
    points = [
        {"characters": n, "distinct": 30 * n**0.6, "memory": 1e6 + 80 * 30 * n**0.6}
        for n in (1e6, 2e6, 4e6, 8e6)
    ]
    found = bench.estimate(points)
    assert found["exponent"] == pytest.approx(0.6)
    assert found["distinct"] == pytest.approx(30 * 2e9**0.6)
    assert found["memory"] == pytest.approx(1e6 + 80 * 30 * 2e9**0.6)


def test_rows_are_medians_and_ratios_to_ours(bench):
    def runs(*seconds):
        return [{"seconds": s, "cpu_seconds": s, "bytes": 100, "peak": 70} for s in seconds]

    rows = [
        bench.summarize("train", bench.OURS, 1, runs(2, 9, 1), {"peak": 50}),
        bench.summarize("train", bench.RUSTBPE, 1, runs(8, 6, 7), {"peak": 40}),
        bench.summarize("train", bench.HUGGINGFACE, 1, [{"missing": "no module"}], {"peak": 0}),
    ]
    bench.compare_with_ours(rows)
    assert [row.get("seconds") for row in rows] == [2, 7, None]
    assert [row.get("times_ours") for row in rows] == [1, 3.5, None]
    assert [row.get("memory") for row in rows] == [20, 30, None]
    assert rows[0]["bytes_per_second"] == 50


@pytest.mark.slow
def test_the_comparison_runs_and_proves_equal_ids(tmp_path):
    figures, found = run(tmp_path, "--repeats", "1")
    assert figures["equal"]
    assert figures["proof"]["texts"] == 8
    measured = {(r["what"], r["who"], r["threads"]) for r in figures["rows"]}
    assert len(measured) == 12
    assert "ids of 8 texts" in found


@pytest.mark.slow
def test_the_scaling_runs(tmp_path):
    figures, found = run(tmp_path, "--scale")
    words = [point["distinct"] for point in figures["points"]]
    assert words == sorted(words)
    assert words[0] < words[-1]
    assert "2.0B characters, from the last doubling" in found
