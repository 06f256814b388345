"""CORE is nanochat's, example by example, and does not depend on how rows are batched.

tests/golden/nanochat_core.npz holds a small random model over bytes and what nanochat (July 2026)
says of it on the tasks of tests/golden/core_bundle; bench/nanochat_peer/core.py made it. If you
meant to leave nanochat's definition of something, say so in docs/log.md; never relax a tolerance.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_model import shaken

from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.checkpoints.tensors import to_params
from jaxchat.config.derive import derive_model, windows
from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.core.bundle import read_bundle, read_examples
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.core.prompts import draw_shots, find_scored, prompts
from jaxchat.evals.core.scoring import Sizes
from jaxchat.evals.model import EvalModel
from jaxchat.model import gpt
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLE = GOLDEN / "core_bundle"
SMALL = Sizes(tokens=1_500, steps=1, head=16)  # several batches, and several parts of the head


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "nanochat_core.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(golden):
    settings = json.loads(str(golden["settings"]))["model"]
    derived = derive_model(12, "modern", settings["vocab_size"])
    return dataclasses.replace(derived, **settings)


@pytest.fixture(scope="module")
def params(golden, model):
    weights = {k.removeprefix("weight/"): v for k, v in golden.items() if k.startswith("weight/")}
    return to_params(weights, model, nanochat_name)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([bytes([i]) for i in range(256)])


def assert_same(found, want):
    """Two lists of (prediction, gold, losses)."""
    assert [one.prediction for one in found] == [one["prediction"] for one in want]
    assert [one.gold for one in found] == [one["gold"] for one in want]
    for index, (a, b) in enumerate(zip(found, want, strict=True)):
        losses = [math.nan if loss is None else loss for loss in b["losses"]]
        np.testing.assert_allclose(a.losses, losses, atol=2e-5, err_msg=f"example {index}")


@pytest.mark.parametrize("number", [0, 1], ids=["whole", "truncated"])
def test_every_prediction_and_loss_is_nanochats(golden, model, params, tokenizer, number):
    want = json.loads(str(golden["results"]))[number]
    bundle = read_bundle(BUNDLE)
    result = evaluate_core(
        EvalModel(lambda: params, model, tokenizer), bundle, context=want["context"], sizes=SMALL
    )
    assert [task.label for task in result.tasks] == list(want["tasks"])
    for task in result.tasks:
        assert_same(task.judged, want["tasks"][task.label])


def one_at_a_time(params, model, tokenizer, task, context):
    """The mean loss of each choice of each example, each alone through the whole model."""

    @jax.jit
    def logprobs_of(tokens):
        logits = gpt.forward(params, tokens[None], model)[0]
        return jax.nn.log_softmax(logits)[jnp.arange(context - 1), tokens[1:]]

    examples, found = read_examples(task), []
    for index, example in enumerate(examples):
        texts = prompts(task, example, draw_shots(examples, index, task.shots))
        tokens = [np.array([tokenizer.bos, *tokenizer.encode(text)]) for text in texts]
        for choice in find_scored(task.kind, tokens):
            lost = max(0, len(choice.tokens) - context)
            row, start = choice.tokens[lost:], choice.start - lost
            padded = np.pad(row, (0, context - len(row))).astype(np.int32)
            found.append(-np.asarray(logprobs_of(padded))[start - 1 : len(row) - 1].mean())
    return found


def test_batches_on_a_mesh_score_as_one_choice_at_a_time_does(golden, tokenizer):
    settings = json.loads(str(golden["settings"]))["model"]
    # as many key/value heads as tensor devices, so that they can be split
    config = dataclasses.replace(
        derive_model(12, "modern", settings["vocab_size"]), **settings | {"n_kv_head": 2}
    )
    weights = gpt.init_params(jax.random.key(3), config)
    noise = jax.random.normal(jax.random.key(4), weights["lm_head"]["kernel"].shape)
    weights = {**weights, "lm_head": {"kernel": noise}}
    bundle, labels = read_bundle(BUNDLE), ["kitchen", "copying"]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    laid = put(weights, param_shardings(mesh, weights))
    result = evaluate_core(
        EvalModel(lambda: laid, config, tokenizer, mesh=mesh), bundle,
        context=150, sizes=SMALL, tasks=labels,
    )  # fmt: skip
    for task, done in zip(bundle.select(labels), result.tasks, strict=True):
        want = one_at_a_time(weights, config, tokenizer, task, 150)
        found = [loss for one in done.judged for loss in one.losses]
        np.testing.assert_allclose(found, want, atol=2e-5)


def test_the_longest_continuation_that_fits_is_scored(model, params, tokenizer):
    """A context shorter than a continuation: its first token has nothing before it."""
    result = evaluate_core(
        EvalModel(lambda: params, model, tokenizer), read_bundle(BUNDLE),
        tasks=["copying"], context=4,
    )  # fmt: skip
    assert all(math.isfinite(one.losses[0]) for one in result.tasks[0].judged)


@pytest.fixture(scope="module")
def short():
    """A model of one layer that was trained on 16 tokens: it sees 16 keys to the left."""
    config = ModelConfig(
        vocab_size=265, sequence_len=16, n_layer=1, n_head=2, n_kv_head=2, n_embd=16
    )
    weights = gpt.init_params(jax.random.key(0), config)
    return config, shaken(weights, 1, 0.5)


def losses_of(result):
    return np.array([loss for task in result.tasks for one in task.judged for loss in one.losses])


def test_beyond_the_training_length_a_layer_sees_what_it_saw_in_training(short, tokenizer):
    """As nanochat's windows, which are those of sequence_len: it sees no more of a longer prompt.

    A layer that sees 16 keys to the left makes of a prompt of any length what it makes of its last
    tokens: those that are scored, one before them, and 16 before that.
    """
    config, weights = short
    bundle, labels = read_bundle(BUNDLE), ["kitchen"]

    def losses(context, **options):
        return losses_of(
            evaluate_core(
                EvalModel(lambda: weights, config, tokenizer),
                bundle,
                tasks=labels,
                context=context,
                **options,
            )
        )

    longest = max(
        len(choice) for e in read_examples(bundle.select(labels)[0]) for choice in e["choices"]
    )
    whole, enough = losses(2_000), losses(longest + 1 + 1 + 16)
    np.testing.assert_allclose(whole, enough, atol=1e-5)
    assert np.abs(losses(2_000, widen=True) - whole).max() > 1e-3, "classic sees all of it"


@pytest.mark.parametrize(
    ("pattern", "length"), [("SSSL", (512, 512, 512, 2048)), ("L", (2048,) * 4)]
)
def test_windows_are_those_of_the_training_length(pattern, length):
    """nanochat's _compute_window_sizes: a quarter in whole tiles of 128, and sequence_len."""
    model = dataclasses.replace(derive_model(4, "modern", 265), window_pattern=pattern)
    assert windows(model) == length


def test_prompts_beyond_the_vocabulary_are_refused(params, model, tokenizer):
    fewer = dataclasses.replace(model, vocab_size=100)  # but of 256 bytes and 9 special ones
    with pytest.raises(ArtifactError, match=r"a prompt of CORE has the id 256, and the vocab"):
        evaluate_core(EvalModel(lambda: params, fewer, tokenizer), read_bundle(BUNDLE), sizes=SMALL)
