"""`jaxchat report`: one run, or two, by name or by path."""

from pathlib import Path

import pytest
from report_records import make_config, make_done, write_run

from jaxchat import paths
from jaxchat.cli.main import parse
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.runs.report import files
from jaxchat.runs.report.files import FILES


def command(*arguments: object) -> int:
    args = parse(["report", *map(str, arguments)])
    code: int = args.run_command(args)
    return code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A home with the runs cpu and other."""
    for name, right in (("cpu", 171), ("other", 120)):
        config = make_config(f"run.name={name}")
        write_run(paths.runs(tmp_path) / name, config, make_done(right=right))
    return tmp_path


def test_one_run_is_made_from_what_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cpu", "--home", root) == 0
    out = capsys.readouterr().out
    run = paths.runs(root) / "cpu"
    assert "85.5% [80.0, 89.7]" in out
    assert out.splitlines()[-2:] == [str(run / "report.html"), str(run / "report.md")]
    for name in FILES:
        assert (run / name).exists()


def test_what_is_not_there_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (paths.runs(root) / "cpu" / "mid" / "done.json").unlink()
    assert command("cpu", "--home", root) == 0
    out = capsys.readouterr().out
    assert "Midtraining: not run yet" in out
    assert "85.5%" not in out, "models of an earlier midtraining are printed as those of this run"


def test_the_last_run_is_meant_where_none_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--home", root) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("other/report.md")
    assert command("--home", root, "--run", "cpu") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("cpu/report.md")


def test_two_runs_are_compared_beside_the_second(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("cpu", paths.runs(root) / "other", "--home", root) == 0
    out = capsys.readouterr().out
    assert "-25.5 points" in out
    written = [paths.runs(root) / "other" / f"compare_cpu_other.{end}" for end in ("html", "md")]
    assert out.splitlines()[-2:] == [str(path) for path in written]
    assert all(path.exists() for path in written)
    assert not (paths.runs(root) / "cpu" / "report.json").exists(), "comparing writes no report"


def test_a_report_from_elsewhere_can_be_compared(root: Path, tmp_path: Path) -> None:
    files.write_run(paths.runs(root) / "cpu")
    elsewhere = tmp_path / "from_the_node.json"
    elsewhere.write_bytes((paths.runs(root) / "cpu" / "report.json").read_bytes())
    assert command(elsewhere, "other", "--home", root, "--out", tmp_path / "out") == 0
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["compare_cpu_other.html", "compare_cpu_other.md"]


def test_what_cannot_be_reported_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 runs are named; a report is of one, or compares two"):
        command("cpu", "other", "third", "--home", root)
    with pytest.raises(ConfigError, match="name two runs"):
        command("cpu", "--out", tmp_path, "--home", root)
    with pytest.raises(ArtifactError, match=r"no run 'third'.*the runs there are cpu, other"):
        command("third", "--home", root)
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[]")
    with pytest.raises(ConfigError, match="is a report already"):
        command(foreign, "--home", root)
    with pytest.raises(ArtifactError, match="no report of format"):
        command(foreign, "cpu", "--home", root)
