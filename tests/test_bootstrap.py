"""Setting up: what is said when something is missing, and that a second time needs nothing."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTEST = "== pytest; beside it mypy, cargo test"
PARTS = ("bootstrap.py", "pyproject.toml", "constraints.txt", "bpe_rs/Cargo.toml")


@pytest.fixture
def checkout(tmp_path):
    """What bootstrap.py looks at, in a folder without .venv."""
    root = tmp_path / "checkout"
    for name in (*PARTS, "bpe_rs/Cargo.lock"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "bpe_rs" / "src", root / "bpe_rs" / "src")
    (root / "jaxchat").mkdir()
    return root


def bootstrap(root, *arguments, python=None):
    environment = {"PATH": "", "HOME": str(root)}  # no cargo, no rustup, no network client
    return subprocess.run(
        [python or sys.executable, root / "bootstrap.py", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def installed(checkout):
    """The checkout as an installation leaves it, with a python that only tells its arguments."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    python.chmod(0o755)
    (checkout / "jaxchat" / "_bpe.abi3.so").write_text("")
    code = "import bootstrap; bootstrap.STAMP.write_text('\\n'.join(bootstrap.fingerprint()))"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True)
    return checkout


@pytest.mark.parametrize("command", ["run", "test"])
def test_missing_rust_is_one_sentence(checkout, command):
    done = bootstrap(checkout, command)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no cargo on PATH: install Rust from rustup.rs" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_one_sentence(checkout):
    code = (
        "import sys; sys.version_info = (3, 9, 0, 'final', 0)\n"
        "source = open('bootstrap.py').read()\n"
        "exec(compile(source, 'bootstrap.py', 'exec'), {'__name__': '__main__'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("jaxchat needs Python 3.11 or newer, and this is 3.9: ")
    assert done.stderr.count("\n") == 1


def test_an_old_python_can_read_the_file_at_all():
    ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_anything_else_shows_the_usage(checkout, arguments):
    done = bootstrap(checkout, *arguments)
    assert done.returncode == 2
    assert "bootstrap.py run" in done.stderr


def test_what_is_installed_runs_without_rust_and_network(installed):
    done = bootstrap(installed, "run")
    assert (done.stdout, done.stderr) == ("run_speedrun.py --tier cpu\n", "")
    assert done.returncode == 7, "the exit code of run_speedrun.py is ours"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["--plan"], "--tier cpu --plan"),
        (["--tier", "100", "--plan"], "--tier 100 --plan"),
        (["--tier=gpt2"], "--tier=gpt2"),
        (["--help"], "--help"),
    ],
)
def test_arguments_go_to_the_run(installed, given, passed):
    assert bootstrap(installed, "run", *given).stdout == f"run_speedrun.py {passed}\n"


@pytest.mark.parametrize("name", [*PARTS[1:], "bpe_rs/Cargo.lock", "bpe_rs/src/lib.rs"])
def test_it_is_installed_again_when_what_it_was_made_from_changes(installed, name):
    with (installed / name).open("a") as file:
        file.write("\n")
    assert "no cargo on PATH" in bootstrap(installed, "run").stderr


def without_tests(root):
    stamp = root / ".venv" / "jaxchat-installed"
    code = "import bootstrap; print(bootstrap.WITHOUT_TESTS)"
    line = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    stamp.write_text(f"{stamp.read_text()}\n{line.strip()}")


def test_tests_need_more_than_a_run(installed):
    without_tests(installed)
    assert bootstrap(installed, "run").returncode == 7, "a run needs nothing more"
    assert "no cargo on PATH" in bootstrap(installed, "test").stderr


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize(
    ("command", "before", "has"),
    [("run", False, False), ("test", False, True), ("run", True, True), ("test", True, True)],
)
def test_what_is_installed(installed, command, before, has):
    """A run installs what it needs; what tests need stays where it was."""
    if not before:
        without_tests(installed)
    (installed / "constraints.txt").open("a").write("# changed\n")
    python = installed / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    out = bootstrap(installed, command).stdout
    packages = next(line for line in out.splitlines() if "jaxtyping" in line)
    assert ("hypothesis" in packages) == has
    assert "llguidance" in packages, "answers that follow a schema"
    assert any(line.endswith("--no-deps --editable .") for line in out.splitlines())
    again = bootstrap(installed, command).stdout
    assert "--editable" not in again


def test_it_is_installed_again_when_the_extension_is_gone(installed):
    (installed / "jaxchat" / "_bpe.abi3.so").unlink()
    assert "no cargo on PATH" in bootstrap(installed, "run").stderr


@pytest.fixture
def rust(installed):
    """A cargo without clippy, where rustup leaves it."""
    cargo = installed / ".cargo" / "bin" / "cargo"
    cargo.parent.mkdir(parents=True)
    cargo.write_text('#!/bin/sh\n[ "$1" = clippy ] && exit 101\necho "cargo $@"\n')
    cargo.chmod(0o755)


@pytest.mark.usefixtures("rust")
def test_the_checks_all_run_and_the_long_ones_speak_after_pytest(installed):
    done = bootstrap(installed, "test", "-k", "nothing")
    lines = done.stdout.splitlines()
    before, after = lines[: lines.index(PYTEST)], lines[lines.index(PYTEST) + 1 :]
    assert before == [
        "== cargo clippy: skipped, not installed (rustup component add clippy)",
        *("== ruff check", "-m ruff check .", "== ruff format", "-m ruff format --check ."),
        *("== cargo fmt", "cargo fmt --manifest-path bpe_rs/Cargo.toml --check"),
    ]
    assert re.fullmatch(
        r"-m pytest -n [1-4] --dist loadfile --no-loadscope-reorder -k nothing", after[0]
    )
    assert after[1:] == [
        *("== mypy", "-m mypy"),
        *("== cargo test", "cargo test --manifest-path bpe_rs/Cargo.toml --locked --quiet"),
    ]
    assert done.returncode == 7
    assert done.stderr == "Failed besides pytest: ruff check, ruff format, mypy\n"


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize(
    ("failing", "code"), [("nothing", 0), ("ruff", 1), ("mypy", 1), ("pytest", 1)]
)
def test_the_exit_code_is_0_only_when_all_passed(installed, failing, code):
    python = installed / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = {failing} ] && exit 1\nexit 0\n')
    assert bootstrap(installed, "test").returncode == code


def test_the_pins_are_plain_and_name_no_host():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in pins)
    assert any(line.startswith("jax==") for line in pins)


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "python3 bootstrap.py test" in script.read_text()
    assert "python3 bootstrap.py test" in (ROOT / "README.md").read_text()
