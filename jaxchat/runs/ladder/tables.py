"""Ladders as tables and sentences, for the terminal and for reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxchat.progress import duration
from jaxchat.runs.report.document import Rows
from jaxchat.runs.tables import count

VERDICTS = {
    "less": "needs less",
    "more": "needs more",
    "unclear": "no difference shown",
    "above": "more bits than any of the baseline's rungs",
    "below": "fewer bits than any of the baseline's rungs",
    "beyond": "beyond the baseline's rungs",
    "unknown": "no interval",
}

Shown = Mapping[str, Any]  # a ladder or a comparison, as `results` has it in JSON


def scientific(value: float) -> str:
    """1.3e18, as FLOPs are written."""
    mantissa, _, exponent = f"{value:.3g}".partition("e+")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def rung_rows(shown: Shown) -> Rows:
    """The table of a ladder's depths, its head first."""
    rows: Rows = [
        ("depth", "parameters", "tokens", "passes", "FLOPs", "seeds", "bits per byte", "deviation",
         "time", "tokens/s"),
    ]  # fmt: skip
    for rung in shown["rungs"]:
        deviation, passes = rung["deviation"], rung["passes"]
        rows.append(
            (
                str(rung["depth"]),
                count(rung["parameters"]),
                count(rung["tokens"]),
                "-" if passes is None else f"{passes:.2f}",
                scientific(rung["flops"]),
                str(rung["seeds"]),
                f"{rung['bits_per_byte']:.4f}",
                "-" if deviation is None else f"{deviation:.4f}",
                duration(rung["seconds"]),
                count(rung["tokens_per_second"]),
            )
        )
    return rows


def multiplier_rows(compared: Shown) -> Rows:
    """The table of multipliers of all variants, its head first."""
    rows: Rows = [("variant", "depth", "FLOPs", "bits per byte", "multiplier", "time", "so it")]
    for variant in compared["variants"]:
        by_depth = {rung["depth"]: rung for rung in variant["rungs"]}
        for one in variant["multipliers"]:
            rung = by_depth.get(one["depth"])
            time = "-" if one["time"] is None else f"{one['time']:.2f}"
            rows.append(
                (
                    variant["name"],
                    "all" if rung is None else str(one["depth"]),
                    "" if rung is None else scientific(rung["flops"]),
                    "" if rung is None else f"{rung['bits_per_byte']:.4f}",
                    multiplier(one),
                    time,
                    VERDICTS[one["verdict"]],
                )
            )
    return rows


def multiplier(one: Shown) -> str:
    """`1.25 [1.10, 1.42]`, or `-`."""
    if one["value"] is None:
        return "-"
    interval = "" if one["low"] is None else f" [{one['low']:.2f}, {one['high']:.2f}]"
    return f"{one['value']:.2f}{interval}"


def conclusion(baseline: str, variant: Shown) -> str:
    """One sentence: what all rungs together say, or why they say nothing."""
    one, name = variant["multipliers"][-1], variant["name"]
    rungs = [each for each in variant["multipliers"] if each["depth"] is not None]
    within = sum(each["value"] is not None for each in rungs)
    said = f"multiplier {multiplier(one)} over {within} of {len(rungs)} rungs"
    match one["verdict"]:
        case "less":
            return f"{name} needs fewer FLOPs than {baseline} for the same bits per byte: {said}."
        case "more":
            return f"{name} needs more FLOPs than {baseline} for the same bits per byte: {said}."
        case "unclear":
            return (
                f"No difference between {name} and {baseline} can be shown: {said}, whose interval "
                "contains 1."
            )
        case "above" | "below" | "beyond":
            bits = {"above": "more ", "below": "fewer "}.get(one["verdict"], "more or fewer ")
            return (
                f"There is no multiplier of {name}: each of its rungs has {bits}bits per byte than "
                f"any of {baseline}'s, whose frontier is not extrapolated."
            )
    return (
        f"No difference between {name} and {baseline} can be shown: {said} without an interval, "
        "which takes 2 seeds or more of both, and a frontier that falls by more than their noise."
    )


def method(compared: Shown) -> str:
    """How the multipliers were made."""
    kind = "a straight line" if compared["degree"] == 1 else "a parabola"
    return (
        f"A multiplier is the FLOPs of {compared['baseline']['name']} over those of the variant at "
        f"equal bits per byte: above 1, the variant needs less. The baseline's frontier is {kind} "
        "of ln(bits per byte) over ln(FLOPs), by least squares through all its runs; it is read "
        "between its outermost rungs, and a tenth beyond. Intervals are Student's, of the noise "
        f"between seeds, and are widened by the {compared['misfit']:.1%} of FLOPs by which the "
        f"frontier misses one of its own rungs at most. All {compared['comparisons']} comparisons "
        f"hold together in 95% of cases: each has the level {compared['level']:.2%} (Bonferroni). "
        "`time` is the same ratio of the time of steps, without an interval. `all` is the "
        "geometric mean of the rungs within the frontier."
    )


def notes_of(shown: Shown) -> list[str]:
    """The remarks on a ladder, each with its name."""
    return [f"{shown['name']}: {remark}" for remark in shown["notes"]]


def measured_on(shown: Shown) -> str:
    """What bits per byte are of."""
    if not shown["runs"]:
        return ""
    text = shown["runs"][0]["text"]
    return (
        f"Bits per byte are of the end of training, on {text['bytes']:,} bytes of held-out text "
        f"(sha256 {text['sha256'][:12]}), every byte once. Deviation is that between seeds. Time "
        "is the training's, with compiling and its own evaluations; tokens/s are those of steps."
    )
