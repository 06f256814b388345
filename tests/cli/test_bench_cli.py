"""jaxchat bench inference: its table, its file, and what it refuses."""

import json

import pytest

from jaxchat.cli import bench, main
from jaxchat.cli.bench import table
from jaxchat.inference.measure import Reading


def test_the_table_has_a_ratio_where_both_were_measured():
    readings = [Reading(1, 17_700.4, 0.0402, 249.0, 47_000_000, 720_000, 0.507)]
    readings.append(Reading(8, 14_122.0, 0.0804, 1_005.0, 47_000_000, 5_760_000, 0.314))
    reported = table(readings, {1: {"decode_tokens_per_second": 83.0}})
    head, first, second = (line.split("  ") for line in reported.splitlines())
    assert [cell.strip() for cell in first if cell] == [
        "1", "17,700", "40.2", "249", "47.72", "50.7%", "83", "3.00",
    ]  # fmt: skip
    assert "ratio" in table(readings, {1: {"decode_tokens_per_second": 1.0}})
    assert "ratio" not in table(readings, {})
    assert len(head) >= 8
    assert "1,005" in " ".join(second)


def test_random_weights_are_measured_and_reported_as_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "VOCAB_SIZE", 320)
    monkeypatch.setattr("jaxchat.parallel.launch_env.configure_jax", lambda mesh, cache: None)
    out = tmp_path / "figures.json"
    words = ["bench", "--home", str(tmp_path), "inference", "--depth", "1", "--batch", "2"]
    words += ["--prompt", "9", "--tokens", "20", "--repeats", "1", "--json", str(out)]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "random weights, modern, depth 1; 9 + 20 tokens" in said
    reported = json.loads(out.read_text())
    assert reported["format"] == bench.FORMAT
    assert [reading["batch"] for reading in reported["readings"]] == [2]
    assert reported["nanochat"] == {}


def test_weights_of_8_bits_are_measured_as_such(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "VOCAB_SIZE", 320)
    monkeypatch.setattr("jaxchat.parallel.launch_env.configure_jax", lambda mesh, cache: None)
    words = ["bench", "--home", str(tmp_path), "inference", "--depth", "1", "--batch", "1"]
    words += ["--prompt", "9", "--tokens", "20", "--repeats", "1", "--weights", "int8"]
    assert main.main(words) == 0
    assert "large products plain, weights int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", "1", "--run", "x"], "--depth takes random weights and --run a run's"),
        (["--depth", "1", "--prompt", "2000", "--tokens", "99"], "over the model's context of"),
        (["--depth", "1", "--nanochat", "nowhere", "--batch", "1"], "no checkout of nanochat"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(bench, "VOCAB_SIZE", 320)
    monkeypatch.setattr("jaxchat.parallel.launch_env.configure_jax", lambda mesh, cache: None)
    words = ["bench", "--home", str(tmp_path), "inference", "--tokens", "8", *words]
    assert main.main(words) == 2
    assert message in capfd.readouterr().err
