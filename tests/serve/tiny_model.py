"""A home with a run whose model was trained, for a few seconds, on the conversations below.

It knows them by heart: a question of these gets its answer, token for token, at temperature 0.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxchat.checkpoints.save import save_params
from jaxchat.config import loading
from jaxchat.config.schema import MODELS
from jaxchat.model import gpt
from jaxchat.runs import run_dir, runner
from jaxchat.runs.stages import STAGES
from jaxchat.tokenizer import Tokenizer, train_tokenizer
from jaxchat.tokenizer.chat_format import Conversation, Part, render

RUN = "tiny"
CONTEXT = 512
STEPS = {"mid": 5, "sft": 30, "rl": 80}  # of training, until the stage's model is saved
RATE = 1e-2
DOCUMENT: dict[str, Any] = {
    "run": {"name": RUN, "depth": 2},
    "tokenizer": {"vocab_size": 512},
    "model": {"n_embd": 64, "n_head": 2, "n_kv_head": 2, "sequence_len": CONTEXT},
}

COUNTED = " ".join(str(number) for number in range(1, 41)) + "."
CODE = "Here it is:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\nIt adds two numbers."
TABLE = "| name | legs |\n| --- | --- |\n| ant | 6 |\n| spider | 8 |\n\nThat is **all**."
HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"alert(1)\"> "
    "[x](javascript:alert(2)) done"
)
SCRIPTS = "Grüße, 你好, привет 👋🏽 and 👩‍🚀."
SUM: list[Part] = [
    {"type": "text", "text": "Let me see. "},
    {"type": "python", "text": "12 + 34"},
    {"type": "python_output", "text": "46"},
    {"type": "text", "text": "It is 46."},
]
ANSWERS: dict[str, str | list[Part]] = {
    "Who are you?": "I am jaxchat, a very small model that was trained in a test.",
    "What is 12 + 34?": SUM,
    "Show me code.": CODE,
    "Show me a table.": TABLE,
    "Say something hostile.": HOSTILE,
    "Greet the world.": SCRIPTS,
    "Count.": COUNTED,
}


def conversations() -> list[Conversation]:
    """Those above, one each."""
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in ANSWERS.items()
    ]


def make_tokenizer() -> Tokenizer:
    """A tokenizer of the answers' words; other scripts stay bytes."""
    return train_tokenizer([*ANSWERS, CODE, TABLE, HOSTILE, COUNTED] * 4, 512)


def train(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Stage -> weights."""
    rendered = [render(conversation, tokenizer) for conversation in conversations()]
    length = max(len(ids) for ids, _ in rendered)
    tokens, mask = np.zeros((2, len(rendered), length), np.int32)
    for number, (ids, learned) in enumerate(rendered):
        tokens[number, : len(ids)] = ids
        mask[number, : len(ids)] = learned
    batch = jnp.asarray(tokens), jnp.asarray(mask)
    optimizer = optax.adam(RATE)

    def loss(params: Any) -> jax.Array:
        logits = gpt.forward(params, batch[0][:, :-1], model)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[0][:, 1:])
        return jnp.sum(losses * batch[1][:, 1:]) / jnp.sum(batch[1][:, 1:])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = gpt.init_params(jax.random.key(0), model)
        state, stages = optimizer.init(params), {"base": jax.tree.map(jnp.copy, params)}
        for number in range(1, max(STEPS.values()) + 1):
            params, state = step(params, state)
            stages |= {
                stage: jax.tree.map(jnp.copy, params)
                for stage, steps in STEPS.items()
                if steps == number
            }
    return stages


def make_home(home: Path) -> Path:
    """Fills a home with the run, recorded by the real pipeline; gives it back."""
    config = loading.from_document(DOCUMENT, RUN)
    tokenizer = make_tokenizer()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    )
    weights = train(config.model, tokenizer)

    def make(name: str) -> Any:
        def run(context: runner.Context) -> dict[str, Any]:
            folder = context.folder(name)
            if name == "tokenizer":
                tokenizer.save(folder)
            if name in MODELS:
                save_params(folder / "model", weights[name], {"stage": name})
            return {"artifact": f"{name}-artifact"}

        return run

    run = run_dir.folder(home, config.name)
    run_dir.write_config(run, config)
    stages = [dataclasses.replace(stage, run=make(stage.name)) for stage in STAGES]
    runner.run_stages(stages, runner.Context(config, run))
    return home
