"""A persona of the user's own: a TOML file with a name, answers and further questions.

name = "Ada"

[answers]                     # instead of those of `identity.INTENTS`; the others stay
who_made_you = "Mia made me, in her kitchen."

[[more]]                      # questions of one's own, in several wordings
questions = ["What do you like?", "What is your hobby?"]
answer = "I like owls."
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxchat.config.fields import check_keys
from jaxchat.config.loading import read_toml
from jaxchat.errors import ConfigError
from jaxchat.tasks.identity import DEFAULT_PERSONA, INTENTS, Intent, Persona

MARKS = "?.!"
_KEYS = ["name", "answers", "more"]
_MORE_KEYS = ["questions", "answer"]


def read_persona(path: Path) -> dict[str, Any]:
    """The document in a file, checked. Raises ConfigError for an invalid one."""
    document = read_toml(path, "persona")
    make_persona(document, str(path))
    return document


def make_persona(document: Mapping[str, Any], where: str) -> Persona:
    """The persona of a document called `where` in errors; of an empty one, jaxchat itself.

    Raises ConfigError for unknown keys, empty texts, and a question with two answers.
    """
    check_keys(document, _KEYS, where)
    name = _text(document.get("name", DEFAULT_PERSONA.name), f"{where}: name")
    answers = document.get("answers", {})
    if not isinstance(answers, Mapping):
        raise ConfigError(f"{where}: answers is {answers!r}; it must be a table, [answers].")
    known = [intent.name for intent in INTENTS]
    check_keys(answers, known, f"{where} [answers]")
    for key, answer in answers.items():
        _text(answer, f"{where}: answers.{key}")
    intents = [replace(one, answer=answers.get(one.name, one.answer)) for one in INTENTS]
    more = document.get("more", [])
    if not isinstance(more, list) or not all(isinstance(one, Mapping) for one in more):
        raise ConfigError(f"{where}: more is {more!r}; begin each further question with [[more]].")
    intents += [_intent(one, number, where) for number, one in enumerate(more, 1)]
    _check_once(intents, where)
    return Persona(name, tuple(intents))


def _intent(table: Mapping[str, Any], number: int, where: str) -> Intent:
    place = f"{where}, [[more]] number {number}"
    check_keys(table, _MORE_KEYS, place)
    questions = table.get("questions")
    if not isinstance(questions, list) or not questions:
        raise ConfigError(
            f'{place}: questions is {questions!r}; it must be a list, as in ["Who made you?"].'
        )
    texts = [_text(question, f"{place}: a question") for question in questions]
    bare = tuple(text.rstrip(MARKS) for text in texts)
    if not all(bare):
        raise ConfigError(f"{place}: a question has no words; write out what is asked.")
    mark = texts[0][-1] if texts[0][-1] in MARKS else "?"
    return Intent(f"more {number}", _text(table.get("answer"), f"{place}: answer"), mark, bare)


def _check_once(intents: list[Intent], where: str) -> None:
    asked: dict[str, str] = {}
    for intent in intents:
        for wording in intent.wordings:
            other = asked.setdefault(wording.lower(), intent.name)
            if other != intent.name:
                raise ConfigError(
                    f"{where}: {wording!r} is asked in {other} and in {intent.name}; a question "
                    "can have one answer."
                )


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        raise ConfigError(f"{what} is {value!r}; it must be a text, without spaces at its ends.")
    return value
