"""Talking to a run: what is loaded, what is remembered, and what a long conversation forgets."""

import dataclasses
import io
import os
import shutil
import signal

import jax
import pytest

from jaxchat import chat, pipeline, recipe, runs
from jaxchat.chat import Chat, MessageTooLongError, Sampling
from jaxchat.config import RunConfig
from jaxchat.home import ArtifactError
from jaxchat.infer.engine import Engine
from jaxchat.infer.transcript import as_text, printable
from jaxchat.model.gpt import init_params
from jaxchat.stages import MODELS, STAGES
from jaxchat.tokenizer import Tokenizer, train_tokenizer
from jaxchat.train.checkpoint import save_params

DOCUMENT = {
    "run": {"name": "tiny", "depth": 1},
    "tokenizer": {"vocab_size": 280},
    "model": {"n_embd": 16, "n_head": 2, "n_kv_head": 2, "sequence_len": 128},
}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return recipe.from_document(DOCUMENT, "tiny")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["who are you and how many are there "] * 9, 280)


@pytest.fixture(scope="module")
def finished(config, tokenizer, tmp_path_factory):
    """A home with a run whose models are untrained, recorded by the real pipeline."""

    def make(name):
        def run(context):
            folder = context.folder(name)
            if name == "tokenizer":
                tokenizer.save(folder)
            if name in MODELS:
                key = jax.random.key(MODELS.index(name))
                save_params(folder / "model", init_params(key, config.model), {"stage": name})
            return {"artifact": name}

        return run

    home = tmp_path_factory.mktemp("finished")
    run = runs.folder(home, config.name)
    runs.write_config(run, config)
    stages = [dataclasses.replace(stage, run=make(stage.name)) for stage in STAGES]
    pipeline.run_stages(stages, pipeline.Context(config, run))
    return home


@pytest.fixture
def home(finished, tmp_path):
    """A copy to take apart."""
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def engine(config, tokenizer):
    return Engine(init_params(jax.random.key(0), config.model), config.model, tokenizer, slots=1)


def make_chat(engine, tokenizer, **settings):
    return Chat(engine, tokenizer, 128, Sampling(**{"max_tokens": 20, **settings}))


def test_the_last_complete_stage_talks(home):
    assert chat.load(home, None, None, Sampling()).stage == "rl"
    (home / "runs" / "tiny" / "rl" / "done.json").unlink()
    loaded = chat.load(home, "tiny", None, Sampling())
    assert (loaded.stage, loaded.run.name) == ("sft", "tiny")
    assert chat.load(home, None, "mid", Sampling()).stage == "mid"


def test_a_stage_that_is_not_complete_says_which_are(home):
    (home / "runs" / "tiny" / "rl" / "done.json").unlink()
    with pytest.raises(ArtifactError, match=r"no model rl \(complete there: sft, mid\)"):
        chat.load(home, None, "rl", Sampling())


def test_a_run_without_any_model_says_what_to_do(home):
    (home / "runs" / "tiny" / "base" / "done.json").unlink()
    with pytest.raises(ArtifactError, match=r"no model to talk to .*run_speedrun\.py"):
        chat.load(home, None, None, Sampling())


def test_models_of_other_settings_are_not_taken_for_this_run(home, config):
    run = runs.folder(home, "tiny")
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, n_embd=32))
    runs.write_config(run, other)
    with pytest.raises(ArtifactError, match="no model to talk to"):
        chat.load(home, None, None, Sampling())


def test_a_damaged_model_is_one_sentence(home):
    for file in (home / "runs" / "tiny" / "rl" / "model").rglob("*"):
        if file.is_file() and file.name != "meta.json":
            file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="--force") as caught:
        chat.load(home, None, None, Sampling())
    assert "\n" not in str(caught.value)


def test_what_was_said_is_remembered(engine, tokenizer):
    talk = make_chat(engine, tokenizer)
    first = "".join(talk.ask("who are you"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert printable(as_text(talk.messages[1]["content"])) == first
    list(talk.ask("how many"))
    assert [message["content"] for message in talk.messages[::2]] == ["who are you", "how many"]


def test_an_answer_that_is_stopped_is_remembered_as_far_as_it_came(engine, tokenizer):
    whole = "".join(make_chat(engine, tokenizer, max_tokens=60).ask("who are you"))
    talk = make_chat(engine, tokenizer, max_tokens=60)
    pieces = talk.ask("who are you")
    begun = next(pieces)
    pieces.close()
    assert talk.messages[1]["role"] == "assistant"
    assert whole.startswith(begun)
    assert len(as_text(talk.messages[1]["content"])) < len(whole)
    list(talk.ask("and then"))  # the engine has a free slot again


def test_the_oldest_turns_are_forgotten_with_a_notice(engine, tokenizer):
    talk, notices = make_chat(engine, tokenizer), []
    talk.notice = notices.append
    for number in range(5):
        list(talk.ask(f"how many are there {number}"))
    assert notices
    assert len(talk.messages) < 10
    assert talk.messages[0]["role"] == "user"
    assert talk.messages[-2]["content"] == "how many are there 4"


def test_a_message_beyond_the_context_is_refused_and_forgotten(engine, tokenizer):
    talk = make_chat(engine, tokenizer)
    with pytest.raises(MessageTooLongError, match="at most 96"):
        list(talk.ask("x " * 200))
    assert talk.messages == []
    assert "".join(talk.ask("who are you"))


def test_an_answer_fits_the_context_whatever_was_asked_for(engine, tokenizer):
    talk = make_chat(engine, tokenizer, max_tokens=10_000)
    list(talk.ask("who are you"))
    assert len(talk.messages) == 2


def test_a_pipe_is_answered_line_by_line(engine, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("who are you\n\n/new\nhow many\n/what\n/quit\nno\n")
    )
    talk = make_chat(engine, tokenizer)
    assert chat.converse(talk) == 0
    out = capsys.readouterr().out
    assert "(a new conversation)" in out
    assert chat.HELP in out
    assert [message["content"] for message in talk.messages[::2]] == ["how many"]


def test_ctrl_c_stops_the_answer_and_not_the_program(engine, tokenizer, monkeypatch, capsys):
    class Impatient(Chat):
        def ask(self, text):
            for number, piece in enumerate(super().ask(text)):
                if number == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                yield piece

    talk = Impatient(engine, tokenizer, 128, Sampling(max_tokens=60))
    monkeypatch.setattr("sys.stdin", io.StringIO("who are you\n"))
    assert chat.converse(talk) == 0
    assert capsys.readouterr().out.endswith(" (stopped)\n\n")
    assert len(talk.messages) == 2


def test_one_prompt_gives_the_answer_and_nothing_else(engine, tokenizer, capsys):
    expected = "".join(make_chat(engine, tokenizer).ask("who are you"))
    assert chat.answer_once(make_chat(engine, tokenizer), "who are you") == 0
    assert capsys.readouterr().out == expected + "\n"
    assert chat.answer_once(make_chat(engine, tokenizer), "x " * 200) == 2
    assert "Please shorten it" in capsys.readouterr().err
