"""Mutation testing: what is broken, and whose tests are run."""

import ast
import random
from pathlib import Path

import mutations

ROOT = Path(__file__).parents[2]
SOURCE = '''
def f(a: int = 1, *, b: "int" = 2) -> int:
    """Ä 7 < 8."""
    assert a < b, f"{a + b} ünd"
    return a * b if not (a and b) else 3
'''


def test_a_mutation_is_one_expression_and_no_text_or_annotation() -> None:
    seen = set()
    for seed in range(200):
        made = mutations.mutate(SOURCE, random.Random(seed))
        assert made is not None
        changed, line, before, after = made
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SOURCE))
        assert before in SOURCE.splitlines()[line - 1]
        assert changed == SOURCE.replace(before, f"({after})", 1) or before in "123"
        seen.add((before, after))
    assert {("a < b", "a <= b"), ("a * b", "a + b"), ("a and b", "a or b"), ("1", "2")} <= seen
    assert not any("8" in before or "Ä" in before or "a + b" in before for before, _ in seen)


def test_the_tests_of_the_room_run_once_each_with_the_modules_own_first() -> None:
    batches = [*mutations.batches(ROOT, Path("jaxchat/data/packing.py"))]
    assert batches[0] == ["tests/data/test_packing.py"]
    files = [file for batch in batches for file in batch]
    assert sorted(files) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests/data").rglob("test_*.py")
    )


def test_a_draw_depends_on_the_seed_and_the_number_alone() -> None:
    first = [mutations.draw(ROOT, mutations.ROOMS, 0, number) for number in range(4)]
    assert first == [mutations.draw(ROOT, mutations.ROOMS, 0, number) for number in range(4)]
    assert [path.relative_to(ROOT / "jaxchat").parts[0] for path, *_ in first] == [
        *mutations.ROOMS[:4]
    ]
