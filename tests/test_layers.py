"""The shape of the package: imports only flow down, and what no module may do.

Imports inside functions count too: all are found in the source, nothing is imported here.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxchat

# The leaves and the rooms in import order: each may import what stands before it. `data.files` is
# a part of `data` on which `config` and `tasks` stand.
ROOMS = (
    "_bpe", "signals", "errors", "progress", "paths", "data.files",
    "config", "model", "parallel", "optim", "tokenizer", "tools", "checkpoints", "tasks", "data",
    "inference", "evals", "train", "runs", "serve", "cli", "__main__",
)  # fmt: skip
FOLDERS = {"", "data"}  # what is imported below them imports no code of theirs

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}

PACKAGE = Path(jaxchat.__file__).parent


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Name below jaxchat ("" is jaxchat itself) -> syntax tree."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


def imports(name: str) -> Iterator[tuple[str, int]]:
    """(full name, line) of all that a module imports; `from a import b` as a and as a.b."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} line {node.lineno}: write imports from the top"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def own_imports(name: str) -> Iterator[tuple[str, int]]:
    """The modules of ours that it imports, but for packages that are nothing but a folder."""
    for imported, line in imports(name):
        own = imported.removeprefix("jaxchat").removeprefix(".")
        is_ours = imported.split(".")[0] == "jaxchat" and (own in modules() or own == "_bpe")
        if is_ours and own not in FOLDERS:
            yield own, line


def room_of(name: str) -> int:
    """The place in ROOMS of a module; that of its longest parent that has one."""
    while name not in ROOMS:
        assert name, "a module stands in no room"
        name = name.rpartition(".")[0]
    return ROOMS.index(name)


def offences(is_one: Callable[[str, ast.AST], bool]) -> list[str]:
    """`module line n: source` of every node of every module that `is_one` finds wrong."""
    return [
        f"{name} line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if is_one(name, node)
    ]


def test_every_module_stands_in_a_room() -> None:
    tops = {name.split(".")[0] for name in modules() if name}
    homeless = tops - {room.split(".")[0] for room in ROOMS}
    assert not homeless, f"{sorted(homeless)}: put each into a room of docs/code.md"
    gone = set(ROOMS) - set(modules()) - {"_bpe"}
    assert not gone, f"ROOMS names {sorted(gone)}, which do not exist"


def test_the_root_has_at_most_24_entries() -> None:
    entries = sorted(p.name for p in PACKAGE.iterdir() if p.suffix != ".so" and p.name[:3] != "__p")
    assert len(entries) <= 24, f"{len(entries)} at the root of the package: {entries}"


def test_folders_have_nothing_but_a_docstring_in_their_init() -> None:
    for name in FOLDERS - {""}:
        tree = modules()[name]
        code = tree.body[1:] if ast.get_docstring(tree) else tree.body
        assert not code, f"jaxchat/{name}/__init__.py must have no code"
    assert not list(own_imports(""))


def test_imports_only_flow_down() -> None:
    upward = [
        f"{name} line {line} imports {own}, which comes after it in ROOMS"
        for name in modules()
        if name
        for own, line in own_imports(name)
        if room_of(own) > room_of(name)
    ]
    assert not upward, "\n".join(upward)


def test_modules_do_not_import_each_other_in_circles() -> None:
    done = {"_bpe"}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for own in sorted({own for own, _ in own_imports(name)}):
            # a module may name its own package, whose __init__ runs before it anyway
            if not name.startswith(f"{own}."):
                visit(own, (*path, name))
        done.add(name)

    for name in modules():
        visit(name, ())


def test_the_model_never_sees_tokenizer_optimizer_or_mesh() -> None:
    hidden = ("jaxchat.tokenizer", "jaxchat.optim", "jaxchat.parallel", "jax.sharding", "optax")
    seen = [
        f"{name} line {line} imports {imported}"
        for name in modules()
        if name.split(".")[0] == "model"
        for imported, line in imports(name)
        if imported.startswith(hidden)
    ]
    assert not seen, "\n".join(seen)


def test_flax_is_confined_to_the_model() -> None:
    users = {name for name in modules() for i, _ in imports(name) if i.split(".")[0] == "flax"}
    assert users == {"model.gpt"}


def test_nobody_uses_jax_internals() -> None:
    used = [
        f"{name} line {line} imports {imported}"
        for name in modules()
        for imported, line in imports(name)
        if imported.startswith(("jax._src", "jaxlib"))
    ]
    used += offences(lambda _, node: isinstance(node, ast.Attribute) and node.attr == "_src")
    assert not used, "\n".join(used)


def test_nobody_unpickles() -> None:
    found = [
        f"{name} line {line} imports {imported}"
        for name in modules()
        for imported, line in imports(name)
        if imported.split(".")[0] in UNSAFE_MODULES
    ]
    found += offences(
        lambda _, node: (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        )
    )
    assert not found, "\n".join(found)


def test_nobody_evaluates_text_as_code() -> None:
    """But for the sandbox, in the process that has confined itself."""
    found = offences(
        lambda name, node: (
            name != "tools.sandbox.launcher"
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in UNSAFE_CALLS
        )
    )
    assert not found, "\n".join(found)


def test_only_paths_reads_the_environment() -> None:
    found = [
        f"{name} line {line} imports {imported}"
        for name in modules()
        if name != "paths"
        for imported, line in imports(name)
        if imported in {f"os.{attribute}" for attribute in ENVIRONMENT}
    ]
    found += offences(
        lambda name, node: (
            name != "paths" and isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT
        )
    )
    assert not found, "\n".join(found)
