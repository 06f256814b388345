"""A model, a tool and a task small enough for reinforcement learning in a test.

As a program, `python tiny_rl.py FOLDER`, it trains them. It says "sampling STEP" in the middle of
every step's rollouts and "saving STEP" as soon as a save has begun, and rests a moment each time,
to be killed just there.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from whole_model import features, shaken

from jaxchat.config.schema import MeshConfig, ModelConfig, OptimConfig, RLConfig
from jaxchat.inference.engine import Engine
from jaxchat.model import gpt
from jaxchat.parallel.mesh import make_mesh
from jaxchat.tasks import Problem
from jaxchat.tasks.base import Split, say
from jaxchat.tokenizer import train_tokenizer
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part
from jaxchat.train.grpo import RLJob, train_rl

TOKENIZER = train_tokenizer(["how many of them are there? there are seven of them. "] * 9, 290)
MODEL = ModelConfig(TOKENIZER.vocab_size, 64, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
CONFIG = RLConfig(
    steps=8, problems_per_step=3, samples_per_problem=6, max_new_tokens=20, micro_rows=6,
    lr_scale=1.0, save_every=2, eval_every=3, eval_problems=4, eval_samples=2,
)  # fmt: skip
EAGER = ("<|python_start|>", "<|python_end|>", "<|assistant_end|>")


@dataclass
class Even:
    """Rewards an answer of an even number of characters; nothing from training problem `until`."""

    name: str = "even"
    until: int = 2**31

    def problem(self, split: Split, index: int) -> Problem:
        there = split == "test" or index % 100_000_000 < self.until
        return Problem(self.name, str(index), say(f"{split} {index % 7}", "a"), "a" * there)

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        return bool(problem.answer) and sum(len(part["text"]) for part in parts) % 2 == 0


def lively_params(model: ModelConfig = MODEL, tokenizer: Tokenizer = TOKENIZER) -> Any:
    """Random weights, nowhere zero, of a model that likes to call its tool and to stop."""
    params = gpt.init_params(jax.random.key(0), model)
    params = shaken(params, 1, 0.2)
    # what the features of all texts have in common serves as a bias
    common = features(params, np.arange(model.sequence_len)[None], model).mean((0, 1))
    kernel = params["lm_head"]["kernel"]
    eager = jax.numpy.array([tokenizer.special(name) for name in EAGER])
    biased = kernel.at[:, eager].add(4 * (common / (common @ common))[:, None])
    return {**params, "lm_head": {"kernel": biased}}


def make_engine(params: Any, slots: int = 8, kind: type[Engine] = Engine) -> Engine:
    """An engine whose tool always says 7."""
    return kind(params, MODEL, TOKENIZER, slots=slots, tools=lambda code: "7", steps_per_dispatch=4)


def tiny_job(folder: Path, config: RLConfig = CONFIG, task: Even | None = None) -> RLJob:
    """A job of this model, on one device."""
    return RLJob(
        folder=folder, model=MODEL, optim=OptimConfig(momentum_warmup_steps=5), config=config,
        task=task or Even(), tokenizer=TOKENIZER, mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        engine=make_engine(lively_params()), seed=0,
    )  # fmt: skip


class Slow(Engine):
    """Rests in its third dispatch after it was given weights."""

    given = -1
    dispatches = 0

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.given, self.dispatches = self.given + 1, 0

    def step(self) -> bool:
        self.dispatches += 1
        if self.dispatches == 3:
            rest(f"sampling {self.given}")
        return super().step()


def rest(words: str) -> None:
    print(words, flush=True)
    time.sleep(0.2)


def main() -> None:
    """Trains in the folder that the command line names."""
    from jaxchat.train import session

    # as in the tests: of fewer devices each has more threads, which round differently
    jax.config.update("jax_num_cpu_devices", 8)

    class Slowly(session.Checkpoints):
        def save(self, step: int, state: Any, meta: Any) -> None:
            super().save(step, state, meta)  # continues in the background
            rest(f"saving {step}")

    session.Checkpoints = Slowly  # type: ignore[misc]
    job = tiny_job(Path(sys.argv[1]), replace(CONFIG, eval_every=0))
    params = lively_params()
    train_rl(replace(job, engine=make_engine(params, kind=Slow)), params)


if __name__ == "__main__":
    main()
