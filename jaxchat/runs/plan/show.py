"""What `run_speedrun.py --plan` prints. Nothing heavy is imported unless programs are compiled."""

from __future__ import annotations

import json
from collections.abc import Collection

from jaxchat.config.schema import RunConfig
from jaxchat.parallel.launch_env import configure_compiling
from jaxchat.runs.plan import plan
from jaxchat.train.compiled.targets import USERS


def show(
    config: RunConfig,
    tier: str,
    kind: str | None = None,
    stages: Collection[str] | None = None,
    *,
    as_json: bool = False,
) -> str:
    """The plan as text or JSON; with a `kind` of device also what was compiled for it.

    Of that only the programs of `stages`, if there are any. Raises ArtifactError where a wheel is
    missing, and ConfigError where a step cannot be.
    """
    made = plan.make_plan(config)
    document, texts = plan.to_json(made), [plan.render(made)]
    if kind:
        configure_compiling(config.mesh)
        from jaxchat.runs.plan import compiled

        found, times = compiled.compile_plan(
            config, tier, kind, [stage for stage in stages or () if stage in USERS]
        )
        document["compiled"] = compiled.to_json(found, times)
        texts.append(compiled.render(found, times))
    return json.dumps(document, indent=1) if as_json else "\n\n".join(texts)
