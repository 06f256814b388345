"""All tiers in one table: what each takes, what to expect of it, and how that is known."""

from __future__ import annotations

import textwrap
from pathlib import Path

from jaxchat.config import loading
from jaxchat.progress import duration
from jaxchat.runs.plan.evaluation import EvalPlan
from jaxchat.runs.plan.plan import StagePlan, make_plan
from jaxchat.runs.tables import count, table

WIDTH = 96  # of the evidence, in characters


def render(folder: Path = loading.CONFIGS) -> str:
    """The table, and a paragraph of evidence for each tier. Reads the files in `folder` alone."""
    rows = [("tier", "model", "parameters", "base", "hardware", "time", "cost", "expected")]
    evidence = []
    for tier, path in loading.tiers(folder).items():
        config, about = loading.load(path), loading.about(path)
        plan, hardware = make_plan(config), config.hardware
        parts: tuple[StagePlan | EvalPlan, ...] = (*plan.stages, *plan.evaluation)
        rows.append((
            tier, f"{config.preset} d{config.depth}", count(plan.params["total"]),
            f"{count(plan.stages[0].tokens)} tokens", f"{hardware.devices} x {hardware.name}",
            duration(sum(part.seconds for part in parts)),
            f"${sum(part.dollars for part in parts):,.0f}", about.expected,
        ))  # fmt: skip
        evidence.append(f"{tier}: {about.evidence.strip()}.")
    wrapped = (
        textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
        for text in evidence
    )
    return "\n".join([
        *table(rows, left=len(rows[0])),
        "",
        "Time and cost are --plan's estimates, of training and evaluation; downloads and compiling",
        "come on top. CORE of base, the other figures of the last stage. How each is known:",
        "",
        *wrapped,
    ])  # fmt: skip
