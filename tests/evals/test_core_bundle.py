"""CORE's tasks: what is read of a bundle, what is asked, and which tokens are scored."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxchat.cli.eval import core_table
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.core.batches import make_batches
from jaxchat.evals.core.bundle import read_bundle, read_examples
from jaxchat.evals.core.prompts import (
    Choice,
    Row,
    draw_shots,
    find_scored,
    prompts,
    split_rows,
    task_rows,
)
from jaxchat.evals.core.result import CoreResult, Judged, TaskResult, judge
from jaxchat.evals.model import EvalModel
from jaxchat.model.backend import bucket
from jaxchat.tokenizer import Tokenizer

BUNDLE = Path(__file__).parents[1] / "golden" / "core_bundle"


@pytest.fixture
def folder(tmp_path):
    """A bundle to take apart."""
    return shutil.copytree(BUNDLE, tmp_path / "bundle")


def tokens(text):
    return np.array([999, *text.encode()])


def test_tasks_without_data_are_listed_apart():
    bundle = read_bundle(BUNDLE)
    assert [task.label for task in bundle.tasks] == ["because", "kitchen", "pronouns", "copying"]
    assert bundle.missing == ("not_here",)
    kitchen = bundle.tasks[1]
    assert (kitchen.kind, kitchen.shots, kitchen.delimiter, kitchen.baseline) == (
        "multiple_choice", 2, "\nAnswer: ", 0.25,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["not_here"], "has no data for"), (["coppying"], "there is no task 'coppying'")],
)
def test_a_task_that_cannot_be_evaluated_is_an_error(labels, message):
    with pytest.raises(ConfigError, match=message):
        read_bundle(BUNDLE).select(labels)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("core.yaml", "icl_tasks", "tasks", r"does not list CORE's tasks \('icl_tasks'\)"),
        ("core.yaml", "icl_tasks:", "icl_tasks: [", "does not list CORE's tasks"),
        ("core.yaml", "schema\n", "scheme\n", "pronouns .* is of type 'scheme'"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: []", "without a usable"),
        ("core.yaml", "choices/because", "../../because", "is outside of"),
        ("eval_meta_data.csv", "because,", "since,", "no random baseline .* for because"),
        ("eval_meta_data.csv", "0,6,50", "0,6,half", "is no table with columns"),
        (
            "eval_data/choices/because.jsonl",
            '"gold": 1',
            '"gold": 2',
            "line 2 .*gold is 2 of 2 choices",
        ),
        ("eval_data/choices/because.jsonl", '"query"', '"ask"', "line 1 .*no usable query"),
    ],
)
def test_a_damaged_bundle_names_file_and_fault(folder, file, old, new, message):
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    if "outside" in message:  # where there is something
        (folder.parent / "because.jsonl").write_text("{}")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        read_examples(read_bundle(folder).tasks[0])


def test_a_folder_that_is_no_bundle_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match=r"no bundle .* name the folder of nanochat's"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(("encoding", "whole"), [("latin-1", False), ("utf-8-sig", True)])
def test_a_file_of_a_bundle_is_utf8_or_named(folder, encoding, whole):
    task = next(task for task in read_bundle(folder).tasks if task.kind == "language_modeling")
    lines = task.path.read_text(encoding="utf-8").splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"note": "café"}, ensure_ascii=False)
    task.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = read_examples(task)
    task.path.write_text("\n".join(lines) + "\n", encoding=encoding)
    if whole:
        assert read_examples(task) == before
    else:
        with pytest.raises(ArtifactError, match=rf"{task.path.name} is not UTF-8 text \(byte"):
            read_examples(task)


def test_too_few_examples_to_show_say_so():
    copying = read_bundle(BUNDLE).select(["copying"])[0]
    with pytest.raises(ArtifactError, match=r"shows 3 solved examples .* and has 3"):
        read_examples(copying, 3)


def test_the_texts_of_each_kind():
    because, kitchen, pronouns, copying = read_bundle(BUNDLE).tasks
    asked = {"query": "Q2", "choices": ["x", "y"], "gold": 0}
    shot = {"query": "Q1", "choices": ["a", "b"], "gold": 1}
    assert prompts(because, asked, []) == ["Q2 x", "Q2 y"]
    assert prompts(kitchen, asked, [shot])[0] == "Q1\nAnswer: b\n\nQ2\nAnswer: x"
    pair = {"context_options": ["He", "She"], "continuation": "left.", "gold": 1}
    assert prompts(pronouns, pair, [pair])[0] == "She left.\n\nHe left."
    copy = {"context": "  say\nso: ", "continuation": "so it is "}
    # the context loses the white space around it, the prompt without continuation its last, too
    assert prompts(copying, copy, []) == ["say\nso:", "say\nso: so it is "]


def test_solved_examples_never_show_the_question_itself():
    examples = [{"n": n} for n in range(4)]
    for index in range(4):
        drawn = [one["n"] for one in draw_shots(examples, index, 3)]
        assert sorted([*drawn, index]) == [0, 1, 2, 3]


def test_scored_is_what_differs_or_what_agrees_to_the_end():
    texts = [tokens("so cats"), tokens("so cows ran")]
    assert [c.start for c in find_scored("multiple_choice", texts)] == [5, 5]
    texts = [tokens("Ann sat"), tokens("Marian sat")]
    assert [c.start for c in find_scored("schema", texts)] == [3, 6]  # "n sat"
    (choice,) = find_scored("language_modeling", [tokens("so it"), tokens("so it is")])
    assert (choice.start, len(choice.tokens)) == (6, 9)


def test_a_continuation_that_a_tokenizer_joins_to_the_prompt_is_scored_from_there():
    (choice,) = find_scored("language_modeling", [np.array([1, 2, 3]), np.array([1, 2, 9, 4])])
    assert choice.start == 2


def test_choices_share_a_row_unless_truncation_cuts_them_differently():
    choices = [Choice(tokens("same question: yes"), 16), Choice(tokens("same question: no"), 16)]
    (row,) = split_rows(7, choices, 100)
    assert (row.example, row.choices, len(row.trunk), row.size) == (7, (0, 1), 16, 5)
    rows = list(split_rows(7, choices, 10))
    assert [(len(row.trunk), row.choices) for row in rows] == [(7, (0,)), (8, (1,))]
    assert bytes(rows[0].trunk.astype(np.uint8)) == b"stion: "


def test_a_choice_that_begins_the_others_has_no_token_and_no_loss():
    choices = find_scored("multiple_choice", [tokens("a dog"), tokens("a dog barks")])
    (row,) = split_rows(0, choices, 100)
    assert row.scored == [0, 6]
    assert judge("multiple_choice", 1, [math.nan, 2.0], False).prediction == 0  # as nanochat
    assert judge("multiple_choice", 1, [2.0, math.nan], False).prediction == 0


def test_an_example_without_anything_to_predict_is_named():
    task = dataclasses.replace(read_bundle(BUNDLE).select(["copying"])[0], shots=0, delimiter="")
    tokenizer = Tokenizer([bytes([i]) for i in range(256)])
    examples = [{"context": "say", "continuation": "so"}, {"context": "say", "continuation": ""}]
    with pytest.raises(ArtifactError, match="example 1 of copying has no continuation"):
        task_rows(task, examples, tokenizer, 500)


@pytest.mark.parametrize(("shards", "copies"), [(1, False), (4, True)])
def test_batches_hold_every_token_of_every_row_once(shards, copies):
    rng = np.random.default_rng(0)

    def row(example):
        trunk, first, second = (rng.integers(1, 50, n) for n in rng.integers(1, 90, 3))
        return Row(example, (0, 1), trunk, (first, second), (0, len(second) // 2))

    rows = [row(n) for n in range(40)]
    found, shapes = {}, set()
    for batch in make_batches(rows, tokens=700, shards=shards, copies=copies):
        arrays = batch.arrays
        assert len(arrays["tokens"]) % shards == 0
        shapes.add(arrays["tokens"].shape)
        size = len(arrays["tokens"]) // shards
        flat = arrays["tokens"].reshape(shards, -1)
        for number, (row, scored) in enumerate(batch.split(arrays["targets"])):
            assert row.example not in found
            found[row.example] = row
            for branch, start, got in zip(row.branches, row.starts, scored, strict=True):
                np.testing.assert_array_equal(got, branch[start:])
            before = [
                [row.trunk[-1], *b][s : len(b)]
                for b, s in zip(row.branches, row.starts, strict=True)
            ]
            places = list(batch.split(arrays["at"]))[number][1]
            for place, want in zip(places, before, strict=True):
                np.testing.assert_array_equal(flat[number // size][place], want)
    assert sorted(found) == list(range(40))
    assert len(shapes) <= 12  # of 40 rows, each of another size


def test_sizes_double_in_steps():
    assert [bucket(n, 32) for n in (1, 32, 33, 64, 65, 400)] == [32, 32, 64, 64, 128, 512]
    assert [bucket(n, 32, steps=2) for n in (33, 49, 65, 97, 400, 1025)] == [
        48,
        64,
        96,
        128,
        512,
        1536,
    ]


def result(label, right, total, baseline):
    judged = tuple(Judged(int(n >= right), 0, (1.0, 2.0)) for n in range(total))
    return TaskResult(label, baseline, judged, 1.0)


def test_core_is_the_mean_of_accuracies_above_guessing():
    done = CoreResult((result("a", 5, 8, 0.25), result("b", 4, 8, 0.5)), ("c",))
    assert done.tasks[0].centered == pytest.approx(0.5)
    assert done.core == pytest.approx(0.25)
    assert (done.name, done.complete) == ("CORE of 2 of 22 tasks, not comparable", False)
    assert "without data in the bundle: c" in core_table(done)
    whole = CoreResult(tuple(result(str(n), 4, 8, 0.0) for n in range(22)))
    assert (whole.name, whole.complete, whole.to_json()["core"]) == ("CORE", True, 0.5)
    part = CoreResult(whole.tasks, max_problems=8)
    assert part.name == "CORE of at most 8 examples a task, not comparable"


def test_a_models_weights_are_read_once_and_only_when_they_are_needed():
    read = []
    model = EvalModel(lambda: read.append("weights") or "weights", ModelConfig(), None)
    assert not read
    assert (model.params, model.params) == ("weights", "weights")
    assert read == ["weights"]
