"""bench/aot.py: both sides stand beside each other, and a side that fails is said."""

import importlib.util
import subprocess
import sys
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "bench" / "aot.py"


def test_both_sides_are_printed_with_their_ratio() -> None:
    spec = importlib.util.spec_from_file_location("aot", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = module.render({"step, ms": 400.0, "none": 0.0}, {"step, ms": 300.0, "none": 0.0})
    assert lines[1].split() == ["step,", "ms", "400.0", "300.0", "0.750"]
    assert lines[2].split() == ["none", "0.0", "0.0"]


def test_help_needs_no_wheels() -> None:
    done = subprocess.run([sys.executable, str(PATH), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--before" in done.stdout
