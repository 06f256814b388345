"""`jaxchat ladder`: plan, show, compare, and what each refuses."""

import json
from pathlib import Path

import pytest
from ladder_records import write_ladder

from jaxchat.cli.main import main, parse

RUN = ["ladder", "run", "l", "--tier", "cpu", "--depths", "2,1", "--seeds", "0,1"]


def test_depths_and_seeds_are_ordered_and_different() -> None:
    args = parse(RUN)
    assert (args.depths, args.seeds) == ((1, 2), (0, 1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--depths", "1,1"], "'1,1' has a number twice"),
        (["--depths", "0,1"], "'0' is not a whole number from 1"),
        (["--depths", "1,"], "'' is not a whole number"),
        (["--seeds", "-1"], "'-1' is not a whole number from 0"),
        (["--text-bytes", "0"], "'0' is not a whole number"),
    ],
)
def test_bad_numbers_exit_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*RUN, *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_plan_has_every_depth_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*RUN, "--home", str(tmp_path / "home"), "--plan", "--set", "run.data_ratio=1"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "l: 4 runs of tier cpu on 1 x CPU of this machine"
    cells = [line.split() for line in out[2:5]]
    assert [row[0] for row in cells] == ["1", "2", "all"]
    one, two, every = (float(row[-4]) for row in cells)
    assert every == pytest.approx(2 * (one + two), rel=0.01), "FLOPs of both seeds"
    assert main([*command, "--once", "2"]) == 0
    once = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[-3] for row in once] == ["2", "1", "3"]
    assert float(once[2][-4]) == pytest.approx(2 * one + two, rel=0.01)
    assert not (tmp_path / "home").exists()
    write_ladder(tmp_path / "home", "l", depths=(1, 2), seeds=(0, 1), missing=1)
    assert main(command) == 0
    assert "Complete are 3 of its runs." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tier", "2000"], "there is no tier '2000'"),
        (["--set", "run.seed=1"], "run.seed is set; a ladder sets it for each of its runs"),
        (["--set", "base.steps"], "not of the form table.key=value"),
        (["--set", "run.data_ratio=1e-9"], "depth 1 trains for no whole step"),
        (["--once", "3"], "--once has 3, and --depths 1,2; what is trained once is one of"),
        (["--data-dir", "gone"], "gone is no folder"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, *arguments, "--home", str(tmp_path / "home"), "--plan"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_several_processes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXCHAT_COORDINATOR", "localhost:7600")
    monkeypatch.setenv("JAXCHAT_PROCESSES", "2")
    monkeypatch.setenv("JAXCHAT_PROCESS", "0")
    assert main([*RUN, "--home", str(tmp_path)]) == 2
    assert "a ladder runs in one process" in capsys.readouterr().err


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", gain=1.5, overrides=["run.preset=modern"])
    return tmp_path


def test_list_says_how_far_each_ladder_has_come(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(home, "deep", depths=(1, 2, 4), once=(4,), missing=2)
    assert main(["ladder", "list", "--home", str(home)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "tier", "depths", "seeds", "complete", "runs"]
    assert [line[0] for line in lines[1:]] == ["a", "b", "deep"]
    assert [line[-2:] for line in lines[1:]] == [["9", "9"], ["9", "9"], ["5", "7"]]
    assert main(["ladder", "list", "--json", "--home", str(home)]) == 0
    assert json.loads(capsys.readouterr().out)[2]["depths"] == [1, 2, 4]
    assert main(["ladder", "list", "--home", str(tmp_path / "none")]) == 0
    assert "There is no ladder in " in capsys.readouterr().out


def test_show_prints_a_line_each_depth_and_writes_the_report(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ladder", "show", "a", "--home", str(home)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:5] == ["depth", "parameters", "tokens", "passes", "FLOPs"]
    assert [line.split()[0] for line in out[1:4]] == ["1", "2", "3"]
    assert out[1].split()[4:6] == ["5e12", "3"]
    assert out[-2:] == [str(home / "ladders" / "a" / f"report.{end}") for end in ("html", "md")]
    assert main(["ladder", "show", "a", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["runs"]) == 9
    assert [rung["depth"] for rung in shown["rungs"]] == [1, 2, 3]


def test_compare_prints_multipliers_and_a_conclusion(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ladder", "compare", "a", "b", "--home", str(home)]
    assert main([*command, "--out", str(home / "out")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [
        ["b", "1"], ["b", "2"], ["b", "3"], ["b", "all"],
    ]  # fmt: skip
    assert "fewer bits than any of the baseline's rungs" in out, "of the last rung"
    assert "b needs fewer FLOPs than a for the same bits per byte: multiplier 1.5" in out
    assert out.splitlines()[-2:] == [str(home / "out" / f"compare_a_b.{e}") for e in ("html", "md")]
    assert main([*command, "--json", "--degree", "2"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["degree"] == 2
    assert compared["variants"][0]["multipliers"][-1]["verdict"] == "less"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "gone"], 1, "there is no ladder 'gone' in "),
        (["compare", "a", "gone"], 1, "the ladders there are a, b. Make one with"),
        (["show", "../a"], 2, "the ladder's name is '../a'"),
        (["compare", "a", "b", "--out", "FILE"], 2, "is a file; it must be a folder"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    home: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file").write_text("")
    words = [word.replace("FILE", str(home / "file")) for word in arguments]
    assert main(["ladder", *words, "--home", str(home)]) == code
    captured = capsys.readouterr().err
    assert said in captured
    assert captured.count("\n") == 1
