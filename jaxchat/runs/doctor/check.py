"""What the doctor has checked, and whether the tier can run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "jaxchat-doctor-1"
WIDTH = 100  # of what is printed


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    text: str  # what was found, for people, on one line
    problems: tuple[str, ...] = ()  # sentences: why the tier cannot run, each with what to do
    notes: tuple[str, ...] = ()  # sentences on what makes it slower, or leaves something out
    facts: Mapping[str, Any] = field(default_factory=dict)  # what was found, for programs


def problems(checks: Sequence[Check]) -> list[str]:
    """All sentences that say why the tier cannot run, each once; none: it can."""
    return list(dict.fromkeys(sentence for check in checks for sentence in check.problems))


def render(checks: Sequence[Check], tier: str) -> str:
    """A line a check, longer ones folded, and the verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "BAD" if check.problems else "ok "
        lines.append(_fold(f"{mark}  {check.name:<{width}}  {check.text}", width + 7))
    lines += ["", *(_fold(f"note  {note}", 6) for check in checks for note in check.notes)]
    if not (wrong := problems(checks)):
        return "\n".join([*lines, f"Tier {tier} can run here."])
    listed = (_fold(f"  - {sentence}", 4) for sentence in wrong)
    return "\n".join([*lines, f"Tier {tier} cannot run here:", *listed])


def _fold(text: str, indent: int) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def to_json(checks: Sequence[Check], tier: str) -> dict[str, Any]:
    """The same for programs."""
    wrong = problems(checks)
    return {
        "format": FORMAT,
        "tier": tier,
        "can_run": not wrong,
        "problems": wrong,
        "checks": [
            {"told" if key == "text" else key: value for key, value in asdict(check).items()}
            for check in checks
        ],
    }
