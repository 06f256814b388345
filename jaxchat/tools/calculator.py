"""A calculator for a model's tool calls: bounded arithmetic, and counting in a string.

The text comes from a model, so it is hostile until shown otherwise. It passes three gates: a
lexer that knows only the words below, a syntax tree of few nodes, and an evaluator that refuses a
large result before computing it. Nothing is compiled or executed.

    number       12   2.5   1e3   1,000
    operator     +  -  *  /  //  %  **  ( )   and for three of them  −  ×  x  ÷
    text         "s-t-r-a-w".count("r")   len("straw")
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARS = 1_000  # of an expression
MAX_TOKENS = 200  # of an expression; bounds the depth of its tree too
MAX_DIGITS = 100  # of any integer, given or computed
MAX_ERROR_CHARS = 80  # of what `run_tool` writes into the conversation

_MAX_INT = 10**MAX_DIGITS
_MAX_BITS = _MAX_INT.bit_length()

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<string>"[^"\\\r\n\0]*"|'[^'\\\r\n\0]*')
      | (?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?
                 | \.\d+(?:[eE][+-]?\d+)?)
      | (?P<operator>\*\*|//|[-+*/%()])
      | (?P<sign>[−×÷]|(?<!(?<![\d.])0)x(?=[ \t]*[\d.(]))  # neither 0x10 nor 3x + 1
      | (?P<word>\.[ \t]*count\b|len\b)""",
    re.VERBOSE | re.ASCII,
)
# Signs as people write them. Blanks keep two of them from becoming another operator: ×× is not **.
_SIGNS = {"−": " - ", "×": " * ", "x": " * ", "÷": " / "}

Number = int | float


class CalculatorError(ValueError):
    """An expression the calculator refuses; the message says why."""


def calculate(expression: str) -> str:
    """The value of `expression`, as short text: "888", "2.5", "0.333333".

    A division that comes out whole prints as an integer, exactly whatever its size; other
    results are rounded to six decimals (or six digits, when very large or very small).

    Raises CalculatorError for anything but the arithmetic named in the module's docstring, and
    for arithmetic whose operands or result are too large.
    """
    if not isinstance(expression, str):
        raise CalculatorError(f"an expression must be text, not {type(expression).__name__}")
    if len(expression) > MAX_CHARS:
        raise CalculatorError(f"too long: {len(expression)} characters, at most {MAX_CHARS}")
    source = _lex(expression.strip())
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError("not an expression the calculator can read") from None
    try:
        value = _number(tree.body)
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("the result is too large") from None
    return _format(value)


def run_tool(expression: str) -> str:
    """`calculate`, for the engine: a refusal comes back as the text "error: ...", never raised."""
    try:
        return calculate(expression)
    except (CalculatorError, RecursionError) as error:
        return f"error: {error}"[:MAX_ERROR_CHARS]


def _lex(expression: str) -> str:
    """The same expression as plain Python source: thousands commas gone, other words refused."""
    pieces: list[str] = []
    tokens = 0
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise CalculatorError(f"cannot read {expression[position : position + 12]!r}")
        text = match.group()
        if match.lastgroup == "number":
            text = text.replace(",", "")
        pieces.append(_SIGNS.get(text, text))
        tokens += match.lastgroup != "space"
        position = match.end()
    if not tokens:
        raise CalculatorError("the expression is empty")
    if tokens > MAX_TOKENS:
        raise CalculatorError(f"too long: {tokens} numbers and signs, at most {MAX_TOKENS}")
    return "".join(pieces).strip()


def _number(node: ast.expr) -> Number:
    """The number that a tree stands for."""
    match node:
        case ast.Constant(value=value):
            # bool is an int to Python, so the exact type decides
            if type(value) is not int and type(value) is not float:
                raise CalculatorError("text is not a number; only .count() and len() take text")
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_number(left), _number(right)))
        case ast.Call(func=ast.Attribute(value=text, attr="count"), args=[part], keywords=[]):
            return _string(text).count(_string(part))
        case ast.Call(func=ast.Name(id="len"), args=[text], keywords=[]):
            return len(_string(text))
    raise CalculatorError("only numbers, + - * / // % **, .count() and len() are allowed")


def _string(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
    raise CalculatorError(".count() and len() take text between quotes")


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if abs(value) >= _MAX_INT:
            raise CalculatorError(f"a number has over {MAX_DIGITS} digits")
    elif not isinstance(value, float):  # (-8) ** 0.5
        raise CalculatorError("the result is not a real number")
    elif not math.isfinite(value):
        raise CalculatorError("the result is too large")
    return value


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b  # exact where a float would round
    return a / b


def _power(a: Number, b: Number) -> Number:
    # |a| is 2 ** (its bits - 1) or more, which bounds the power from below before it is computed
    if isinstance(a, int) and isinstance(b, int) and (max(a.bit_length(), 1) - 1) * b > _MAX_BITS:
        raise CalculatorError(f"a number has over {MAX_DIGITS} digits")
    result: Number = a**b
    return result


_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _format(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e15:
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return f"{value:.6g}"
