"""llama-index's OpenAILike, by chat and by its default, completions."""

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class Measure(BaseModel):
    """Measures a thing."""

    thing: Literal["table", "river", "mountain"]
    digits: int = Field(ge=1, le=9)


def _model(s, **options):
    options = {"is_chat_model": True, "model": s.model, **options}
    return OpenAILike(api_base=s.url, api_key="none", temperature=0, context_window=256, **options)


def chat(s):
    return _model(s).chat([ChatMessage(role="user", content=s.question)]).message.content, s.chat


def chat_complete(s):
    return _model(s).complete(s.question).text, s.chat


def stream(s):
    pieces = _model(s).stream_chat([ChatMessage(role="user", content=s.question)])
    return "".join(piece.delta or "" for piece in pieces), s.chat


def tools_auto(s):
    def measure(thing: str) -> str:
        """Measures a thing."""
        return thing

    model = _model(s, is_function_calling_model=True)
    answer = model.chat_with_tools([FunctionTool.from_defaults(measure)], user_msg=s.question)
    return answer.message.content, s.chat


def structured_function_calling(s):
    model = _model(s, is_function_calling_model=True).as_structured_llm(Measure)
    return model.complete(s.question).raw.model_dump(), s.document


def structured_response_format(s):
    schema = {"name": "measure", "schema": Measure.model_json_schema()}
    form = {"type": "json_schema", "json_schema": schema}
    model = _model(s, model=s.long, additional_kwargs={"response_format": form})
    program = LLMTextCompletionProgram.from_defaults(
        output_cls=Measure, prompt_template_str=s.question, llm=model
    )
    found = program()  # its prompt has the schema, so the answer may be another
    return [type(found).__name__, 1 <= found.digits <= 9], ["Measure", True]


def completions(s):
    return _model(s, is_chat_model=False, max_tokens=32).complete(s.prompt).text, s.completion


def completions_streamed(s):
    model = _model(s, is_chat_model=False, max_tokens=32)
    return "".join(piece.delta or "" for piece in model.stream_complete(s.prompt)), s.completion
