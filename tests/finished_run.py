"""A home with a finished run whose models are random, recorded by the real pipeline."""

import dataclasses
from pathlib import Path

import jax
from whole_model import shaken

from jaxchat.checkpoints.save import save_params
from jaxchat.config import loading
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.model.gpt import init_params
from jaxchat.runs import run_dir, runner
from jaxchat.runs.stages import STAGES
from jaxchat.tokenizer import Tokenizer, train_tokenizer

DOCUMENT = {
    "run": {"name": "tiny", "depth": 1},
    "tokenizer": {"vocab_size": 280},
    "model": {"n_embd": 16, "n_head": 2, "n_kv_head": 2, "sequence_len": 128},
}


def tiny_config() -> RunConfig:
    return loading.from_document(DOCUMENT, "tiny")


def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(["who are you and how many are there "] * 9, 280)


def random_params(seed: int, config: RunConfig) -> dict:
    """Weights that say something else at every step; those of the start always say one thing."""
    params = init_params(jax.random.key(seed), config.model)
    return shaken(params, 100 + seed, 0.2)


def finish_run(home: Path, config: RunConfig, tokenizer: Tokenizer) -> Path:
    """Makes the run in `home`; its folder."""

    def make(name):
        def run(context):
            folder = context.folder(name)
            if name == "tokenizer":
                tokenizer.save(folder)
            if name in MODELS:
                params = random_params(MODELS.index(name), config)
                save_params(folder / "model", params, {"stage": name})
            return {"artifact": name}

        return run

    run = run_dir.folder(home, config.name)
    run_dir.write_config(run, config)
    stages = [dataclasses.replace(stage, run=make(stage.name)) for stage in STAGES]
    runner.run_stages(stages, runner.Context(config, run))
    return run
