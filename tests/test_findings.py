"""docs/behaviour.md and findings/: each row can be seen again, and scripts have one form."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "findings").glob("*.sh")}
_spec = importlib.util.spec_from_file_location("findings_run", ROOT / "findings" / "run.py")
assert _spec is not None
assert _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)
ROWS = [row for row in map(run.cells, run.TABLE.read_text().splitlines()) if row][1:]


def test_the_table_is_sorted_by_package_and_whole():
    assert len(ROWS) >= 20
    packages = [row[0].casefold() for row in ROWS]
    assert packages == sorted(packages)
    for row in ROWS:
        assert len(row) == 6, row
        assert re.fullmatch(r"[\w-]+ \S.* \(\d{4}-\d\d-\d\d\)", row[1]), row[1]
        assert row[1].startswith(f"{row[0]} "), "a version is that of the row's package"


def test_each_row_names_what_shows_it_and_that_exists():
    named = set()
    for row in ROWS:
        scripts, tests = run.SCRIPT.findall(row[-1]), run.TEST.findall(row[-1])
        assert scripts or tests, row
        named |= set(scripts)
        for test in tests:
            path, _, function = test.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            assert function in {
                node.name for node in tree.body if isinstance(node, ast.FunctionDef)
            }
    assert named == SCRIPTS.keys(), "every finding has a row, and every row's script is there"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_has_the_form_of_a_finding(name):
    text = SCRIPTS[name]
    head, _, body = text.partition("\nset -euo pipefail\n")
    for part in ("# Expected", "# Happens (20", "# Exits 0 while that is so, 1 once it changes"):
        assert part in head, part
    assert len(run.COUNTER.findall(head)) == 1, "the corrected input, or the other version"
    assert "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n" in body
    assert "versions: " in body
    assert "jaxchat" not in body
    assert re.search(r"pip\" install -q .*==", body), "its packages are pinned"


def test_the_run_rewrites_versions_and_dates_of_what_it_has_seen():
    text = run.TABLE.read_text()
    script = "array-record-opens-every-shard"
    new = run.rewritten(text, {script: "array-record 9.9"})
    changed = [(a, b) for a, b in zip(text.splitlines(), new.splitlines(), strict=True) if a != b]
    [(before, after)] = changed
    assert run.cells(after)[1].startswith("array-record 9.9 (20")
    assert run.cells(after)[2:] == run.cells(before)[2:]
    assert run.rewritten(text, {}) == text
