"""Documents of installed Python files, and which of them are worth training on.

Documents are docstrings, help topics, readmes and source code; worthwhile are readable English and
code that have not been seen before.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxchat.data.files.text import is_unicode
from jaxchat.tasks.base import held_out

MAX_FILE_BYTES = 1_000_000  # a larger file is data, not documentation
MAX_CHARS = 20_000  # of a document; longer text is cut into several at blank lines
CODE_SHARE = 0.3  # of the standard library's files are kept as code, the rest as docstrings

_PROJECT = "jaxchat"  # never its own documentation
_NO_TEXT = """
    __pycache__ site-packages dist-packages test tests testing idlelib lib2to3 encodings pydoc_data
    turtledemo vendor _vendor vendored locale
"""
_SKIPPED_FOLDERS = frozenset(_NO_TEXT.split())
_SKIPPED_DOCS = re.compile(
    r"licen[cs]e|copying|notice|author|contribut|requirement|constraint|top_level|entry_point"
    r"|sources|record|vendor|cmakelists|namespace_packages|zip-safe|changelog|changes|history",
    re.IGNORECASE,
)
_DOC_SUFFIXES = frozenset({".md", ".rst", ".txt"})
_ORNAMENT = re.compile(r"^\s*(\[?!\[|<|\.\. |\|[ -|]|:\w+:|[-=~^*#+_|]{4,})")  # badges, html, rules
_MIN_DOCSTRING = 30

MIN_CHARS = 200
NEAR_SHARE = 0.5  # of its long lines seen before make a document a near-duplicate
_LONG_LINE = 40  # characters

_WORD = re.compile("[A-Za-z]+")
_SMALL_WORDS = """
    the of to a is in and for be that this with by are as or if on it not an from which can you
    will when at use used all has have no may one return returns value
"""
_COMMON = frozenset(_SMALL_WORDS.split())

Verdict = Literal["documents", "duplicates", "near_duplicates"]


@dataclass(frozen=True)
class Document:
    """A text."""

    text: str
    source: str
    origin: str  # the file it came from, the same on every machine


@dataclass(frozen=True)
class Paths:
    """Where documents are read from."""

    stdlib: Path  # the folder of the standard library
    packages: tuple[Path, ...]  # folders of packages

    @classmethod
    def of_this_python(cls) -> Paths:
        """The paths of the running interpreter; in a virtual environment, its own packages."""
        packages = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
        return cls(Path(sysconfig.get_path("stdlib")), tuple(sorted(packages)))


def sources(paths: Paths) -> dict[str, Iterator[Document]]:
    """Every source's documents, read as they are asked for, in an order fixed by file names."""
    stdlib = _files(paths.stdlib)
    modules = [(path, name) for path, name in stdlib if name.endswith(".py")]
    packages = [entry for folder in paths.packages for entry in _files(folder)]
    return {
        "python": _topics(paths.stdlib / "pydoc_data" / "topics.py"),
        "stdlib": _docstrings([m for m in modules if not _is_code(m[1])], "stdlib"),
        "packages": _docstrings([m for m in packages if m[1].endswith(".py")], "packages"),
        "readme": _readmes(packages),
        "code": _code([m for m in modules if _is_code(m[1])]),
    }


def _files(root: Path) -> list[tuple[Path, str]]:
    """(path, name below the root) of every file, shuffled by the hash of the name.

    Packages are of very different sizes: shuffled, any number of files is a fair sample.
    """
    found: list[tuple[Path, str]] = []
    for folder, subfolders, names in os.walk(root):
        top = Path(folder) == root
        subfolders[:] = [name for name in subfolders if not _skips(name, top)]
        for name in names:
            path = Path(folder, name)
            if not (top and name.startswith(_PROJECT)):
                found.append((path, path.relative_to(root).as_posix()))
    return sorted(found, key=lambda entry: (_digest(entry[1]), entry[1]))


def _skips(folder: str, top: bool) -> bool:
    own = top and re.split(r"[-.]", folder)[0] == _PROJECT
    return own or folder in _SKIPPED_FOLDERS or folder.startswith(("config-", "."))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _is_code(name: str) -> bool:
    return held_out(f"code/{name}", CODE_SHARE)


def _topics(path: Path) -> Iterator[Document]:
    """The help topics: a module with one dictionary of strings."""
    tree = _parse(_text(path))
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            match key, value:
                case ast.Constant(value=str(topic)), ast.Constant(value=str(text)):
                    yield from _cut(text, "python", f"topics/{topic}")


def _docstrings(files: list[tuple[Path, str]], source: str) -> Iterator[Document]:
    """One document a module: its docstring, then those of its classes and functions."""
    for path, name in files:
        if name.endswith("_pb2.py"):
            continue
        tree = _parse(_text(path))
        if tree is not None:
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            entries = [f"{title}\n\n{text}" for title, text in _documented(tree, module)]
            yield from _cut("\n\n".join(entries), source, name)


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, title: str
) -> Iterator[tuple[str, str]]:
    """(title, docstring) of a module or class and what it holds, in the order of the file."""
    text = ast.get_docstring(node)
    if text is not None and len(text) >= _MIN_DOCSTRING:
        yield title, text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    prefix = f"{title}." if isinstance(node, ast.ClassDef) else ""
    for child in node.body:
        match child:
            case ast.ClassDef(name=name):
                yield from _documented(child, prefix + name)
            case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                named = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
                shown = ", ".join(arg for arg in named if arg not in ("self", "cls"))
                yield from _documented(child, f"{prefix}{name}({shown})")


def _readmes(files: list[tuple[Path, str]]) -> Iterator[Document]:
    """Descriptions in the packages' metadata, and documentation files, without ornaments."""
    for path, name in files:
        inside, _, base = name.rpartition("/")
        if inside.endswith(".dist-info") and "/" not in inside and base == "METADATA":
            _, _, text = (_text(path) or "").partition("\n\n")  # the headers end at a blank line
        elif path.suffix in _DOC_SUFFIXES and not _SKIPPED_DOCS.search(name):
            text = _text(path) or ""
        else:
            continue
        # a package's version is in the folder's name, and must not change the split
        origin = re.sub(r"-[^/]*\.dist-info", "", name)
        kept = [line for line in text.splitlines() if not _ORNAMENT.match(line)]
        yield from _cut("\n".join(kept), "readme", origin)


def _code(files: list[tuple[Path, str]]) -> Iterator[Document]:
    """Source files that can be parsed."""
    for path, name in files:
        text = _text(path)
        if text is not None and _parse(text) is not None:
            yield from _cut(text, "code", name)


def _text(path: Path) -> str | None:
    """A file's text, or None when it cannot be read, is very large, or is binary."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES or not path.is_file():
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse(text: str | None) -> ast.Module | None:
    collecting = gc.isenabled()
    gc.disable()  # a tree has no cycles; letting the collector walk it costs a third of the time
    try:
        return None if text is None else ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()


def _cut(text: str, source: str, origin: str) -> Iterator[Document]:
    """The text as one document, or several when it is long, cut at blank lines."""
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    while len(text) > MAX_CHARS:
        end = text.rfind("\n\n", MAX_CHARS // 2, MAX_CHARS)
        end = MAX_CHARS if end < 0 else end
        yield Document(text[:end], source, origin)
        text = text[end:].strip("\n")
    if text:
        yield Document(text, source, origin)


def is_worthwhile(document: Document) -> bool:
    """Whether a document is long enough, printable, and reads as English prose or as code."""
    text = document.text
    if not is_unicode(text):
        return False
    if len(text) < MIN_CHARS or len(text) > 200 * (text.count("\n") + 1):  # data in long lines
        return False
    solid = "".join(text.split())
    odd = sum(not (c.isascii() and c.isprintable()) for c in solid) if not solid.isascii() else 0
    printable = solid.isprintable() or sum(map(str.isprintable, solid)) > 0.99 * len(solid)
    if odd > 0.02 * len(solid) or not printable:
        return False
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if document.source == "code":
        return letters > 0.5 * len(solid)
    common = sum(word.lower() in _COMMON for word in words)
    return (
        letters > 0.65 * len(solid) and 3 <= letters / len(words) <= 8 and common > 0.1 * len(words)
    )


class Deduplicator:
    """Finds documents that were seen before, and near-duplicates of them."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._lines: set[str] = set()

    def see(self, document: Document) -> Verdict:
        """The verdict on a document, which is remembered when it is new.

        Equal but for white space is a duplicate; half of its long lines seen before, a
        near-duplicate.
        """
        words = document.text.split()
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        if digest in self._texts:
            return "duplicates"
        lines = {line.strip() for line in document.text.splitlines()}
        lines = {line for line in lines if len(line) >= _LONG_LINE}
        if lines and len(lines & self._lines) > NEAR_SHARE * len(lines):
            return "near_duplicates"
        self._texts.add(digest)
        self._lines |= lines
        return "documents"
