"""bench/aot.py: both sides stand beside each other, and a side that fails is said."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "bench" / "aot.py"


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("aot", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_are_printed_with_their_ratio(module: Any) -> None:
    lines = module.render({"step, ms": 400.0, "none": 0.0}, {"step, ms": 300.0, "none": 0.0})
    assert lines[1].split() == ["step,", "ms", "400.0", "300.0", "0.750"]
    assert lines[2].split() == ["none", "0.0", "0.0"]


def test_help_needs_no_wheels() -> None:
    done = subprocess.run([sys.executable, str(PATH), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--before" in done.stdout


@pytest.mark.parametrize("depth", [None, 3])
def test_settings_change_a_tier_and_a_depth_alike(module: Any, depth: int | None) -> None:
    args = argparse.Namespace(depth=depth, tier="100")
    settings = ["base.micro_rows=8", "compute.fp8=true", "tokenizer.vocab_size=4096"]
    config = module.read_config(args, settings)
    assert config.model.n_layer == (depth or 20)
    assert (config.base.micro_rows, config.compute.fp8) == (8, True)
    assert config.model.vocab_size == 4_096
    assert module.read_config(args, []).base.micro_rows == (16 if depth else 32)


def commit_of(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PATH.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


@pytest.mark.skipif(not commit_of("rev-parse", "HEAD"), reason="this is no git repository")
def test_another_commits_package_is_put_together(module: Any, tmp_path: Path) -> None:
    tree = module.check_out("HEAD", tmp_path)
    code = "import jaxchat.tokenizer.bpe, jaxchat; print(jaxchat.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tree)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path))
    with pytest.raises(SystemExit, match="not a valid object name"):
        module.check_out("no-such-commit", tmp_path)
