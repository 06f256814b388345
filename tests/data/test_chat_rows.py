"""Rows of conversations: what the configuration names, as often as it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_replica
import numpy as np
import pytest
from tiny_shards import TOKENIZER

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.data.chat import HELD_OUT_PROBLEMS, build_chat_rows
from jaxchat.data.inputs import Inputs
from jaxchat.data.loader import HeldOutRows, RowSource
from jaxchat.data.own import InputFile
from jaxchat.errors import ConfigError
from jaxchat.tasks import EVERYDAY_WORDS

ROW = 513
CONFIG = """
[run]
name = "small"
depth = 2
[model]
sequence_len = 512
[mid]
conversations = 40
[mid.mixture]
identity = 3
arithmetic = 1
[sft]
conversations = 20
[sft.mixture]
spelling = 1
"""


class Text(HeldOutRows):
    """Rows of text that are easy to tell."""

    def __init__(self, row: int = ROW) -> None:
        self.tokens = np.full((50, row), 7, np.uint16)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("replica")
    hub_replica.build(folder)
    own = folder / "own.jsonl"
    talks = [
        [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Ho"}]
        for n in range(50)
    ]
    own.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))

    def files(*paths: Path) -> tuple[InputFile, ...]:
        return tuple(InputFile(path.name, "", 0, (path,)) for path in paths)

    gsm8k = folder / "openai" / "gsm8k" / "main"
    chat = {
        "gsm8k": {
            "train": files(*gsm8k.glob("train-*")), "test": files(*gsm8k.glob("test-*")),
        },
        "own.jsonl": {"train": files(own)},
    }  # fmt: skip
    return Inputs((), chat, 0, EVERYDAY_WORDS)


def config(folder: Path, *overrides: str) -> RunConfig:
    folder.mkdir(exist_ok=True)
    path = folder / "small.toml"
    path.write_text(CONFIG)
    return loading.load(path, overrides)


def build(folder: Path, read: Inputs, *overrides: str) -> dict[str, Any]:
    wanted = config(folder, *overrides)
    text = dict.fromkeys(("train", "test"), Text(wanted.model.sequence_len + 1))
    return build_chat_rows(wanted, read, TOKENIZER, text, folder)  # type: ignore[arg-type]


def said(folder: Path, stage: str) -> str:
    """All rows of a stage as text."""
    source = RowSource(folder / stage, TOKENIZER.hash)
    return "\n".join(TOKENIZER.decode(source[i]["tokens"].tolist()) for i in range(len(source)))


def test_generated_problems_alone_come_one_to_three_in_a_conversation(
    tmp_path: Path, read: Inputs
) -> None:
    reported = build(tmp_path, read)
    assert reported["mid_train"]["conversations"] == 24  # 40 problems by 1, 2, 1 and 3
    assert reported["mid_heldout"]["conversations"] == HELD_OUT_PROBLEMS
    rows = said(tmp_path, "mid_train")
    assert rows.count("<|assistant_start|>") == 40
    assert rows.count("<|bos|><|user_start|>") == 24
    again = build(tmp_path, read)
    assert again["artifact"] == reported["artifact"], "the same configuration gave other rows"
    assert build(tmp_path, read, "run.seed=1")["artifact"] != reported["artifact"]


def test_datasets_come_as_often_as_their_epochs_say_and_test_splits_are_held_out(
    tmp_path: Path, read: Inputs
) -> None:
    reported = build(tmp_path, read, "mid.epochs.gsm8k=1.5", "sft.epochs.gsm8k=1")
    assert reported["mid_train"]["conversations"] == 90 + 30 + 10  # 60 problems; then the generated
    rows = said(tmp_path, "mid_train")
    assert rows.count("#### ") == 90
    assert rows.count("<|python_start|>") >= 90
    held_out = said(tmp_path, "mid_heldout")
    assert held_out.count("#### ") == 20  # all that the test split has
    assert reported["sft_train"]["conversations"] == 60 + 20


def test_some_of_ones_own_conversations_are_held_out(tmp_path: Path, read: Inputs) -> None:
    reported = build(tmp_path, read, 'mid.epochs."own.jsonl"=2', "mid.conversations=0")
    assert reported["mid_train"]["conversations"] == 2 * 49
    assert reported["mid_heldout"]["conversations"] == 1
    trained, held_out = said(tmp_path, "mid_train"), said(tmp_path, "mid_heldout")
    counts = [trained.count(f"Hi {n}<") for n in range(50)]
    assert counts == [2] * 49 + [0]
    assert "Hi 49<" in held_out


def test_stages_do_not_draw_the_same_problems(tmp_path: Path, read: Inputs) -> None:
    alike = ["sft.conversations=40", "sft.mixture.identity=3", "sft.mixture.arithmetic=1"]
    for more in ([], ["mid.epochs.gsm8k=0.02", "sft.epochs.gsm8k=0.02"]):
        build(tmp_path, read, "mid.mixture.spelling=1", *alike, *more)
        mid, sft = said(tmp_path, "mid_train"), said(tmp_path, "sft_train")
        assert mid.count("<|user_start|>") == sft.count("<|user_start|>")
        assert mid != sft


def test_an_own_file_says_what_is_learned_and_how_much(tmp_path: Path, read: Inputs) -> None:
    """Of 50 conversations the last is held out, where it is learned or not."""
    own = tmp_path / "weighed.jsonl"
    weights = [0, False, 1, 0.5, *[0] * 45, 0.25]
    with own.open("w") as file:
        for n, weight in enumerate(weights):
            reply = {"role": "assistant", "content": f"Ho {n}", "weight": weight}
            talk = [{"role": "user", "content": f"Hi {n}"}, reply]
            file.write(json.dumps({"messages": talk}) + "\n")
    paths = {"train": (InputFile(own.name, "", 0, (own,)),)}
    read = replace(read, chat={own.name: paths})
    reported = build(tmp_path, read, f'mid.epochs."{own.name}"=1', "mid.conversations=0")
    learned = {weight: [] for weight in (0.5, 1.0)}
    source = RowSource(tmp_path / "mid_train", TOKENIZER.hash)
    for row in (source[i] for i in range(len(source))):
        assert set(np.unique(row["mask"])) <= {0, 0.5, 1}
        for weight, ids in learned.items():
            ids += row["tokens"][row["mask"] == weight].tolist()
    ends = "<|assistant_end|>"
    assert TOKENIZER.decode(learned[1.0]) == "Ho 2" + ends
    assert TOKENIZER.decode(learned[0.5]) == "Ho 3" + ends
    assert reported["mid_train"]["trained_tokens"] == sum(map(len, learned.values()))
    held_out = RowSource(tmp_path / "mid_heldout", TOKENIZER.hash)[0]
    assert TOKENIZER.decode(held_out["tokens"][held_out["mask"] == 1].tolist()) == "Ho 49" + ends


def test_weights_by_groups_are_for_training_alone_and_text_weighs_as_much(
    tmp_path: Path, read: Inputs
) -> None:
    plain = build(tmp_path / "plain", read, "mid.text_share=0.5")
    reported = build(tmp_path / "groups", read, "mid.text_share=0.5", "mid.loss_group=4")
    for name in ("sft_train", "sft_heldout", "mid_heldout"):
        assert reported[name] == plain[name]
    assert reported["parts"]["sft"] == plain["parts"]["sft"]
    assert reported["mid_train"] == plain["mid_train"], "it tells numbers of tokens, not weights"
    assert reported["parts"]["mid"] != plain["parts"]["mid"]
    flags, weights = (
        RowSource(tmp_path / name / "mid_train", TOKENIZER.hash) for name in ("plain", "groups")
    )
    np.testing.assert_array_equal(flags.tokens, weights.tokens)
    np.testing.assert_array_equal(flags.mask > 0, weights.mask > 0)
    text = (flags.tokens == 7).all(axis=1)
    assert (weights.mask[text] == 1).all()
    of_chats = weights.mask[~text]
    assert of_chats[of_chats > 0].mean() == pytest.approx(1)
    assert len(np.unique(of_chats)) == 1 + 24 // 4  # 0, and one of each group


def test_a_share_of_text_is_added_and_all_of_it_is_learned(tmp_path: Path, read: Inputs) -> None:
    plain = build(tmp_path, read)["mid_train"]["rows"]
    reported = build(tmp_path, read, "mid.text_share=0.5")["mid_train"]
    source = RowSource(tmp_path / "mid_train", TOKENIZER.hash)
    text = [i for i in range(len(source)) if (source[i]["tokens"] == 7).all()]
    assert reported["rows"] == len(source) == plain + len(text)
    assert len(text) == round(plain / 2)
    assert all(source[i]["mask"].all() for i in text)


def test_no_conversation_at_all_is_reported_with_what_to_set(tmp_path: Path, read: Inputs) -> None:
    path = tmp_path / "none.toml"
    path.write_text('[run]\nname = "none"\ndepth = 2\n')
    text = {"train": Text(), "test": Text()}
    with pytest.raises(ConfigError, match=r"mid_train has no conversation; name datasets"):
        build_chat_rows(loading.load(path), read, TOKENIZER, text, tmp_path)  # type: ignore[arg-type]


def talks_of(folder: Path, read: Inputs, questions: list[str]) -> Inputs:
    """One's own file of these questions, each with an answer."""
    folder.mkdir(exist_ok=True)
    own = folder / "own.jsonl"
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": "Ho"}]
        for question in questions
    ]
    own.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    file = InputFile(own.name, "", 0, (own,))
    return replace(read, chat={"own.jsonl": {"train": (file,)}})


OWN_ALONE = ('sft.epochs."own.jsonl"=1', "sft.conversations=0")


def test_replies_beyond_the_row_are_counted_and_reported(
    tmp_path: Path, read: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    own = talks_of(tmp_path, read, ["Hi " * 300] * 29 + ["Hi", "Hi"])
    reported = build(tmp_path, own, *OWN_ALONE)
    said = capsys.readouterr().out
    assert "sft_train: 29 of 30 conversations teach nothing; of 29 the reply begins beyond" in said
    needed = int(said.partition("model.sequence_len=")[2].partition(" ")[0])
    for length, silent in ((needed - 1, True), (needed, False)):
        capsys.readouterr()
        build(tmp_path, own, *OWN_ALONE, f"model.sequence_len={length}")
        assert ("teach nothing" in capsys.readouterr().out) == silent, length
    assert reported["sft_train"]["conversations"] == 30


@pytest.mark.parametrize(("silent", "where"), [("train", 0), ("heldout", -1)])
def test_where_all_replies_are_beyond_the_row_it_is_reported_before_any_training(
    tmp_path: Path, read: Inputs, silent: str, where: int
) -> None:
    questions = ["Hi", "Hi"]
    questions[where] = "Hi " * 300
    with pytest.raises(
        ConfigError, match=rf"sft_{silent}: 1 of 1 .*model\.sequence_len=\d+.*sft\."
    ):
        build(tmp_path, talks_of(tmp_path, read, questions), *OWN_ALONE)


@pytest.mark.parametrize("setting", ['sft.epochs."own.jsonl"=0.001', "sft.mixture.counting=0.0001"])
def test_of_what_is_named_one_is_taken_at_least(
    tmp_path: Path, read: Inputs, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reported = build(tmp_path, read, 'sft.epochs."own.jsonl"=1', setting)
    name, _, value = setting.partition("=")
    assert f"{name}={float(value):g} is less than half a" in capsys.readouterr().out
    own = 1 if "epochs" in setting else 49
    assert reported["sft_train"]["conversations"] == 20 + own + ("mixture" in setting)


def test_own_files_come_after_the_datasets_wherever_they_are(tmp_path: Path, read: Inputs) -> None:
    rows = []
    for name in ("own.jsonl", "./own.jsonl", "z/own.jsonl"):
        moved = replace(read, chat={**read.chat, name: read.chat["own.jsonl"]})
        folder = tmp_path / str(len(rows))
        rows.append(build(folder, moved, f'sft.epochs={{gsm8k=1, "{name}"=1}}')["parts"])
    assert rows[0] == rows[1] == rows[2]
