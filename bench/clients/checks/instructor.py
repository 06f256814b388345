"""instructor over the openai package, in each of its modes."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field


class Measure(BaseModel):
    """Measures a thing."""

    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


def _ask(s, mode, **options):
    client = openai.OpenAI(base_url=s.url, api_key="none")
    return instructor.from_openai(client, mode=mode).create(
        messages=[{"role": "user", "content": s.question}], max_retries=0,
        **{"model": s.model, "response_model": Measure, **options},
    )  # fmt: skip


def structured_tools(s):
    return _ask(s, instructor.Mode.TOOLS, temperature=0).model_dump(), s.document


def structured_json_schema(s):
    return _ask(s, instructor.Mode.JSON_SCHEMA, temperature=0).model_dump(), s.document
