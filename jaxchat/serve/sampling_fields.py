"""The fields by which a request says how its answer is sampled, for every path that has answers.

Values that clients send although OpenAI's API has no such, and that vLLM or llama.cpp take, are
taken as they take them; the table of docs/serving.md has each.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic_core import PydanticCustomError

from jaxchat.config import numbers
from jaxchat.config.numbers import MOST, Range
from jaxchat.inference.request import MAX_BIASES, MAX_STOP_IDS

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


def _unicode(text: str) -> str:
    r"""The text. JSON can write half a character (\ud800), which no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "Text must be valid Unicode") from error
    return text


def _whole(value: Any) -> Any:
    """50.0, which JavaScript and YAML make of 50, as 50."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _some(tokens: int) -> int:
    if not tokens:
        raise PydanticCustomError(
            "tokens",
            "An answer has at least one token; leave it out, or give -1, for as many as the "
            "context has room for",
        )
    return tokens


def _within(allowed: Range) -> Any:
    """A range of numbers for pydantic."""
    if allowed.open:
        return Field(gt=allowed.least, le=allowed.most)
    return Field(ge=allowed.least, le=allowed.most)


Text = Annotated[str, AfterValidator(_unicode)]
Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
Count = Annotated[Whole, Field(ge=1, le=MOST)]
Length = Annotated[Whole, Field(ge=-1, le=MOST)]  # of an answer; -1: what the context leaves
SomeLength = Annotated[Length, AfterValidator(_some)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
TokenId = Annotated[Whole, Field(ge=0, le=MOST)]
TokenName = Annotated[str, Field(pattern="^[0-9]{1,9}$")]  # its id, as JSON's names are text
Stop = Annotated[Text, Field(max_length=MAX_STOP_CHARACTERS)]  # "": none
Penalty = Annotated[Number, _within(numbers.PENALTY)]
Bias = Annotated[Number, _within(numbers.BIAS)]


class SamplingFields(BaseModel):
    """How an answer is sampled; `prompt.sampling_settings` turns it into the engine's settings.

    What else a body has is kept, so that `unsupported` can refuse what would change the answer.
    """

    model_config = ConfigDict(extra="allow")

    temperature: Annotated[Number, _within(numbers.TEMPERATURE)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None  # 0: the likeliest token
    top_k: Annotated[Whole, Field(ge=-1, le=MOST)] | None = None  # 0, -1: all
    min_p: Annotated[Number, _within(numbers.MIN_P)] | None = None
    repetition_penalty: Annotated[Number, _within(numbers.REPETITION_PENALTY)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MAX_BIASES)] | None = None
    max_tokens: SomeLength | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=MOST)] | None = None
    ignore_eos: StrictBool | None = None
    n: Count | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None  # -1: none
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    include_stop_str_in_output: StrictBool | None = None
