"""The commands in the fenced blocks of Markdown, and what is said of those that no test runs."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = ("bash", "console", "sh")
MARK = re.compile(r"<!-- not run \((?P<why>[^)]+)\)(?:: (?P<which>[^>]+?))? -->")


@dataclass(frozen=True)
class Command:
    """A simple command: its words, the file that it reads as stdin, and why it is not run."""

    page: str
    line: int
    words: tuple[str, ...]
    stdin: str = ""
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page} line {self.line}: {shlex.join(self.words)}"


def blocks(text: str) -> Iterator[tuple[int, str, list[str], list[re.Match[str]]]]:
    """(number of the first line, language, lines, marks before it) of every fenced block."""
    lines = text.splitlines()
    marks: list[re.Match[str]] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.startswith("```"):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].startswith("```"))
            yield number + 2, line[3:].strip(), lines[number + 1 : end], marks
            marks, number = [], end
        elif found := MARK.fullmatch(line):
            marks.append(found)
        elif line.strip():
            assert not marks, f"line {number + 1}: a mark must stand right before a block"
        number += 1


def commands(path: Path, name: str) -> list[Command]:
    """All commands of a page, in order. Raises AssertionError for a mark that fits none."""
    found = []
    for first, language, lines, marks in blocks(path.read_text(encoding="utf-8")):
        if language not in SHELL:
            assert not marks, f"{name} line {first}: a mark before a block without commands"
            continue
        here = [c for n, text in _joined(lines, first, language) for c in _parse(name, n, text)]
        used = set()
        for command in here:
            why = [(m, m["why"]) for m in marks if _fits(m, command)]
            used.update(m.start() for m, _ in why) if why else None
            found.append(Command(name, command.line, command.words, command.stdin,
                                 why[0][1] if why else ""))  # fmt: skip
        for mark in marks:
            for prefix in (mark["which"] or "").split("; ") if mark["which"] else [""]:
                fits = any(" ".join(c.words).startswith(prefix) for c in here)
                assert fits, f"{name} line {first}: no command begins with {prefix!r}"
    return found


def _fits(mark: re.Match[str], command: Command) -> bool:
    if not mark["which"]:
        return True
    return any(" ".join(command.words).startswith(one) for one in mark["which"].split("; "))


def _joined(lines: list[str], first: int, language: str) -> Iterator[tuple[int, str]]:
    """Lines that the shell would see: continued ones in one; of a console, those after `$`."""
    kept = ""
    begin = first
    for number, line in enumerate(lines, first):
        if language == "console" and not kept:
            if not line.startswith("$ "):
                continue
            line = line[2:]
        begin = begin if kept else number
        if line.endswith("\\"):
            kept += line[:-1]
            continue
        yield begin, kept + line
        kept = ""


def _parse(page: str, line: int, text: str) -> Iterator[Command]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    stdin = ""
    tokens = iter(lexer)
    for token in tokens:
        if token in ("&&", "|", ";"):
            yield Command(page, line, tuple(words), stdin)
            words, stdin = [], ""
        elif token == "<":
            stdin = next(tokens)
        else:
            words.append(token)
    if words:
        yield Command(page, line, tuple(words), stdin)
