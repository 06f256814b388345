"""Readers of `tokenizer.json` that are installed: each does what docs/interop.md says it does.

Those of this environment are asked; with JAXCHAT_READERS, the folder of
`bench/tokenizer_readers.py --environments`, those that are installed there, too.
"""

import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import tokenizer_readers

from jaxchat.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]


SAMPLE = [
    tokenizer_readers.PROSE,
    *tokenizer_readers.SCRIPTS.values(),
    "if a <b> is <c>, then a <d> ",
] * 20


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer(SAMPLE, 700)


@pytest.fixture(scope="module")
def asked(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    """The export, the file of texts, the texts by kind, and our ids."""
    folder = tmp_path_factory.mktemp("readers")
    ours.to_huggingface(folder / "export")
    texts = tokenizer_readers.texts_of([])
    texts["long scripts"] = texts["long scripts"][::3]  # the shortest of each
    file = folder / "texts.json"
    file.write_text(json.dumps([text for some in texts.values() for text in some]))
    return folder / "export", file, texts, tokenizer_readers.our_ids(ours, texts)


def place_of(reader: Any) -> Path | None:
    """Where a reader is installed; skips the test where it is not."""
    kept = os.environ.get("JAXCHAT_READERS")
    if kept and tokenizer_readers.folder_of(reader, Path(kept)).exists():
        return Path(tokenizer_readers.folder_of(reader, Path(kept)))
    if reader.read is None:
        pytest.skip(f"{reader.package} {reader.version} of npm is not installed")
    try:
        found = version(reader.package)
    except PackageNotFoundError:
        pytest.skip(f"{reader.package} is not installed")
    if found != reader.version and reader.expected != tokenizer_readers.SAME:
        pytest.skip(f"{reader.package} is {found}; what {reader.version} does is known")
    if reader.whole and reader.package != "transformers":
        pytest.skip(f"{reader.package} is asked where JAXCHAT_READERS has it")
    return None


@pytest.mark.parametrize(
    "reader", tokenizer_readers.READERS, ids=lambda r: f"{tokenizer_readers.title(r)} {r.version}"
)
def test_a_reader_does_what_the_table_says(reader: Any, asked: tuple[Path, Path, Any, Any]) -> None:
    place = place_of(reader)
    if reader.read is None and shutil.which("node") is None:
        pytest.skip("there is no node")
    export, file, texts, ours = asked
    seen, more = tokenizer_readers.verdict(
        tokenizer_readers.ask(reader, place, export, file), texts, ours
    )
    assert seen == reader.expected, more


def test_the_page_lists_every_reader_with_its_version() -> None:
    page = (ROOT / "docs" / "interop.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([^|]+) \|", page, re.MULTILINE)
    wanted = {
        (tokenizer_readers.title(r), r.version, r.expected) for r in tokenizer_readers.READERS
    }
    assert wanted <= {tuple(cell.strip() for cell in row) for row in rows}


def test_other_ids_are_counted_by_kind_and_names_may_be_tokens_or_text(ours: Tokenizer) -> None:
    texts = {"numbers": ["12", "345"], tokenizer_readers.NAMES: ["<|bos|>"]}
    known = tokenizer_readers.our_ids(ours, texts)
    as_text, as_tokens = known[tokenizer_readers.NAMES][0], [ours.bos]
    assert as_text != as_tokens
    numbers = known["numbers"]
    for names in (as_text, as_tokens):
        assert tokenizer_readers.verdict({"ids": [*numbers, names]}, texts, known) == (
            tokenizer_readers.SAME,
            "",
        )
    wrong = [numbers[0], [1], [2]]
    found = tokenizer_readers.verdict({"ids": wrong}, texts, known)
    assert found == (tokenizer_readers.OTHER, f"numbers 1 of 2; {tokenizer_readers.NAMES} 1 of 1")
    assert tokenizer_readers.verdict({"error": "no\nsuch model"}, texts, known) == (
        tokenizer_readers.REFUSED, "no such model",
    )  # fmt: skip
