"""Two runs compared: what differs, by how much, and whether by chance."""

from pathlib import Path
from typing import Any

import pytest
from page_reader import Page
from report_records import ENVIRONMENT, GIT, HOSTILE, log_steps, make_config, make_done

from jaxchat.runs.report.compare import (
    compare,
    difference,
    metric_rows,
    render_markdown,
    render_page,
    setting_rows,
)
from jaxchat.runs.report.curves import read_curves
from jaxchat.runs.report.gather import make_report


def make(folder: Path, *overrides: str, right: int = 171, seconds: float = 0.5) -> dict[str, Any]:
    log_steps(folder / "base", 8, seconds=seconds)
    config = make_config(*overrides)
    return make_report(
        config, make_done(right=right), ENVIRONMENT, GIT, curves=read_curves(folder, config)
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    changed = ("run.name=other", "optim.matrix_lr=0.0200001")
    return make(tmp_path / "a"), make(tmp_path / "b", *changed, right=140, seconds=1.0)


def test_a_difference_has_newcombes_interval() -> None:
    # Newcombe (1998), table II (a): 56/70 less 48/80, method 10: 0.0524 to 0.3339
    a = {"value": 48 / 80, "interval": [0.4904, 0.7004]}
    b = {"value": 56 / 70, "interval": [0.6918, 0.8773]}
    found = difference(a, b)
    assert found["difference"] == pytest.approx(0.2)
    assert found["interval"] == pytest.approx([0.0524, 0.3339], abs=3e-4)
    assert found["beyond"] is True
    back = difference(b, a)
    assert back["interval"] == pytest.approx([-0.3339, -0.0524], abs=3e-4)
    assert back["beyond"] is True
    assert difference(a, a)["beyond"] is False
    assert "beyond" not in difference({"value": 1.0}, b)


def test_the_table_has_both_values_and_the_difference(pair: Any) -> None:
    rows = metric_rows(compare(*pair))
    assert rows[0] == ("metric", "model", "cpu", "other", "difference", "beyond chance")
    assert rows[1] == ("bits per byte", "base", "1.750", "1.750", "0.000", "not known")
    spelling = next(row for row in rows if row[:2] == ("spelling", "rl"))
    assert spelling[2:4] == ("85.5% [80.0, 89.7]", "70.0% [63.3, 75.9]")
    assert spelling[4].startswith("-15.5 points [-23.")
    assert spelling[5] == "yes"
    assert next(row for row in rows if row[0] == "mean reward")[5] == "no"


def test_settings_that_differ_are_shown_with_all_digits(pair: Any) -> None:
    assert setting_rows(compare(*pair), "settings") == [
        ("setting", "cpu", "other"),
        ("mid_optim.matrix_lr", "0.02", "0.0200001"),
        ("run.name", "cpu", "other"),
        ("optim.matrix_lr", "0.02", "0.0200001"),
        ("rl_optim.matrix_lr", "0.02", "0.0200001"),
        ("sft_optim.matrix_lr", "0.02", "0.0200001"),
    ]


def test_a_metric_of_one_run_alone_is_left_out(pair: Any) -> None:
    a, b = pair
    b["metrics"] = [row for row in b["metrics"] if row["name"] != "spelling"]
    assert {row["name"] for row in compare(a, b)["metrics"]} == {"bits per byte", "mean reward"}


def test_the_page_has_both_curves_over_each_other(pair: Any) -> None:
    read = Page(render_page(*pair))
    lines = [a["class"] or "" for a in read.all("path") if (a["class"] or "").startswith("line")]
    assert lines.count("line line a") == lines.count("line line b") == 4  # loss 2, speed, rates
    assert lines.count("line dots a") == lines.count("line dots b") == 2
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "cpu: from 6 at 0.5 to 4.25 at 4" in read.text("desc")
    assert "other: from 6 at 1 to 4.25 at 8" in read.text("desc")
    assert not read.all("script")


def test_a_run_compared_with_itself_differs_in_nothing(pair: Any) -> None:
    a, _ = pair
    text = render_markdown(compare(a, a))
    assert "cpu (first)" in text
    assert "cpu (second)" in text
    assert "The settings of both runs are the same." in text
    assert "| yes" not in text
    assert "The settings of both runs are the same." in Page(render_page(a, a)).text("p")


def test_hostile_names_stay_words(pair: Any) -> None:
    a, b = pair
    b["run"]["name"] = b["config"]["data"]["folder"] = HOSTILE
    read = Page(render_page(a, b))
    assert not read.all("script")
    assert not read.all("img")


def test_runs_without_anything_can_be_compared(pair: Any) -> None:
    empty = make_report(make_config("run.name=new"), {}, {}, GIT)
    Page(render_page(pair[0], empty))
    assert "`cpu` and `new`" in render_markdown(compare(pair[0], empty))
