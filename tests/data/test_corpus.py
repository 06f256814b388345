"""The corpus on a small tree of packages with everything wrong in it, and on the real library."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from jaxchat.data import corpus
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.inputs import Inputs, read_texts
from jaxchat.data.own import InputFile
from jaxchat.data.text import MAX_CHARS, Deduplicator, Document, Paths, is_worthwhile, sources
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json

_TEXT = (
    "the value of a name is read from the file and it can be used by all that have this list as "
    "input when one has no other text to return so you may not use it in your own module"
)
_WORDS = _TEXT.split()


def prose(seed: int, words: int = 80) -> str:
    """English-looking text, different for every seed."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(_WORDS, k=12)) for _ in range(words // 12)]
    return "\n".join(lines) + ".\n"


def module(seed: int) -> str:
    return (
        f'"""{prose(seed)}"""\nimport does_not_exist\nraise SystemExit("a module was executed")\n'
        f'class Thing:\n    """{prose(seed + 1000)}"""\n'
        f'    def act(self, when, *, how):\n        """{prose(seed + 2000)}"""\n'
        'def undocumented():\n    "short"\n'
    )


@pytest.fixture
def tree(tmp_path: Path) -> Paths:
    """A standard library and packages, with a readable core and all kinds of trouble."""
    stdlib, site = tmp_path / "stdlib", tmp_path / "site-packages"
    files: dict[str, str | bytes] = {f"stdlib/mod{n}.py": module(n) for n in range(40)}
    files |= {f"site-packages/pack{n}/__init__.py": module(100 + n) for n in range(60)}
    topics = ", ".join(f"'topic{n}': {prose(200 + n)!r}" for n in range(5))
    files |= {
        "stdlib/pydoc_data/topics.py": f"topics = {{{topics}}}\n",
        "stdlib/site-packages/hidden.py": module(300),
        "stdlib/test/test_it.py": module(301),
        "site-packages/pack0/copy.py": module(100),
        "site-packages/pack0/near.py": module(101).replace("Thing", "Other"),
        "site-packages/pack1/broken.py": 'def broken(:\n    """' + prose(302) + '"""',
        "site-packages/pack1/binary.py": b"\x00\x01" + prose(303).encode(),
        "site-packages/pack1/huge.py": "x = 1\n" * 200_000,
        "site-packages/pack1/deep.py": "x = " + "(" * 5_000,
        "site-packages/pack1/latin.py": ('"""Caf\xe9. ' + prose(304) + '"""\n').encode("latin-1"),
        "site-packages/pack1/bom.py": b"\xef\xbb\xbf" + f'"""Marked. {prose(305)}"""\n'.encode(),
        "site-packages/pack1/crlf.py": f'"""Windows.\n{prose(306)}"""\n'.replace("\n", "\r\n"),
        "site-packages/pack1/numbers.py": '"""' + "0 1 2 3 4 5 6 7 8 9\n" * 90 + '"""',
        "site-packages/pack1/tests/test_pack.py": module(307),
        "site-packages/pack2-1.0.dist-info/METADATA": "Name: pack2\nLicense: secret terms\n\n"
        "[![badge](http://badge)](http://badge)\nDescribed. " + prose(308),
        "site-packages/pack2-1.0.dist-info/LICENSE.txt": "Licensed. " + prose(309),
        "site-packages/pack2/docs/guide.md": "Guided. " + prose(310),
        "site-packages/jaxchat/__init__.py": module(311),
        "site-packages/jaxchat-0.1.0.dist-info/METADATA": "Name: jaxchat\n\nOurs. " + prose(312),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
    (site / "pack1" / "dangling.py").symlink_to(site / "nowhere.py")
    (site / "pack1" / "folder.py").mkdir()
    return Paths(stdlib, (site,))


def read(folder: Path, split: str) -> list[str]:
    return list(TextFiles.of([folder / f"{split}.jsonl"]))


def characters(manifest: dict[str, Any]) -> int:
    return sum(split["chars"] for split in manifest["splits"].values())


def all_text(folder: Path) -> str:
    return "\n".join([*read(folder, "train"), *read(folder, "heldout")])


def test_builds_and_reads_back(tree: Paths, tmp_path: Path) -> None:
    manifest = corpus.build(tmp_path / "out", max_chars=10**9, paths=tree)
    for split in ("train", "heldout"):
        texts = read(tmp_path / "out", split)
        assert len(texts) == manifest["splits"][split]["documents"]
        assert sum(map(len, texts)) == manifest["splits"][split]["chars"]
    assert sorted(manifest["sources"]) == ["code", "packages", "python", "readme", "stdlib"]
    assert manifest["sources"]["python"]["documents"] == 5
    assert characters(manifest) == sum(c["chars"] for c in manifest["sources"].values())
    assert read_json(tmp_path / "out" / "manifest.json") == manifest


def test_reads_what_it_should_and_leaves_out_what_it_should(tree: Paths, tmp_path: Path) -> None:
    corpus.build(tmp_path / "out", max_chars=10**9, paths=tree)
    text = all_text(tmp_path / "out")
    for wanted in ("Café. ", "Marked. ", "Windows.", "Described. ", "Guided. ", "pack0"):
        assert wanted in text, f"{wanted!r} is missing"
    for unwanted in ("Licensed", "secret terms", "badge", "Ours. ", "9\n0", "\r", "\ufeff"):
        assert unwanted not in text, f"{unwanted!r} got in"
    for seed in (300, 301, 302, 303, 307, 311):
        assert prose(seed).strip() not in text, f"file {seed} got in"


def test_docstrings_stand_under_their_names(tree: Paths) -> None:
    found = [d for d in sources(tree)["packages"] if d.origin == "pack7/__init__.py"]
    titles = ["pack7", "Thing", "Thing.act(when, how)"]
    texts = [prose(seed).strip() for seed in (107, 1107, 2107)]
    expected = "\n\n".join(f"{title}\n\n{text}" for title, text in zip(titles, texts, strict=True))
    assert found == [Document(expected, "packages", "pack7/__init__.py")]


def test_copies_are_counted_and_left_out(tree: Paths, tmp_path: Path) -> None:
    manifest = corpus.build(tmp_path / "out", max_chars=10**9, paths=tree)
    assert manifest["sources"]["packages"]["near_duplicates"] == 2  # copy.py has another title
    text = all_text(tmp_path / "out")
    for seed in (1100, 1101):
        assert text.count(prose(seed).strip()) == 1


def test_a_file_of_the_library_is_code_or_docstrings_and_not_both(tree: Paths) -> None:
    found = sources(tree)
    code = {document.origin for document in found["code"]}
    docs = {document.origin for document in found["stdlib"]}
    assert code | docs == {f"mod{n}.py" for n in range(40)}
    assert not code & docs
    assert 4 <= len(code) <= 20


def test_the_same_files_give_the_same_bytes_wherever_they_are(tree: Paths, tmp_path: Path) -> None:
    one = corpus.build(tmp_path / "one", max_chars=60_000, paths=tree)
    moved = tmp_path / "elsewhere"
    tree.stdlib.rename(moved)
    other = corpus.build(tmp_path / "two", max_chars=60_000, paths=Paths(moved, tree.packages))
    assert one == other
    for name in ("train.jsonl", "heldout.jsonl", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_cap_keeps_the_mixture_and_the_held_out_share(tree: Paths, tmp_path: Path) -> None:
    manifest = corpus.build(tmp_path / "out", max_chars=40_000, paths=tree)
    assert 40_000 <= characters(manifest) <= 40_000 + MAX_CHARS
    assert all(counts["documents"] for counts in manifest["sources"].values())
    whole = corpus.build(tmp_path / "whole", max_chars=10**9, paths=tree)
    assert characters(whole) > 2 * characters(manifest)


def test_progress_is_reported_the_characters_so_far(tree: Paths, tmp_path: Path) -> None:
    reported: list[int] = []
    manifest = corpus.build(
        tmp_path / "out", max_chars=20_000, progress=reported.append, paths=tree
    )
    assert reported == sorted(set(reported))
    assert reported[-1] == characters(manifest)


def test_a_changed_file_is_refused(tree: Paths, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    splits = corpus.build(folder, max_chars=20_000, paths=tree)["splits"]
    paths = [folder / f"{split}.jsonl" for split in ("train", "heldout")]
    text = [InputFile(p.name, splits[p.stem]["sha256"], p.stat().st_size, (p,)) for p in paths]
    inputs = Inputs(tuple(text), {}, first=1)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "slipped in", "source": "code"}\n')
    with pytest.raises(ArtifactError, match=r"train\.jsonl is missing or damaged"):
        list(read_texts(inputs, 10**9))
    (folder / "heldout.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"heldout\.jsonl is missing or damaged"):
        list(read_texts(inputs, 10**9, held_out=True))


def test_a_build_that_stops_midway_leaves_the_old_corpus(tree: Paths, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(chars: int) -> None:
        if chars > 5_000:
            raise StopError

    folder = tmp_path / "out"
    with pytest.raises(StopError):
        corpus.build(folder, max_chars=20_000, paths=tree, progress=stop)
    assert not folder.exists()
    old = corpus.build(folder, max_chars=20_000, paths=tree)
    with pytest.raises(StopError):
        corpus.build(folder, max_chars=50_000, paths=tree, progress=stop)
    assert read_json(folder / "manifest.json") == old
    assert read(folder, "train")
    assert {path.name for path in tmp_path.iterdir()} == {"stdlib", "site-packages", "out"}


def test_nothing_to_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found no documentation to train on"):
        corpus.build(tmp_path / "out", max_chars=10, paths=Paths(tmp_path / "no", ()))
    assert not (tmp_path / "out").exists()


def test_a_cap_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        corpus.build(tmp_path / "out", max_chars=0)


def test_a_long_text_is_cut_at_blank_lines_and_stays_on_one_side(tmp_path: Path) -> None:
    paragraphs = [prose(seed) for seed in range(200)]
    (tmp_path / "lib" / "pydoc_data").mkdir(parents=True)
    topic = "\n\n".join(paragraphs)
    (tmp_path / "lib" / "pydoc_data" / "topics.py").write_text(f"topics = {{'long': {topic!r}}}")
    found = list(sources(Paths(tmp_path / "lib", ()))["python"])
    assert len(found) > 2
    assert max(len(document.text) for document in found) <= MAX_CHARS
    assert len({document.origin for document in found}) == 1
    pieces = [piece for document in found for piece in document.text.split("\n\n")]
    assert [piece.strip() for piece in pieces] == [text.strip() for text in paragraphs]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (prose(1), True),
        (prose(1)[:150], False),  # too short
        ("x" * 5_000, False),  # one word
        (" ".join(str(number) for number in range(500)), False),
        (prose(1) + "\x07" * 40, False),
        ("日本語の文章です。\n" * 60, False),
        ("el valor del nombre se lee desde un fichero muy grande\n" * 10, False),
        (prose(1).replace("\n", " ") * 30, False),  # one line of thousands of characters
    ],
)
def test_quality_of_prose(text: str, kept: bool) -> None:
    assert is_worthwhile(Document(text, "readme", "x")) == kept


def test_quality_of_code() -> None:
    code = "def total(numbers):\n    result = 0\n    for number in numbers:\n        result += 1\n"
    table = "VALUES = [\n" + "    0x1F, 0x2E, 0x3D, 0x4C,\n" * 50 + "]\n"
    assert is_worthwhile(Document(code * 4, "code", "x"))
    assert not is_worthwhile(Document(table, "code", "x"))


def test_deduplication_sees_through_white_space_and_small_changes() -> None:
    seen = Deduplicator()
    text = prose(1, words=200)
    assert seen.see(Document(text, "a", "1")) == "documents"
    assert seen.see(Document(text.replace(" ", "\n "), "b", "2")) == "duplicates"
    assert seen.see(Document("A new title\n" + text, "b", "3")) == "near_duplicates"
    assert seen.see(Document(prose(2, words=200), "b", "4")) == "documents"


def test_the_real_library_gives_readable_english(tmp_path: Path) -> None:
    manifest = corpus.build(tmp_path / "out", max_chars=400_000)
    counts = manifest["sources"]
    assert all(counts[name]["documents"] > 0 for name in ("python", "stdlib", "code"))
    heldout = manifest["splits"]["heldout"]["chars"] / characters(manifest)
    assert 0.002 < heldout < 0.15
    text = all_text(tmp_path / "out")
    assert len(text) >= 400_000
    assert sum(word in ("the", "of", "to", "a") for word in text.split()) > 3_000
    line = (tmp_path / "out" / "train.jsonl").read_text().splitlines()[0]
    assert set(json.loads(line)) == {"text", "source"}
    data = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest["splits"]["train"]["sha256"]
