"""bench/clients: what was seen is compared with what was expected, and nothing passes unseen."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "bench" / "clients"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"clients_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table() -> Any:
    return load("table")


@pytest.fixture(scope="module")
def environments() -> Any:
    return load("environments")


def lines(*results: dict[str, Any], end: bool = True) -> list[str]:
    return [json.dumps(one) for one in (*results, *([{"check": "end"}] if end else []))]


GOOD = {"check": "chat", "seen": "888", "expected": "888"}


def test_a_client_that_saw_what_was_expected_has_passed(table: Any) -> None:
    assert table.row("x", "1", "today", lines(GOOD), "").passed


@pytest.mark.parametrize(
    "result",
    [
        {"check": "chat", "seen": "887", "expected": "888"},
        {"check": "chat", "seen": "", "expected": ""},
        {"check": "chat", "seen": None, "expected": None},
        {"check": "chat", "seen": "888", "expected": "888", "error": "but it raised"},
        {"check": "import", "error": "no module"},
    ],
)
def test_another_value_nothing_and_an_exception_do_not_pass(table: Any, result: Any) -> None:
    assert not table.row("x", "1", "today", lines(GOOD, result), "").passed


def test_a_client_that_hangs_ends_or_is_not_installed_has_not_passed(table: Any) -> None:
    hung = table.row("x", "1", "today", lines(GOOD, end=False), "its last words")
    assert [result.check for result in hung.results] == ["chat", "end"]
    assert "its last words" in hung.results[-1].error
    missing = table.Row("x", "1", "today", (), "no such package")
    for one in (hung, missing, table.row("x", "1", "today", [], ""),
                table.row("x", "1", "today", lines(), "")):  # fmt: skip
        assert not one.passed


def test_the_tables_have_a_column_for_each_feature_and_a_line_for_each_check(table: Any) -> None:
    bad = {"check": "usage_of_a_stream", "seen": [1, 2], "expected": [1, 3]}
    other = {"check": "models", "seen": ["a|b"], "expected": ["a|b"]}
    again = {**GOOD, "check": "chat_history"}
    rows = [
        table.row("x", "1", "today", lines(GOOD, again, bad, other), ""),
        table.Row("y", "2", "today", (), "no such\npackage"),
    ]
    head, first, second = table.features(rows)
    found = dict(zip(head, first, strict=True))
    assert (found["chat"], found["usage"], found["other"], found["tools"]) == (
        "yes (2)", "1 of 1 failed", "yes (1)", "",
    )  # fmt: skip
    assert second[2] == "not run"
    checks = table.checks(rows)
    assert checks[3] == ["x", "usage_of_a_stream", "[1, 3]", "[1, 2]"]
    assert checks[-1][-1].startswith("not run: no such")
    page = table.page(f"# Title\n\n{table.BEGIN}old", rows)
    assert page.startswith("# Title")
    assert "old" not in page
    assert r"a\|b" in page
    assert table.page(page, rows) == page
    assert len(table.aligned(checks).splitlines()) >= len(checks)
    (one, _) = table.as_json(rows)
    assert (one["passed"], one["results"][0]["feature"]) == (False, "chat")


def test_a_page_without_the_line_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match="has no line"):
        table.page("# Title\n", [])


def test_long_values_are_cut(table: Any) -> None:
    assert len(table.markdown([["a"], ["x" * 500]]).splitlines()[-1]) < 80


def test_every_client_has_its_checks_and_a_pinned_version(environments: Any) -> None:
    files = {path.name for path in (FOLDER / "checks").iterdir() if path.is_file()}
    clients = environments.CLIENTS
    assert {client.file for client in clients.values()} == files
    assert len(clients) == 17
    for client in clients.values():
        assert client.version[0].isdigit(), client
    assert clients["open-webui"].version == "0.12.4"
    assert clients["ai-compatible"].version == "3.0.92"
    assert clients["lm-eval"].version == "0.4.13"
