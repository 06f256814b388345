"""The Python tool: arithmetic at once, programs in the sandbox, and never an exception."""

import pytest

from jaxchat.tools import python_tool
from jaxchat.tools.python_tool import MAX_CHARS, PythonTool, SandboxError
from jaxchat.tools.sandbox import levels


@pytest.fixture(scope="module")
def tool():
    if levels.detect().name == "none":
        pytest.skip("this machine cannot sandbox a program")
    return PythonTool(seconds=2.0)


def test_arithmetic_is_answered_without_a_program(tool, monkeypatch):
    monkeypatch.setattr(python_tool, "run_python", None)
    assert tool.quick("37 * 24") == tool("37 * 24") == "888"
    assert tool.quick("print(1)") is None


def test_a_program_says_what_it_prints(tool):
    assert tool("print(sorted('cab'))") == "['a', 'b', 'c']"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('so far')\n1 / 0", "so far\nerror: ZeroDivisionError: division by zero"),
        ("this is no program", "error: SyntaxError: invalid syntax"),
        ("open('/etc/passwd')", "error: "),
        ("while True: pass", "error: it was not done after 2 seconds"),
        ("while True: print('x' * 1000)", "error: it wrote more than"),
    ],
)
def test_what_goes_wrong_is_reported(tool, code, said):
    output = tool(code)
    assert said in output or len(output) == MAX_CHARS


def test_what_it_says_is_cut(tool):
    output = tool("print('x' * 3000)")
    assert output == "x" * (MAX_CHARS - 3) + "..."


def test_where_no_program_can_be_sandboxed_there_is_no_tool(monkeypatch):
    monkeypatch.setattr(levels, "detect", lambda: levels.Level("none", (), False))
    with pytest.raises(SandboxError, match="cannot sandbox a program"):
        PythonTool()
    assert PythonTool(unsafe=True).quick("1 + 1") == "2"
