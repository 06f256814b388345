"""Small files of the chat sources in the hub's layout, with rows of our own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 3  # small, so that files have several

CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "Blue."},
        ]
    },
    *(
        {
            "messages": [
                {"role": "user", "content": f"Say {number}."},
                {"role": "assistant", "content": f"{number}. Größer? 🙂"},
                {"role": "user", "content": "Again!"},
                {"role": "assistant", "content": f"{number}!"},
            ]
        }
        for number in range(9)
    ),
]
MMLU_ROWS = [
    {"question": "Which is even?", "subject": "maths", "choices": list("1357"), "answer": 0},
    {"question": "Which is odd?", "subject": "", "choices": ["2", "4", "6", "7"], "answer": 3},
]
ARC_ROWS = [
    {
        "id": "A_1",
        "question": "What is wet?",
        "choices": {"text": ["sand", "water", "wood"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "A_2",
        "question": "What is hot?",
        "choices": {"text": ["ice", "snow", "rain", "fog", "fire"], "label": list("12345")},
        "answerKey": "5",
    },
]
GSM8K_ROWS = [
    {
        "question": "A shelf holds 4 boards of 9 jars. How many jars?",
        "answer": "It holds 4 * 9 = <<4*9=36>>36 jars.\n#### 36",
    },
    {
        "question": "Two lorries bring 1,250 stones each, and half are sold. What is left?",
        "answer": "<<2*1250=2500>>2500 come.\nHalf of 2500 is <<2500/2=1250>>1250.\n#### 1,250",
    },
]
HUMANEVAL_ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(4) == 8\n",
        "entry_point": "double",
    }
]


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as the hub's Parquet files are: every field a column, several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=ROW_GROUP)
    return path


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Writes rows as JSON lines, compressed when the name ends with .gz."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
