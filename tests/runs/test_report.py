"""The report: the same figures in all files, of whatever there is, safe with a model's words."""

import json
import re

import pytest
from report_records import (
    CONFIGS,
    EMPTY,
    ENVIRONMENT,
    GIT,
    core,
    log_steps,
    make_config,
    make_done,
    score,
    write_records,
    write_run,
)

from jaxchat.config import loading
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json, write_json
from jaxchat.runs import run_dir
from jaxchat.runs.report import content, files
from jaxchat.runs.report.files import (
    FILES,
    final_summary,
    gather_run,
    read_report,
    write_report,
)
from jaxchat.runs.report.gather import make_report
from jaxchat.runs.report.metrics import chance, core_interval, metrics_cells, tool_use


@pytest.fixture
def config():
    return make_config()


@pytest.fixture
def done():
    return make_done()


@pytest.fixture
def made(config, done):
    return make_report(config, done, ENVIRONMENT, GIT)


def test_the_table_of_metrics_has_models_as_columns(made):
    cells = metrics_cells(made["metrics"])
    assert cells[0] == ("", "base", "mid", "sft", "rl", "of")
    assert cells[1] == ("bits per byte", "1.750", "-", "-", "1.812", "-")
    assert cells[2] == ("spelling", "0.0% [0.0, 1.9]", "-", "-", "85.5% [80.0, 89.7]", "200")
    assert cells[3] == ("mean reward", "-", "-", "-", "75.2% [70.8, 79.2]", "400")


def test_core_and_chatcore_stand_first_and_behind_the_tasks(config, done):
    evaluated = done["eval"]["results"]["models"]
    evaluated["base"]["core"], evaluated["rl"]["chatcore"] = core(), 0.0884
    made = make_report(config, done, ENVIRONMENT, GIT)
    cells = metrics_cells(made["metrics"])
    # (0.1 * 2, the centred half-width of winograd) and 0.1: the root of .04 + .01, halved
    assert cells[1] == ("CORE", "0.2500 [0.1382, 0.3618]", "-", "-", "-", "190")
    assert [row[0] for row in cells[2:]] == ["bits per byte", "spelling", "ChatCORE", "mean reward"]
    assert cells[4] == ("ChatCORE", "-", "-", "-", "0.0884", "-")
    text = content.markdown(made)
    assert "| squad    | 30.0% [20.0, 40.0] | 0.300   | 90       |" in text
    assert text.index("| squad") < text.index("| winograd"), "the best centred comes first"


def test_both_splits_and_both_means_of_the_chat_tasks_stand_in_the_table(config, done):
    evaluated = done["eval"]["results"]["models"]
    evaluated["base"] |= {"bits_per_byte_tokens": 10_485_760, "bits_per_byte_train": 1.625}
    evaluated["base"]["bits_per_byte_train_tokens"] = 10_485_760
    evaluated["rl"] |= {"chatcore": 0.0884, "chatcore_counting": 0.157}
    evaluated["rl"]["tasks"]["spelling"] = score(9, 10)
    made = make_report(config, done, ENVIRONMENT, GIT)
    rows = {row[0]: row[1:] for row in metrics_cells(made["metrics"])}
    assert rows["bits per byte"] == ("1.750", "-", "-", "1.812", "10.5M tokens")
    assert rows["bits per byte, train"] == ("1.625", "-", "-", "-", "10.5M tokens")
    assert rows["ChatCORE"] == ("-", "-", "-", "0.0884", "-")
    assert rows["ChatCORE + counting"] == ("-", "-", "-", "0.1570", "-")
    assert rows["spelling"][-1] == "10 or 200", "which of the models has how many is not said"
    text = content.markdown(made)
    assert "ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval" in text


def test_the_interval_of_core_is_that_of_independent_tasks():
    tasks = core()["tasks"]
    assert [chance(task) for task in tasks.values()] == pytest.approx([0.5, 0.0])
    assert core_interval(0.25, list(tasks.values())) == pytest.approx([0.1382, 0.3618], abs=1e-4)
    perfect = {"accuracy": 1.0, "centered": 1.0, "low": 0.9, "high": 1.0, "problems": 9}
    assert core_interval(1.0, [perfect]) == pytest.approx([0.9, 1.0])


def test_all_files_have_the_same_figures(config, done, tmp_path):
    log_steps(tmp_path / "base", 8)
    paths = write_report(config, tmp_path, done, sandbox="landlock, seccomp")
    assert [path.name for path in paths] == ["report.md", "report.html", "report.json"]
    text, page = (path.read_text() for path in paths[:2])
    read = read_report(tmp_path / "report.json")
    assert read["seconds"] == 93.75
    assert "1m34s in all" in text
    for row in metrics_cells(read["metrics"]):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row[0]:<13} |"))
        assert [cell.strip() for cell in line.strip("|").split("|")] == list(row)
    assert f"{read['parameters']['total']:,} parameters" in text
    assert "steps 8, tokens 16,384, loss 3.217" in text
    assert "steps 8, tokens 16,384, loss 3.217" in page
    assert "- sandbox: landlock, seccomp" in text
    assert "landlock, seccomp" in page
    assert read["stages"]["base"]["results"] == {"steps": 8, "tokens": 16_384, "loss": 3.217}
    assert "| base train | 1,000 | 257,000 |" in text
    assert "| stdlib  | 3         | 10,000 |" in text
    assert read["curves"]["base"]["loss"] == [6 - step / 4 for step in range(8)]


def test_the_same_results_give_the_same_files(config, done, tmp_path):
    for folder in ("a", "b"):
        log_steps(tmp_path / folder / "base", 8)
        write_report(config, tmp_path / folder, done)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_everything_a_reader_asks_is_there(made, config):
    text = content.markdown(made)
    assert "commit: 0123abc, with uncommitted changes" in text
    assert "2 x cpu: cpu" in text
    assert "jaxchat: [calculator: 37 * 24 = 888]\nThe answer is 888." in text
    assert "Once |>  upon" in text
    assert "[base]" in text
    assert f"batch_tokens={config.base.batch_tokens:,}" in text
    assert "git checkout 0123abc  # and the changes that were not committed\n" in text
    assert "python run_speedrun.py --tier cpu\n" in text
    assert "| rl    | 1 samples  | 1     | 0      | 0       |" in text
    assert made["config"] == json.loads(loading.to_json(config))


def test_money_is_measured_time_at_the_price_of_the_hardware(done):
    priced = loading.load(CONFIGS / "tier_100.toml")
    made = make_report(priced, done, ENVIRONMENT, GIT)
    assert made["stages"]["base"]["dollars"] == pytest.approx(60.25 * 24 / 3600)
    assert made["dollars"] == pytest.approx(93.75 * 24 / 3600)  # 0.625
    text = content.markdown(made)
    assert re.search(r"\| Base model +\| 1m00s +\| \$0\.40 +\|", text)
    assert "$24 an hour, the price of what the configuration names: 8 x NVIDIA H100 80GB." in text
    free = make_report(make_config(), done, ENVIRONMENT, GIT)
    assert free["dollars"] == 0
    assert "$" not in content.markdown(free)


def test_what_is_no_checkout_is_said(config, done):
    made = make_report(config, done, ENVIRONMENT, {"commit": None, "dirty": None})
    text = content.markdown(made)
    assert "commit: not a git checkout" in text
    assert "git checkout" not in text.replace("not a git checkout", "")


def test_a_models_words_cannot_leave_their_block(config, done):
    done["eval"]["results"]["models"]["base"]["samples"] = [
        {"prompt": "```", "completion": "\n````\n# Metrics\n\x1b[2J\u202eback"}
    ]
    text = content.markdown(make_report(config, done, ENVIRONMENT, GIT))
    assert "`````text\n``` |> \n````\n# Metrics\n\ufffd[2J\ufffdback\n`````" in text


def test_a_table_cell_with_a_bar_or_a_line_break_stays_one_cell(config, done):
    done["data"]["results"]["sources"] = {"a|b\nc": {"documents": 1}}
    text = content.markdown(make_report(config, done, ENVIRONMENT, GIT))
    assert re.search(r"^\| a\\\|b c +\| 1 +\|$", text, re.MULTILINE)


def test_calls_that_failed_and_that_were_cut_are_counted_apart():
    def answer(*parts):
        return {"question": "?", "parts": [{"type": kind, "text": text} for kind, text in parts]}

    samples = [
        answer(("python", "1/0"), ("python_output", "error: division by zero")),
        answer(("text", "error"), ("python", "1+1"), ("python_output", "2"), ("python", "2+")),
        answer(("python", "3"), ("python_output", "")),
    ]
    kept = {"calls": 90, "failed": 4}
    used = tool_use({"sft": {"samples": samples}, "rl": {"samples": samples, "tools": kept}})
    assert used["sft"] == {"where": "samples", "answers": 3, "calls": 4, "failed": 1, "cut": 2}
    assert used["rl"] == {"where": "evaluation", "calls": 90, "failed": 4, "cut": 0}


def test_the_compression_of_the_tokenizer_stands_beside_the_peers(config, done):
    sizes = {"characters": 300, "bytes": 450, "tokens": 100}
    results = [
        {"name": "cpu", "vocabulary": 1_024, "texts": {"hindi": sizes}, "missing": ""},
        {"name": "GPT-2", "vocabulary": 0, "texts": {}, "missing": "GPT-2's is not here."},
    ]
    record = {"artifact": "t", "vocabulary": 1_024, "compression": results}
    done["tokenizer"] = {"seconds": 1.0, "results": record}
    made = make_report(config, done, ENVIRONMENT, GIT)
    assert made["compression"] == results
    assert made["stages"]["tokenizer"]["results"] == {"vocabulary": 1_024}
    text = content.markdown(made)
    assert "| characters per token | cpu   | GPT-2   |" in text
    assert "| hindi                | 3.00  | -       |" in text
    assert re.search(r"^\| hindi +\| 4\.50 +\| - +\|$", text, re.MULTILINE)
    assert "GPT-2's is not here." in text


def test_a_run_that_has_begun_is_reported_with_what_is_missing(config, done, tmp_path):
    del done["eval"], done["base"]
    run = write_run(tmp_path / "cpu", config, done)
    made = files.write_run(run)
    assert made["missing"] == {
        "base": "under way: 8 of 250 steps",
        "mid": "not run yet",
        "sft": "not run yet",
        "rl": "not run yet",
        "eval": "not run yet",
    }
    text = (run / "report.md").read_text()
    assert "- Base model: under way: 8 of 250 steps\n" in text
    assert "## Samples" not in text
    assert "## Metrics" not in text
    assert "machine: in the report that the run writes at its end" in text
    assert made["curves"]["base"]["step"] == list(range(1, 9))
    assert "Base model: under way: 8 of 250 steps" in (run / "report.html").read_text()


def test_nothing_but_a_configuration_gives_a_report_too(config, tmp_path):
    run_dir.write_config(tmp_path, config)
    made = files.write_run(tmp_path)
    assert set(made["missing"].values()) == {"not run yet"}
    assert read_report(tmp_path / "report.json")["metrics"] == []


def test_models_that_an_interrupted_evaluation_finished_are_reported(config, done, tmp_path):
    models = done.pop("eval")["results"]["models"]
    run = write_run(tmp_path, config, done)
    write_json(run / "eval" / "base.json", models["base"])
    made = gather_run(run)
    assert made["missing"]["eval"] == "under way: base evaluated"
    assert metrics_cells(made["metrics"])[1] == ("bits per byte", "1.750", "-", "-", "-", "-")
    assert "eval" not in made["stages"]


def test_what_was_made_with_other_settings_is_left_out(done, tmp_path):
    run = write_run(tmp_path, make_config(), done)
    run_dir.write_config(run, make_config("base.steps=9"))
    made = gather_run(run)
    assert list(made["stages"]) == ["data", "tokenizer", "rows"]
    assert made["missing"]["base"] == "made with other settings, to be made again"
    assert made["missing"]["eval"] == "made with other settings, to be made again"
    assert made["metrics"] == []
    assert made["curves"] == {}


def without_later_fields(run):
    """The records as a version wrote them that did not have the fields declared with `later`."""
    later = {"warm_start", "loss_group", "sample_every", "core_every", "core_examples"}
    for path in run.glob("*/done.json"):
        record = read_json(path)
        for part in record["settings"]:
            for name in later & set(part) if isinstance(part, dict) else ():
                del part[name]
        write_json(path, record)


def test_a_record_from_before_a_setting_existed_counts(config, done, tmp_path):
    run = write_run(tmp_path, config, done)
    without_later_fields(run)
    assert list(gather_run(run)["stages"]) == [
        "data", "tokenizer", "rows", "base", "mid", "sft", "rl", "eval",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("mid_optim.warm_start=true", ["data", "tokenizer", "rows", "base"]),
        ("mid.loss_group=4", ["data", "tokenizer"]),
        ("rl.top_k=5", ["data", "tokenizer", "rows", "base", "mid", "sft"]),
        ("sft_optim.matrix_lr=0.007", ["data", "tokenizer", "rows", "base", "mid"]),
    ],
)
def test_a_record_from_before_a_setting_existed_is_of_its_default(
    config, done, tmp_path, change, kept
):
    run = write_run(tmp_path, config, done)
    without_later_fields(run)
    run_dir.write_config(run, make_config(change))
    made = gather_run(run)
    assert list(made["stages"]) == kept, f"reported with {change}, with which it was not made"
    assert made["metrics"] == []


def test_what_was_made_from_a_model_that_is_made_anew_is_of_an_earlier_one(config, done, tmp_path):
    run = write_run(tmp_path, config, done)
    (run / "mid" / "done.json").unlink()
    made = gather_run(run)
    assert list(made["stages"]) == ["data", "tokenizer", "rows", "base"]
    earlier = "made from an earlier result of midtraining, to be made again"
    assert made["missing"] == {
        "mid": "not run yet", "sft": earlier, "rl": earlier, "eval": earlier,
    }  # fmt: skip
    assert made["metrics"] == []
    again = {"seconds": 1.0, "results": {"artifact": "another mid"}}
    present = {n: EMPTY | done.get(n, {}) for n in ("data", "tokenizer", "rows", "base")}
    write_records(run, config, present | {"mid": again})
    made = gather_run(run)
    assert list(made["stages"])[-1] == "mid"
    assert made["missing"]["sft"].startswith("made from what was made again since")


def test_a_report_made_later_keeps_the_machine_and_the_commit(config, done, tmp_path):
    run = write_run(tmp_path, config, done)
    first = files.write_run(run)
    first |= {"environment": ENVIRONMENT, "git": GIT, "sandbox": "seccomp"}
    write_json(run / "report.json", first)
    again = files.write_run(run)
    assert (again["environment"], again["git"], again["sandbox"]) == (ENVIRONMENT, GIT, "seccomp")


def test_a_foreign_report_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"format": "jaxchat-report-1"}')
    with pytest.raises(ArtifactError, match="make it again from its run with jaxchat report"):
        read_report(tmp_path / "report.json")


def test_the_final_summary_says_how_to_talk(config, done, tmp_path):
    write_report(config, tmp_path, done)
    printed = final_summary(tmp_path, " --home here")
    assert "85.5%" in printed
    assert str(tmp_path / "report.html") in printed
    assert 'chat --home here -p "Who are you?"' in printed


def test_scores_without_intervals_are_shown_without(config, done):
    task = {k: v for k, v in score(1, 2).items() if k == "accuracy"}
    done["eval"]["results"]["models"]["rl"]["tasks"] = {"humaneval": task}
    made = make_report(config, done, ENVIRONMENT, GIT)
    assert ("humaneval", "-", "-", "-", "50.0%", "-") in metrics_cells(made["metrics"])


def test_core_measured_by_hand_is_reported_while_the_weights_are_the_same(tmp_path, config, done):
    for record in done["eval"]["results"]["models"].values():
        record.pop("core", None)
    done["base"]["results"]["artifact"] = "these weights"
    run = write_run(run_dir.folder(tmp_path, config.name), config, done)
    tasks = {
        "winograd": {
            "right": 60, "total": 100, "accuracy": 0.6, "interval": [0.5, 0.7], "baseline": 0.5,
            "centered": 0.2, "seconds": 1.0,
        }
    }  # fmt: skip
    printed = {"core": 0.2, "name": "CORE over 1 of 22 tasks", "tasks": tasks}
    path = run / "eval" / "core-base" / "result.json"
    write_json(path, printed | {"weights": "these weights"})
    found = gather_run(run)
    row = next(row for row in found["metrics"] if row["name"].startswith("CORE"))
    assert row["name"] == "CORE of 1 of 22 tasks, not comparable"  # however an older run named it
    assert row["values"]["base"]["value"] == 0.2
    assert found["core"]["base"]["winograd"]["problems"] == 100
    write_json(path, printed | {"weights": "other weights"})
    found = gather_run(run)
    assert not any(row["name"].startswith("CORE") for row in found["metrics"])
