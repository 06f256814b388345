"""The `jaxchat` command: what it answers, and what it says when something is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxchat.cli.main import main, parse
from jaxchat.config import loading
from jaxchat.runs import run_dir

CONFIGS = Path(__file__).parent.parent.parent / "configs"
HEAVY = {
    "jax",
    "flax",
    "grain",
    "optax",
    "orbax",
    "tiktoken",
    "numpy",
    "rich",
    "fastapi",
    "uvicorn",
}


def loaded_by(*arguments):
    """The heavy packages that a command imports, asked of a process of its own."""
    code = (
        "import sys\nfrom jaxchat.cli.main import main\n"
        f"try: main({list(arguments)!r})\nexcept SystemExit: pass\n"
        f"print('loaded', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["chat", "--help"],
        ["serve", "--help"],
        ["tokenizer", "train", "--help"],
        ["doctor", "--help"],
        ["ladder", "run", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments):
    assert loaded_by(*arguments) == "loaded []"


def test_help_names_the_commands_that_exist(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    reported = capsys.readouterr().out
    assert "{" not in reported
    for command in ("chat", "serve", "report", "profile", "tokenizer", "doctor", "ladder"):
        assert re.search(rf"^    {command}\b", reported, re.MULTILINE)
        with pytest.raises(SystemExit) as caught:
            parse([command, "--help"])
        assert caught.value.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["chat", "--stage", "base"],
        ["chat", "--temperature", "-1"],
        ["chat", "--temperature", "nan"],
        ["chat", "--top-k", "many"],
        ["chat", "--min-p", "1.5"],
        ["chat", "--repetition-penalty", "0"],
        ["chat", "--max-tokens", "0"],
        ["profile"],
        ["profile", "folder", "--top", "0"],
    ],
)
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_chat_without_a_run_says_what_to_run(tmp_path, capsys):
    assert main(["chat", "--home", str(tmp_path)]) == 1
    reported = capsys.readouterr().err
    assert reported == (
        f"jaxchat: there is no run in {tmp_path}. Make one with: "
        "python run_speedrun.py --tier cpu\n"
    )


def test_profile_without_a_trace_says_how_to_record_one(tmp_path, capsys):
    assert main(["profile", str(tmp_path), "--home", str(tmp_path)]) == 1
    reported = capsys.readouterr().err
    assert reported.startswith(
        f"jaxchat: {tmp_path} holds no trace (*.xplane.pb); record one with --"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--home", "H", "data", "download", "gsm8k", "--offline"],
        ["data", "--home", "H", "download", "gsm8k", "--offline"],
        ["data", "download", "gsm8k", "--offline", "--home", "H"],
        ["data", "--home", "X", "download", "--home", "H", "gsm8k"],
        ["runs", "--home=H"],
        ["--home", "H", "runs"],
        ["eval", "chat", "--home", "H"],
        ["tokenizer", "eval", "DIR", "--home", "H"],
        ["bench", "inference", "--home", "H"],
        ["--home", "H", "serve"],
    ],
)
def test_the_home_may_stand_anywhere(words):
    """Errors advise --home, and a user puts it at the end."""
    assert parse(words).home == Path("H")


def test_without_a_home_it_is_the_usual_one():
    assert parse(["data", "list"]).home is None


def test_a_run_is_listed_whole_in_a_pipe(tmp_path, capsys):
    """A table for a terminal was cut to 80 columns, names first."""
    name = "a-run-with-a-name-that-is-longer-than-a-line-of-a-terminal-" + "x" * 60
    config = loading.load(CONFIGS / "tier_cpu.toml", [f"run.name={name}"])
    run_dir.write_config(run_dir.folder(tmp_path, name), config)
    assert main(["runs", "--home", str(tmp_path)]) == 0
    assert name in capsys.readouterr().out
