"""tokenizer.json and tiktoken in both directions; what would give other ids is refused."""

import json
from pathlib import Path

import pytest

from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import PATTERNS, Tokenizer, train_tokenizer

TEXT = "It's 1234 o'clock; they'll say \N{SNOWMAN}\n\n  na\u00efve words, words and more words."
BYTES = [bytes([byte]) for byte in range(256)]
FOREIGN = Path(__file__).parent.parent / "golden" / "transformers_nanochat" / "tokenizer.json"


@pytest.fixture
def folder(tmp_path):
    train_tokenizer([TEXT] * 3, 290).to_huggingface(tmp_path)
    return tmp_path


def change(folder, edit):
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    edit(settings)
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), r"\w{1,3}+|\s++$|.|\n", r"^a|.|\n"])
def test_what_is_exported_is_read_as_the_same(tmp_path, pattern):
    ours = train_tokenizer([TEXT] * 3, 290, pattern)
    ours.to_huggingface(tmp_path)
    assert Tokenizer.from_huggingface(tmp_path / "tokenizer.json").hash == ours.hash
    assert Tokenizer.from_tiktoken(ours.to_tiktoken()).hash == ours.hash


def test_what_transformers_converted_from_tiktoken_is_read():
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(FOREIGN))
    found = Tokenizer.from_huggingface(FOREIGN)
    for text in (TEXT, "the cat sat on the mat", "", "  \n", "\u2603 12345"):
        assert found.encode(text) == reference.encode(text).ids


def test_gpt2s_own_cutting_is_known(folder):
    def edit(settings):
        settings["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}

    assert Tokenizer.from_huggingface(change(folder, edit)).pattern == PATTERNS["gpt2"]


def setting(*keys, value):
    def edit(settings):
        for key in keys[:-1]:
            settings = settings[key]
        settings[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (setting("normalizer", value={"type": "NFC"}), "it has a normalizer"),
        (setting("model", "dropout", value=0.1), "it has dropout"),
        (setting("model", "byte_fallback", value=True), "byte fallback"),
        (setting("model", "type", value="Unigram"), "'Unigram'; it must be BPE"),
        (setting("model", "merges", value=[]), "not in the order of its ids"),
        (lambda spec: spec["model"]["merges"].reverse(), "not in the order of its ids"),
        (lambda spec: spec["model"]["merges"].append(["q", "q"]), "not in the order of its ids"),
        (lambda spec: spec["added_tokens"].pop(), "no special token <|output_end|>"),
        (lambda spec: spec["added_tokens"][0].update(id=0), "numbers or order"),
        (lambda spec: spec["added_tokens"].append({"content": "<pad>", "id": 999}), "'<pad>'"),
        (lambda spec: spec["model"]["vocab"].update({"\u4e00": 281}), "not spelled in bytes"),
        (lambda spec: spec["model"]["vocab"].update(a=1.5), "damaged"),
        (lambda spec: spec["model"]["vocab"].update(a=3), "0, 1, 2 and so on"),
        (setting("pre_tokenizer", value=None), "damaged"),
        (setting("pre_tokenizer", value={"type": "Whitespace"}), "into bytes as it is"),
        (
            setting("pre_tokenizer", "pretokenizers", 0, "behavior", value="Removed"),
            "in a way that ours does not",
        ),
        (
            setting("pre_tokenizer", "pretokenizers", 0, "pattern", value={"Regex": "a{1,2}+"}),
            "has no equal here",
        ),
    ],
)
def test_what_would_give_other_ids_is_refused(folder, edit, sentence):
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_huggingface(change(folder, edit))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_no_merge_makes_needs_ignore_merges(tmp_path):
    ours = Tokenizer([*BYTES, b"abcd"])
    ours.to_huggingface(tmp_path)
    assert Tokenizer.from_huggingface(tmp_path / "tokenizer.json").hash == ours.hash
    path = change(tmp_path, setting("model", "ignore_merges", value=False))
    with pytest.raises(TokenizerError, match="made by no merge"):
        Tokenizer.from_huggingface(path)


def test_files_that_are_none_are_refused(tmp_path):
    for text in ("", "[]", "{}", "[" * 100_000, '{"added_tokens": 3}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(TokenizerError):
            Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_huggingface(tmp_path / "none.json")


def test_other_vocabularies_of_tiktoken_are_refused():
    import tiktoken

    other = tiktoken.Encoding(
        name="x", pat_str=".", mergeable_ranks={b: i for i, b in enumerate(BYTES)},
        special_tokens={"<|endoftext|>": 256},
    )  # fmt: skip
    with pytest.raises(TokenizerError, match=r"special tokens .*'<\|endoftext\|>'"):
        Tokenizer.from_tiktoken(other)
