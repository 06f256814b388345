"""A client's tools: when a text is a right answer, and when a call of one is asked for."""

from __future__ import annotations

from jaxchat.serve.schema import ChatRequest, bad_request

MAY = (None, "auto", "none")  # of tool_choice: a call is not asked for, so that text is an answer


def check_tools(body: ChatRequest) -> None:
    """Raises ApiError 400 where an answer must be a call, or the tools are none.

    `tools` say what a model may call. Ours calls none of them, and does not see them.
    """
    tools = body.tools if body.tools is not None else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_request("tools must be a list of objects.", "tools")
    choice = body.tool_choice
    if choice in MAY:
        return
    if not tools:
        raise bad_request("tool_choice asks for a call, and there are no tools.", "tool_choice")
    raise bad_request(
        f"tool_choice is {choice!r:.80}: the model cannot be made to call a tool; leave it out, or "
        "give 'auto' or 'none', and the answer is text.",
        "tool_choice",
    )
