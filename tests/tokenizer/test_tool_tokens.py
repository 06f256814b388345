"""A tokenizer with the five special tokens of conversations, without the four of tools."""

import json
import pickle

import pytest
from jinja2 import sandbox
from tokenizers import Tokenizer as Theirs

from jaxchat.errors import TokenizerError
from jaxchat.inference.sequence import Specials
from jaxchat.tokenizer import (
    SPECIAL_TOKENS,
    ConversationError,
    Tokenizer,
    parse_completion,
    render,
    render_batch,
    render_prompt,
    train_tokenizer,
)
from jaxchat.tokenizer.huggingface import chat_template
from jaxchat.tokenizer.patterns import CHAT_TOKENS

TEXTS = ["the cat sat on the mat and the other cats sat there too"] * 9
NINE = train_tokenizer(TEXTS, 280)
FIVE = train_tokenizer(TEXTS, 280, tools=False)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the <|bos|> cat"},
    {"role": "assistant", "content": "sat <|python_start|> there"},
    {"role": "user", "content": "too"},
]
CALL = [{"role": "user", "content": "1 + 1"}]
CALL.append({"role": "assistant", "content": [{"type": "python", "text": "1 + 1"}]})


def test_the_vocabulary_is_as_large_with_four_more_merges():
    assert NINE.vocab_size == FIVE.vocab_size == 280
    assert FIVE.tokens[:-4] == NINE.tokens
    assert list(FIVE.specials) == list(SPECIAL_TOKENS[:5])
    assert list(FIVE.specials.values()) == list(range(275, 280))
    assert (NINE.has_tools, FIVE.has_tools) == (True, False)
    assert train_tokenizer([], 261, tools=False).vocab_size == 261
    with pytest.raises(TokenizerError, match="5 special tokens need at least 261"):
        train_tokenizer([], 260, tools=False)


def test_what_is_saved_pickled_or_given_to_tiktoken_comes_back(tmp_path):
    FIVE.save(tmp_path)
    same_merges = Tokenizer(FIVE.tokens)
    assert same_merges.hash != FIVE.hash
    for found in (
        Tokenizer.load(tmp_path),
        pickle.loads(pickle.dumps(FIVE)),
        Tokenizer.from_tiktoken(FIVE.to_tiktoken()),
    ):
        assert (found.hash, found.has_tools) == (FIVE.hash, False)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    assert list(settings["special_tokens"]) == list(CHAT_TOKENS)


def test_conversations_are_rendered_as_with_all_tokens_and_calls_are_refused():
    ids, mask = render({"messages": TALK}, FIVE)
    start, end = FIVE.special("<|assistant_start|>"), FIVE.special("<|assistant_end|>")
    assert ids[0] == FIVE.bos
    said = ids[ids.index(start) + 1 : ids.index(end)]
    assert FIVE.decode(said) == TALK[2]["content"]
    assert sum(mask) == len(said) + 1
    assert render_prompt(TALK, FIVE) == [*ids, start]
    batch, _, ends = render_batch([{"messages": TALK}] * 2, FIVE)
    assert batch.tolist() == ids * 2
    assert ends.tolist() == [0, len(ids), 2 * len(ids)]
    with pytest.raises(ConversationError, match=r"no token <\|python_start\|>"):
        render({"messages": CALL}, FIVE)
    with pytest.raises(ConversationError, match=r"conversation 1 of the batch: .* calls a tool"):
        render_batch([{"messages": TALK}, {"messages": CALL}], FIVE)


def test_a_completion_is_text_and_the_engine_waits_for_no_tool():
    ids = [*FIVE.encode("sat there"), FIVE.special("<|assistant_end|>"), 7]
    assert parse_completion(ids, FIVE) == [{"type": "text", "text": "sat there"}]
    specials = Specials.of(FIVE)
    assert specials.stops == (FIVE.special("<|assistant_end|>"), FIVE.bos)
    assert {specials.python_start, specials.python_end, specials.output_start} == {-1}


def test_the_files_for_transformers_have_the_same_five_tokens_and_ids(tmp_path):
    FIVE.to_huggingface(tmp_path)
    back = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    assert back.hash == FIVE.hash
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == list(CHAT_TOKENS)
    theirs = Theirs.from_file(str(tmp_path / "tokenizer.json"))
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(sentence):
        raise ValueError(sentence)

    text = (tmp_path / "chat_template.jinja").read_text()
    assert text == chat_template(CHAT_TOKENS)
    template = environment.from_string(text, {"raise_exception": refuse})
    plain = [TALK[0], {"role": "user", "content": "the cat"}, TALK[2], TALK[3]]
    written = template.render(messages=plain, add_generation_prompt=True)
    assert theirs.encode(written, add_special_tokens=False).ids == render_prompt(plain, FIVE)
    with pytest.raises(ValueError, match="no special tokens for tools"):
        template.render(messages=CALL)
    parts = [CALL[0], {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]
    written = template.render(messages=parts)
    assert (
        theirs.encode(written, add_special_tokens=False).ids == render({"messages": parts}, FIVE)[0]
    )
