"""Log-probabilities of every token of a prompt."""

import jax
import numpy as np
import pytest
from whole_model import logprobs_of, shaken

from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.core.prompts import Choice, split_rows
from jaxchat.evals.core.scoring import score_rows
from jaxchat.evals.model import EvalModel
from jaxchat.evals.token_scores import score_tokens
from jaxchat.model import gpt

CONFIG = ModelConfig(vocab_size=300, sequence_len=96, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
LENGTHS = (1, 2, 31, 32, 33, 70, 5, 96, 90)


@pytest.fixture(scope="module")
def model():
    params = gpt.init_params(jax.random.key(0), CONFIG)
    params = shaken(params, 1, 0.1)
    return EvalModel(lambda: params, CONFIG, None)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in LENGTHS]


def one_by_one(model, prompt):
    return logprobs_of(model.params, prompt, CONFIG)


@pytest.mark.parametrize("count", [1, 5])
def test_they_are_those_of_each_prompt_alone(model, prompts, count):
    for prompt, scores in zip(prompts, score_tokens(prompts, model, likeliest=count), strict=True):
        logprobs = one_by_one(model, prompt)
        expected = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5)
        best = np.sort(logprobs, axis=-1)[:, ::-1][:, :count]
        np.testing.assert_allclose(scores.likeliest_logprobs, best, atol=1e-5)
        at_ids = np.take_along_axis(logprobs, scores.likeliest, axis=-1)
        np.testing.assert_allclose(at_ids, best, atol=1e-5)


def test_the_likeliest_token_has_the_very_log_probability_of_its_place(model, prompts):
    """lm-eval compares the two as floats to see whether a choice is what the model would say."""
    greedy = prompts[6]
    for _ in range(10):
        greedy = [*greedy, int(one_by_one(model, greedy)[-1].argmax())]
    (scores,) = score_tokens([greedy], model)
    assert (scores.logprobs[-10:] == scores.likeliest_logprobs[-11:-1, 0]).all()
    assert scores.likeliest[-11:-1, 0].tolist() == greedy[-10:]


def test_sums_are_those_of_core(model, prompts):
    starts = [max(1, len(prompt) // 2) for prompt in prompts]
    rows = [
        row
        for number, (prompt, start) in enumerate(zip(prompts, starts, strict=True))
        if len(prompt) > 1
        for row in split_rows(number, [Choice(np.array(prompt), start)], CONFIG.sequence_len)
    ]
    losses = score_rows(rows, model)
    for number, scores in enumerate(score_tokens(prompts, model)):
        if len(prompts[number]) > 1:
            part = scores.logprobs[starts[number] - 1 :]
            assert -part.mean() == pytest.approx(losses[number, 0].loss, abs=1e-5)


@pytest.mark.parametrize("bad", [CONFIG.vocab_size, -1])
def test_ids_beyond_the_vocabulary_are_refused(model, bad):
    with pytest.raises(ArtifactError, match=rf"a prompt has the id {bad}, and the vocabulary only"):
        score_tokens([[1, 2], [3, bad, 4]], model)
