"""jaxchat eval core and bpb: over a run, interrupted, and resumed."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from whole_model import forward

from jaxchat.checkpoints.save import save_params
from jaxchat.cli import main
from jaxchat.config import loading
from jaxchat.config.schema import MODELS
from jaxchat.data.inputs import Inputs, read_inputs, write_inputs
from jaxchat.data.own import InputFile, hash_of
from jaxchat.data.shards import prepare_shards, text_folder
from jaxchat.evals.core import evaluate
from jaxchat.model.gpt import init_params
from jaxchat.runs import run_dir, runner
from jaxchat.runs.report.files import gather_run
from jaxchat.runs.stages import STAGES
from jaxchat.tokenizer import Tokenizer

BUNDLE = Path(__file__).parent.parent / "golden" / "core_bundle"
CONTEXT = 64
DOCUMENT = {
    "run": {"name": "tiny", "depth": 1},
    "tokenizer": {"vocab_size": 265},
    "model": {"n_embd": 16, "n_head": 2, "n_kv_head": 2, "sequence_len": CONTEXT},
}


def write_texts(folder):
    """What the stage `data` would leave: three files of text, the last one held out."""
    files = []
    for number in range(3):
        path = folder / f"{number}.jsonl"
        texts = [f"{number}.{n}: " + "some words to read " * 9 for n in range(20)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files.append(InputFile(path.name, hash_of([path]), path.stat().st_size, (path,)))
    write_inputs(folder, Inputs(tuple(files), {}, 2))


def write_shards(run, tokenizer):
    read = read_inputs(run / "data")
    folder = text_folder(run, read, tokenizer, CONTEXT + 1)
    prepare_shards(read.text, tokenizer, CONTEXT + 1, folder, workers=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a run whose models are untrained, recorded by the real pipeline."""
    config = loading.from_document(DOCUMENT, "tiny")
    tokenizer = Tokenizer([bytes([i]) for i in range(256)])

    def make(name):
        def run(context):
            folder = context.folder(name)
            if name == "tokenizer":
                tokenizer.save(folder)
            if name == "data":
                write_texts(folder)
            if name == "rows":
                write_shards(context.root, tokenizer)
            if name in MODELS:
                params = init_params(jax.random.key(MODELS.index(name)), config.model)
                head = jax.random.normal(jax.random.key(9), params["lm_head"]["kernel"].shape)
                params["lm_head"]["kernel"] = head
                save_params(folder / "model", params, {"stage": name})
            return {"artifact": name}

        return run

    home = tmp_path_factory.mktemp("finished")
    run = run_dir.folder(home, config.name)
    run_dir.write_config(run, config)
    stages = [dataclasses.replace(stage, run=make(stage.name)) for stage in STAGES]
    runner.run_stages(stages, runner.Context(config, run))
    return home


def command(home, *arguments):
    """The exit code of `jaxchat eval ...`."""
    return main.main(["eval", *arguments, "--home", str(home)])


def test_core_is_reported_saved_dumped_and_resumes_where_it_stopped(
    home, tmp_path, capsys, monkeypatch
):
    dump = tmp_path / "dump.jsonl"
    given = ["core", "--bundle", str(BUNDLE), "-a", "because", "-a", "copying"]
    done, real = [], evaluate._evaluate_task

    def interrupted_at_copying(model, task, **options):
        if task.label == "copying" and not done:
            raise KeyboardInterrupt
        done.append(task.label)
        return real(model, task, **options)

    monkeypatch.setattr(evaluate, "_evaluate_task", interrupted_at_copying)
    done.clear()
    assert command(home, *given[:5]) == 0  # because alone
    assert done == ["because"]
    done.clear()
    assert command(home, *given, "--dump", str(dump)) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert not dump.exists()
    done.append("the second time")
    assert command(home, *given, "--dump", str(dump)) == 0
    assert done == ["the second time", "copying"]  # because was kept
    reported = capsys.readouterr().out
    assert "CORE of 2 of 22 tasks, not comparable" in reported
    assert "without data in the bundle: not_here" in reported
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    assert [(line["task"], line["index"]) for line in lines] == [
        *(("because", n) for n in range(6)), *(("copying", n) for n in range(6)),
    ]  # fmt: skip
    right = sum(one["prediction"] == one["gold"] for one in lines[:6])
    kept = json.loads(Path(reported.splitlines()[-1]).read_text())
    assert kept["tasks"]["because"]["right"] == right
    assert any(None in one["losses"] for one in lines)  # "they walked" begins the other choice


def test_other_models_and_options_are_evaluated_anew(home, capsys, monkeypatch):
    done, real = [], evaluate._evaluate_task

    def watched(*arguments, **options):
        done.append(arguments[1].label)
        return real(*arguments, **options)

    monkeypatch.setattr(evaluate, "_evaluate_task", watched)
    given = ["core", "--bundle", str(BUNDLE), "-a", "pronouns"]
    for more in ([], [], ["--stage", "rl"], ["--context", "50"], ["--max-problems", "4"]):
        assert command(home, *given, *more) == 0
    assert len(done) == 4  # all but the second
    reported = capsys.readouterr().out
    kept = json.loads(Path(reported.splitlines()[-1]).read_text())
    assert (kept["context"], kept["max_problems"]) == (None, 4)
    assert "CORE of 1 of 22 tasks, at most 4 examples a task, not comparable" in reported


def test_neither_fewer_examples_nor_another_length_replaces_a_larger_result(
    home, capsys, monkeypatch
):
    """What is kept stays, as do its tasks: the whole is there again without evaluating."""
    done, real = [], evaluate._evaluate_task

    def watched(*arguments, **options):
        done.append(arguments[1].label)
        return real(*arguments, **options)

    monkeypatch.setattr(evaluate, "_evaluate_task", watched)
    given = ["core", "--bundle", str(BUNDLE)]
    assert command(home, *given) == 0
    whole = capsys.readouterr().out
    total = json.loads(Path(whole.splitlines()[-1]).read_text())["tasks"]["because"]["total"]
    for fewer in (["--max-problems", "4"], ["--context", "40"], ["-a", "because"]):
        assert command(home, *given, *fewer) == 0
    row = next(r for r in gather_run(home / "runs/tiny")["metrics"] if "CORE" in r["name"])
    assert row["name"] == "CORE of 4 of 22 tasks, not comparable", "replaced by a smaller one"
    assert total == 6
    done.clear()
    capsys.readouterr()
    assert command(home, *given) == 0
    assert not done, "another set of options took the tasks away"
    assert capsys.readouterr().out == whole


def test_what_an_earlier_version_kept_is_read(home, capsys, monkeypatch):
    """It had one file a task and one for the result, of whichever options came last."""
    folder = home / "runs/tiny/eval/core-base"
    shutil.rmtree(folder, ignore_errors=True)
    given = ["core", "--bundle", str(BUNDLE)]
    assert command(home, *given) == 0
    reported = capsys.readouterr().out
    for path in sorted(folder.glob("*.json")):
        path.rename(folder / f"{path.stem.rpartition('-')[0]}.json")
    assert (folder / "result.json").exists()
    row = next(r for r in gather_run(home / "runs/tiny")["metrics"] if "CORE" in r["name"])
    assert row["name"] == "CORE of 4 of 22 tasks, not comparable"
    monkeypatch.setattr(evaluate, "_evaluate_task", None)
    assert command(home, *given) == 0, "its tasks are evaluated again"
    assert capsys.readouterr().out == reported


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["core"], 1, "--download, or name a bundle with --bundle DIR"),
        (["core", "--run", "other"], 1, "no run 'other'"),
        (["core", "--bundle", str(BUNDLE), "-a", "nothing"], 2, "no task 'nothing'"),
        (["core", "--bundle", str(BUNDLE), "--context", "1"], 2, "leaves nothing to predict"),
        (["core", "--bundle", str(BUNDLE), "--download"], 2, "leave --bundle away"),
        (["core", "--bundle", "/nowhere"], 1, "is no bundle of CORE's tasks"),
    ],
)
def test_what_cannot_be_is_one_sentence(home, capsys, arguments, code, message):
    assert command(home, *arguments) == code
    reported = capsys.readouterr().err.strip()
    assert message in reported
    assert reported.count("\n") == 0


@pytest.mark.parametrize(("preset", "seen"), [("classic", 100), ("modern", CONTEXT)])
def test_of_a_longer_context_only_a_model_without_windows_sees_all(home, monkeypatch, preset, seen):
    """nanochat of November 2025 has no windows; in July 2026 they are those of training."""
    models, real = [], evaluate._evaluate_task

    def watched(model, *arguments, **options):
        models.append(model.config)
        return real(model, *arguments, **options)

    monkeypatch.setattr(evaluate, "_evaluate_task", watched)
    path = home / "runs" / "tiny" / "config.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"preset": preset}))
    try:
        given = ["core", "--bundle", str(BUNDLE), "-a", "pronouns", "--context", "100"]
        assert command(home, *given) == 0
    finally:
        path.write_text(text)
    assert [model.sequence_len for model in models] == [seen]


def test_a_stage_that_is_not_complete_says_which_are(home, capsys):
    record = home / "runs/tiny/rl/done.json"
    text = record.read_text()
    record.unlink()
    try:
        assert command(home, "bpb", "--stage", "rl") == 1
    finally:
        record.write_text(text)
    assert "has no model rl (complete there: base, mid, sft)" in capsys.readouterr().err


def bits_by_hand(home, rows):
    """Bits per byte of the base model over rows [N, T+1] of bytes; 256 and above are special."""
    from jaxchat.runs.opening import load_model

    run = run_dir.folder(home, "tiny")
    model = run_dir.read_config(run).model
    logits = forward(load_model(run, "base", model), rows[:, :-1], model)
    logprobs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = np.take_along_axis(logprobs, rows[:, 1:, None], axis=-1)[..., 0]
    counted = rows[:, 1:] < 256
    return -found[counted].sum() / counted.sum() / math.log(2)


def test_bits_per_byte_of_both_splits(home, capsys):
    from jaxchat.data.loader import HeldOutRows, ShardedRows

    assert command(home, "bpb", "--rows", "13") == 0
    reported = capsys.readouterr().out.splitlines()
    run = home / "runs/tiny"
    tokenizer = Tokenizer.load(run / "tokenizer")
    folder = text_folder(run, read_inputs(run / "data"), tokenizer, CONTEXT + 1)
    train = ShardedRows(folder, tokenizer.hash).take(np.arange(13), 0)
    held_out = HeldOutRows(folder, tokenizer.hash).tokens[:13].astype(np.int32)
    for line, split, rows in zip(reported, ("train", "heldout"), (train, held_out), strict=True):
        assert line.startswith(split)
        assert f"{len(rows)} rows, {len(rows) * CONTEXT:,} tokens" in line
        assert float(line.split()[1]) == pytest.approx(bits_by_hand(home, rows), abs=1e-4)


def test_a_file_for_a_bundle_is_named(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main.main(["eval", "core", "--home", str(tmp_path), "--bundle", str(file)]) == 2
    reported = capsys.readouterr().err
    assert reported == f"jaxchat: --bundle {file} is a file; it must be a folder: name another.\n"
