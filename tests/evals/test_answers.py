"""Shapes of answers to HumanEval: which program is in each, and whether it passes.

The verdicts are those of a person who copies the program out of the answer and runs it.
"""

import ast
import time
import warnings

import pytest

from jaxchat.evals.answers import program_of, split
from jaxchat.evals.humaneval import grade_many
from jaxchat.tasks.base import say
from jaxchat.tasks.humaneval import CodeProblem
from jaxchat.tools.sandbox import levels

needs_sandbox = pytest.mark.skipif(
    levels.detect().name == "none", reason=f"no sandbox here:\n{levels.detect()}"
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


ONE_LINE = "def shifted(numbers): return [number + 1 for number in numbers]"
IN_DOCSTRING = CODE.replace(
    BODY,
    f'''    """Every number, shifted.

    Example:
    ```python
    shifted([1, 2])
    ```
    or
    ```
    shifted([])
    ```
    """
{BODY}''',
)
IN_COMMENT = CODE.replace("    return", "    # ```\n    # shifted([1])\n    # ```\n    return")
LIMITED = "LIMIT = 10**9\nSTEP = 1\n"
STEPPED = "def more(number):\n    return min(number, LIMIT) + STEP\n"


def then(code: str) -> str:
    return f"{fence(CODE)}\n\nHow to use it:\n{fence(code)}\n"


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
    "fences in its own docstring": fence(IN_DOCSTRING),
    "fences in its own docstring, in an item": "1. So:\n\n" + indented(fence(IN_DOCSTRING)),
    "fences in its own docstring, never closed": f"```python\n{IN_DOCSTRING}",
    "fences in its own comments": fence(IN_COMMENT),
    "a fence in a docstring's line": fence(
        CODE.replace(BODY, f'    """So: ```\n    shifted([1])\n    ```"""\n{BODY}')
    ),
    "a command's fence further in": f"```bash\n$ pip install\n  ```\n{fence(CODE)}",
    "in a quotation of a quotation": indented(fence(CODE), "> > "),
    "in a quotation of a quotation without spaces": indented(fence(CODE), ">>"),
    "on one line": f"```python {ONE_LINE}```",
    "on one line behind words": f"So: ```{ONE_LINE}```.",
    "on one line between single marks": f"Use `{ONE_LINE}` for `numbers`.",
    "an odd first indentation": fence(f" {CODE}\nprint(1)"),
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
    "then a use": then("result = shifted([1,2])"),
    "then a use of a name": then("numbers = [1, 2]\nexpected = shifted(numbers)"),
    "then a use of no name": then("x = shifted(my_list)"),
    "then a use of a file": then("data = open('x.txt').read()"),
    "then an assignment of no name": then("numbers = my_list"),
    "then values of its main block": fence(f"{CODE}\nif __name__ == '__main__':\n    run(values)")
    + f"\n{fence('from nowhere import run' + chr(10) + 'values = my_values')}",
    "then values of its main function": fence(f"{CODE}\ndef main():\n    print(values)")
    + f"\n{fence('values = my_values')}\n{fence('values = open(0).read()')}",
    "then imports of nothing": then("import shifted_numbers"),
    "then tests": then("import pytest\n\ndef test_shifted():\n    assert shifted([1]) == [2]"),
    "then a helper of the same name": then("def shift(number):\n    return number + 2"),
    "then its locals' names": then(
        "def number(result):\n    pass\n\nclass result(number):\n    pass"
    ),
    "a helper with an example": f"{fence(CALLER)}\n{fence(HELPER + 'print(more(x))')}",
    "helpers of helpers behind": f"{fence(CALLER)}\n{fence(STEPPED)}\n{fence(LIMITED)}",
    "helpers of helpers before": f"{fence(LIMITED)}\n{fence(STEPPED)}\n{fence(CALLER)}",
    "a helper mended before": f"{fence(HELPER.replace('1', '2'))}\nNo:\n"
    + f"{fence(HELPER)}\n{fence(CALLER)}",
    "two ways with a helper each": f"{fence(CALLER)}\n{fence(HELPER)}\nOr:\n"
    + f"{fence(CALLER.replace('number)', 'number, 1)'))}\n"
    + fence("def more(number, by):\n    return number + by"),
    "a helper that calls the caller": fence(
        "def shifted(numbers):\n    return [more(n) for n in numbers] if len(numbers) > 1 else "
        "[n + 1 for n in numbers]"
    )
    + f"\n{fence('def more(n):' + chr(10) + '    return shifted([n])[0]')}\n{fence(WRONG)}",
    "a helper in prose": f"First\n\n{HELPER}\nThen:\n{fence(CALLER)}",
    "a helper in a block, the caller in prose": f"First\n{fence(HELPER)}\nThen:\n\n{CALLER}",
    "a helper that is a lambda": f"{fence('more = lambda n: int(n) + 1')}\n{fence(CALLER)}",
    "a module with a dot in a block": f"{fence('import collections.abc')}\n"
    + fence(
        "def shifted(numbers):\n"
        "    return [n + 1 for n in numbers if not isinstance(n, collections.abc.Sized)]"
    ),
    "a helper used by its decorator": f"{fence('from functools import lru_cache')}\n"
    + fence(
        "@lru_cache\ndef more(n):\n    return n + 1\n\n"
        "def shifted(numbers):\n    return list(map(more, numbers))"
    ),
    "imports in a block": f"{fence('import math as maths')}\n"
    + fence("def shifted(numbers):\n    return [maths.floor(n) + 1 for n in numbers]"),
    "a session's function": fence(REPL, "pycon"),
    # no fences
    "code alone": CODE,
    "code alone behind try": "try:\n    import math\nexcept ImportError:\n    pass\n\n"
    + CODE.replace("+ 1", "+ math.floor(1.5)"),
    "marks in its docstring": CODE.replace(BODY, f'    """As `shifted = 1`."""\n{BODY}'),
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
    "the rest, then a use": f"{BODY}\nUse it:\n{fence('x = shifted(my_list)')}",
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
    "wrong, with a right line": f"{fence(WRONG)}\nor `{ONE_LINE}`.",
    "wrong on one line": "`def shifted(numbers): return numbers`",
    "wrong, with fences in its docstring": fence(IN_DOCSTRING.replace("number + 1", "number")),
    "a wrong helper": f"{fence(HELPER.replace('1', '2'))}\n{fence(CALLER)}",
    "no helper": f"{fence(CALLER)}\nwith `more`.",
    "a helper that is another's method": fence(CALLER)
    + fence("\nclass A:\n" + indented(HELPER, "    ")),
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
    verdict = next(grade_many([(PROBLEM, PASS[shape])]))
    assert verdict.passed, f"{verdict.reason}\n{program(PASS[shape])}"


@needs_sandbox
@pytest.mark.parametrize("shape", FAIL)
def test_a_wrong_program_fails_in_any_shape(shape: str) -> None:
    verdict = next(grade_many([(PROBLEM, FAIL[shape])]))
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
        "```python\n" + "  ```\n" * 3000, '```python\nx = """\n' + "  ```\n" * 3000, "``a`" * 5000,
        "```\ndef shifted(n):\n return a0\n```\n```\n"
        + "".join(f"def a{i}(): a{i + 1}\n" for i in range(900)),
        "```\ndef shifted(n):\n return a\n```\n" + "b = 1\n" * 3000 + "```\na = b\n" * 30,
        "```python\n\0", 'x = "\\d"', "\ud800",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for answer in odd:
            begun = time.process_time()
            assert isinstance(program(answer), str)
            taken = time.process_time() - begun
            assert taken < 20, f"{taken:.0f} s for {answer[:20]!r}..."


def test_an_odd_escape_in_an_answer_is_no_warning_here() -> None:
    """A model's string may have one; even where warnings are errors its program is read."""
    code = 'import re\n\ndef digits(text):\n    return re.findall("\\d", text)\n'
    answer = f"Here:\n\n```python\n{code}```\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = program_of(answer, "def digits(text):\n", "digits")
    assert "def digits(text):\n    return re.findall" in program
    assert not caught, [str(one.message) for one in caught]
