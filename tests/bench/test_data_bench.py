"""The benchmark of the data: its table, and that it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# what bench/data.py asks of the Python that has torch
PEER = """#!{python}
import json, sys
task = json.loads(sys.argv[3])
assert sys.argv[1].endswith("nanochat_peer/loader.py"), sys.argv
assert (task["rows"], task["tokens"]) == (32, 128), task
print(json.dumps(dict(tokens_per_second=1e3, tokens_per_cpu_second=1e3, kept=0.65, what="lossy")))
"""


@pytest.mark.slow
def test_it_runs_and_prints_ratios(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "dataloader.py").touch()
    python = tmp_path / "python"
    python.write_text(PEER.format(python=sys.executable))
    python.chmod(0o755)
    sizes = "--bytes 300000 --vocab-size 400 --row-tokens 129 --rows 8 --seconds 0.1 --repeats 1"
    peer = ["--nanochat", str(tmp_path), "--torch-python", str(python)]
    done = subprocess.run(
        [sys.executable, "bench/data.py", *sizes.split(), *peer, "--json", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    rates = {rate["name"]: rate for rate in json.loads((tmp_path / "r").read_text())}
    assert list(rates)[-3:] == [
        "feed, a batch at once",
        "feed, Grain row by row",
        "nanochat's loader: lossy",
    ]
    assert rates["prepare, 1 worker"]["kept"] > 0.99
    line = next(line for line in done.stdout.splitlines() if "batch at once" in line)
    ratio = rates["feed, a batch at once"]["tokens_per_second"] / 1e3
    assert line.split()[-1] == f"{ratio:.1f}"
    assert "65.0%" in done.stdout
