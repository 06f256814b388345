"""The notebooks run from the first cell to the last, here on eight devices and on one."""

import ast
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    """The source of every code cell, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(path: Path) -> str:
    """Runs all cells in one namespace, as a kernel does; returns what they printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for number, source in enumerate(code_cells(path), 1):
            exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
    return out.getvalue()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("optax_promotion")
def test_a_notebook_runs_on_eight_devices(path: Path) -> None:
    assert jax.device_count() == 8
    output = run(path)
    assert "{'data': 8, 'fsdp': 1, 'tensor': 1}" in output
    assert "inside loops: none" in output


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_one_device(path: Path) -> None:
    command = (
        f"import test_notebooks, pathlib; print(test_notebooks.run(pathlib.Path({str(path)!r})))"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "{'data': 1, 'fsdp': 1, 'tensor': 1}" in done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_with_its_names_used(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (
        4, len(notebook["cells"]),
    )  # fmt: skip
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "clear its outputs"
    tree = ast.parse("\n".join(code_cells(path)))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported <= {*used, "jax.numpy"}, f"never used: {imported - used}"
