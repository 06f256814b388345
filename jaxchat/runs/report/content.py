"""What the report of a run says, section by section; the same for Markdown and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.evals import compression
from jaxchat.inference.transcript import as_text
from jaxchat.progress import duration
from jaxchat.runs.report import drawings
from jaxchat.runs.report.document import (
    NOTHING,
    Block,
    Rows,
    Sections,
    code,
    details,
    facts,
    heading,
    note,
    pair,
    plots,
    table,
    to_markdown,
    to_page,
    words,
)
from jaxchat.runs.report.drawings import Drawn
from jaxchat.runs.report.metrics import metrics_cells
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import count, dollars, metric, plain, size

Report = Mapping[str, Any]


def markdown(report: Report) -> str:
    """The report as Markdown."""
    lead = [note(headline(report)), _missing(report)]
    return to_markdown(f"Report of the run `{report['run']['name']}`", lead, sections(report))


def page(report: Report) -> str:
    """The report as a page of HTML."""
    lead = [note(headline(report), style="lead"), _figures(report), _missing(report)]
    return to_page(report["run"]["name"], "jaxchat · report of a run", lead, sections(report))


def sections(report: Report) -> Sections:
    """The sections, in order."""
    return {
        "Metrics": _metrics(report),
        "CORE by task": _core(report),
        "Training": _training(report),
        "Samples": [*_samples(report), *_tools(report)],
        "Stages": _stages(report),
        "Data": [table(rows[0][0], rows) for rows in _data(report)],
        "Tokenizer": _tokenizer(report),
        "To make it again": [_commands(report)],
        "Settings": _settings(report),
        "Environment": [facts(environment_rows(report))],
    }


def headline(report: Report) -> str:
    """The run in a sentence."""
    run, model = report["run"], report["config"]["model"]
    return (
        f"{report['parameters']['total']:,} parameters ({run['preset']}, depth {run['depth']}, "
        f"width {model['n_embd']:,}, vocabulary {model['vocab_size']:,}, context "
        f"{model['sequence_len']:,}), seed {run['seed']}, {duration(report['seconds'])} in all"
        + (f", {dollars(report['dollars'])}." if report["dollars"] else ".")
    )


def _figures(report: Report) -> Block:
    """The few numbers that one looks for first."""
    tokens = [stage["results"].get("tokens", 0) for stage in report["stages"].values()]
    rows = [
        ("parameters", count(report["parameters"]["total"])),
        ("tokens trained", count(sum(tokens))),
        ("time", duration(report["seconds"])),
    ]
    rows += [("cost", dollars(report["dollars"]))] if report["dollars"] else []
    by_name = {row["name"]: row for row in report["metrics"]}
    for name in [n for n in ("CORE", "bits per byte", "ChatCORE") if n in by_name][:2]:
        row = by_name[name]
        model, value = list(row["values"].items())[-1 if name == "ChatCORE" else 0]
        rows.append((f"{name} of {model}", metric({"value": value["value"]}, row["unit"])))
    return facts(rows, "figures")


def missing_notes(report: Report) -> list[str]:
    """The stages that are not complete, a line each."""
    return [f"{BY_NAME[name].heading}: {state}" for name, state in report["missing"].items()]


def _missing(report: Report) -> Block:
    notes = missing_notes(report)
    items = "".join(f"<li>{words(one)}</li>" for one in notes)
    html = f'<div class="missing"><p>Not complete:</p><ul>{items}</ul></div>'
    markdown = "\n".join(["## Not complete", "", *(f"- {one}" for one in notes)])
    return Block(markdown, html) if notes else NOTHING


def _metrics(report: Report) -> list[Block]:
    rows = report["metrics"]
    if not rows:
        return []
    return [
        table("Metrics by model", metrics_cells(rows)),
        note(_metrics_note({row["name"] for row in rows}, {row["unit"] for row in rows})),
        note(report["core_missing"]) if report["core_missing"] else NOTHING,
        plots([drawings.share_figure("shares", rows)], "plots wide"),
    ]


def _metrics_note(names: set[str], units: set[str]) -> str:
    """What the table of metrics means."""
    sentences = {
        "Bits per byte are those of held-out text, or of text that was trained on (train); fewer "
        "are better.": True,
        "Tasks: right answers to held-out problems.": True,
        "Mean reward: the problems of reinforcement learning, held out, sampled at temperature 1.":
            "mean reward" in names,
        "CORE and ChatCORE are means of centred accuracies: 0 is guessing.": "score" in units,
        "ChatCORE is the mean of ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval, as in the "
        "figures that nanochat published; with counting it has the sixth task of nanochat's code.":
            "ChatCORE" in names,
        "Brackets hold the 95% interval; the last column says of how many answers, of all samples "
        "together, or tokens.": True,
    }  # fmt: skip
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _core(report: Report) -> list[Block]:
    blocks = []
    for model, tasks in report["core"].items():
        if not tasks:
            continue
        name = report["core_names"][model]
        drawn = Block("", drawings.core_figure(f"core-{model}", model, tasks))
        rows: Rows = [("task", "accuracy", "centred", "problems")]
        for task, found in sorted(tasks.items(), key=lambda item: -item[1]["centered"]):
            accuracy = {"value": found["accuracy"], "interval": [found["low"], found["high"]]}
            numbers = f"{found['centered']:.3f}", f"{found['problems']:,}"
            rows.append((task, metric(accuracy, "share"), *numbers))
        blocks += [
            heading(f"CORE of {model}" + ("" if name == "CORE" else f": {name}")),
            pair(drawn, table(f"CORE by task of {model}", rows)),
        ]
    return blocks


def _training(report: Report) -> list[Block]:
    parts: list[str] = []
    for stage, curve in report["curves"].items():
        title = BY_NAME[stage].heading
        figures = plots(drawings.stage_figures(stage, title, [Drawn(stage, stage, curve)])).html
        parts += [heading(title).html, figures] if figures else []
    meaning = note(
        "Faint: what was logged, thinned where there is much of it; strong: its moving mean. The "
        "start of a loss, before a twentieth of the training, may lie above the frame."
    )
    return [Block("", "".join([*parts, meaning.html]))] if parts else []


def _samples(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for model in reversed(MODELS):
        if samples := [_sample(one) for one in report["samples"].get(model, ())]:
            said = code("\n\n".join(one.markdown for one in samples)).markdown
            shown = details(model, "".join(one.html for one in samples), opened=not blocks)
            blocks.append(Block(f"{heading(model).markdown}\n\n{said}", shown))
    return blocks


def _sample(sample: Mapping[str, Any]) -> Block:
    if "prompt" in sample:
        prompt, completion = sample["prompt"], sample["completion"]
        html = f'<p class="completion"><b>{words(prompt)}</b>{words(completion)}</p>'
        return Block(f"{prompt} |> {completion}", html)
    question, parts = sample["question"], sample["parts"]
    html = (
        '<div class="talk"><p class="asked"><span class="hidden">asked: </span>'
        f'{words(question)}</p><div class="said"><span class="hidden">answered: </span>'
        f"{''.join(map(_part, parts, [*parts[1:], None]))}</div></div>"
    )
    return Block(f"user: {question}\njaxchat: {as_text(parts)}", html)


def _part(part: Mapping[str, str], after: Mapping[str, str] | None) -> str:
    """Text as it stands; a call and its result, after which a line ends, set apart."""
    said = words(part["text"])
    if part["type"] == "text":
        return f"<span>{said}</span>"
    result = part["type"] == "python_output"
    kind = "result" if result else "call"
    failed = " failed" if result and part["text"].startswith("error") else ""
    ends = "<br>" if after and after["type"] != "python_output" else ""
    return f'<code class="{kind}{failed}">{said or "…"}</code>{ends}'


def _tools(report: Report) -> list[Block]:
    """How often each model called a tool."""
    rows: Rows = [("model", "counted in", "calls", "failed", "cut off")]
    for model, use in report["tools"].items():
        where = f"{use['answers']} samples" if "answers" in use else use["where"]
        rows.append((model, where, *(f"{use[key]:,}" for key in ("calls", "failed", "cut"))))
    meaning = note(
        "Failed: the tool answered with an error. Cut off: the reply ended before the tool's "
        "answer."
    )
    return [heading("Tool use"), table("Tool use", rows), meaning] if len(rows) > 1 else []


def _stages(report: Report) -> list[Block]:
    """Time, cost and results by stage."""
    stages, hardware = report["stages"], report["config"]["hardware"]
    if not stages:
        return []
    price = hardware["dollars_per_hour"]
    rows: Rows = [("stage", "time", "cost", "result")]
    for name, stage in stages.items():
        rows.append((BY_NAME[name].heading, *_spent(stage), _results(stage["results"])))
    rows.append(("total", *_spent(report), ""))
    cost = (
        f" Cost is measured time at ${price:g} an hour, the price of what the configuration names: "
        f"{hardware['devices']} x {hardware['name']}."
    )
    return [
        plots([drawings.time_figure("time", stages)], "plots wide"),
        table(
            "Time and results by stage",
            rows if price else [(row[0], row[1], row[3]) for row in rows],
            total=True,
        ),
        note(
            "Bits per byte of a stage are those of the held-out rows of its own data. Loss is the "
            "mean of the last tenth of the steps." + (cost if price else "")
        ),
    ]


def _spent(of: Mapping[str, Any]) -> tuple[str, str]:
    return duration(of["seconds"]), dollars(of["dollars"])


def _results(results: Mapping[str, Any]) -> str:
    simple = {k: v for k, v in results.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in simple.items())


def _data(report: Report) -> list[Rows]:
    """Counts of sources, splits and rows."""
    rows = report["stages"].get("rows", {}).get("results", {})
    counted = {name.replace("_", " "): c for name, c in rows.items() if isinstance(c, Mapping)}
    tables = {**report["data"], "rows": counted}
    return [_counts(title, counts) for title, counts in tables.items() if counts]


def _counts(title: str, counts: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Rows of counts under their names."""
    keys = dict.fromkeys(k for one in counts.values() for k in one if k != "sha256")
    rows: Rows = [(title, *(key.replace("_", " ") for key in keys))]
    for name, one in counts.items():
        rows.append((name, *(plain(one[key]) if key in one else "-" for key in keys)))
    return rows


def _tokenizer(report: Report) -> list[Block]:
    results = [compression.Result.from_json(value) for value in report["compression"]]
    if not results:
        return []
    characters = compression.cells(
        results, lambda s: s.characters_per_token, "characters per token"
    )
    sizes = compression.cells(results, lambda s: s.bytes_per_token, "bytes per token")
    return [
        pair(table("Characters per token", characters), table("Bytes per token", sizes)),
        note(
            "The texts are short originals that come with jaxchat: they compare tokenizers, and "
            "say little about a corpus.",
            *compression.notes(results),
        ),
    ]


def _commands(report: Report) -> Block:
    """What makes the run again, as lines for a shell."""
    if not report["command"]:
        return note(
            "No published tier with --set gives these settings; config.json in the run's folder "
            "has them."
        )
    git = report["git"]
    uncommitted = "  # and the changes that were not committed" if git["dirty"] else ""
    lines = [f"git checkout {git['commit']}{uncommitted}"] if git["commit"] else []
    return code("\n".join([*lines, report["command"]]), "bash")


def _settings(report: Report) -> list[Block]:
    lines, html = list[str](), list[str]()
    for stage in report["stages"].values():
        for name, values in stage["settings"].items():
            used = stage["results"].get("micro_rows", values.get("micro_rows"))
            rows = [(key, plain(value)) for key, value in values.items()]
            if "micro_rows" in values and used != values["micro_rows"]:
                rows.append(("micro_rows used", plain(used)))
            line = f"[{name}] " + ", ".join(f"{key}={value}" for key, value in rows)
            lines.append(textwrap.fill(line, 96, subsequent_indent="    "))
            html.append(details(name, facts(rows).html))
    return [Block(code("\n\n".join(lines)).markdown, "".join(html))] if lines else []


def environment_rows(report: Report) -> list[tuple[str, str]]:
    """Where the run was made; without a head."""
    environment, git = report["environment"], report["git"]
    commit = str(git["commit"]) + (", with uncommitted changes" if git["dirty"] else "")
    rows = [("commit", commit if git["commit"] else "not a git checkout")]
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
        rows.append(("machine", "in the report that the run writes at its end"))
    hardware = report["config"]["hardware"]
    price = f"${hardware['dollars_per_hour']:g} an hour for {hardware['devices']} x "
    rows.append(("price", price + hardware["name"] if hardware["dollars_per_hour"] else "none"))
    return [*rows, ("sandbox", report["sandbox"])] if report["sandbox"] else rows
