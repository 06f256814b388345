"""What clients saw beside what was expected, as tables: pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FEATURES = ("chat", "stream", "usage", "tools", "structured", "completions", "responses", "other")
BEGIN = "<!-- what follows is written by bench/clients/run.py with --write -->\n"
CELL = 60  # characters of a value in the page


@dataclass(frozen=True)
class Result:
    """One check of a client."""

    check: str
    seen: Any = None
    expected: Any = None
    error: str = ""

    @property
    def passed(self) -> bool:
        """What was seen is what was expected; an exception, or nothing seen, is not."""
        return not self.error and self.seen == self.expected and self.seen not in (None, "", [], {})

    @property
    def feature(self) -> str:
        """The column: the first word of the check's name, if it is one."""
        word = self.check.partition("_")[0]
        return word if word in FEATURES else "other"


@dataclass(frozen=True)
class Row:
    """One client."""

    client: str
    version: str
    date: str
    results: tuple[Result, ...]
    not_run: str = ""  # why: the end of a log

    @property
    def passed(self) -> bool:
        """It ran, to its end, and saw what was expected everywhere."""
        return not self.not_run and bool(self.results) and all(r.passed for r in self.results)


def row(client: str, version: str, date: str, lines: Sequence[str], log: str) -> Row:
    """The row of a client from its worker's lines; one that did not reach the end has failed."""
    found = [json.loads(line) for line in lines]
    results = [Result(**one) for one in found if one["check"] != "end"]
    if not found or found[-1]["check"] != "end":
        results.append(Result("end", error=f"the checks did not end: {log}"))
    return Row(client, version, date, tuple(results))


def cell(results: Sequence[Result]) -> str:
    """Checks of one feature: how many there are, or how many of them failed."""
    failed = sum(not result.passed for result in results)
    if failed:
        return f"{failed} of {len(results)} failed"
    return f"yes ({len(results)})" if results else ""


def features(rows: Sequence[Row]) -> list[list[str]]:
    """The table client x feature, with its head."""
    table = [["client", "version", *FEATURES, "on"]]
    for one in rows:
        cells = [cell([r for r in one.results if r.feature == name]) for name in FEATURES]
        if one.not_run:
            cells = ["not run"] + [""] * (len(FEATURES) - 1)
        table.append([one.client, one.version, *cells, one.date])
    return table


def checks(rows: Sequence[Row]) -> list[list[str]]:
    """Every check, expected and seen, with its head."""
    table = [["client", "check", "expected", "seen"]]
    for one in rows:
        if one.not_run:
            table.append([one.client, "", "", f"not run: {one.not_run}"])
        for result in one.results:
            seen = result.error or shown(result.seen)
            table.append([one.client, result.check, shown(result.expected), seen])
    return table


def shown(value: Any) -> str:
    """A value in a line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table of a page; long values are cut."""
    lines = [_line(table[0]), _line(["---"] * len(table[0]))]
    return "\n".join([*lines, *map(_line, table[1:])]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= CELL else text[: CELL - 3] + "..."
    return text.replace("|", "\\|").replace("<", "&lt;")


def aligned(table: Sequence[Sequence[str]]) -> str:
    """A table of a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with its tables replaced."""
    head, mark, _ = text.partition(BEGIN)
    if not mark:
        raise ValueError(f"the page has no line {BEGIN.strip()!r}")
    return f"{head}{BEGIN}\n{markdown(features(rows))}\n{markdown(checks(rows))}"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for other programs."""
    return [
        {**asdict(one), "passed": one.passed, "results": [
            {**asdict(r), "feature": r.feature, "passed": r.passed} for r in one.results]}
        for one in rows
    ]  # fmt: skip
