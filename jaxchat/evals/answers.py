"""Where in an answer is the program? Text only: nothing of it is run here (layer 3).

A model answers in Markdown, in plain code, or with the rest of the function alone, and says things
around it. An answer is read as a person would who copies the program out of it: what wraps the
code is taken off, the code itself is never mended. Chosen is, in this order:

    1  the first block between fences that parses and defines the function, with blocks of nothing
       but definitions that it may call
    2  code without fences, or behind a fence never closed: as many whole statements as parse
    3  the rest of the function: the prompt is put before it
    4  the first block as it is, or all of the answer, to fail by its own error
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_MOST = 20_000  # characters that are read; 512 tokens are about 2,000
_MOST_STARTS = 50  # places where code may begin in prose
# CommonMark's fences, and behind any text of a line, where models put them too; before it may
# stand the marks of a quotation or of an item of a list. Possessive: no answer takes forever.
_FENCE = re.compile(r"(?P<lead>[^`]*?)(?P<fence>`{3,}+|~{3,}+)(?P<info>[^`]*+)")
_INFO_INSIDE = re.compile(r"\s*+\{?[\w.+#-]*+\}?\s*+")  # behind text, so that prose opens no block
_LEAD = re.compile(r"[\s>]*(?:(?:[-*+]|\d+[.)])\s+)?")
_QUOTE = re.compile(r"^[ \t]*>[ ]?", re.MULTILINE)
_START = re.compile(r"\s*(?:def|class|async|import|from|@|[A-Za-z_]\w*\s*(?::[^=]*)?=)")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign,
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """What stands between fences; `closed` is False where the answer ends before the block."""

    code: str
    closed: bool = True


def program_of(answer: str, prompt: str, entry_point: str) -> str:
    """The program of an answer, with what the prompt defines before the function.

    Args:
        answer: what the model said.
        prompt: a program up to the head of the function `entry_point`, with its docstring.
        entry_point: the function that is asked for.

    Always gives a program: of an answer that has none, one that will fail.
    """
    text = answer.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")[:_MOST]
    blocks, outside = split(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the model's strings
        try:
            program = (
                _whole(blocks, entry_point)
                or _in_prose(blocks, outside, entry_point)
                or _continued(blocks, outside, prompt, entry_point)
            )
        except RecursionError:  # nothing that a person would call a program is nested so deep
            program = None
    first = next((block.code for block in blocks if block.code.strip()), text)
    return _behind(_head(prompt, entry_point), program or textwrap.dedent(first))


def split(text: str) -> tuple[list[Block], str]:
    """The blocks of a text in order, those inside a block (of Markdown) behind it; and the rest."""
    blocks: list[Block] = []
    outside: list[str] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        if opened is None:
            if match and _opens(match):
                opened, lines = match, []
            else:
                outside.append(line)
        elif match and _closes(match, opened):
            lines.append(match["lead"])  # code, if the fence ends its last line
            blocks.append(_block(lines, opened, closed=True))
            opened, lines = (match if match["info"].strip() else None), []
        else:
            lines.append(line)
    if opened is not None:
        blocks.append(_block(lines, opened, closed=False))
    return [one for block in blocks for one in (block, *_inner(block))], "\n".join(outside)


def _inner(block: Block) -> list[Block]:
    return split(block.code)[0] if "```" in block.code or "~~~" in block.code else []


def _opens(fence: re.Match[str]) -> bool:
    alone = _LEAD.fullmatch(fence["lead"])
    return bool(alone or (fence["fence"][0] == "`" and _INFO_INSIDE.fullmatch(fence["info"])))


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether a fence ends the open block; one with an info word does, and begins another."""
    longer = fence["fence"].startswith(opened["fence"])
    return longer and bool(_LEAD.fullmatch(fence["lead"]) or not fence["info"].strip())


def _block(lines: Sequence[str], opened: re.Match[str], *, closed: bool) -> Block:
    code = "\n".join(lines)
    if ">" in opened["lead"] and _LEAD.fullmatch(opened["lead"]):
        code = _QUOTE.sub("", code)
    indent = re.match(r"\s*", opened["lead"])
    assert indent is not None
    code = "\n".join(line.removeprefix(indent[0]) for line in code.split("\n"))
    return Block(_without_prompts(textwrap.dedent(code)).strip("\n"), closed)


def _without_prompts(code: str) -> str:
    """What was typed in a session of the interpreter; other code as it is."""
    if not code.lstrip().startswith(">>> def "):
        return code
    typed = [line for line in code.split("\n") if line.startswith((">>>", "..."))]
    return "\n".join(line[4:] for line in typed)


def _whole(blocks: Sequence[Block], entry_point: str) -> str | None:
    """The first block that is a program with the function, behind its helpers."""
    trees = [_parse(block.code) for block in blocks]
    places = [i for i, tree in enumerate(trees) if tree and _implements(tree, entry_point)]
    if not places:
        return None
    chosen = places[0]
    names = _bound(_body(trees[chosen]))
    helpers = [
        block.code
        for block, tree in zip(blocks, trees, strict=True)
        if tree and _only_defines(tree) and not names & _bound(tree.body)
    ]
    return "\n\n".join([*dict.fromkeys(helpers), blocks[chosen].code])


def _in_prose(blocks: Sequence[Block], outside: str, entry_point: str) -> str | None:
    """Code that has prose before or behind it, or was cut off."""
    for piece in (*(block.code for block in blocks if not block.closed), outside):
        lines = piece.split("\n")
        starts = [i for i, line in enumerate(lines) if _START.match(line)]
        for start in starts[:_MOST_STARTS]:
            code = _longest(_from(lines, start), lambda tree: _implements(tree, entry_point))
            if code is not None:
                return code
    return None


def _continued(blocks: Sequence[Block], outside: str, prompt: str, entry_point: str) -> str | None:
    """The prompt with the rest of its function, which is all that the answer has."""
    head = prompt.removeprefix(_head(prompt, entry_point)).rstrip()
    indent = _indent(head.rpartition("\n")[2]) or "    "
    pieces = (*(block.code for block in blocks), outside)
    for piece in [piece for piece in pieces if f"def {entry_point}" not in piece]:
        for body in _bodies(piece, indent):
            code = _longest(body, lambda tree: _implements(tree, entry_point), before=f"{head}\n")
            if code is not None:
                return code
    return None


def _bodies(piece: str, indent: str) -> Iterator[list[str]]:
    """The lines of a text as the rest of a function, by every way to indent them."""
    lines = piece.strip("\n").split("\n")
    yield lines
    yield [indent + line for line in lines]
    # an answer is often stripped, which takes the indentation of its first line alone
    yield [indent + lines[0].lstrip(), *lines[1:]]
    first = next((i for i, line in enumerate(lines) if line.strip() and _indent(line)), None)
    if first is not None:
        yield [indent + line for line in _from(lines, first)]


def _from(lines: Sequence[str], start: int) -> list[str]:
    """The lines from one on while they are indented like it, without that indentation."""
    indent = _indent(lines[start])
    taken = []
    for line in lines[start:]:
        if line.strip() and not line.startswith(indent):
            break
        taken.append(line.removeprefix(indent))
    return taken


def _longest(
    lines: Sequence[str], wanted: Callable[[ast.Module], bool], *, before: str = ""
) -> str | None:
    """The most of the lines, in whole statements, that make a program that is wanted."""
    ends = [i for i, line in enumerate(lines) if i and line.strip() and not _indent(line)]
    for end in [len(lines), *reversed(ends[: 2 * _MOST_STARTS])]:
        code = before + "\n".join(lines[:end]).rstrip()
        tree = _parse(code)
        if tree and wanted(tree) and not any(map(_is_prose, tree.body)):
            return code
    return None


def _is_prose(statement: ast.stmt) -> bool:
    """Whether a statement is words that happen to parse: "Done", "Note: this"."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Call | ast.Constant)
    return isinstance(statement, ast.AnnAssign) and statement.value is None


def _implements(tree: ast.Module, name: str) -> bool:
    """Whether a program gives the name a value that is more than the head of a function."""
    functions = [one for one in tree.body if getattr(one, "name", "") == name]
    return name in _bound(tree.body) and (not functions or not all(map(_is_stub, functions)))


def _is_stub(function: ast.stmt) -> bool:
    body: list[ast.stmt] = getattr(function, "body", [])
    return all(
        isinstance(one, ast.Pass | ast.Import | ast.ImportFrom)  # HumanEval/115 imports there
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in body
    )


def _bound(body: Sequence[ast.stmt]) -> set[str]:
    """The names that statements of a module define, assign or import, inside `if` and `try` too."""
    names: set[str] = set()
    for one in body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(one.name)
        elif isinstance(one, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in one.names)
        elif isinstance(one, ast.Assign | ast.AnnAssign):
            targets = one.targets if isinstance(one, ast.Assign) else [one.target]
            names.update(
                node.id for target in targets for node in ast.walk(target)
                if isinstance(node, ast.Name)
            )  # fmt: skip
        else:
            for part in ("body", "orelse", "finalbody"):
                names |= _bound(getattr(one, part, []))
    return names


def _only_defines(tree: ast.Module) -> bool:
    return bool(tree.body) and all(isinstance(one, _DEFINITIONS) for one in tree.body)


def _body(tree: ast.Module | None) -> list[ast.stmt]:
    return tree.body if tree else []


def _head(prompt: str, entry_point: str) -> str:
    """What a prompt defines before the function that it asks for: imports, other functions."""
    return re.split(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, flags=re.MULTILINE)[0]


def _behind(head: str, program: str) -> str:
    """A program behind another's head, with what must be a program's first lines as such."""
    future = "".join(_FUTURE.findall(program))
    return f"{future}{head.strip()}\n\n{_FUTURE.sub('', program)}".strip("\n") + "\n"


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _parse(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
