"""guidellm, a load generator: what it asks for it must get, to the token."""

import json
import subprocess
from pathlib import Path

TOKENS = 40


def _run(s, *words):
    out = s.folder / "report.json"
    done = subprocess.run(
        [Path(s.environment) / "bin" / "guidellm", "benchmark", "run", "--target", s.base,
         "--model", s.model, "--max-requests", "4", "--disable-console-interactive",
         "--outputs", out, *words],
        capture_output=True, text=True, cwd=s.folder,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    return benchmark
