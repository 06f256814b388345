"""Opens the model of a run to evaluate it (layer 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxchat import runs
from jaxchat.chat import how_to_make, open_run
from jaxchat.config.schema import MODELS, MeshConfig, RunConfig
from jaxchat.data.prepare import load_tokenizer
from jaxchat.errors import ArtifactError
from jaxchat.model.backend import Compute, choose_compute, compute_dtype
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.run_models import load_model
from jaxchat.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model and what is needed to run it.

    Attributes:
        run: its folder.
        stage: which of the run's models.
        digest: of the weights.
        params: whole on every device of `mesh`, whose axis `data` is over all of them.
    """

    run: Path
    stage: str
    digest: str
    config: RunConfig
    params: Any
    tokenizer: Tokenizer
    compute: Compute
    mesh: Mesh


def open_model(root: Path, name: str | None, stage: str) -> Opened:
    """Opens a stage's model of the run called `name`, or the last one, in the home `root`.

    Raises ArtifactError when there is no such run, or the stage is not complete.
    """
    run = runs.find(root, name, (stage,))
    context = open_run(run)
    config, done = context.config, context.done
    if stage not in done:
        there = ", ".join(name for name in MODELS if name in done) or "none"
        raise ArtifactError(
            f"the run in {run} has no model {stage} (complete there: {there}); choose another with "
            f"--stage, or {how_to_make(config, stage)}"
        )
    mesh = make_mesh(MeshConfig())
    params = load_model(run, stage, config.model)
    return Opened(
        run=run,
        stage=stage,
        digest=str(done[stage]["results"]["artifact"]),
        config=config,
        params=put(params, param_shardings(mesh, params)),
        tokenizer=load_tokenizer(run / "tokenizer"),
        compute=choose_compute(
            replace(config.compute, fp8=False, products="plain"), config.model, compute_dtype()
        ),
        mesh=mesh,
    )
