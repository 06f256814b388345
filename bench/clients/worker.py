"""Runs a client's checks in its own environment: `worker.py FILE SETTINGS RESULTS`.

A check is a function of the file. It is given the settings, and returns what it saw and what it
expected. Results are lines of JSON, written one by one: what came before a client hangs is kept.
"""

import asyncio
import importlib.util
import inspect
import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    """Every check, in the order of the file."""
    file, settings, results = map(Path, sys.argv[1:])
    given = SimpleNamespace(**json.loads(settings.read_text()))
    given.folder = Path(given.folder)
    with results.open("a") as lines:

        def write(check: str, **fields: object) -> None:
            lines.write(json.dumps({"check": check, **fields}, default=str) + "\n")
            lines.flush()

        try:
            spec = importlib.util.spec_from_file_location(f"checks_{file.stem}", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:
            write("import", error=describe(error))
            return
        for name, check in vars(module).items():
            if inspect.isfunction(check) and check.__module__ == spec.name and name[0] != "_":
                try:
                    found = check(given)
                    seen, expected = asyncio.run(found) if inspect.iscoroutine(found) else found
                    write(name, seen=seen, expected=expected)
                except Exception as error:
                    write(name, error=describe(error))
        write("end")


def describe(error: Exception) -> str:
    """An error in a line, and where in the client's checks it came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "checks" in f.filename]
    place = f" (line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:1500]}{place}"


if __name__ == "__main__":
    main()
