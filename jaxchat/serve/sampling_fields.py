"""The fields by which a request says how its answer is sampled, for every path that has answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from jaxchat.config.numbers import API_TEMPERATURE, MOST, TOP_P

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


def _unicode(text: str) -> str:
    r"""The text. JSON can write half a character (\ud800), which no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "Text must be valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=API_TEMPERATURE.least, le=API_TEMPERATURE.most)]
Stop = Annotated[Text, Field(max_length=MAX_STOP_CHARACTERS)]  # "": none


class SamplingFields(BaseModel):
    """How an answer is sampled; `prompt.sampling_settings` turns it into the engine's settings."""

    temperature: Temperature | None = None
    top_p: Annotated[Number, Field(gt=TOP_P.least, le=TOP_P.most)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=0, le=MOST)] | None = None
    max_tokens: Count | None = None
    n: Count | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
