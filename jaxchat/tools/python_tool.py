"""Python as a tool for a model: the calculator where that is enough, else the sandbox.

tool = PythonTool()
tool("37 * 24")                      # "888"
tool("print(sorted('cab'))")         # "['a', 'b', 'c']"
"""

from __future__ import annotations

from jaxchat.tools.calculator import CalculatorError, calculate
from jaxchat.tools.sandbox import levels
from jaxchat.tools.sandbox.run import REFUSAL, run_python

SECONDS = 5.0  # of one program
MAX_CHARS = 1_000  # of its output, the rest is left out
OUTPUT_BYTES = 16 * 2**10  # a program that writes more is killed


class SandboxError(RuntimeError):
    """This machine cannot sandbox a program."""


class PythonTool:
    """Returns what a program prints. May be called from several threads."""

    def __init__(self, *, seconds: float = SECONDS, unsafe: bool = False) -> None:
        """`unsafe` runs programs even where they cannot be sandboxed.

        Raises SandboxError where that is so and `unsafe` is not given.
        """
        if levels.detect().name == "none" and not unsafe:
            raise SandboxError(f"{REFUSAL}.")
        self._seconds, self._unsafe = seconds, unsafe

    def quick(self, code: str) -> str | None:
        """The value, if `code` is arithmetic that the calculator knows."""
        try:
            return calculate(code)
        except CalculatorError:
            return None

    def __call__(self, code: str) -> str:
        """What `code` prints; "error: ..." with a reason after it where it fails. Never raises."""
        value = self.quick(code)
        if value is not None:
            return value
        outcome = run_python(
            code, timeout=self._seconds, output_bytes=OUTPUT_BYTES, unsafe=self._unsafe
        )
        output = outcome.stdout.strip()
        if outcome.status != "ok":
            output = f"{output}\nerror: {outcome.reason}".strip()
        return output if len(output) <= MAX_CHARS else f"{output[: MAX_CHARS - 3]}..."
