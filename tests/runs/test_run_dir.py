"""A run's folder: its configuration survives, and only one process works on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.errors import ArtifactError, BusyError, ConfigError
from jaxchat.runs import run_dir

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_configuration_comes_back_as_it_was(path, tmp_path):
    config = loading.load(path, ["sft.mixture.identity=2.5", "run.seed=7"])
    run_dir.write_config(tmp_path, config)
    assert run_dir.read_config(tmp_path) == config
    assert loading.to_json(run_dir.read_config(tmp_path)) == loading.to_json(config)


@pytest.mark.parametrize("text", ['{"name": "x"}', "[]", "3", '{"name": 1'])
def test_a_damaged_configuration_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        run_dir.read_config(tmp_path)


def test_a_second_process_is_refused_and_the_first_named(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from jaxchat.runs import run_dir\n"
        "with run_dir.locked(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(BusyError, match=f"number {other.pid}"), run_dir.locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with run_dir.locked(tmp_path):  # a killed process leaves no lock behind
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_last_run_is_found_when_none_is_named(tmp_path):
    config = loading.load(CONFIGS / "tier_cpu.toml")
    for age, name in ((9, "new"), (99, "old")):
        folder = run_dir.folder(tmp_path, name)
        run_dir.write_config(folder, config)
        moment = time.time() - age
        os.utime(folder / "config.json", (moment, moment))
    assert run_dir.find(tmp_path, None).name == "new"
    assert run_dir.find(tmp_path, "old").name == "old"
    with pytest.raises(ArtifactError, match=r"no run 'other'.*new, old.*run_speedrun"):
        run_dir.find(tmp_path, "other")


def test_no_run_at_all_says_what_makes_one(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no run in .*run_speedrun\.py --tier cpu"):
        run_dir.find(tmp_path / "nothing", None)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_a_path_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.name"):
        run_dir.folder(tmp_path, name)


def test_a_home_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as caught:
        run_dir.check_writable(tmp_path / "file" / "home")
    assert caught.value.filename == str(tmp_path / "file" / "home")


def test_checking_leaves_nothing_behind(tmp_path):
    run_dir.check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
