"""Who the model is: small talk about itself, in many wordings with one answer an intent."""

from __future__ import annotations

import random
from dataclasses import dataclass

from jaxchat.tasks.base import GeneratedTask, Problem, say

NAME = "{name}"


@dataclass(frozen=True)
class Intent:
    """An intent of the user: the bare wordings without their last mark, and the answer.

    `{name}` stands in an answer for the name of the model.
    """

    name: str
    answer: str
    mark: str  # "?", "." or "!"
    wordings: tuple[str, ...]
    chat: bool = False  # small talk that takes no greeting before it


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


INTENTS = (
    Intent(
        "who_are_you",
        "I am {name}, a small language model trained from scratch with JAX.",
        "?",
        _lines(
            """Who are you
            What are you
            Who am I talking to
            What kind of model are you
            Can you introduce yourself
            Are you an AI
            Are you a human
            Which language model is this"""
        ),
    ),
    Intent(
        "name",
        "My name is {name}.",
        "?",
        _lines(
            """What is your name
            What's your name
            What do you call yourself
            Do you have a name
            What should I call you
            What do people call you"""
        ),
    ),
    Intent(
        "who_made_you",
        "I was made by the people of the jaxchat project, and trained by whoever ran it.",
        "?",
        _lines(
            """Who made you
            Who created you
            Who built you
            Who trained you
            Who wrote you
            Who is your creator
            Where do you come from
            Who are your authors"""
        ),
    ),
    Intent(
        "what_can_you_do",
        "I can calculate, spell words, count letters and answer simple questions.",
        "?",
        _lines(
            """What can you do
            What are you able to do
            What can I ask you
            How can you help me
            What are your skills
            What are you good at
            What can you help me with"""
        ),
    ),
    Intent(
        "how_built",
        "I am a transformer written in JAX: trained on text, then on conversations, then with "
        "reinforcement learning.",
        "?",
        _lines(
            """How were you made
            How were you built
            How were you trained
            How do you work
            What are you made of
            How did you learn"""
        ),
    ),
    Intent(
        "limits",
        "I am very small, so I make mistakes. Please check my answers.",
        "?",
        _lines(
            """Can I trust you
            Do you make mistakes
            Are you always right
            Are your answers correct
            What are your limits
            Do you know everything"""
        ),
    ),
    Intent(
        "greeting",
        "Hello! How can I help you?",
        "!",
        _lines(
            """Hello
            Hi
            Hey
            Good morning
            Good evening
            Hello there
            Hi there"""
        ),
        chat=True,
    ),
    Intent(
        "thanks",
        "You are welcome!",
        "!",
        _lines(
            """Thanks
            Thank you
            Many thanks
            Thanks a lot
            Thank you very much"""
        ),
        chat=True,
    ),
    Intent(
        "goodbye",
        "Goodbye! Come back soon.",
        "!",
        _lines(
            """Goodbye
            Bye
            Bye bye
            See you later
            See you soon
            Good night"""
        ),
        chat=True,
    ),
)

_OPENINGS = (
    "Hi, ",
    "Hello, ",
    "Hey, ",
    "Hi there, ",
    "Good morning, ",
    "Excuse me, ",
    "Please tell me, ",
    "Tell me, ",
    "One question: ",
    "So, ",
    "Hi {name}, ",
)
_TAILS = (", please", ", then", ", really", ", by the way", ", if I may ask", ", {name}")
_CHAT_TAILS = (", {name}", ", my friend", ", little model", ", robot")


@dataclass(frozen=True)
class Persona:
    """The model's name and answers about itself."""

    name: str = "jaxchat"
    intents: tuple[Intent, ...] = INTENTS


DEFAULT_PERSONA = Persona()


class IdentityTask(GeneratedTask):
    """Questions to the model about itself.

    The key is the user's text in lower case. The bare wordings ("Who are you?") are always
    training problems; held out are their combinations with openings, tails and marks.
    """

    name = "identity"

    def __init__(self, seed: int, persona: Persona = DEFAULT_PERSONA) -> None:
        super().__init__(seed)
        self.persona = persona
        self._bare = frozenset(
            (wording + mark).lower()
            for intent in persona.intents
            for wording in intent.wordings
            for mark in (intent.mark, "")
        )

    def draw(self, rng: random.Random) -> Problem:
        intent = rng.choice(self.persona.intents)
        user = _word(intent, self.persona.name, rng)
        answer = intent.answer.replace(NAME, self.persona.name)
        return Problem(self.name, user.lower(), say(user, answer), answer)

    def is_test(self, key: str) -> bool:
        return key not in self._bare and super().is_test(key)


def _word(intent: Intent, name: str, rng: random.Random) -> str:
    text = rng.choice(intent.wordings)
    if not intent.chat and rng.random() < 0.6:
        text = rng.choice(_OPENINGS) + text[0].lower() + text[1:]
    if rng.random() < 0.5:
        text += rng.choice(_CHAT_TAILS if intent.chat else _TAILS)
    if rng.random() < 0.8:
        text += intent.mark
    text = text.replace(NAME, name)
    return text.lower() if rng.random() < 0.2 else text
