"""The report: the same figures in both files, readable, and safe with a model's words in it."""

import json
import re
from pathlib import Path

import pytest

from jaxchat import recipe, report
from jaxchat.home import ArtifactError

CONFIGS = Path(__file__).parent.parent / "configs"
ENVIRONMENT = {
    "python": "3.12.1",
    "platform": "Linux",
    "processor": "a processor",
    "cores": 2,
    "memory_bytes": 8_000_000_000,
    "devices": ["cpu: cpu", "cpu: cpu"],
    "packages": {"jax": "0.10.2"},
}
GIT = {"commit": "0123abc", "dirty": True}


def score(right, total):
    accuracy = right / total
    return {"accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.04], "total": total}


def evaluation(bits, right, **more):
    return {"bits_per_byte": bits, "tasks": {"spelling": score(right, 200)}, **more}


@pytest.fixture
def done():
    """Records as the pipeline writes them."""
    parts = [
        {"type": "python", "text": "37 * 24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "The answer is 888."},
    ]
    models = {
        "base": evaluation(1.75, 0, samples=[{"prompt": "Once", "completion": " upon"}]),
        "rl": evaluation(
            1.8125,
            171,
            reward=score(301, 400),
            samples=[{"question": "What is 37 * 24?", "parts": parts}],
        ),
    }
    rows = {"base_train": {"rows": 1_000, "tokens": 257_000}}
    data = {"characters": 10_000, "sources": {"stdlib": {"documents": 3, "chars": 10_000}}}
    stages = {
        "data": (1.5, {"artifact": "x", **data}),
        "rows": (2.0, {"artifact": "y", **rows}),
        "base": (60.25, {"artifact": "z", "steps": 150, "loss": 3.217}),
        "eval": (30.0, {"artifact": "e", "models": models}),
    }
    return {name: {"seconds": s, "results": results} for name, (s, results) in stages.items()}


@pytest.fixture
def config():
    return recipe.load(CONFIGS / "tier_cpu.toml")


@pytest.fixture
def made(config, done):
    return report.make_report(config, done, ENVIRONMENT, GIT)


def test_the_table_of_metrics_has_models_as_columns(made):
    cells = report.metrics_cells(made["metrics"])
    assert cells[0] == ("", "base", "mid", "sft", "rl")
    assert cells[1] == ("bits per byte", "1.750", "-", "-", "1.812")
    assert cells[2] == ("spelling", "0.0% [-5.0, 4.0]", "-", "-", "85.5% [80.5, 89.5]")
    assert cells[3] == ("mean reward", "-", "-", "-", "75.2% [70.2, 79.2]")


def test_both_files_have_the_same_figures(config, done, tmp_path):
    markdown, as_json = report.write_report(config, tmp_path, done)
    assert (markdown.name, as_json.name) == ("report.md", "report.json")
    read, text = report.read_report(tmp_path), markdown.read_text()
    assert read["seconds"] == 93.75
    assert "1m34s in all" in text
    for row in report.metrics_cells(read["metrics"]):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row[0]:<13} |"))
        assert [cell.strip() for cell in line.strip("|").split("|")] == list(row)
    assert f"{read['parameters']['total']:,} parameters" in text
    assert "steps 150, loss 3.217" in text
    assert read["stages"]["base"]["results"] == {"steps": 150, "loss": 3.217}
    assert "| base train | 1,000 | 257,000 |" in text
    assert "| stdlib  | 3         | 10,000 |" in text


def test_the_same_results_give_the_same_files(config, done, tmp_path):
    for folder in ("a", "b"):
        report.write_report(config, tmp_path / folder, done)
    for name in ("report.md", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_everything_a_reader_asks_is_there(made, config):
    text = report.markdown(made)
    assert "`0123abc`, with uncommitted changes" in text
    assert "2 x cpu: cpu" in text
    assert "jaxchat: [calculator: 37 * 24 = 888]\nThe answer is 888." in text
    assert "Once |>  upon" in text
    assert "[base]" in text
    assert f"batch_tokens={config.base.batch_tokens:,}" in text
    assert made["config"] == json.loads(recipe.to_json(config))


def test_what_is_no_checkout_is_said(config, done):
    made = report.make_report(config, done, ENVIRONMENT, {"commit": None, "dirty": None})
    assert "commit: not a git checkout" in report.markdown(made)


def test_a_models_words_cannot_leave_their_block(config, done):
    done["eval"]["results"]["models"]["base"]["samples"] = [
        {"prompt": "```", "completion": "\n````\n# Metrics\n\x1b[2J"}
    ]
    text = report.markdown(report.make_report(config, done, ENVIRONMENT, GIT))
    assert "`````text\n``` |> \n````\n# Metrics\n\ufffd[2J\n`````" in text


def test_a_table_cell_with_a_bar_stays_one_cell(config, done):
    done["data"]["results"]["sources"] = {"a|b": {"documents": 1}}
    text = report.markdown(report.make_report(config, done, ENVIRONMENT, GIT))
    assert re.search(r"^\| a\\\|b +\| 1 +\|$", text, re.MULTILINE)


def test_a_report_of_part_of_the_stages_is_made_all_the_same(config, done):
    del done["eval"], done["data"]
    text = report.markdown(report.make_report(config, done, ENVIRONMENT, GIT))
    assert "Base model" in text
    assert "## Samples" not in text


def test_the_compression_of_the_tokenizer_stands_beside_the_peers(config, done):
    sizes = {"characters": 300, "bytes": 450, "tokens": 100}
    results = [
        {"name": "cpu", "vocabulary": 1_024, "texts": {"hindi": sizes}, "missing": ""},
        {"name": "GPT-2", "vocabulary": 0, "texts": {}, "missing": "GPT-2's is not here."},
    ]
    record = {"artifact": "t", "vocabulary": 1_024, "compression": results}
    done["tokenizer"] = {"seconds": 1.0, "results": record}
    made = report.make_report(config, done, ENVIRONMENT, GIT)
    assert made["compression"] == results
    assert made["stages"]["tokenizer"]["results"] == {"vocabulary": 1_024}
    text = report.markdown(made)
    assert "| characters per token | cpu   | GPT-2   |" in text
    assert "| hindi                | 3.00  | -       |" in text
    assert re.search(r"^\| hindi +\| 4\.50 +\| - +\|$", text, re.MULTILINE)
    assert "GPT-2's is not here." in text


def test_a_foreign_report_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match="--force report"):
        report.read_report(tmp_path)


def test_the_farewell_says_how_to_talk(config, done, tmp_path):
    report.write_report(config, tmp_path, done)
    told = report.farewell(tmp_path, " --home here")
    assert "85.5%" in told
    assert str(tmp_path / "report.md") in told
    assert 'chat --home here -p "Who are you?"' in told
