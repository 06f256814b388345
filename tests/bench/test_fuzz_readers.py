"""A few random files for every reader; `bench/fuzz_readers.py` makes 220,000 of them."""

import fuzz_readers
import pytest

INPUTS = 200  # a reader


@pytest.mark.parametrize("name", list(fuzz_readers.READERS))
def test_what_is_read_is_what_others_count_and_nothing_ends_in_a_stack_trace(name: str) -> None:
    counts, broken = fuzz_readers.fuzz(name, seed=1, inputs=INPUTS)
    assert not broken, "\n".join(broken[:3])
    assert min(counts["read"], counts["refused"]) > INPUTS // 20, "the inputs must be of both kinds"
    assert sum(counts.values()) == INPUTS


def test_a_reader_that_loses_a_character_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    make, read = fuzz_readers.READERS["txt"]

    def lossy(case: object) -> object:
        characters, rows = read(case)
        return characters - (characters > 100), rows

    monkeypatch.setitem(fuzz_readers.READERS, "txt", (make, lossy))
    _, broken = fuzz_readers.fuzz("txt", seed=1, inputs=INPUTS)
    assert broken
    assert "but others" in broken[0]
