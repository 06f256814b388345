"""A client's tools: when a text is a right answer, and when a call of one is asked for."""

from __future__ import annotations

from jaxchat.serve.responses import ResponsesRequest
from jaxchat.serve.schema import ChatRequest, bad_request
from jaxchat.serve.tool_calls import functions_to_call


def check_tools(body: ChatRequest | ResponsesRequest) -> None:
    """Raises ApiError 400 where the tools are none, or the one that is chosen is not there.

    `tools` say what a model may call. Ours calls none by itself, and does not see them; where a
    call is asked for, its answer is made one (see `tool_calls`).
    """
    tools = body.tools if body.tools is not None else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_request("tools must be a list of objects.", "tools")
    functions_to_call(tools, body.tool_choice)
