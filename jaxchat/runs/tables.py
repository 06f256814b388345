"""Text tables, and numbers with units, for the terminal, the plan and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def table(rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as aligned lines: the first `left` columns to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column >= left else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _scaled(value: float, digits: str, units: str) -> str:
    """In the largest of four units (10^12, 10^9, 10^6, 10^3) that it has one of, else ""."""
    for unit, power in zip(units.split(","), (12, 9, 6, 3), strict=True):
        if abs(value) >= 10**power:
            return f"{value / 10**power:{digits}}{unit}"
    return ""


def count(value: float) -> str:
    """11219763200 -> `11.2B`."""
    return _scaled(value, ".1f", "T,B,M,k") or f"{value:.0f}"


def size(value: float) -> str:
    """80e9 -> `80.0 GB`."""
    return _scaled(value, ".1f", " TB, GB, MB, kB") or f"{value:.0f} B"


def short(value: float) -> str:
    """A number on an axis: `0.25`, `150`, `1.5k`, `20M`, `11B`."""
    return _scaled(value, ".4g", "T,B,M,k") or f"{value:.4g}"


def number(value: float) -> str:
    """Four digits, or all before the point: `0.02500`, `12,345`."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def dollars(value: float) -> str:
    """Money: cents where they count."""
    return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def percent(value: float) -> str:
    """A share on an axis: `12.5%`."""
    return f"{100 * value:.4g}%"


def metric(value: Mapping[str, Any] | None, unit: str) -> str:
    """A metric with its interval: `85.5% [80.5, 89.5]`, `0.2219 [0.2101, 0.2337]` or `1.750`."""
    if value is None:
        return "-"
    show: Callable[[float], str] = {
        "share": lambda v: f"{100 * v:.1f}",
        "score": lambda v: f"{v:.4f}",
        "bits": lambda v: f"{v:.3f}",
    }[unit]
    text = show(value["value"]) + ("%" if unit == "share" else "")
    if "interval" not in value:
        return text
    low, high = value["interval"]
    return f"{text} [{show(low)}, {show(high)}]"


def plain(value: Any) -> str:
    """A value of the configuration or of a stage's results."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
