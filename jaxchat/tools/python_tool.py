"""Python as a tool for a model: the calculator where that is enough, else the sandbox (layer 1).

tool = PythonTool()
tool("37 * 24")                      # "888"
tool("print(sorted('cab'))")         # "['a', 'b', 'c']"
"""

from __future__ import annotations

from jaxchat.tools.calculator import CalculatorError, calculate
from jaxchat.tools.sandbox import levels
from jaxchat.tools.sandbox.run import REFUSAL, run_python

SECONDS = 5.0  # of one program
MAX_CHARS = 1_000  # of what it says, the rest is left out
OUTPUT_BYTES = 16 * 2**10  # a program that writes more is killed


class SandboxError(RuntimeError):
    """This machine cannot lock a program in."""


class PythonTool:
    """Answers what a program prints. May be called from several threads."""

    def __init__(self, *, seconds: float = SECONDS, unsafe: bool = False) -> None:
        """`unsafe` runs programs even where they cannot be locked in.

        Raises SandboxError where that would be needed.
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
        said = outcome.stdout.strip()
        if outcome.status != "ok":
            said = f"{said}\nerror: {outcome.reason}".strip()
        return said if len(said) <= MAX_CHARS else f"{said[: MAX_CHARS - 3]}..."
