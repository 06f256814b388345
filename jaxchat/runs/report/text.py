"""How the report tells values, in Markdown, HTML and on a terminal alike (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.inference.transcript import printable
from jaxchat.progress import duration
from jaxchat.runs.report.metrics import told
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import size

Rows = list[tuple[str, ...]]  # a table, its head first


# They would show a text in another order than it has (Unicode Standard Annex 9).
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))


def clean(text: str) -> str:
    """A model's or a file's words as text that every file can hold and nothing obeys."""
    plain = printable(text).translate(dict.fromkeys(_BIDI, "\ufffd"))
    return plain.encode("utf-8", errors="replace").decode("utf-8")


def shown(value: Any) -> str:
    """A value of the configuration or of a stage's results."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)


def headline(report: Mapping[str, Any]) -> str:
    """The run in a sentence."""
    run, model = report["run"], report["config"]["model"]
    return (
        f"{report['parameters']['total']:,} parameters ({run['preset']}, depth {run['depth']}, "
        f"width {model['n_embd']:,}, vocabulary {model['vocab_size']:,}, context "
        f"{model['sequence_len']:,}), seed {run['seed']}, {duration(report['seconds'])} in all"
        + (f", {dollars(report['dollars'])}." if report["dollars"] else ".")
    )


def dollars(value: float) -> str:
    """Money: cents where they count."""
    return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"


def metrics_note(report: Mapping[str, Any]) -> str:
    """What the table of metrics means."""
    names = {row["name"] for row in report["metrics"]}
    told = [
        "Bits per byte are those of held-out text, or of text that was trained on (train); fewer "
        "are better.",
        "Tasks: right answers to held-out problems.",
    ]
    if "mean reward" in names:
        told.append(
            "Mean reward: the problems of reinforcement learning, held out, sampled at "
            "temperature 1."
        )
    if any(row["unit"] == "score" for row in report["metrics"]):
        told.append("CORE and ChatCORE are means of centred accuracies: 0 is guessing.")
    if "ChatCORE" in names:
        told.append(
            "ChatCORE is the mean of ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval, as in the "
            "figures that nanochat published; with counting it has the sixth task of nanochat's "
            "code."
        )
    told.append(
        "Brackets hold the 95% interval; the last column says of how many answers, of all samples "
        "together, or tokens."
    )
    return " ".join(told)


def missing_notes(report: Mapping[str, Any]) -> list[str]:
    """What of the run is not there, a line a stage."""
    return [f"{BY_NAME[name].heading}: {state}" for name, state in report["missing"].items()]


def stage_rows(report: Mapping[str, Any]) -> Rows:
    """Time, cost and results by stage."""
    priced = bool(report["config"]["hardware"]["dollars_per_hour"])
    rows: Rows = [("stage", "time", *(("cost",) if priced else ()), "result")]
    for name, stage in report["stages"].items():
        cost = (dollars(stage["dollars"]),) if priced else ()
        rows.append(
            (BY_NAME[name].heading, duration(stage["seconds"]), *cost, _told(stage["results"]))
        )
    cost = (dollars(report["dollars"]),) if priced else ()
    rows.append(("total", duration(report["seconds"]), *cost, ""))
    return rows


def stages_note(report: Mapping[str, Any]) -> str:
    """What the table of stages means."""
    hardware = report["config"]["hardware"]
    price = ""
    if hardware["dollars_per_hour"]:
        price = (
            f" Cost is measured time at ${hardware['dollars_per_hour']:g} an hour, the price of "
            f"what the configuration names: {hardware['devices']} x {hardware['name']}."
        )
    return (
        "Bits per byte of a stage are those of the held-out rows of its own data. Loss is the mean "
        "of the last tenth of the steps." + price
    )


def _told(results: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in results.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in plain.items())


def data_tables(report: Mapping[str, Any]) -> list[Rows]:
    """Counts of sources, splits and rows."""
    tables = dict(report["data"])
    rows = report["stages"].get("rows", {}).get("results", {})
    counted = {name.replace("_", " "): c for name, c in rows.items() if isinstance(c, Mapping)}
    tables["rows"] = counted
    return [_counts(title, table) for title, table in tables.items() if table]


def _counts(title: str, table: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Rows of counts under their names."""
    keys = list(dict.fromkeys(key for counts in table.values() for key in counts))
    keys = [key for key in keys if key != "sha256"]
    rows: Rows = [(title, *(key.replace("_", " ") for key in keys))]
    rows += [
        (name, *(shown(counts[key]) if key in counts else "-" for key in keys))
        for name, counts in table.items()
    ]
    return rows


def core_title(report: Mapping[str, Any], model: str) -> str:
    """`CORE of base`; of a part of it, also of which."""
    name = report["core_names"][model]
    return f"CORE of {model}" + ("" if name == "CORE" else f": {name}")


def core_rows(tasks: Mapping[str, Mapping[str, Any]]) -> Rows:
    """CORE by task of one model, best first."""
    rows: Rows = [("task", "accuracy", "centred", "problems")]
    rows += [
        (
            name,
            told({"value": task["accuracy"], "interval": [task["low"], task["high"]]}, "share"),
            f"{task['centered']:.3f}",
            f"{task['problems']:,}",
        )
        for name, task in sorted(tasks.items(), key=lambda item: -item[1]["centered"])
    ]
    return rows


def tool_rows(report: Mapping[str, Any]) -> Rows:
    """How often each model called a tool."""
    rows: Rows = [("model", "counted in", "calls", "failed", "cut off")]
    for model, use in report["tools"].items():
        where = f"{use['answers']} samples" if "answers" in use else use["where"]
        rows.append((model, where, *(f"{use[key]:,}" for key in ("calls", "failed", "cut"))))
    return rows if len(rows) > 1 else []


TOOLS_NOTE = (
    "Failed: the tool answered with an error. Cut off: the reply ended before the tool's answer."
)


def environment_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the run was made; without a head."""
    environment, rows = report["environment"], [("commit", commit(report["git"]))]
    if environment:
        devices: Sequence[str] = environment["devices"]
        packages = environment["packages"].items()
        rows += [
            ("python", environment["python"]),
            ("platform", environment["platform"]),
            ("processor", f"{environment['processor']}, {environment['cores']} cores"),
            ("memory", size(environment["memory_bytes"])),
            ("devices", ", ".join(f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices))),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages)),
        ]
    else:
        rows.append(("machine", "told by the report that the run writes at its end"))
    hardware = report["config"]["hardware"]
    price = f"${hardware['dollars_per_hour']:g} an hour for {hardware['devices']} x "
    rows.append(("price", price + hardware["name"] if hardware["dollars_per_hour"] else "none"))
    if report["sandbox"]:
        rows.append(("sandbox", report["sandbox"]))
    return rows


def commit(git: Mapping[str, Any]) -> str:
    """The commit, and whether it is all of the code."""
    if not git["commit"]:
        return "not a git checkout"
    return str(git["commit"]) + (", with uncommitted changes" if git["dirty"] else "")


def commands(report: Mapping[str, Any]) -> str:
    """What makes the run again, as lines for a shell."""
    if not report["command"]:
        return ""
    git = report["git"]
    checkout = f"git checkout {git['commit']}"
    if git["commit"]:
        checkout += "  # and the changes that were not committed" if git["dirty"] else ""
    return "\n".join([*([checkout] if git["commit"] else []), report["command"]])


TOKENIZER_NOTE = (
    "The texts are short originals that come with jaxchat: they compare tokenizers, and say little "
    "about a corpus."
)
NO_COMMAND = (
    "No published tier with --set gives these settings; config.json in the run's folder has them."
)
