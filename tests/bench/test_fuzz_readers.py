"""A few random files for every reader; `bench/fuzz_readers.py` makes 220,000 of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "fuzz_readers.py"
INPUTS = 200  # a reader


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_readers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FUZZ = load()


@pytest.mark.parametrize("name", list(FUZZ.READERS))
def test_what_is_read_is_what_others_count_and_nothing_ends_in_a_stack_trace(name: str) -> None:
    counts, broken = FUZZ.fuzz(name, seed=1, inputs=INPUTS)
    assert not broken, "\n".join(broken[:3])
    assert min(counts["read"], counts["refused"]) > INPUTS // 20, "the inputs must be of both kinds"
    assert sum(counts.values()) == INPUTS


def test_a_reader_that_loses_a_character_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    make, read = FUZZ.READERS["txt"]

    def lossy(case: object) -> object:
        characters, rows = read(case)
        return characters - (characters > 100), rows

    monkeypatch.setitem(FUZZ.READERS, "txt", (make, lossy))
    _, broken = FUZZ.fuzz("txt", seed=1, inputs=INPUTS)
    assert broken
    assert "but others" in broken[0]
