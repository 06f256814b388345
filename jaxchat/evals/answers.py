"""Finds the program in a model's answer. Text only: nothing of it is run here.

A model answers in Markdown, in plain code, or with the rest of the function alone, and says things
around it. An answer is read as a person would who copies the program out of it: what wraps the
code is taken off, the code itself is never mended. Chosen is, in this order:

    1  the first block between fences that parses and defines the function
    2  code without fences, or behind a fence never closed: as many whole statements as parse
    3  the same on one line between backticks
    4  the rest of the function: the prompt is put before it
    5  the first block as it is, or all of the answer, to fail by its own error

Before it stand definitions from the rest of the answer of names that it uses and lacks; nothing
else is run, so that an example or a test behind a right function cannot make it fail.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

_MOST = 20_000  # characters that are read; 512 tokens are about 2,000
_MOST_STARTS = 50  # places where code may begin in prose
# CommonMark's fences, and behind any text of a line, where models put them too; before it may
# stand the marks of a quotation or of an item of a list. Possessive: no answer takes forever.
_FENCE = re.compile(r"(?P<lead>[^`]*?)(?P<fence>`{3,}+|~{3,}+)(?P<info>[^`]*+)")
_INFO_INSIDE = re.compile(r"\s*+\{?[\w.+#-]*+\}?\s*+")  # behind text, so that prose opens no block
_LEAD = re.compile(r"[\s>]*(?:(?:[-*+]|\d+[.)])\s+)?")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:(?:python3?|py)\b)?([^`\n]+)\1(?!`)")
_START = re.compile(r"\s*(?:def|class|async|import|from|@|[A-Za-z_]\w*\s*(?::[^=]*)?=)")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """The code between fences; `closed` is False where the answer ends before the block."""

    code: str
    closed: bool = True


def program_of(answer: str, prompt: str, entry_point: str) -> str:
    """The program of an answer, with what the prompt defines before the function.

    Args:
        answer: what the model said.
        prompt: a program up to the head of the function `entry_point`, with its docstring.
        entry_point: the function that is asked for.

    Always gives a program: for an answer without one, a program that fails.
    """
    text = answer.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")[:_MOST]
    blocks, outside = split(text)
    head = _head(prompt, entry_point)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the model's strings
        try:
            code = _code(blocks, outside, prompt, entry_point)
            program = code and _helpers(code, head, blocks, outside) + code
        except RecursionError:  # nothing that a person would call a program is nested so deep
            program = None
    first = next((block.code for block in blocks if block.code.strip()), text)
    return _behind(head, program or textwrap.dedent(first))


def _code(blocks: Sequence[Block], outside: str, prompt: str, entry_point: str) -> str | None:
    """The code of an answer, by steps 1 to 4 of this module's order."""

    def wanted(tree: ast.Module) -> bool:
        return _implements(tree, entry_point)

    def whole(codes: Iterable[str]) -> str | None:
        return next((code for code in codes if (tree := _parse(code)) and wanted(tree)), None)

    plain = [*(block.code for block in blocks if not block.closed), outside]
    return (
        whole(block.code for block in blocks)
        or next(filter(None, (_in_prose(piece, wanted) for piece in plain)), None)
        or whole(span[2].strip() for span in _SPAN.finditer(outside))
        or _continued(blocks, outside, prompt, entry_point)
    )


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
        elif match and _closes(match, opened, lines):
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


def _closes(fence: re.Match[str], opened: re.Match[str], lines: Sequence[str]) -> bool:
    """Whether a fence ends the open block; one with an info word does, and begins another.

    Further in than the block it may be the code's own, in a docstring or a comment: there it ends
    the block only where the code before it is whole and does not continue with it.
    """
    if not fence["fence"].startswith(opened["fence"]):
        return False
    if fence["info"].strip() and not _LEAD.fullmatch(fence["lead"]):
        return False
    if len(fence["lead"]) <= len(opened["lead"]):
        return True

    def parses(last: str) -> bool:
        return _parse(_block([*lines, last], opened, closed=True).code) is not None

    return parses(fence["lead"]) and not parses(fence.string)


def _block(lines: Sequence[str], opened: re.Match[str], *, closed: bool) -> Block:
    code = "\n".join(lines)
    if _LEAD.fullmatch(opened["lead"]):
        depth = opened["lead"].count(">")
        code = re.sub(rf"^(?:[ \t]*> ?){{,{depth}}}", "", code, flags=re.MULTILINE)
    code = "\n".join(line.removeprefix(_indent(opened["lead"])) for line in code.split("\n"))
    return Block(_without_prompts(textwrap.dedent(code)).strip(), closed)


def _without_prompts(code: str) -> str:
    """The input of an interpreter session; other code as it is."""
    if not code.lstrip().startswith(">>> def "):
        return code
    typed = [line for line in code.split("\n") if line.startswith((">>>", "..."))]
    return "\n".join(line[4:] for line in typed)


def _helpers(code: str, head: str, blocks: Sequence[Block], outside: str) -> str:
    """Definitions of the names that code uses and neither it nor the head binds.

    Of two definitions of a name the last before the code is taken, else the first behind it.
    """
    program = re.split(r"^if __name__\b", _behind(head, code), flags=re.MULTILINE)[0]  # as it runs
    if not _missing(program):
        return ""
    prose = _in_prose(outside, lambda tree: any(map(_is_named, tree.body)))
    sources = [prose or "", *(block.code for block in blocks)]
    place = sources.index(code) if code in sources else len(sources)
    own = _bound(ast.parse(program))
    definitions = {
        name: lines
        for source in (*reversed(sources[place + 1 :]), *sources[:place])  # the last one counts
        for one, lines in _statements(source)
        if _defines(one, lines, own)
        for name in _bound(one) - own
    }
    return "".join(f"{one}\n\n" for one in dict.fromkeys(_needed(program, definitions)))


def _statements(code: str) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a program, each with its lines; none where it does not parse."""
    tree, lines = _parse(code), code.split("\n")
    for one in tree.body if tree else []:
        first = min(node.lineno for node in (one, *getattr(one, "decorator_list", [])))
        yield one, "\n".join(lines[first - 1 : one.end_lineno])


def _needed(program: str, definitions: dict[str, str]) -> Iterator[str]:
    """The definitions that a program needs, behind those that they need; takes them out."""
    for name in sorted(_missing(program)):
        if (helper := definitions.pop(name, None)) is not None:
            yield from _needed(helper, definitions)
            yield helper


def _missing(program: str) -> set[str]:
    """The names that a program takes from its module and that are not defined there."""
    try:
        module = symtable.symtable(program, "", "exec")
    except (SyntaxError, ValueError):  # of those that parsing alone does not find
        return set()
    tables = [module]
    for table in tables:  # grows
        tables += table.get_children()
    names = [one for table in tables for one in table.get_symbols() if one.is_global()]
    bound = {one.get_name() for one in names if one.is_assigned() or one.is_imported()}
    return {one.get_name() for one in names if one.is_referenced()} - bound - set(dir(builtins))


def _in_prose(text: str, wanted: Callable[[ast.Module], bool]) -> str | None:
    """Code that is wanted and has prose before or behind it, or was cut off."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if i == 0 or _START.match(line)]
    for start in starts[:_MOST_STARTS]:
        code = _longest(_from(lines, start), wanted)
        if code is not None:
            return code
    return None


def _continued(blocks: Sequence[Block], outside: str, prompt: str, entry_point: str) -> str | None:
    """The prompt with the rest of its function, which is all that the answer has."""
    head = prompt.removeprefix(_head(prompt, entry_point)).rstrip()
    indent = _indent(head.rpartition("\n")[2]) or "    "
    pieces = (*(block.code for block in blocks), outside)
    for piece in [one for one in pieces if f"def {entry_point}" not in one and "return" in one]:
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
        if tree and not any(map(_is_prose, tree.body)) and wanted(tree):
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
    return name in _bound(tree) and (not functions or not all(map(_is_stub, functions)))


def _is_stub(function: ast.stmt) -> bool:
    body: list[ast.stmt] = getattr(function, "body", [])
    return all(
        isinstance(one, ast.Pass | ast.Import | ast.ImportFrom)  # HumanEval/115 imports there
        or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in body
    )


def _bound(node: ast.AST) -> set[str]:
    """The names that code of a module defines, assigns or imports, inside its statements too."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.alias):
        return {node.asname or node.name.partition(".")[0]}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    return set[str]().union(*map(_bound, ast.iter_child_nodes(node)))


def _defines(statement: ast.stmt, code: str, known: Set[str]) -> bool:
    """Whether a statement gives names a meaning and cannot fail at it: no call, no unknown name."""
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        calls = any(isinstance(node, ast.Call) for node in ast.walk(statement))
        constant = not calls and _missing(code) <= known
        return constant or isinstance(statement.value, ast.Lambda)
    return isinstance(statement, ast.Import | ast.ImportFrom) or _is_named(statement)


def _is_named(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _head(prompt: str, entry_point: str) -> str:
    """The prompt before the function that it asks for: imports, other functions."""
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
