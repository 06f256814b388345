"""A conversation: what is loaded, what is remembered, and what a long one forgets."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from finished_run import finish_run, random_params, tiny_config, tiny_tokenizer

from jaxchat.cli import conversation
from jaxchat.cli.conversation import Chat, MessageTooLongError
from jaxchat.cli.main import main
from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.chat import Sampling
from jaxchat.inference.engine import Engine
from jaxchat.inference.transcript import printable
from jaxchat.runs import run_dir
from jaxchat.runs.opening import how_to_make
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.chat_format import Part, render_prompt

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny_config()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def finished(config, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    finish_run(root, config, tokenizer)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy to take apart."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def engine(config, tokenizer):
    return Engine(random_params(0, config), config.model, tokenizer, slots=1)


def make_chat(engine, tokenizer, **settings):
    return Chat(engine, tokenizer, 128, Sampling(**{"max_tokens": 20, **settings}))


def joined(pieces) -> list[Part]:
    """Pieces of parts as whole parts."""
    parts: list[Part] = []
    for piece in pieces:
        if not parts or piece["type"] != parts[-1]["type"] or not piece["text"]:
            parts.append({"type": piece["type"], "text": ""})
        parts[-1]["text"] += piece["text"]
    return parts


def test_the_last_complete_stage_talks(root):
    assert conversation.load(root, None, None, Sampling(256)).stage == "rl"
    (root / "runs" / "tiny" / "rl" / "done.json").unlink()
    loaded = conversation.load(root, "tiny", None, Sampling(256))
    assert (loaded.stage, loaded.name) == ("sft", "tiny/sft")
    assert conversation.load(root, None, "mid", Sampling(256)).stage == "mid"


def test_a_stage_that_is_not_complete_says_which_are(root):
    (root / "runs" / "tiny" / "rl" / "done.json").unlink()
    with pytest.raises(ArtifactError, match=r"no model rl \(complete there: sft, mid\)"):
        conversation.load(root, None, "rl", Sampling(256))


def test_a_run_without_any_model_says_what_to_do(root):
    (root / "runs" / "tiny" / "base" / "done.json").unlink()
    with pytest.raises(ArtifactError, match=r"no model to talk to .*run_speedrun\.py"):
        conversation.load(root, None, None, Sampling(256))


def test_models_of_other_settings_are_not_taken_for_this_run(root, config):
    run = run_dir.folder(root, "tiny")
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, n_embd=32))
    run_dir.write_config(run, other)
    with pytest.raises(ArtifactError, match="no model to talk to"):
        conversation.load(root, None, None, Sampling(256))


def test_a_damaged_model_is_one_sentence(root):
    for file in (root / "runs" / "tiny" / "rl" / "model").rglob("*"):
        if file.is_file() and file.name != "meta.json":
            file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="--force") as caught:
        conversation.load(root, None, None, Sampling(256))
    assert "\n" not in str(caught.value)
    once = conversation.load(root, None, None, Sampling(256), once=True)
    with pytest.raises(ArtifactError, match="--force"):  # when it is asked: only then it is read
        list(once.ask("who are you"))


@pytest.mark.parametrize("question", ["who", "who are you " * 9])
def test_one_question_is_answered_as_the_first_of_many(root, question):
    many, once = (
        conversation.load(root, None, None, Sampling(20), once=is_once) for is_once in (False, True)
    )
    assert joined(once.ask(question)) == joined(many.ask(question))
    assert once.last.completion_tokens == many.last.completion_tokens


def test_another_stage_continues_the_conversation(root):
    loaded = conversation.load(root, None, "rl", Sampling(max_tokens=20))
    alone = conversation.load(root, None, "sft", Sampling(max_tokens=20))
    before = joined(loaded.ask("who are you"))
    loaded.switch("sft")
    assert loaded.name == "tiny/sft"
    alone.messages[:] = loaded.messages
    after = joined(loaded.ask("who are you"))
    assert after == joined(alone.ask("who are you"))
    assert after != before
    with pytest.raises(ArtifactError, match=r"no model base \(complete there: rl, sft, mid\)"):
        loaded.switch("base")


def test_what_was_said_is_remembered(engine, tokenizer):
    talk = make_chat(engine, tokenizer)
    first = joined(talk.ask("who are you"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    content = [{**part, "text": printable(part["text"])} for part in talk.messages[1]["content"]]
    assert content == first
    list(talk.ask("how many"))
    assert [message["content"] for message in talk.messages[::2]] == ["who are you", "how many"]


def test_what_an_answer_took_is_reported(engine, tokenizer):
    talk = make_chat(engine, tokenizer)
    list(talk.ask("who are you"))
    assert talk.last is not None
    assert list(talk.last.parts) == talk.messages[1]["content"]
    assert talk.last.prompt_tokens == len(render_prompt(talk.messages[:1], tokenizer))
    stopped = talk.last.finish_reason == "stop"
    assert talk.last.completion_tokens < 20 if stopped else talk.last.completion_tokens == 20
    assert talk.last.seconds > 0


def test_a_system_message_stands_before_the_conversation_and_stays(engine, tokenizer):
    talk, reported = make_chat(engine, tokenizer), make_chat(engine, tokenizer)
    talk.system = "be brief"
    assert joined(talk.ask("who are you")) == joined(reported.ask("be brief\n\nwho are you"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    talk.forget()
    assert (talk.messages, talk.system) == ([], "be brief")


def test_an_answer_that_is_stopped_is_remembered_as_far_as_it_came(engine, tokenizer):
    whole = joined(make_chat(engine, tokenizer, max_tokens=60).ask("who are you"))
    talk = make_chat(engine, tokenizer, max_tokens=60)
    pieces = talk.ask("who are you")
    begun = next(pieces)
    pieces.close()
    assert talk.messages[1]["role"] == "assistant"
    assert talk.last is not None
    assert talk.last.finish_reason == "interrupted"
    assert whole[0]["type"] == begun["type"]
    assert whole[0]["text"].startswith(begun["text"])
    assert 0 < talk.last.completion_tokens < 60
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
    assert joined(talk.ask("who are you"))
    talk.forget()
    talk.system = "x " * 200
    with pytest.raises(MessageTooLongError, match="your message with the system message is"):
        list(talk.ask("who are you"))


def test_an_answer_fits_the_context_whatever_was_asked_for(engine, tokenizer):
    talk = make_chat(engine, tokenizer, max_tokens=10_000)
    list(talk.ask("who are you"))
    assert len(talk.messages) == 2


def failed_run(root, name="failed"):
    """A newer run that stopped before it had anything."""
    config = loading.load(CONFIGS / "tier_cpu.toml", [f"run.name={name}"])
    run_dir.write_config(run_dir.folder(root, name), config)


def test_a_run_that_failed_at_once_is_passed_over(root, capsys):
    failed_run(root)
    assert run_dir.find(root, None).name == "failed"
    assert conversation.load(root, None, None, Sampling(256)).name == "tiny/rl"
    assert main(["chat", "--home", str(root), "-p", "who", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().err.startswith(
        "jaxchat: the last run, failed, has no model to talk to; this is tiny.\n"
    )
    talks = root / "talks.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    talks.write_text(json.dumps({"messages": messages}) + "\n")
    assert main(["data", "show", str(talks), "--home", str(root)]) == 0


def test_a_run_that_has_none_names_those_that_have_one(root, capsys):
    failed_run(root)
    assert main(["chat", "--home", str(root), "--run", "failed", "-p", "who"]) == 1
    assert "Or name a run that has one: tiny." in capsys.readouterr().err
    assert main(["data", "show", "arithmetic", "--home", str(root), "--run", "failed"]) == 1
    reported = capsys.readouterr().err
    assert "has no tokenizer yet; name a run that has one with --run: tiny." in reported


def test_a_model_that_the_settings_leave_out_is_not_promised() -> None:
    tier = loading.find_tier("cpu")
    assert "resume it" in how_to_make(loading.load(tier), "rl")
    without = how_to_make(loading.load(tier, ["rl.steps=0"]), "rl")
    assert without.startswith("its settings leave rl out (rl.steps is 0"), without


def test_the_settings_of_sampling_reach_the_engine(engine, tokenizer, monkeypatch):
    asked = []
    stream = engine.stream
    monkeypatch.setattr(engine, "stream", lambda request: asked.append(request) or stream(request))
    settings = {"temperature": 0.7, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.3}
    list(make_chat(engine, tokenizer, **settings).ask("hello"))
    assert {name: getattr(asked[0], name) for name in settings} == settings
