"""What the documentation says is so: its commands run; its links, paths and settings exist.

A command is run here, in order, against a tiny finished run called `cpu`; or a mark before its
block says why not: `<!-- not run (reason) -->`, or `<!-- not run (reason): prefix; prefix -->`
for some of it. Those are parsed all the same, and runs of tiers are planned.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from docs_commands import Command, commands
from finished_run import finish_run, tiny_config, tiny_tokenizer
from ladder_records import write_ladder

import bootstrap
import run_speedrun
from jaxchat.cli import main as command_line
from jaxchat.config import loading
from jaxchat.config.schema import MODELS
from jaxchat.data import inputs
from jaxchat.data.own import InputFile
from jaxchat.paths import read_json, write_json
from jaxchat.runs.doctor import speed

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"),
    ROOT / "launch" / "README.md",
    ROOT / "ui" / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "findings" / "guesses.md",
]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
COMMANDS = {name: commands(ROOT / name, name) for name in NAMES}
OURS = ("jaxchat", "run_speedrun.py")
OF_THE_USER = {"ada.toml"}


def argv_of(command: Command) -> tuple[str, list[str]]:
    """Which of our two programs a command starts, and its arguments; "" for another program."""
    words = list(command.words)
    while words and (words[0] in ("python", "python3", "env") or "=" in words[0]):
        words.pop(0)
    if words[:1] == ["-u"]:  # env -u NAME
        words = words[2:]
    return (words[0], words[1:]) if words and words[0] in OURS else ("", words)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A home with a finished run, and a folder with the files that commands name."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    config, tokenizer = tiny_config(), tiny_tokenizer()
    config = dataclasses.replace(config, name="cpu")
    run = finish_run(home, config, tokenizer)
    text = "Who are you and how many are there? " * 400
    for folder in ("texts", "my_texts"):
        for number in range(3):
            path = work / folder / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    files = [InputFile(p.name, "", p.stat().st_size, (p,))
             for p in sorted((work / "texts").iterdir())]  # fmt: skip
    inputs.write_inputs(run / "data", inputs.Inputs(tuple(files), {}, 2, ("are", "you", "many")))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    for name in ("my_talks.jsonl", "talks.jsonl", "gespraeche.jsonl"):
        (work / name).write_text(f"{json.dumps({'messages': talk})}\n" * 4)
    (work / "ada.toml").write_text('name = "Ada"\n')
    (work / "questions").write_text("Who are you?\nHow are you?\n")
    tokenizer.save(work / "my_tokenizer")
    record = read_json(run / "eval" / "done.json")
    record["results"]["models"] = {name: {"bits_per_byte": 2.0, "tasks": {}} for name in MODELS}
    write_json(run / "eval" / "done.json", record)
    for name, gain in (("classic", 1.0), ("modern", 1.5)):
        write_ladder(home, name, gain=gain, overrides=[f"run.preset={name}"])
    return home, work


def run(command: Command, home: Path) -> int:
    """Runs one of our commands in this process; its exit code."""
    program, arguments = argv_of(command)
    main = command_line.main if program == "jaxchat" else run_speedrun.main
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("JAXCHAT_HOME", str(home))
        # Who types nothing asks what stands in `questions`.
        stdin = stack.enter_context(Path(command.stdin or "questions").open())
        patch.setattr("sys.stdin", stdin)
        try:
            return main(arguments)
        except SystemExit as error:
            return int(error.code or 0)


@pytest.mark.parametrize("name", [name for name in NAMES if COMMANDS[name]])
def test_commands_run(name, tiny, tmp_path, monkeypatch, capsys, optax_promotion):
    home = tmp_path / "home"
    shutil.copytree(tiny[0], home)
    shutil.copytree(tiny[1], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    # the doctor's rates need seconds, and say nothing here
    measure = partial(speed.measure_speed, seconds=0.0)
    for setting, brief in {"measure_speed": measure, "TURN": 0.0, "LEAST_TURNS": 1}.items():
        monkeypatch.setattr(speed, setting, brief)
    if any(command.words[-2:] == ("--out", "my_tokenizer") for command in COMMANDS[name]):
        shutil.rmtree("my_tokenizer")
    for command in COMMANDS[name]:
        if not command.not_run:
            assert argv_of(command)[0], f"{command}: mark it as not run, and say why"
            began = time.monotonic()
            assert run(command, home) == 0, f"{command}: {capsys.readouterr().err}"
            print(f"{time.monotonic() - began:.1f}s {command}")


def test_commands_that_are_not_run_are_parsed_and_planned(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny[1])
    for command in (c for found in COMMANDS.values() for c in found if c.not_run):
        program, arguments = argv_of(command)
        if program == "jaxchat":
            command_line.parse(arguments)
        elif program:
            planned = Command(command.page, command.line, (program, *arguments, "--plan"))
            assert run(planned, tiny[0]) == 0, f"{command}: {capsys.readouterr().err}"
        elif arguments and "/" in arguments[0] and not arguments[0].startswith((".venv", "~")):
            assert (ROOT / arguments[0]).exists(), command
        elif arguments[:1] == ["bootstrap.py"]:
            assert arguments[1] in bootstrap.__doc__, command


def plain(name: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / name).read_text("utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


@pytest.mark.parametrize("name", [*NAMES, "docs/log.md"])
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", plain(name))
    for link in (one or other for one, other in links):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = ROOT / name if not target else (ROOT / name).parent / target
        assert path.exists(), f"{name}: {link} does not exist"
        if anchor:
            assert anchor in anchors(path), f"{name}: there is no heading for {link}"


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_are_named_exist(name):
    """`table.key` in backquotes: the reader of configurations must know it."""
    tables = "|".join([*loading.TABLES, "run"])
    for key in re.findall(rf"`((?:{tables})\.[a-z_0-9]+)(?:[=.`\"]|=[^`]*`)", plain(name)):
        table, _, field = key.partition(".")
        if field in ("py", "md", "pkl", "json"):
            continue
        known = (
            loading.RUN_KEYS
            if table == "run"
            else {f.name for f in dataclasses.fields(loading.TABLES[table])}
        )
        assert field in known, f"{name}: there is no setting {key}"


def test_no_page_is_left_out():
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    assert {*listed.stdout.split()} - {"docs/log.md"} == set(NAMES)


def test_the_readme_is_short_and_counts_right():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 160
    package = ROOT / "jaxchat"
    core = list((package / "model").rglob("*.py"))
    for room in ("optim", "train", "inference", "tokenizer"):
        core += (package / room).glob("*.py")
    files = list(package.rglob("*.py"))
    stated = re.search(r"about ([\d,]+) lines of Python.*?about ([\d,]+) lines", text, re.S)
    tour = re.search(r"about ([\d,]+) lines of Python", (ROOT / "docs/code.md").read_text("utf-8"))
    for number, paths in zip((*stated.groups(), tour[1]), (core, files, files), strict=True):
        lines = sum(len(path.read_text("utf-8").splitlines()) for path in paths)
        assert abs(int(number.replace(",", "")) - lines) < 0.1 * lines, f"{number}, not {lines}"


FOLDERS = "jaxchat|tests|bench|docs|configs|launch|notebooks|ui|bpe_rs"
PATH = re.compile(rf"(?<![\w/.~-])(?:{FOLDERS})/[\w./*-]*")
FILE = re.compile(r"`((?:\w+/)*\w+\.(?:py|rs|ts|toml|sh))(?::\d+)?`")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    return [f"/{path}" for path in listed.stdout.splitlines() if (ROOT / path).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_paths_that_are_named_exist(name, tracked):
    """From the root anywhere; in backquotes also the end of a path, as `gpt.py` is."""
    text = (ROOT / name).read_text("utf-8")
    for path in (found.rstrip(".") for found in PATH.findall(text)):
        if "NAME" not in path:
            assert any(ROOT.glob(path)), f"{name}: there is no {path}"
    for path in FILE.findall(text):
        found = any(file.endswith(f"/{path}") for file in tracked)
        known = found or "NAME" in path or path in OF_THE_USER
        assert known, f"{name}: there is no {path}"


def test_the_new_names_of_the_changelog_can_be_imported():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    moved = re.findall(r"^\| `[^`]*` \| `from (jaxchat[\w.]*) import ([\w, ]+)` \|$", text, re.M)
    assert len(moved) >= 19
    for module, names in moved:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


UNWANTED = r"told|goes.on|begins.anew|so.many|locked.in|reckoned"
PROSE = [
    *PAGES,
    *(ROOT / "bench").rglob("*.py"),
    *(ROOT / "configs").glob("*.toml"),
    *(path for path in sorted((ROOT / "launch").glob("[!_]*")) if path.suffix != ".md"),
    *(ROOT / "notebooks").glob("*.ipynb"),
]
SAID = {
    "jaxchat/runs/doctor/check.py": "a field of doctor --json, which users read by its name",
    "tests/tokenizer/test_huggingface.py": "a text to tokenize",
    "tests/test_docs.py": "this list",
}


def unwanted(path: Path) -> list[str]:
    """The words in a file's sentences and names that the field says otherwise."""
    text = re.sub(r"\s+", " ", path.read_text("utf-8"))
    return sorted(set(re.findall(rf"(?<![a-z])(?:{UNWANTED})(?![a-z])", text, re.I)))


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_prose_is_in_the_terms_of_the_field(path):
    assert not unwanted(path), f"say {unwanted(path)} in other words"


def test_the_code_is_in_the_terms_of_the_field():
    sources = [*(ROOT / "jaxchat").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    names = {path.relative_to(ROOT).as_posix(): path for path in sources}
    found = {name: unwanted(path) for name, path in names.items() if name not in SAID}
    assert not {name: words for name, words in found.items() if words}
