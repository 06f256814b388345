"""Background tokenization: a process that prepares a run's shards of text while its stages run.

It is `jaxchat data prepare --run NAME`, ends with the process that started it, and writes its
output to a log.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STOP_SECONDS = 5.0  # between asking it to end and killing it
CHILD = "--until-stdin-closes"


class Preparer:
    """The process; `close` ends it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        """`arguments`: of the command `jaxchat`."""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jaxchat", *arguments, CHILD]
        with log.open("ab") as file:
            # its standard input closes with this process, however that ends
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True
            )

    def ended(self) -> str | None:
        """None while it works; then how it ended."""
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            return "all that there is has been prepared"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("jaxchat: ") if lines else "it said nothing"
        return f"the process that prepares it ended with {code}: {last.rstrip('.')}; see {self.log}"

    def close(self) -> None:
        """Ends it, if it has not ended; what it has prepared stays."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
