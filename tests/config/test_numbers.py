"""Numbers from the command line, a request or a file: one set of ranges, no stack trace."""

import argparse
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchat.cli import main
from jaxchat.config import loading, numbers
from jaxchat.config.numbers import NumberError
from jaxchat.errors import ConfigError
from jaxchat.inference.request import EngineError, Request

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import run_speedrun

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TEXTS = [
    *("nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "-0", "1_000", "0x10", "", " ", "٣", "²"),
    *("5000000000", "9" * 20, "-" + "9" * 20, "9" * 5_000, "1e9", "0.5", "1.0", "\ud800", "\x00"),
]


class Found(Exception):
    """The parser of the command line, caught before it reads anything."""


def parsers(monkeypatch):
    """Name -> parser of every command, as `jaxchat` and run_speedrun.py make them."""
    found = {}

    def caught(self, *args):
        found["main"] = self
        raise Found

    for read in (main.parse, run_speedrun.parse):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", caught)
            with pytest.raises(Found):
                read([])
        yield from walk(found.pop("main"))


def walk(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from walk(child)


def numeric(monkeypatch):
    """(command, flag, its type) of each flag that reads a number."""
    flags = []
    for parser in parsers(monkeypatch):
        for action in parser._actions:
            if action.type not in (None, str, Path) and action.dest != "stages":
                flags.append((parser.prog, action.option_strings[0], action.type))
    return flags


@pytest.fixture(scope="module")
def flags():
    with pytest.MonkeyPatch.context() as patch:
        return numeric(patch)


def test_the_flags_with_numbers_are_found(flags):
    named = {(prog.split()[-1], flag) for prog, flag, _ in flags}
    assert len(flags) >= 35
    assert {("chat", "--top-k"), ("train", "--threads"), ("prepare", "--row-tokens")} <= named


def test_no_flag_reads_numbers_by_itself(flags):
    """int and float take nan, -1 and numbers that no array holds."""
    bare = [(prog, flag) for prog, flag, kind in flags if kind in (int, float)]
    assert bare == []


def read_all(flags, text):
    for prog, flag, kind in flags:
        reported = ""
        try:
            value = kind(text)
        except argparse.ArgumentTypeError as error:
            value, reported = (), str(error)
        assert len(reported) < 200, f"{prog} {flag} repeats {len(reported)} characters"
        for number in value if isinstance(value, tuple) else [value]:
            if number != "all":
                assert math.isfinite(number), (prog, flag, text)
                assert 0 <= number < 2**32, (prog, flag, text)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:12])
def test_every_flag_refuses_what_is_no_number_of_its_kind(flags, text):
    read_all(flags, text)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(), st.integers().map(str), st.floats().map(str)))
def test_no_text_makes_a_flag_fail(flags, text):
    read_all(flags, text)


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["eval", "chat", "--temperature", "-1"], "'-1' is not a number from 0 to 10"),
        (["eval", "chat", "--temperature", "nan"], "'nan' is not a number from 0 to 10"),
        (["eval", "chat", "--seed", "-1"], "'-1' is not a whole number from 0 to"),
        (["chat", "--top-k", "5000000000"], "is not a whole number from 0 to 2,147,483,647"),
        (["chat", "--seed", "9" * 20], "is not a whole number from 0 to 4,294,967,295"),
        (["serve", "--port", "70000"], "is not a whole number from 0 to 65,535"),
        (["serve", "--temperature", "3"], "'3' is not a number from 0 to 2"),
        (["serve", "--top-k", "-1"], "'-1' is not a whole number"),
        (["watch", "--interval", "1e300"], "is not a number from 0 to"),
        (["tokenizer", "train", "x", "--max-words", "9" * 20], "is not a whole number from 1"),
        (["data", "prepare", "--row-tokens", "9" * 20], "is not a whole number from 2"),
        (["data", "show", "x", "--seed", "9" * 20], "is not a whole number from 0"),
        (["bench", "inference", "--depth", "9" * 20], "is not a whole number from 1 to 1024"),
    ],
)
def test_a_number_that_cannot_be_is_one_sentence(capsys, words, reported):
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert reported in error


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 11.0])
def test_each_door_has_the_same_range_of_temperatures(value, capsys):
    with pytest.raises(EngineError, match="temperature is"):
        Request((1,), 1, temperature=value)
    with pytest.raises(NumberError, match="temperature is"):
        numbers.TEMPERATURE.check(value, "temperature")
    for words in (["chat"], ["eval", "chat"], ["serve"]):
        with pytest.raises(SystemExit):
            main.parse([*words, f"--temperature={value}"])
    with pytest.raises(ConfigError, match=r"rl\.temperature"):
        loading.load(CONFIGS / "tier_cpu.toml", [f"rl.temperature={value}"])
    capsys.readouterr()


@pytest.mark.parametrize(
    "value", ["9" * 20, "-1", "9" * 5_000, "nan", "1e400", "-inf", "2026-11-27"]
)
@pytest.mark.parametrize(
    "key", ["run.depth", "run.seed", "run.data_ratio", "base.steps", "rl.top_k", "eval.slots"]
)
def test_a_setting_that_cannot_be_is_one_sentence(key, value):
    with pytest.raises(ConfigError) as caught:
        loading.load(CONFIGS / "tier_cpu.toml", [f"{key}={value}"])
    assert key in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["2026-11-27", "100", "1e5", "true", '"quoted"', "12:30:00"])
def test_what_is_a_text_is_taken_as_one(name):
    """TOML has dates, times and numbers; the name of a run is none of them."""
    overrides = [f"run.name={name}", f"eval.bundle={name}"]
    config = loading.load(CONFIGS / "tier_cpu.toml", overrides)
    given = name.strip('"')
    assert (config.name, config.eval.bundle) == (given, given)


def test_a_name_in_a_file_says_how_to_quote_it(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nname = 2026-11-27\ndepth = 1\n")
    with pytest.raises(ConfigError, match=r"run\.name is 2026-11-27.*double quotes"):
        loading.load(file)
