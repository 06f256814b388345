"""How calls whose output differs from the calculator's are distinguished."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "bench"))
    import gsm8k_calls

    yield gsm8k_calls
    sys.path.remove(str(ROOT / "bench"))


@pytest.mark.parametrize(
    ("call", "output", "group"),
    [
        ("12*3", "36", "the same text"),
        ("12*3", "36.00", "the same number"),
        ("500*4", "2,000", "the same number"),
        ("1/4", ".25", "the same number"),
        ("2/3", "0.67", "rounded"),
        ("2/3", "0.6667", "rounded"),
        ("8/3", "3", "rounded"),
        ("2/3", "0.66", "cut"),
        ("-2/3", "-0.66", "cut"),
        ("3/4", "3/4", "fraction"),
        ("3/4", "4/3", "another value"),
        ("3*4", "", "no output"),
        ("20%*50", "10", "not read"),
        ("2x+1", "5", "not read"),
        ("12*3", "35", "another value"),
        ("8/3", "2", "cut"),
        ("1/2", "50%", "another value"),
    ],
)
def test_groups(bench: Any, call: str, output: str, group: str) -> None:
    assert bench.group(call, output) == group


def test_the_table_and_the_list(
    bench: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "train.jsonl"
    answer = "<<2+2=4>>4 and <<1/3=0.33>>0.33 and <<2=2.0>>2\n#### 6"
    file.write_text(json.dumps({"question": "How many?", "answer": answer}))
    monkeypatch.setattr(sys, "argv", ["gsm8k_calls.py", str(file), "--list"])
    assert bench.main() == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.split() == [
        "rounded",
        "train.jsonl",
        "1",
        "1/3",
        "=",
        "'0.33';",
        "ours:",
        "0.333333",
    ]
    assert last == "1 problems, 3 calls"
