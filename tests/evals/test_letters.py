"""Multiple choice by letters: the same as one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_model import shaken

from jaxchat.config.schema import ModelConfig
from jaxchat.evals import letters
from jaxchat.evals.letters import choose_letters
from jaxchat.model.backend import BACKENDS
from jaxchat.model.gpt import forward, init_params
from jaxchat.tasks.base import say
from jaxchat.tasks.multiple_choice import ChoiceProblem, wording
from jaxchat.tokenizer import Tokenizer, render_prompt, train_tokenizer

OPTIONS = ["sand", "water and some more words", "wood", "air", "fire"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([wording("What is it?", "ABCD", OPTIONS[:4])] * 9, 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, sequence_len=160, n_layer=2, n_head=2, n_kv_head=1,
        n_embd=32, smear=True, window_pattern="SL",
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(model: ModelConfig) -> object:
    params = init_params(jax.random.key(0), model)
    return shaken(params, 1, 0.3)


def problems(count: int) -> list[ChoiceProblem]:
    """Of 3 to 5 options, and of very different lengths."""
    made = []
    for number in range(count):
        names = "ABCDE"[: 3 + number % 3]
        question = f"What is {'very ' * (number * 7 % 40)}{number}?"
        chat = say(wording(question, names, OPTIONS[: len(names)]), names[0])
        made.append(ChoiceProblem("t", question, chat, names[0], tuple(names)))
    return made


def test_many_at_once_answer_as_one_at_a_time(
    tokenizer: Tokenizer, model: ModelConfig, params: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        BACKENDS, "cpu", replace(BACKENDS["cpu"], letter_tokens=512)
    )  # several batches a size
    asked = problems(23)
    seen: list[int] = []
    got = choose_letters(params, asked, tokenizer, model, progress=seen.append)
    assert seen[-1] == 23
    assert len(seen) > 5
    expected = []
    whole = jax.jit(forward, static_argnums=2)
    for problem in asked:
        ids = render_prompt(problem.conversation["messages"][:-1], tokenizer)
        if len(ids) > model.sequence_len:
            ids = [ids[0], *ids[-(model.sequence_len - 1) :]]
        padded = jnp.asarray([ids + [0] * (model.sequence_len - len(ids))])
        logits = np.asarray(whole(params, padded, model))[0, len(ids) - 1]
        scores = [logits[tokenizer.encode(letter)[0]] for letter in problem.letters]
        expected.append(problem.letters[int(np.argmax(scores))])
    assert got == expected
    assert len(set(got)) > 2, "a model that always says the same shows nothing"
    sizes = [len(render_prompt(p.conversation["messages"][:-1], tokenizer)) for p in asked]
    assert min(sizes) < 80 < 128 < max(sizes), "the lengths do not differ enough"
    assert max(sizes) > model.sequence_len, "no prompt was cut"


def test_few_shapes_are_compiled(tokenizer: Tokenizer, model: ModelConfig, params: object) -> None:
    letters._last_logits.clear_cache()
    choose_letters(params, problems(40), tokenizer, model)
    assert letters._last_logits._cache_size() <= 4  # 32, 64, 128 and the context, 160


def test_a_letter_of_several_tokens_is_refused(
    tokenizer: Tokenizer, model: ModelConfig, params: object
) -> None:
    bad = ChoiceProblem("t", "k", say("Which?", "Ä"), "Ä", ("Ä",))
    with pytest.raises(ValueError, match="the letter 'Ä' is 2 tokens; it must be one"):
        choose_letters(params, [bad], tokenizer, model)
