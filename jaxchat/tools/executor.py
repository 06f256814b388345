"""Runs slow tool calls in a bounded number of threads; quick ones are answered at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxchat.tools.calculator import run_tool

Tool = Callable[[str], str]  # code -> output
TOOL_FAILED = "error"  # the output of a tool that raises or takes too long
TOOL_SECONDS = 30.0  # a tool that takes longer has failed
TOOLS_AT_ONCE = 4  # threads


@runtime_checkable
class QuickTool(Protocol):
    """A tool that answers some calls so quickly that they need no thread."""

    def quick(self, code: str) -> str | None:
        """The output; None: it takes a thread."""


@dataclass(eq=False)
class Call:
    """One call; `output` is set once it has ended."""

    code: str
    output: str | None = None
    deadline: float | None = None  # of time.monotonic(), once it runs


class ToolExecutor:
    """Runs calls of one tool, a few at a time. One thread at a time may use it.

    The calculator answers at once. A call's time counts from when it begins to run.
    """

    def __init__(
        self, tool: Tool, *, timeout: float = TOOL_SECONDS, at_once: int = TOOLS_AT_ONCE
    ) -> None:
        """`timeout` in seconds. A thread cannot be stopped: one that is late is abandoned."""
        self._tool, self._timeout, self._at_once = tool, timeout, at_once
        self._queue: deque[Call] = deque()
        self._running: list[Call] = []
        self._ended = threading.Condition()

    def start(self, code: str) -> Call:
        """A new call: answered if it is quick, else run as soon as others leave room."""
        if self._tool is run_tool:
            return Call(code, answer(run_tool, code))
        call = Call(code, self._tool.quick(code) if isinstance(self._tool, QuickTool) else None)
        if call.output is None:
            self._queue.append(call)
            self.poll()
        return call

    def drop(self, call: Call) -> None:
        """The output of this call is no longer wanted; it does not begin, if it has not yet."""
        if call in self._queue:
            self._queue.remove(call)

    def poll(self) -> None:
        """Ends what is late, and starts what there is room for."""
        with self._ended:
            for call in self._running:
                late = call.deadline is not None and time.monotonic() > call.deadline
                if call.output is None and late:
                    call.output = TOOL_FAILED
            self._running = [call for call in self._running if call.output is None]
        while self._queue and len(self._running) < self._at_once:
            call = self._queue.popleft()
            call.deadline = time.monotonic() + self._timeout
            self._running.append(call)
            threading.Thread(target=self._run, args=(call,), daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until a running call has ended, for `seconds` at most."""
        with self._ended:
            self._ended.wait_for(
                lambda: any(call.output is not None for call in self._running), seconds
            )

    def _run(self, call: Call) -> None:
        output = answer(self._tool, call.code)
        with self._ended:
            if call.output is None:  # else it was too late
                call.output = output
            self._ended.notify_all()


def answer(tool: Tool, code: str) -> str:
    """The output of a tool; "error" where it raises."""
    try:
        output = tool(code)
    except Exception:  # the tool may be anyone's: whatever it raises, the completion continues
        return TOOL_FAILED
    return output if isinstance(output, str) else TOOL_FAILED
