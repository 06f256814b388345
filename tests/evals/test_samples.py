"""The prompts that the report shows, answered by an untrained model."""

import json

import jax
import pytest

from jaxchat.config.schema import ModelConfig
from jaxchat.evals.chat import COMPLETIONS, QUESTIONS, chat_samples, text_samples
from jaxchat.inference.engine import Engine
from jaxchat.model.gpt import init_params
from jaxchat.tasks import make_tasks
from jaxchat.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*QUESTIONS, *COMPLETIONS] * 9, 400)


@pytest.fixture(scope="module")
def engine(tokenizer):
    config = ModelConfig(
        vocab_size=400, sequence_len=256, n_layer=1, n_head=2, n_kv_head=2, n_embd=16
    )
    return Engine(init_params(jax.random.key(0), config), config, tokenizer, slots=4)


def test_every_prompt_is_answered_the_same_each_time(engine, tokenizer):
    texts = text_samples(engine, tokenizer, COMPLETIONS)
    assert [sample["prompt"] for sample in texts] == list(COMPLETIONS)
    assert all(isinstance(sample["completion"], str) for sample in texts)
    chats = chat_samples(engine, tokenizer, QUESTIONS)
    assert [sample["question"] for sample in chats] == list(QUESTIONS)
    assert all(part["text"] is not None for sample in chats for part in sample["parts"])
    assert (text_samples(engine, tokenizer, COMPLETIONS), chats) == (
        texts,
        chat_samples(engine, tokenizer, QUESTIONS),
    )
    assert json.loads(json.dumps(chats)) == chats


def test_the_choice_among_the_questions_is_worded_as_in_training():
    (choice,) = (question for question in QUESTIONS if "\n" in question)
    prompt = make_tasks(["choice"], 0)["choice"].problem("train", 0).prompt
    assert choice.splitlines()[-1] == prompt.splitlines()[-1]
    shape = [line.partition("=")[1:] for line in prompt.splitlines()[1:5]]
    assert [line.partition("=")[1:] for line in choice.splitlines()[1:5]] == shape
