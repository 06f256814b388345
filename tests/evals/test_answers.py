"""Shapes of answers to HumanEval: which program is in each, and whether it passes.

The verdicts are those of a person who copies the program out of the answer and runs it.
"""

import ast
import time
import warnings

import pytest

from jaxchat.evals.answers import program_of, split
from jaxchat.evals.humaneval import grade
from jaxchat.tasks.base import say
from jaxchat.tasks.humaneval import CodeProblem
from jaxchat.tools import levels

needs_sandbox = pytest.mark.skipif(
    levels.detect().name == "none", reason=f"no sandbox here:\n{levels.describe()}"
)

PROMPT = '''from typing import List


def shift(number: int) -> int:
    """One more."""
    return number + 1


def shifted(numbers: List[int]) -> List[int]:
    """Every number, shifted.

    >>> shifted([1, 2])
    [2, 3]
    """
'''
BODY = """    result = []
    for number in numbers:
        result.append(number + 1)
    return result
"""
PROBLEM = CodeProblem(
    "humaneval",
    "test/shifted",
    say(PROMPT, f"{PROMPT}\n{BODY}"),
    BODY,
    entry_point="shifted",
    test="""
def check(candidate):
    assert candidate([]) == []
    assert candidate([1, 2, -1]) == [2, 3, 0]
    assert shift(1) == 2
""",
)
CODE = f"def shifted(numbers):\n{BODY}"
WRONG = "def shifted(numbers):\n    return numbers\n"
HELPER = "def more(number):\n    return number + 1\n"
CALLER = "def shifted(numbers):\n    return [more(number) for number in numbers]\n"
REPL = "\n".join(
    f"{'...' if i else '>>>'} {line}" for i, line in enumerate(CODE.rstrip().split("\n"))
)


def fence(code: str, info: str = "python", marks: str = "```") -> str:
    return f"{marks}{info}\n{code.rstrip()}\n{marks}"


def indented(text: str, by: str = "   ") -> str:
    return "\n".join(by + line if line else line for line in text.split("\n"))


MAIN = "\nif __name__ == '__main__':\n    print(input())\n"

PASS = {
    # info words
    "python": fence(CODE),
    "no info word": fence(CODE, ""),
    "Python": fence(CODE, "Python"),
    "PYTHON": fence(CODE, "PYTHON"),
    "python3": fence(CODE, "python3"),
    "py": fence(CODE, "py"),
    "a space before the word": fence(CODE, " python"),
    "attributes": fence(CODE, ' python title="shifted.py"'),
    "braces": fence(CODE, "{.python}"),
    "a space behind the word": fence(CODE, "python "),
    "another language's word": fence(CODE, "java"),
    # fences
    "tildes": fence(CODE, marks="~~~"),
    "four marks": fence(CODE, marks="````"),
    "five tildes": fence(CODE, "", marks="~~~~~"),
    "a longer closing fence": f"```python\n{CODE}``````",
    "a closing fence on the last line": f"```python\n{CODE.rstrip()}```",
    "a closing fence with spaces": f"```python\n{CODE}  ```  \nDone.",
    "never closed": f"```python\n{CODE}",
    "never closed, then prose": f"```python\n{CODE}\nThis adds one to every number.",
    "never closed, then cut off": f"```python\n{CODE}\nprint(shifted([1,",
    "opened behind words": f"Here it is: ```python\n{CODE}```",
    "in an item of a list": f"1. The function:\n\n{indented(fence(CODE))}\n\n2. Done.",
    "behind an item's number": f"1. {fence(CODE).replace(chr(10), chr(10) + '   ')}",
    "indented by tabs": indented(fence(CODE), "\t"),
    "in a quotation": indented(fence(CODE), "> "),
    "Markdown in four marks": fence(f"# Answer\n\n{fence(CODE)}\n", "markdown", "````"),
    "marks inside one line": f"Use ```shift``` or not:\n{fence(CODE)}",
    # line ends and odd characters
    "CRLF": fence(CODE).replace("\n", "\r\n"),
    "CRLF without fences": CODE.replace("\n", "\r\n"),
    "CR": fence(CODE).replace("\n", "\r"),
    "a byte order mark": f"\ufeff{CODE}",
    "a byte order mark in the fence": f"```python\n\ufeff{CODE}```",
    "non-breaking spaces in prose": f"The\u00a0answer:\u00a0\n{fence(CODE)}\n\u00a0Done.",
    "tabs": fence(CODE.replace("    ", "\t")),
    "an invalid escape": fence(f'{CODE}\nPATTERN = "\\d"\n'),
    # more than one block
    "first a command": f"{fence('pip install numpy', 'bash')}\n{fence(CODE)}",
    "first JSON": f"{fence('{}', 'json')}\n{fence(CODE)}",
    "first an example": f"{fence('shifted([1, 2])  # [2, 3]')}\n{fence(CODE)}",
    "first a session": f"{fence('>>> shifted([1])' + chr(10) + '[2]')}\n{fence(CODE)}",
    "first the prompt": f"You asked:\n{fence(PROMPT)}\nSo:\n{fence(CODE)}",
    "first a block that is no Python": f"{fence('def shifted(numbers): ...[')}\n{fence(CODE)}",
    "then output": f"{fence(CODE)}\nIt prints\n{fence('[2, 3]', '')}",
    "then an example that reads": f"{fence(CODE)}\n{fence('shifted(input())')}",
    "then a wrong one": f"{fence(CODE)}\nNot:\n{fence(WRONG)}",
    "a helper before": f"{fence(HELPER)}\nand\n{fence(CALLER)}",
    "a helper behind": f"{fence(CALLER)}\nwith\n{fence(HELPER)}",
    "imports in a block": f"{fence('import math as maths')}\n"
    + fence("def shifted(numbers):\n    return [maths.floor(n) + 1 for n in numbers]"),
    "a session's function": fence(REPL, "pycon"),
    # no fences
    "code alone": CODE,
    "prose before": f"Sure! This is it.\n\n{CODE}",
    "prose behind": f"{CODE}\nThis adds one to every number.",
    "prose around": f"Sure, from the list we go on:\n\n{CODE}\nNote: this works.\nDone",
    "an indented block of Markdown": f"The function:\n\n{indented(CODE, '    ')}\nDone.",
    "behind a helper": f"Two functions.\n{HELPER}\n\n{CALLER}\nThe end.",
    "output between fences": f"{CODE}\nOutput:\n{fence('[2, 3]', '')}",
    "cut off in an example": f"{CODE}\nprint(shifted([1,",
    # the prompt and the rest of the function
    "the prompt and the rest": PROMPT + BODY,
    "the prompt and the rest in a fence": fence(PROMPT + BODY),
    "the rest alone": BODY,
    "the rest in a fence": fence(BODY),
    "the rest without its first indentation": BODY.strip(),
    "the rest without indentation": "return [number + 1 for number in numbers]",
    "the rest in a fence without indentation": fence("x = 1\nreturn [n + x for n in numbers]"),
    "the rest behind prose": f"The rest is:\n{BODY}\nDone.",
    "the rest, then prose": f"{BODY}\nThis adds one.",
    "the rest behind the prompt in a fence": f"{fence(PROMPT)}\n{fence(BODY)}",
    "without the prompt's helper": fence(
        "def shifted(numbers):\n    return list(map(shift, numbers))"
    ),
    # programs
    "a main block": fence(CODE + MAIN),
    "a main block without fences": CODE + MAIN,
    "examples that run": fence(f"{CODE}\nprint(shifted([1]))\nassert shifted([1]) == [2]"),
    "doctests": fence(PROMPT + BODY + "\nimport doctest\ndoctest.testmod()\n"),
    "from __future__": fence(f"from __future__ import annotations\n{CODE}"),
    "a lambda": fence("shifted = lambda numbers: [number + 1 for number in numbers]"),
    "a dataclass": fence(
        "from dataclasses import dataclass\n\n@dataclass\nclass N:\n    x: 'int'\n\n"
        "def shifted(numbers):\n    return [N(n).x + 1 for n in numbers]"
    ),
    "fences in its docstring": f"````python\nX = '''\n```\nshifted([1])\n```\n'''\n{CODE}````",
}

FAIL = {
    "wrong": fence(WRONG),
    "wrong, with right prose": f"Add one to every number:\n{fence(WRONG)}\nIt returns [2, 3].",
    "wrong first": f"{fence(WRONG)}\nor better\n{fence(CODE)}",
    "prints ok": fence("print('ok')"),
    "the rest prints ok": "    print('ok')",
    "sys.exit(0)": fence("import sys\nsys.exit(0)"),
    "the rest is sys.exit(0)": "    import sys\n    sys.exit(0)",
    "exit in the function": fence("def shifted(numbers):\n    raise SystemExit(0)"),
    "only imports": fence("import math\nfrom typing import List"),
    "only the prompt": PROMPT,
    "only the prompt in a fence": fence(PROMPT),
    "only the head": "def shifted(numbers):",
    "an empty block": "```python\n```",
    "nothing": "",
    "spaces": " \n\t\n",
    "one word": "shifted",
    "prose": "Add one to every number and return the list.",
    "only the output": fence("[2, 3, 0]", ""),
    "another function": fence(CODE.replace("shifted", "moved")),
    "a method": fence("class Solution:\n" + indented(CODE, "    ")),
    "no Python in a closed block": fence(f"{CODE}\nprint(shifted("),
    "cut off in the function": fence(CODE).rpartition("result.append")[0],
    "defined under main": fence("if __name__ == '__main__':\n" + indented(CODE, "    ")),
    "JavaScript": fence("function shifted(x) { return x.map(y => y + 1); }", "js"),
    "non-breaking spaces in code": fence(CODE.replace("    ", "\u00a0\u00a0\u00a0\u00a0")),
    "an assertion of its own that fails": fence(f"{CODE}\nassert shifted([1]) == [3]"),
}


@needs_sandbox
@pytest.mark.parametrize("shape", PASS)
def test_a_right_program_passes_in_any_shape(shape: str) -> None:
    verdict = grade(PROBLEM, PASS[shape])
    assert verdict.passed, f"{verdict.reason}\n{program(PASS[shape])}"


@needs_sandbox
@pytest.mark.parametrize("shape", FAIL)
def test_a_wrong_program_fails_in_any_shape(shape: str) -> None:
    verdict = grade(PROBLEM, FAIL[shape])
    assert not verdict.passed, program(FAIL[shape])
    assert verdict.reason


def program(answer: str) -> str:
    return program_of(answer, PROMPT, "shifted")


HEAD = PROMPT.partition("def shifted")[0].strip()


@pytest.mark.parametrize("shape", PASS)
def test_the_program_parses_and_has_the_function(shape: str) -> None:
    text = program(PASS[shape])
    assert text.startswith((HEAD, "from __future__"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the answer with an invalid escape
        names = [getattr(one, "name", "") for one in ast.parse(text).body]
    assert "shifted" in names or shape == "a lambda", text
    assert not {"\r", "\ufeff"} & set(text)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (fence(CODE), CODE),
        (f"Well:\n{CODE}\nprint(shifted([1]))\nDone it is.", f"{CODE}\nprint(shifted([1]))"),
        (f"{fence(CALLER)}\nwith\n{fence(HELPER)}", f"{HELPER.strip()}\n\n{CALLER}"),
        ("return numbers", f"{PROMPT.removeprefix(HEAD)}    return numbers"),
        (fence("1 +"), "1 +"),
        ("I do not know.", "I do not know."),
    ],
)
def test_what_is_run(answer: str, expected: str) -> None:
    assert program(answer) == f"{HEAD}\n\n{expected.strip()}\n"


def test_a_prompt_whose_function_imports() -> None:
    prompt = 'def shifted(numbers):\n    import math\n    """Every number, shifted."""\n'
    for rest in ("return []", "x = []\nreturn x", f"{fence(prompt)}\n{fence('return []')}"):
        (function,) = ast.parse(program_of(rest, prompt, "shifted")).body
        assert isinstance(function, ast.FunctionDef)
        assert isinstance(function.body[-1], ast.Return)


def test_blocks_and_what_stands_outside() -> None:
    text = "a\n```py\nx\n```\nb ~~~ c\n~~~\ny\n```\n~~~\nd\n```z"
    blocks, outside = split(text)
    assert [(block.code, block.closed) for block in blocks] == [
        ("x", True), ("y\n```", True), ("", False), ("", False)
    ]  # fmt: skip
    assert outside == "a\nb ~~~ c\nd"


def test_odd_answers_raise_and_warn_nothing_and_end_soon() -> None:
    odd = [
        "`" * 5000, "~~~\n" * 5000, "import a\n" * 5000, "(" * 90_000, "-" * 90_000 + "1",
        "def shifted(n):\n" * 5000, "if a:\n pass\n" + "elif a:\n pass\n" * 1500, "x" + ".a" * 9000,
        "~" * 20_000 + "`", "```" + " " * 20_000 + "!", "> ```\n" + "\n" * 20_000,
        "~~~ " * 5000 + "`", " " * 20_000, "x" * 20_000, "a:" * 9000, "> " * 9000, "\0",
        "```python\n\0", 'x = "\\d"', "\ud800",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for answer in odd:
            begun = time.process_time()
            assert isinstance(program(answer), str)
            taken = time.process_time() - begun
            assert taken < 20, f"{taken:.0f} s for {answer[:20]!r}..."
