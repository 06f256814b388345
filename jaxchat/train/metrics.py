"""metrics.jsonl: one JSON object a line, always written, consistent with the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat.home import atomic_open


class MetricsLog:
    """Appends records with a `step`; on a resume, records at or past the step are dropped first.

    Of several processes that share the folder, one writes: the others are given `writes` False.
    """

    def __init__(self, path: Path, from_step: int = 0, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_metrics(path) if r["step"] < from_step]
        with atomic_open(path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record and hands it to the operating system."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line cut by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
