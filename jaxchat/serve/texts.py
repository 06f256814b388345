"""Requests about texts outside of conversations: to complete, to score and to tokenize them.

Here, unlike in messages, the names of special tokens are these tokens, as in transformers and vLLM:
a program that writes a prompt itself may want `<|user_start|>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from jaxchat.config.numbers import MOST
from jaxchat.config.operations import ServeConfig
from jaxchat.errors import TokenizerError
from jaxchat.serve.sampling_fields import Text
from jaxchat.serve.schema import (
    MAX_LOGPROBS,
    GenerationRequest,
    InMessage,
    ModelName,
    bad_request,
)
from jaxchat.tokenizer.bpe import Tokenizer

DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API and vLLM
Id = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Ids = Annotated[list[Id], Field(min_length=1)]
Some = Field(min_length=1)


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    model_config = ConfigDict(title="CompletionRequest")
    subject: ClassVar[str] = "prompt"

    model: ModelName | None = None
    # a text, several, the ids of one, or of several
    prompt: Text | Ids | Annotated[list[Text], Some] | Annotated[list[Ids], Some]
    max_tokens: Annotated[int, Field(strict=True, ge=0, le=MOST)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: StrictBool | None = None  # <|bos|> before texts; true by default

    # Known, and refused unless empty.
    suffix: Any = None
    best_of: Any = None

    @property
    def most_tokens(self) -> int:
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int:
        return self.logprobs or 0

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return bool(self.echo) and self.logprobs is not None


class TokenizeRequest(BaseModel):
    """The body of /v1/tokenize: a text, or messages."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Annotated[list[InMessage], Some] | None = None
    add_special_tokens: StrictBool | None = None  # <|bos|> before a text; true by default
    return_token_strs: StrictBool | None = None


class TokenizeAnswer(BaseModel):
    """The response of /v1/tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    """The body of /v1/detokenize."""

    model: ModelName | None = None
    tokens: list[Id]


class DetokenizeAnswer(BaseModel):
    """The response of /v1/detokenize."""

    prompt: str


def check_completion(body: CompletionRequest) -> None:
    """Raises ApiError 400 for fields that are not supported."""
    if body.suffix:
        raise bad_request("suffix is not supported: a text is only continued.", "suffix")
    if body.best_of not in (None, 1, body.n or 1):
        raise bad_request("best_of is not supported beyond n; leave it out.", "best_of")


def text_ids(text: str, tokenizer: Tokenizer, *, begin: bool = True) -> list[int]:
    """The ids of a text; `begin`: with `<|bos|>` before it, unless it begins so itself."""
    ids = tokenizer.encode(text, allowed_special=tokenizer.specials)
    return ids if not begin or ids[:1] == [tokenizer.bos] else [tokenizer.bos, *ids]


def text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, with the names of special tokens. Raises ApiError 400 for unknown ids."""
    try:
        return tokenizer.decode(ids)
    except TokenizerError as error:
        raise bad_request(str(error), "tokens") from error


def names(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Each token as text."""
    return [tokenizer.decode([token]) for token in ids]


def read_prompts(
    body: CompletionRequest, tokenizer: Tokenizer, limits: ServeConfig
) -> list[tuple[str, list[int]]]:
    """Text and ids of every prompt; the text is without a `<|bos|>` that was added.

    Raises ApiError 400 for more than is allowed, and for ids that there are not.
    """
    given = body.prompt
    single = isinstance(given, str) or isinstance(given[0], int)
    prompts: Sequence[Any] = [given] if single else given
    for count, most, sentence in (
        (len(prompts), limits.prompts, "there are {} prompts"),
        (sum(map(len, prompts)), limits.characters, "the prompts have {} characters or ids"),
    ):
        if count > most:
            text = f"{sentence.format(count)}; at most {most} are allowed."
            raise bad_request(text, "prompt")
    begin = body.add_special_tokens is not False
    read = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = text_ids(prompt, tokenizer, begin=begin)
            if not ids:
                raise bad_request("a prompt without tokens cannot be continued.", "prompt")
            read.append((prompt, ids))
        else:
            read.append((_checked(prompt, tokenizer), prompt))
    return read


def _checked(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    worst = max(ids)
    if worst >= tokenizer.vocab_size:
        raise bad_request(
            f"the prompt has the id {worst}, and the vocabulary only {tokenizer.vocab_size}; "
            "encode it with the tokenizer of the model.",
            "prompt",
        )
    return tokenizer.decode(ids)
