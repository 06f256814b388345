"""The page: one file that asks for nothing, whole, readable, and deaf to a model's words."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page
from report_records import (
    ENVIRONMENT,
    GIT,
    HOSTILE,
    core,
    log_steps,
    make_config,
    make_done,
    score,
)

from jaxchat.runs.report import content
from jaxchat.runs.report.curves import read_curves
from jaxchat.runs.report.gather import make_report


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    return make(tmp_path, make_done())


def make(folder: Path, done: dict[str, Any], name: str = "cpu") -> dict[str, Any]:
    log_steps(folder / "base", 8)
    config = make_config(f"run.name={name!r}", "hardware.dollars_per_hour=24")
    done["eval"]["results"]["models"]["base"]["core"] = core()
    return make_report(
        config, done, ENVIRONMENT, GIT, curves=read_curves(folder, config), sandbox="seccomp"
    )


def test_the_page_is_whole_and_holds_the_figures(made: dict[str, Any]) -> None:
    read = Page(content.page(made))
    text = read.text()
    for printed in (
        "85.5% [80.0, 89.7]",
        "0.2500 [0.1382, 0.3618]",
        "37 * 24",
        "seccomp",
        "0123abc",
    ):
        assert printed in text
    assert "$0.62" in text  # 93.75 s at $24 an hour
    assert "python run_speedrun.py --tier cpu --set" in read.text("code")
    assert len(read.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_asks_for_nothing(made: dict[str, Any]) -> None:
    text = content.page(made)
    read = Page(text)
    assert not re.search(r"https?:|//\w|url\((?!#)|@import|javascript:", text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {t for t, _ in read.elements}
    for _, attributes in read.elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "style")
        ]
        assert (attributes.get("href") or "#").startswith("#")
    policy = {meta.get("http-equiv"): meta.get("content") for meta in read.all("meta")}
    assert policy["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_ids_are_unique_and_whatever_points_to_one_finds_it(made: dict[str, Any]) -> None:
    text = content.page(made)
    read = Page(text)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] or "" for a in read.all("svg")]
    assert len(named) >= 7, "base's six plots and that of the metrics"
    pointed = {one for names in named for one in names.split()}
    pointed |= {(a["href"] or "").removeprefix("#") for a in read.all("a")}
    pointed |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert pointed <= set(ids)


def test_hostile_words_stay_words_wherever_they_come_from(tmp_path: Path) -> None:
    done = make_done()
    results = done["eval"]["results"]["models"]
    parts = [{"type": kind, "text": HOSTILE} for kind in ("text", "python", "python_output")]
    results["rl"]["samples"] = [{"question": HOSTILE, "parts": parts}]
    results["base"]["samples"] = [{"prompt": HOSTILE, "completion": HOSTILE}]
    results["rl"]["tasks"][HOSTILE] = score(1, 2)
    done["data"]["results"]["sources"] = {HOSTILE: {HOSTILE: HOSTILE}}
    done["base"]["results"][HOSTILE] = HOSTILE
    made = make(tmp_path, done)
    made["run"]["name"] = made["sandbox"] = made["git"]["commit"] = HOSTILE
    text = content.page(made)
    read = Page(text)  # nothing is closed that was not opened
    assert not read.all("script")
    assert not read.all("img")
    assert "<script" not in text
    shown = HOSTILE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
    assert read.text().count(shown) >= 10
    assert "\x1b" not in text
    assert "\u202e" not in text
    labels = [attributes.get("aria-label") for attributes in read.all("div")]
    assert all(label is None or "onerror" not in label or label == shown for label in labels)


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    done = make_done()
    done["eval"]["results"]["models"]["base"]["samples"] = [
        {"prompt": "a\ud800", "completion": "b"}
    ]
    assert "a?" in Page(content.page(make(tmp_path, done))).text("b")
    content.page(make(tmp_path, done)).encode()


def test_every_plot_has_a_title_and_says_what_it_shows(made: dict[str, Any]) -> None:
    read = Page(content.page(made))
    plots = read.all("svg")
    assert all(plot["role"] == "img" for plot in plots)
    titles = read.text("title")
    for title in (
        "Base model: loss over tokens",
        "Right answers by task and model",
        "CORE by task",
    ):
        assert title in titles
    described = read.text("desc")
    assert "base: from 6 at 2.048k to 4.25 at 16.38k, lowest 4.25, highest 6." in described
    assert len(read.all("desc")) == len(plots)


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    done = make_done()
    del done["eval"], done["base"]
    config = make_config()
    made = make_report(config, done, ENVIRONMENT, GIT, curves={})
    read = Page(content.page(made))
    ids = {attributes.get("id") for attributes in read.all("section")}
    assert ids == {"stages", "data", "to-make-it-again", "settings", "environment"}
    assert "Base model: not run yet" in read.text("li")


def test_logs_without_times_give_no_plot_over_time(tmp_path: Path) -> None:
    log_steps(tmp_path / "base", 8, timed=False)
    config = make_config()
    curves = read_curves(tmp_path, config)
    made = make_report(config, make_done(), ENVIRONMENT, GIT, curves=curves)
    titles = Page(content.page(made)).text("title")
    assert "Base model: loss over tokens" in titles
    assert "over time" not in titles
    assert "tokens a second" not in titles
