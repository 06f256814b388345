"""A few prompts whose answers the report shows: numbers alone hide what a model is like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxchat.inference.request import Request
from jaxchat.inference.service import Service
from jaxchat.inference.transcript import as_text
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import parse_completion, render_prompt

COMPLETIONS = (
    "Return the number of",
    "The capital of Italy is",
    "def __init__(self,",
    "If the file does not exist,",
    "A list is a sequence of",
    "The opposite of small is",
)
QUESTIONS = (
    "Who are you?",
    "What can you do?",
    "What is 37 * 24?",
    "Ann has 12 apples, gets 30 more and loses 7. How many apples are left?",
    "How often does r occur in strawberry?",
    "Spell out the word strawberry.",
    "What is the capital of France?\nRome=A\nParis=B\nMadrid=C\nBerlin=D\nWhich one?",
)
MAX_TOKENS = 96


def text_samples(
    engine: Service, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy continuations of text: `prompt` and `completion` each."""
    ids = [(tokenizer.bos, *tokenizer.encode(prompt)) for prompt in prompts]
    return [
        {"prompt": prompt, "completion": as_text(parts)}
        for prompt, parts in zip(prompts, _greedy(engine, tokenizer, ids), strict=True)
    ]


def chat_samples(
    engine: Service, tokenizer: Tokenizer, questions: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy answers to questions: `question` and the answer's `parts` each."""
    ids = [
        tuple(render_prompt([{"role": "user", "content": question}], tokenizer))
        for question in questions
    ]
    return [
        {"question": question, "parts": parts}
        for question, parts in zip(questions, _greedy(engine, tokenizer, ids), strict=True)
    ]


def _greedy(engine: Service, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]]) -> list[Any]:
    requests = [Request(tokens=prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    return [
        parse_completion(completion.tokens, tokenizer)
        for (completion,) in engine.generate(requests)
    ]
