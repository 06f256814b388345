"""Answers to HumanEval problems: right ones, wrong ones, and those that would pass by a trick."""

import time

import pytest

from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.humaneval import Verdict, grade_many, imports_of, judge
from jaxchat.tasks.base import say
from jaxchat.tasks.humaneval import CodeProblem
from jaxchat.tools.sandbox import levels, run
from jaxchat.tools.sandbox.process import Program

needs_sandbox = pytest.mark.skipif(
    levels.detect().name == "none", reason=f"no sandbox here:\n{levels.detect()}"
)


def grade(of: CodeProblem, answer: str, *, unsafe: bool = False) -> Verdict:
    return next(grade_many([(of, answer)], unsafe=unsafe))


def problem(entry_point: str, prompt: str, body: str, test: str) -> CodeProblem:
    conversation = say(prompt, f"{prompt}\n{body}")
    return CodeProblem(
        "humaneval", f"test/{entry_point}", conversation, body, entry_point=entry_point, test=test
    )


TWICE = problem(
    "twice",
    "from typing import List\n\n\n"
    'def twice(numbers: List[int]) -> List[int]:\n    """Doubled."""\n',
    "    return [2 * number for number in numbers]\n",
    """
METADATA = {}

def check(candidate):
    assert candidate([]) == []
    assert candidate([1, 2]) == [2, 4]
    assert candidate([0.5]) == [1.0]
    assert all(x == 2 for x in candidate([1] * 3))
    assert all(map(candidate, [[1], [2]]))
""",
)
ROOT = problem(  # its test uses another function of the program, and a module of the prompt
    "root",
    'import math\n\n\ndef value(x: float) -> float:\n    """A curve."""\n    return x * x - 2\n\n\n'
    'def root() -> float:\n    """Where it is zero."""\n',
    "    return math.sqrt(2)\n",
    "def check(candidate):\n    assert math.fabs(value(candidate())) < 1e-9\n",
)
PAIRS = problem(  # tuples, dictionaries, sets and exceptions cross the pipe as they are
    "pairs",
    'def pairs(text: str):\n    """Letters and their counts; ValueError for no text."""\n',
    "    if not text:\n        raise ValueError('no text')\n"
    "    return {(letter, text.count(letter)) for letter in text}\n",
    """
def check(candidate):
    assert candidate("aab") == {("a", 2), ("b", 1)}
    try:
        candidate("")
    except ValueError as error:
        assert str(error) == "no text"
    else:
        assert False
""",
)
SORT = problem(  # works on its argument, not by its result
    "sort_in_place",
    'def sort_in_place(numbers):\n    """Sorts the list itself."""\n',
    "    numbers.sort()\n",
    "def check(candidate):\n    x = [3, 1, 2]\n    assert candidate(x) is None\n"
    "    assert x == [1, 2, 3]\n",
)
PROBLEMS = (TWICE, ROOT, PAIRS, SORT)


def reference(of: CodeProblem) -> str:
    text = of.solution[0]["text"]
    assert isinstance(text, str)
    return text


@needs_sandbox
def test_reference_solutions_pass_and_broken_ones_fail() -> None:
    right = [(one, reference(one)) for one in PROBLEMS]
    assert [v.reason for v in grade_many(right)] == [""] * len(PROBLEMS)
    broken = [(one, one.prompt + "    return 'broken'\n") for one in PROBLEMS]
    assert not any(v.passed for v in grade_many(broken))


CHEATS = {
    "leaves with 0 at once": "import os\nos._exit(0)",
    "sys.exit before the tests": "import sys\nsys.exit(0)",
    "leaves with 0 when called": "import os\ndef twice(n): os._exit(0)",
    "SystemExit when called": "def twice(n): raise SystemExit(0)",
    "leaves by atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef twice(n): return 1",
    "a check of its own": "def check(candidate): pass\ndef twice(n): return 1",
    "replaces builtins": """
import builtins
builtins.all = lambda x: True
builtins.AssertionError = type("Never", (Exception,), {})
def all(x): return True
def twice(n): return None
""",
    "equals everything": """
class Equal:
    def __eq__(self, other): return True
    def __iter__(self): return iter([])
def twice(n): return Equal()
""",
    "a list that equals everything": """
class Equal(list):
    def __eq__(self, other): return True
def twice(n): return Equal()
""",
    "numbers that equal everything": """
class Equal(int):
    def __eq__(self, other): return True
def twice(n): return [Equal(7) for _ in n] or [7]
""",
    "patches the tests by their frames": """
import gc, sys
def twice(n):
    for thing in gc.get_objects():
        if getattr(thing, "__name__", "") == "check":
            thing.__code__ = (lambda candidate: None).__code__
    return None
""",
    "answers with nonsense": """
import os
for descriptor in range(3, 32):
    try: os.write(descriptor, b'["names", "twice"]\\n{}\\n["return"]\\n[]\\nnull\\n"ok"\\n')
    except OSError: pass
def twice(n): return None
""",
    "ends the tests' loop": """
def twice(n):
    if n in ([1], [2]):
        raise StopIteration
    return [2 * x for x in n]
""",
    "an all of its own": """
def all(x): return True
def twice(n): return [2 * x if len(n) < 3 else 5 for x in n]
""",
    "names of the interpreter": "__builtins__ = lambda: 0\n__name__ = print",
    "never answers": None,
    "no function of that name": "def thrice(n): return n",
    "no Python": "The answer is 42.",
    "nothing": "",
}


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_tricks_do_not_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CHEATS[name]
    if source is None:
        monkeypatch.setattr("jaxchat.evals.humaneval.TIMEOUT", 1.0)
        source = "def twice(n):\n    while True: pass"
    verdict = grade(TWICE, source)
    assert not verdict.passed, verdict
    assert verdict.reason


@needs_sandbox
def test_a_running_thread_does_not_hold_up_a_right_answer() -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    began = time.monotonic()
    assert grade(TWICE, source + reference(TWICE)).passed
    assert time.monotonic() - began < 60


@needs_sandbox
def test_reasons() -> None:
    def why(source: str) -> str:
        return grade(TWICE, source).reason

    assert why("def twice(n): return [") == "SyntaxError: '[' was never closed"
    assert why("def twice(n): return n / 0").startswith("TypeError: unsupported operand")
    assert why("def twice(n): return n").startswith("AssertionError")
    assert "memory" in why("x = bytearray(1 << 31)")


@needs_sandbox
def test_the_prompts_imports_are_there() -> None:
    answer = "```python\ndef twice(numbers: List[int]):\n    return [2 * n for n in numbers]\n```"
    assert grade(TWICE, f"Of course!\n{answer}\nIt doubles them.").passed


def test_imports_of_a_prompt() -> None:
    prompt = "# a comment\nimport math\n\nfrom typing import List\n\ndef f():\n    import os\n"
    assert imports_of(prompt) == "import math\nfrom typing import List"
    assert imports_of("def f(): pass\nimport os") == ""


def test_what_could_not_be_sandboxed_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = levels.Level("partial", ("no such mechanism",), False)
    monkeypatch.setattr(levels, "detect", lambda: broken)
    with pytest.raises(ArtifactError, match="could not be sandboxed"):
        grade(TWICE, reference(TWICE))


def test_unsafe_where_nothing_locks_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "detect", lambda: levels.Level("none", (), False))
    with pytest.raises(ArtifactError, match="--unsafe-exec"):
        grade(TWICE, reference(TWICE))
    with pytest.raises(ConfigError, match="--unsafe-exec"):
        judge()
    assert grade(TWICE, reference(TWICE), unsafe=True).passed


@needs_sandbox
def test_an_evaluation_that_is_abandoned_starts_no_further_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    def counted(program: Program, *, unsafe: bool) -> run.Outcome:
        started.append(program)
        return run.run_program(program, unsafe=unsafe)

    monkeypatch.setattr("jaxchat.evals.humaneval.run_program", counted)
    verdicts = grade_many([(TWICE, reference(TWICE))] * 50)
    assert next(verdicts).passed
    verdicts.close()  # type: ignore[attr-defined]
    assert len(started) < 2 * 50


@needs_sandbox
def test_a_judge_says_of_each_answer_whether_it_passes() -> None:
    broken = TWICE.prompt + "    return 'broken'\n"
    assert judge()([TWICE, ROOT, TWICE], [reference(TWICE), reference(ROOT), broken]) == [
        True,
        True,
        False,
    ]
