"""A persona of the user's own: a name, answers, further questions; and what is refused."""

from pathlib import Path

import pytest

from jaxchat.errors import ConfigError
from jaxchat.tasks import make_tasks
from jaxchat.tasks.identity import DEFAULT_PERSONA, IdentityTask
from jaxchat.tasks.persona import make_persona, read_persona

ADA = """
name = "Ada"
[answers]
who_made_you = "Mia made me, in her kitchen."
[[more]]
questions = ["What do you like?", "What is your hobby?"]
answer = "I am {name}, and I like owls."
"""


def read(folder: Path, text: str) -> dict:
    path = folder / "ada.toml"
    path.write_text(text, encoding="utf-8")
    return read_persona(path)


def test_it_says_the_name_the_answers_and_what_is_asked_beside(tmp_path: Path) -> None:
    persona = make_persona(read(tmp_path, ADA), "ada.toml")
    task = make_tasks(["identity"], 0, persona=persona)["identity"]
    problems = [task.problem("train", index) for index in range(20_000)]
    said = {problem.prompt: problem.answer for problem in problems}
    assert said["What is your name?"] == "My name is Ada."
    assert said["Who made you?"] == "Mia made me, in her kitchen."
    assert said["What is your hobby?"] == "I am Ada, and I like owls."
    assert said["Thanks!"] == "You are welcome!"  # as it was
    reported = " ".join([*said, *said.values()])
    assert "jaxchat" not in reported
    assert "{name}" not in reported
    assert ", Ada" in reported
    held_out = {task.problem("test", index).answer for index in range(400)}
    assert "I am Ada, and I like owls." in held_out


def test_an_empty_document_is_jaxchat() -> None:
    assert make_persona({}, "none") == DEFAULT_PERSONA
    usual, same = IdentityTask(0), IdentityTask(0, make_persona({}, "none"))
    assert [usual.problem("train", n) for n in range(99)] == [
        same.problem("train", n) for n in range(99)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam = 'Ada'", "ada.toml has the unknown key 'nam'; did you mean 'name'?"),
        ("name = ''", "name is ''; it must be a text"),
        ("name = ", "is not valid TOML"),
        ("answers = 3", r"answers is 3; it must be a table, \[answers\]"),
        ("[answers]\nwho_are_yo = 'x'", "did you mean 'who_are_you'?"),
        ("[answers]\nname = 3", "answers.name is 3; it must be a text"),
        ("more = 1", r"begin each further question with \[\[more\]\]"),
        ("[[more]]\nanswer = 'x'", "questions is None; it must be a list"),
        ("[[more]]\nquestions = ['?']\nanswer = 'x'", "a question has no words"),
        ("[[more]]\nquestions = ['Why?']", "answer is None; it must be a text"),
        ("[[more]]\nquestion = ['Why?']", "did you mean 'questions'?"),
        (
            "[[more]]\nquestions = ['who are you?']\nanswer = 'x'",
            "'who are you' is asked in who_are_you and in more 1",
        ),
    ],
)
def test_what_is_no_persona_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the persona .*/none.toml cannot be read: No such file"):
        read_persona(tmp_path / "none.toml")
