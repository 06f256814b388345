"""The commands export and import: what they say, and their exit codes."""

import json
from pathlib import Path

import pytest

from jaxchat.cli.main import main

GOLDEN = Path(__file__).parent.parent / "golden"
NANOCHAT = GOLDEN / "nanochat_checkpoint_classic" / "chatsft_checkpoints" / "d2"


def run(tmp_path, capsys, *arguments):
    """(exit code, what it printed, what it complained)."""
    try:
        code = main([arguments[0], "--home", str(tmp_path / "home"), *map(str, arguments[1:])])
    except SystemExit as left:
        code = left.code
    reported = capsys.readouterr()
    return code, reported.out, reported.err


def test_there_and_back(tmp_path, capsys):
    code, out, err = run(tmp_path, capsys, "import", NANOCHAT, "--name", "nano")
    assert (code, err) == (0, "")
    assert "26,160 parameters, now stage sft of the run nano" in out
    assert "Note: the checkpoint does not say" in out
    assert "jaxchat chat --run nano" in out
    code, out, _ = run(tmp_path, capsys, "export", "nano", "sft", tmp_path / "out")
    assert code == 0
    assert "stage sft of the run nano" in out
    assert run(tmp_path, capsys, "import", tmp_path / "out", "--stage", "base")[0] == 0
    config = json.loads((tmp_path / "home" / "runs" / "out" / "config.json").read_text())
    assert config["imported"]["stage"] == "base"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["import", "nowhere"], 2, "neither a folder nor the name of a model"),
        (["import", "../../nowhere"], 2, "neither a folder nor the name of a model"),
        (["import", NANOCHAT, "--name", "a/b"], 2, "names a folder"),
        (["import", NANOCHAT, "--step", "4"], 1, "it has 7"),
        (["import", GOLDEN], 1, "holds no model"),
        (["import", NANOCHAT, "--stage", "tokenizer"], 2, "invalid choice"),
        (["import", "owner/model", "--offline"], 1, "jaxchat import owner/model"),
        (["export", "none", "sft", "out"], 1, "no run 'none'"),
        (["export", "none", "best", "out"], 2, "invalid choice"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, arguments, code, sentence):
    found, out, err = run(tmp_path, capsys, *arguments)
    assert (found, out) == (code, "")
    assert sentence in err
    assert not list((tmp_path / "home").glob("runs/*"))


def test_options_that_do_not_go_together(tmp_path, capsys):
    run(tmp_path, capsys, "import", NANOCHAT, "--name", "nano")
    there = ["export", "nano", "sft", tmp_path / "out"]
    code, _, err = run(tmp_path, capsys, *there, "--format", "jaxchat", "--dtype", "bfloat16")
    assert (code, "--dtype is of --format hf" in err) == (2, True)
    code, _, err = run(tmp_path, capsys, *there, "--license", "a: b")
    assert (code, "--license is 'a: b'" in err) == (2, True)
    code, _, err = run(tmp_path, capsys, "import", NANOCHAT, "--name", "nano")
    assert (code, "already" in err) == (2, True)
    assert not (tmp_path / "out").exists()
