"""A run's TOML file: overrides, errors, and what depth derives when the file is silent."""

from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ConfigError

CLASSIC = '[run]\nname = "d20"\ndepth = 20\n'
MODERN = '[run]\nname = "d12"\ndepth = 12\npreset = "modern"\n[tokenizer]\nvocab_size = 32768\n'


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return loading.load(path, overrides)


def test_depth_derives_what_the_file_does_not_say(tmp_path: Path) -> None:
    config = load(tmp_path, CLASSIC)
    assert (config.preset, config.seed, config.data_ratio) == ("classic", 0, 20.0)
    assert (config.model.n_embd, config.model.n_head, config.model.n_layer) == (1280, 10, 20)
    assert (config.base.batch_tokens, config.base.steps) == (524_288, 21_400)
    assert config.optim.embedding_lr == 0.2

    config = load(tmp_path, MODERN)
    assert config.data_ratio == 12.0
    assert (config.base.batch_tokens, config.base.steps) == (524_288, 2_520)
    assert config.optim.embedding_lr == 0.3


def test_the_file_overrides_what_depth_derives(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MODERN + "[model]\nsmear = false\n[optim]\nmatrix_lr = 0.5\n[base]\nsteps = 7\n",
    )
    assert not config.model.smear
    assert config.model.backout
    assert (config.optim.matrix_lr, config.optim.normuon) == (0.5, True)
    assert (config.base.steps, config.base.batch_tokens) == (7, 524_288)


def test_overrides_come_last_and_know_toml(tmp_path: Path) -> None:
    config = load(
        tmp_path, CLASSIC + "[base]\nsteps = 7\n",
        "base.steps=9", "run.seed = 3", "data.source=machine", 'eval.tasks=["choice"]',
        "model.smear=true", "optim.matrix_lr=1", "sft.mixture.identity=2", "run.data_ratio=10",
        'mid.epochs."my talks/a.jsonl"=2',
    )  # fmt: skip
    assert config.mid.epochs == {"my talks/a.jsonl": 2.0}
    assert (config.base.steps, config.seed, config.data.source) == (9, 3, "machine")
    assert (config.eval.tasks, config.model.smear) == (("choice",), True)
    assert (config.optim.matrix_lr, config.data_ratio) == (1.0, 10.0)
    assert config.sft.mixture == {"identity": 2.0}


def test_an_override_leaves_the_document_it_is_applied_to() -> None:
    document = {"base": {"steps": 1}}
    assert loading.apply_overrides(document, ["base.steps=2"]) == {"base": {"steps": 2}}
    assert document == {"base": {"steps": 1}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("base.steps", "not of the form table.key=value"),
        ("=3", "not of the form table.key=value"),
        ("run.name.x=3", "'name', no table"),
        ("mid.epochs.my talks=3", "has a key that is not TOML's; put a name with other .* quotes"),
        ("mid.epochs.gsm8k=0", "mid.epochs.gsm8k is 0"),
        ("base.steps.x=3", "base.steps is .*; it must be of type int"),
        ("base=3", r"it must be a table, \[base\]"),
        ("base.step=3", "did you mean 'steps'?"),
        ("bsae.steps=3", "did you mean 'base'?"),
        ("base_optim.matrix_lr=1", r"base's optimizer is \[optim\]"),
        ("run.sed=3", "did you mean 'seed'?"),
        ("run=3", r"it must be a table, \[run\]"),
        ("base.steps=many", "base.steps is 'many', of type str; it must be of type int"),
        ("base.steps=-1", "base.steps is -1"),
        ("mid.micro_rows=0", "mid.micro_rows is 0"),
        ("sft.mixture.identity=0", "sft.mixture.identity is 0"),
        ("run.depth=0", "depth is 0"),
        ("run.depth=twelve", "run.depth is 'twelve'"),
        ("run.depth=true", "run.depth is True"),
        ("run.preset=old", "run.preset is 'old'"),
        ("run.seed=-1", "run.seed is -1"),
        ("run.data_ratio=0", r"run.data_ratio is 0\.0"),
        ("run.data_ratio=-5", r"run.data_ratio is -5\.0"),
        ("run.data_ratio=inf", "run.data_ratio is inf"),
        ("model.n_layer=3", "set them as tokenizer.vocab_size and run.depth"),
        ("model.vocab_size=512", "set them as tokenizer.vocab_size and run.depth"),
        ("model.n_head=7", "1280 .* 7"),
    ],
)
@pytest.mark.parametrize("preset", ["classic", "modern"])
def test_a_bad_override_is_one_clear_sentence(
    tmp_path: Path, override: str, said: str, preset: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path, CLASSIC, f"run.preset={preset}", override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\ndepth = 20\n", "no run.name"),
        ('[run]\nname = "x"\n', "no run.depth"),
        ("[run\n", "run.toml is not valid TOML"),
        ("[run]\nname = 3\ndepth = 4\n", "run.name is 3, of type int; it must be of type str"),
        (CLASSIC + "[basis]\nsteps = 3\n", "unknown key 'basis'"),
        (CLASSIC + "[model]\nn_embed = 3\n", "did you mean 'n_embd'?"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml cannot be read"):
        loading.load(tmp_path / "nothing.toml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.toml is UTF-16LE text; only UTF-8 is read"):
        loading.load(tmp_path / "run.toml")


def test_equal_configs_have_equal_json_and_others_have_not(tmp_path: Path) -> None:
    one, same = load(tmp_path, CLASSIC), load(tmp_path, CLASSIC)
    other = load(tmp_path, CLASSIC, "sft.mixture.identity=2")
    assert loading.to_json(one) == loading.to_json(same)
    assert loading.to_json(one) != loading.to_json(other)


def test_where_there_are_no_tiers_it_says_how_to_have_them(tmp_path: Path) -> None:
    """As in a package that was copied into site-packages."""
    with pytest.raises(ConfigError, match=r"'cpu'; .* has none: .* pip install --editable \.$"):
        loading.find_tier("cpu", tmp_path)
