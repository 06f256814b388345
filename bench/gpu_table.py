"""The results of bench/gpu.py as text: a line when one comes, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxchat.config.machine import bf16_peak

Result = dict[str, Any]
HEAD = (
    f"{'step':<28}{'ms':>9}{'+-':>6}{'before':>8}{'tokens/s':>10}{'MFU':>7}"
    f"{'GB':>7}{'compile s':>11}{'remat':>7}{'fp8':>5}{'loss':>9}"
)


def short(r: Result) -> str:
    """A line for one result."""
    facts = " ".join(
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in r.items()
        if key not in {"at", "kind", "name", "device", "text"}
    )
    return f"[{r['at']:5.1f}] {r['kind']} {r.get('name', '')} {r.get('text', facts)}"[:400]


def render(results: Sequence[Result]) -> str:
    """The table: steps beside what they took before, decoding, and the notes."""
    compiled = {r["name"]: r for r in results if r["kind"] == "compiled"}
    lines = [*dict.fromkeys(r["device"] for r in results if "device" in r), ""]
    lines += [f"{r['name']}: {r['value']:.4g} {r['unit']}" for r in of(results, "ceiling")]
    lines += ["", HEAD]
    lines += [step_row({**compiled.get(r["name"], {}), **r}) for r in of(results, "step")]
    lines += ["", f"{'decode rows':<12}{'prefill tok/s':>14}{'first ms':>10}{'decode tok/s':>14}"]
    lines += [decode_row(r) for r in of(results, "decode")]
    for r in of(results, "first token"):
        repeats = ", ".join(f"{1e3 * s:.0f}" for s in r["seconds"])
        lines.append(f"first token, {r['name']}: {repeats} ms; compiled in them: {r['compiled']}")
    lines += [f"{r['name']}: {r['failure']}" for r in results if "failure" in r]
    lines += ["", *(r["text"] for r in of(results, "note"))]
    return "\n".join(lines)


def of(results: Sequence[Result], kind: str) -> list[Result]:
    """The results of a kind that did not fail."""
    return [r for r in results if r["kind"] == kind and "failure" not in r]


def step_row(r: Result) -> str:
    """A step: its time, what it was before, and what was compiled."""
    peak = r.get("peak_flops") or bf16_peak(r["device"].partition(",")[0]) or 0.0
    mfu = f"{r['model_flops'] / peak:.1%}" if peak else "-"
    before = f"{r['before_ms']:.1f}" if r.get("before_ms") else "-"
    planned = r.get("planned_bytes") or r["memory_bytes"]
    return (
        f"{r['name']:<28}{r['step_ms']:>9.1f}{r.get('spread_ms', 0):>6.1f}{before:>8}"
        f"{r['tokens_per_second']:>10,.0f}{mfu:>7}{planned / 1e9:>7.1f}"
        f"{r['compile_seconds']:>11.1f}{r.get('recomputed', '-'):>7}"
        f"{r.get('fp8_products', '-'):>5}{r['loss']:>9.4f}"
    )


def decode_row(r: Result) -> str:
    """A reading of the engine."""
    return (
        f"{r['batch']:<12}{r['prefill_tokens_per_second']:>14,.0f}"
        f"{1e3 * r['first_token_seconds']:>10.0f}{r['decode_tokens_per_second']:>14,.0f}"
    )
