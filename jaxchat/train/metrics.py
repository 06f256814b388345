"""metrics.jsonl: one JSON object a line, always written, consistent with the checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.paths import atomic_open
from jaxchat.train.trackers import Background


class MetricsLog:
    """Appends records with a `step`; on a resume, records at or past the step are dropped first.

    Of several processes that share the folder, one writes; for the others `writes` is False.
    `trackers` (their names) get the same records.
    """

    def __init__(
        self,
        path: Path,
        from_step: int = 0,
        *,
        writes: bool = True,
        trackers: Sequence[str] = (),
    ) -> None:
        self.path, self.writes = path, writes
        self.trackers: list[Background] = []
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [r for r in read_metrics(path) if r["step"] < from_step]
        with atomic_open(path) as file:
            file.writelines(json.dumps(record) + "\n" for record in earlier)
        self.trackers = [Background(name, path.parent, earlier) for name in trackers]

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record and hands it to the operating system."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for tracker in self.trackers:
            tracker.log(record)

    def close(self) -> None:
        """Lets the trackers finish."""
        for tracker in self.trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line cut by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records
