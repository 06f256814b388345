"""CORE as a part of a run: its bundle, fetched with the data, and the base model on it (layer 4).

It is a part with a key of its own: a bundle that comes later, or another one, runs CORE alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxchat.config.schema import NOWHERE, RunConfig
from jaxchat.data.download import eval_bundle
from jaxchat.data.download.web import WebError
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.core.bundle import Bundle, read_bundle
from jaxchat.evals.core.evaluate import evaluate_saved
from jaxchat.evals.saved import core_folder
from jaxchat.model.backend import Compute
from jaxchat.paths import offline_by
from jaxchat.runs.inputs import home_of, hub_of, tokenizer_of
from jaxchat.runs.report import core_record
from jaxchat.runs.report.by_hand import cores
from jaxchat.runs.runner import Context, read_done

LEFT_OUT = "CORE is left out"
ADD = "jaxchat eval core --download adds it later."


def is_wanted(config: RunConfig) -> bool:
    """Whether a run's base model is to be evaluated on CORE: of all runs on a dataset's text."""
    asked = bool(config.eval.bundle) or config.data.is_dataset
    return asked and not config.leaves_out("base")


def find_bundle(context: Context) -> Bundle | None:
    """The bundle that there is; nobody is asked for it.

    Raises ArtifactError where the home's is not as it first was, and ConfigError for examples a
    task that are too few to show.
    """
    config, root = context.config, home_of(context.root)
    if not is_wanted(config):
        return None
    if config.eval.bundle:
        return _checked(_own_bundle(config), config)
    if eval_bundle.bundle_folder(root).exists():
        return _checked(read_bundle(eval_bundle.check_bundle(root)), config)
    return None


def _own_bundle(config: RunConfig) -> Bundle:
    """The bundle that `eval.bundle` names."""
    folder = Path(config.eval.bundle).expanduser()
    try:
        return read_bundle(folder)
    except ArtifactError as error:
        wrong = "does not exist" if not folder.exists() else f"cannot be used: {error}"
        raise ArtifactError(
            f"eval.bundle is {config.eval.bundle}, which {wrong.rstrip('.')}; set it to the folder "
            "of CORE's tasks, or leave it out for that of the home."
        ) from error


def _checked(bundle: Bundle, config: RunConfig) -> Bundle:
    shots = max(task.shots for task in bundle.tasks)
    limits = {
        "eval.core_examples": config.eval.core_examples,
        **{f"{s}.core_examples": t.core_examples for s, t in _watched(config).items()},
    }
    for name, limit in limits.items():
        if 0 < limit <= shots:
            raise ConfigError(
                f"{name} is {limit}, and CORE shows up to {shots} solved examples before each "
                f"question; set it to more than {shots}, or to 0 for all."
            )
    return bundle


def _watched(config: RunConfig) -> dict[str, Any]:
    stages = {"base": config.base, "mid": config.mid, "sft": config.sft}
    return {name: train for name, train in stages.items() if train.core_every}


def fetch(context: Context) -> Bundle | None:
    """Likewise, but fetched where it is missing; a line says when it cannot be had."""
    found = find_bundle(context)
    if found is not None or not is_wanted(context.config):
        return found
    hub, url = hub_of(context), context.config.eval.bundle_url
    if hub.offline or url == NOWHERE:
        why = f"{offline_by()} forbids fetching it" if hub.offline else "eval.bundle_url is none"
        folder = eval_bundle.bundle_folder(home_of(context.root))
        _leave_out(context, f": there is no {folder}, and {why}; {ADD}")
        return None
    try:
        eval_bundle.fetch_bundle(hub.root, eval_bundle.address(hub, url), hub.web)
    except WebError as error:
        _leave_out(context, f", and the run goes on without: {error} {ADD}")
        return None
    return find_bundle(context)


def _leave_out(context: Context, why: str) -> None:
    """Says so, once a process, unless the report has CORE of the base model that there is."""
    base = read_done(context.root, "base")
    if base is not None and cores(context.root, "base", str(base["results"]["artifact"])):
        return
    if LEFT_OUT not in context.said:
        print(f"{LEFT_OUT}{why}", flush=True)
    context.said.add(LEFT_OUT)


def evaluate_base(
    context: Context, params: Callable[[], Any], *, mesh: Mesh, compute: Compute
) -> dict[str, Any] | None:
    """CORE of the base model as the report keeps it; None where there is no bundle.

    `params` loads the weights, as training has them on `mesh`. What is kept of these weights on
    this bundle, also by `jaxchat eval core`, is not done again.
    """
    bundle = fetch(context)
    if bundle is None:
        return None
    config = context.config
    result, _ = evaluate_saved(
        core_folder(context.root, "base"), params,
        str(context.done["base"]["results"]["artifact"]), config.model, tokenizer_of(context),
        bundle, compute=compute, mesh=mesh,
        max_problems=config.eval.core_examples or None,
    )  # fmt: skip
    seconds = sum(task.seconds for task in result.tasks)  # of earlier sessions, too
    return core_record(result.to_json()) | {"bundle": bundle.hash, "seconds": seconds}


def is_outdated(context: Context) -> bool:
    """Whether a complete evaluation was not on the bundle that there is now.

    A bundle that is gone does not count: what was found on it stays.
    """
    own, record = context.config.eval.bundle, read_done(context.root, "eval")
    if record is None or (own and not Path(own).expanduser().exists()):
        return False
    bundle = find_bundle(context)
    if bundle is None:
        return False
    base = record["results"].get("models", {}).get("base", {})
    return bool(base.get("core", {}).get("bundle") != bundle.hash)
