"""One thing that the doctor looked at, and what all of them come to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "jaxchat-doctor-1"
WIDTH = 100  # of what is printed


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        told: for people, on one line.
        problems: sentences that say why the tier cannot run, each with what to do.
        notes: sentences on what makes it slower or lesser.
        facts: the same as `told`, for programs.
    """

    name: str
    told: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def problems(checks: Sequence[Check]) -> list[str]:
    """All sentences that say why the tier cannot run, each once; none: it can."""
    return list(dict.fromkeys(sentence for check in checks for sentence in check.problems))


def render(checks: Sequence[Check], tier: str) -> str:
    """A line a check, longer ones folded, and the verdict."""
    width = max(len(check.name) for check in checks)
    lines = [_line(check, width) for check in checks]
    notes = [sentence for check in checks for sentence in check.notes]
    wrong = problems(checks)
    lines += ["", *(_fold(f"note  {note}", 6) for note in notes)]
    if not wrong:
        lines.append(f"Tier {tier} can run here.")
    else:
        lines.append(f"Tier {tier} cannot run here:")
        lines += [_fold(f"  - {sentence}", 4) for sentence in wrong]
    return "\n".join(lines)


def _line(check: Check, width: int) -> str:
    mark = "BAD" if check.problems else "ok "
    return _fold(f"{mark}  {check.name:<{width}}  {check.told}", width + 7)


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
        "checks": [asdict(check) for check in checks],
    }
