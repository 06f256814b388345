"""The tool of an engine: how its input and output are written in tokens, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from jaxchat.errors import TokenizerError
from jaxchat.inference.sequence import Row, Specials
from jaxchat.tokenizer import Tokenizer
from jaxchat.tools.calculator import run_tool
from jaxchat.tools.executor import TOOL_FAILED, Calls, Tool, answer

TOOL_SECONDS = 30.0  # a tool that takes longer has failed
TOOLS_AT_ONCE = 4  # threads
WAIT = 0.05  # seconds that a step waits where all rows wait for tools


@runtime_checkable
class QuickTool(Protocol):
    """A tool that answers some calls so quickly that they need no thread."""

    def quick(self, code: str) -> str | None:
        """The answer; None: it takes a call."""


class Toolbox:
    """Answers the calls of rows. The calculator does so at once, other tools in threads."""

    def __init__(self, tool: Tool, tokenizer: Tokenizer, *, timeout: float = TOOL_SECONDS) -> None:
        """`timeout` in seconds, of one call."""
        self._tool, self.tokenizer = tool, tokenizer
        self.specials = Specials.of(tokenizer)
        self._calls = Calls(tool, timeout=timeout, at_once=TOOLS_AT_ONCE)

    def ask(self, row: Row, ids: Sequence[int]) -> None:
        """Answers a call of a row, now or later; until then the row waits."""
        code = self.tokenizer.decode(ids)
        output = self._quick(code)
        if output is not None:
            self._force(row, output)
        else:
            row.call = self._calls.start(code)

    def collect(self, rows: Iterable[Row]) -> None:
        """Gives rows the answers that have come."""
        waiting = [row for row in rows if row.call is not None]
        if not waiting:
            return
        self._calls.poll()
        for row in waiting:
            if row.call is not None and row.call.output is not None:
                self._force(row, row.call.output)
                row.call = None

    def wait(self) -> None:
        """A moment, or until an answer comes."""
        self._calls.wait(WAIT)

    def forget(self, row: Row) -> None:
        """The row is gone; its call is not waited for."""
        if row.call is not None:
            self._calls.drop(row.call)
            row.call = None

    def _quick(self, code: str) -> str | None:
        if self._tool is run_tool:
            return answer(run_tool, code)
        return self._tool.quick(code) if isinstance(self._tool, QuickTool) else None

    def _force(self, row: Row, output: str) -> None:
        try:
            ids = self.tokenizer.encode(output)
        except TokenizerError:  # half of a surrogate pair
            ids = self.tokenizer.encode(TOOL_FAILED)
        row.forced.extend([self.specials.output_start, *ids, self.specials.output_end])
