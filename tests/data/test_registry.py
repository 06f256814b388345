"""The sources by name, and a user's folder as one."""

import re
from dataclasses import replace

import pytest

from jaxchat.data import registry
from jaxchat.data.registry import SOURCES
from jaxchat.errors import ConfigError


def test_every_source_is_whole():
    for name, source in SOURCES.items():
        assert source.name == name
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo)
        assert re.fullmatch(r"[0-9a-f]{40}|main", source.revision)
        assert source.size
        assert source.licence
        assert all(source.has(path) for path in source.files)
        chosen = registry.choose(source, source.files)
        assert sorted(chosen) == sorted(source.files)  # each in exactly one split


def test_shards_are_those_of_nanochat():
    fineweb, climbmix = SOURCES["fineweb_edu"], SOURCES["climbmix"]
    assert fineweb.files[-1] == "shard_01822.parquet"
    assert climbmix.files[-1] == "shard_06542.parquet"
    assert registry.choose(fineweb, fineweb.files, 2) == (
        "shard_00000.parquet",
        "shard_00001.parquet",
        "shard_01822.parquet",
    )
    assert len(registry.choose(fineweb, fineweb.files, 1_822)) == 1_823
    with pytest.raises(
        ConfigError, match=r"1,822 shards to train on and one for validation; 1,823"
    ):
        registry.choose(fineweb, fineweb.files, 1_823)


def test_another_shard_is_held_out_and_not_trained_on():
    """As nanochat's speedrun of November 2025: of 240 shards the last, 00239, is held out."""
    fineweb = SOURCES["fineweb_edu"]
    chosen = registry.choose(fineweb, fineweb.files, 239, held_out=239)
    assert chosen == fineweb.files[:240]
    chosen = registry.choose(fineweb, fineweb.files, 3, held_out=1)
    assert [int(path[6:11]) for path in chosen] == [0, 2, 3, 1]
    assert len(registry.choose(fineweb, fineweb.files, held_out=0)) == 1_823
    with pytest.raises(ConfigError, match=r"held_out_shard is 1,823, and fineweb_edu has 1,823"):
        registry.choose(fineweb, fineweb.files, 3, held_out=1_823)


def test_the_default_mixture_has_568_thousand_rows():
    rows = {name: SOURCES[name].rows for name in ("smoltalk", "mmlu", "gsm8k")}
    total = rows["smoltalk"]["train"] + rows["mmlu"]["auxiliary_train"] + rows["gsm8k"]["train"]
    assert total // 1_000 == 567  # 460,341 + 99,842 + 7,473


def test_files_of_a_split():
    smoltalk = SOURCES["smoltalk"]
    assert len(smoltalk.files_of("train")) == 4
    assert smoltalk.files_of("test", ["data/test-1.parquet", "x", "data/test-0.parquet"]) == (
        "data/test-0.parquet",
        "data/test-1.parquet",
    )
    with pytest.raises(ConfigError, match="smoltalk has no split 'dev'; it has train, test"):
        smoltalk.files_of("dev")


def test_an_unknown_source_is_reported_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no source 'mnist'; there are fineweb_edu, climbmix"):
        registry.find("mnist")


def test_a_source_may_be_changed_by_its_user():
    mine = replace(SOURCES["gsm8k"], revision="main")
    assert mine.files_of("test") == ("main/test-00000-of-00001.parquet",)
