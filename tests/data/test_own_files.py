"""The user's own files: what they hold decides; where they are, and when written, does not."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs, own
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import Web
from jaxchat.data.files.folders import Listing
from jaxchat.data.own import Checksums, local_inputs
from jaxchat.errors import ConfigError
from jaxchat.paths import read_json, sha256_text, write_json
from jaxchat.runs.runner import FORMAT, Context, _as_text, run_stages
from jaxchat.runs.stages import STAGES, Stage, training_settings

CONFIG = """
[run]
name = "small"
depth = 2
[model]
sequence_len = 16
[data]
words = 20
[rl]
steps = 0
"""
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
STAGES_OF_TEXT = ["data", "tokenizer", "rows", "base", "mid", "sft", "eval", "report"]


class Run:
    """A run whose stage `data` is real; the others only note that they ran."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts, self.talks = root / "grow", root / "talks.jsonl"
        self.persona = root / "ada.toml"
        self.texts.mkdir()
        for name in "abcd":
            lines = (json.dumps({"text": f"{name} {n} some words"}) for n in range(40))
            (self.texts / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        self.talks.write_text(f"{json.dumps(TALK)}\n" * 3)
        self.persona.write_text('name = "Ada"')

    def config(self) -> RunConfig:
        path = self.root / "small.toml"
        path.write_text(CONFIG)
        own = loading.own_text(str(self.texts))
        talks = f"sft.epochs={{{json.dumps(str(self.talks))}=2}}"
        return loading.load(path, [*own, talks, f"data.persona={self.persona}"])

    def stage(self, one: Stage, ran: list[str]) -> Stage:
        def run(context: Context) -> dict[str, Any]:
            ran.append(one.name)
            if one.name == "data":
                hub = Hub(self.root, Web(), endpoint="http://127.0.0.1:9")
                return inputs.gather(context.config, context.folder("data"), hub)
            done = {name: context.done[name]["results"] for name in context.done}
            text, whole = done["data"]["parts"]["text"], done["data"]["artifact"]
            made = {"rows": whole, "sft": whole}.get(one.name, text)
            return {"artifact": made, "parts": {"text": text, "mid": text, "sft": whole}}

        return replace(one, run=run)

    def go(self) -> list[str]:
        """Gives the command; returns the stages that ran."""
        ran: list[str] = []
        stages = [self.stage(one, ran) for one in STAGES]
        run_stages(stages, Context(self.config(), self.root / "runs" / "small"))
        return ran


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    assert made.go() == STAGES_OF_TEXT
    assert made.go() == []
    return made


def added(run: Run) -> None:
    shutil.copy(run.texts / "a.jsonl", run.texts / "e.jsonl")


def added_below(run: Run) -> None:
    (run.texts / "more").mkdir()
    shutil.copy(run.texts / "a.jsonl", run.texts / "more" / "e.jsonl")


def grown(run: Run) -> None:
    with (run.texts / "b.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')


def deleted(run: Run) -> None:
    (run.texts / "b.jsonl").unlink()


def renamed(run: Run) -> None:
    (run.texts / "b.jsonl").rename(run.texts / "z.jsonl")  # is held out now


def rewritten_with_its_size_and_date(run: Run) -> None:
    path = run.texts / "b.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("words", "birds"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def one_left(run: Run) -> None:
    for name in "bcd":
        (run.texts / f"{name}.jsonl").unlink()


CHANGES = [added, added_below, grown, deleted, renamed, rewritten_with_its_size_and_date, one_left]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_folder_of_text_is_noticed(run: Run, change: Callable[[Run], None]) -> None:
    change(run)
    assert run.go() == STAGES_OF_TEXT
    assert run.go() == []


def touched(run: Run) -> None:
    for path in run.root.glob("**/*"):
        if path.is_file() and "runs" not in path.parts:
            path.touch()


def copied_and_synced(run: Run) -> None:
    other = run.root / "other"
    shutil.copytree(run.texts, other, copy_function=shutil.copyfile)
    shutil.rmtree(run.texts)
    other.rename(run.texts)


def moved(run: Run) -> None:
    names = {"texts": "text of mine", "talks": "b/my talks.jsonl", "persona": "b/c/she.toml"}
    for field, name in names.items():
        new = run.root / name
        new.parent.mkdir(exist_ok=True)
        getattr(run, field).rename(new)
        setattr(run, field, new)


def named_again_in_the_same_order(run: Run) -> None:
    for name in "abcd":
        (run.texts / f"{name}.jsonl").rename(run.texts / f"{name}2.jsonl")


def linked(run: Run) -> None:
    link = run.root / "link"
    link.symlink_to(run.texts)
    run.texts = link


def gone(run: Run) -> None:
    shutil.rmtree(run.texts)
    run.talks.unlink()
    run.persona.unlink()


def beside(run: Run) -> None:
    (run.texts / ".hidden.jsonl").write_text("{}")
    (run.texts / "README.unknown").write_text("about the files")


SAME = [touched, copied_and_synced, moved, named_again_in_the_same_order, linked, gone, beside]


@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_where_files_are_and_when_they_were_written_is_nothing(
    run: Run, change: Callable[[Run], None]
) -> None:
    change(run)
    assert run.go() == []


def test_what_has_moved_is_read_at_its_new_place(run: Run) -> None:
    moved(run)
    run.go()
    read = inputs.read_inputs(run.root / "runs" / "small" / "data")
    assert {path.parent for file in read.text for path in file.paths} == {run.texts}
    assert read.paths(str(run.talks), "train") == (run.talks,)
    assert list(inputs.read_texts(read, 30)) == [
        "a 0 some words",
        "a 1 some words",
        "a 2 some words",
    ]


@pytest.mark.parametrize("what", ["talks", "persona"])
def test_other_conversations_leave_the_text_alone(run: Run, what: str) -> None:
    if what == "talks":
        run.talks.write_text(f"{json.dumps(TALK)}\n" * 4)
    else:
        run.persona.write_text('name = "Eve"')
    assert run.go() == ["data", "rows", "sft", "eval"]


@pytest.mark.parametrize("field", ["texts", "talks", "persona"])
def test_another_name_of_nothing_is_reported_and_nothing_is_lost(run: Run, field: str) -> None:
    right = getattr(run, field)
    setattr(run, field, run.root / "missing.jsonl")
    with pytest.raises(ConfigError, match=r"missing\.jsonl does not exist"):
        run.go()
    setattr(run, field, right)
    assert run.go() == []


def test_files_that_nothing_says_have_changed_are_not_read_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return sha(path)

    sha = own.sha256_file
    monkeypatch.setattr(own, "sha256_file", reading)
    monkeypatch.setattr(own, "YOUNG", -60.0)  # they have just been written
    touched(run)
    run.go()
    assert sorted(read) == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "talks.jsonl"]
    read.clear()
    run.go()
    assert read == []
    grown(run)
    run.go()
    assert set(read) == {"b.jsonl"}


def test_a_young_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    with Checksums(tmp_path / "kept.json", tmp_path) as known:
        known.of(path)
    assert not (tmp_path / "kept.json").exists()
    os.utime(path, (1, 1))  # its ctime is young all the same
    with Checksums(tmp_path / "kept.json", tmp_path) as known:
        known.of(path)
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"a.txt": 3}', "\xff"])
def test_kept_checksums_that_are_damaged_are_computed_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "kept.json").write_bytes(content.encode("latin-1"))
    (tmp_path / "a.txt").write_text("a")
    with Checksums(tmp_path / "kept.json", tmp_path) as known:
        assert known.of(tmp_path / "a.txt") == own.sha256_file(tmp_path / "a.txt")


# ----- runs made before content was kept -----


def make_old(run: Run) -> None:
    """The records of a run as commit e90608a wrote them: hashes with names of files in them."""
    root, config = run.root / "runs" / "small", run.config()
    kept = read_json(root / "data" / "inputs.json")
    del kept["own"]
    write_json(root / "data" / "inputs.json", kept)
    shutil.rmtree(run.root / own.CHECKSUMS, ignore_errors=True)
    done: dict[str, Any] = {}
    for stage in STAGES:
        if not (root / stage.name / "done.json").exists():
            continue
        record = read_json(root / stage.name / "done.json")
        if stage.name == "data":  # the user's conversations had their name in it
            record["results"]["artifact"] = inputs.read_inputs(root / "data").hash
        settings = [_as_text(part) for part in stage.settings(config)]
        needs = [need for need in stage.after if not need.startswith("rl")]
        artifacts = []
        for need in needs:
            name, _, part = need.partition(":")
            made = done[name]["results"]
            artifacts.append(str(made.get("parts", {}).get(part, made["artifact"])))
        record["inputs"] = sha256_text(FORMAT, stage.name, *settings, *artifacts)
        write_json(root / stage.name / "done.json", record)
        done[stage.name] = record


def test_a_complete_run_made_before_stays_and_what_is_there_is_recorded(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(run.talks) in training_settings(run.config().sft)["epochs"], (
        "that is what the old hash had"
    )
    make_old(run)
    capsys.readouterr()
    assert run.go() == []
    reported = capsys.readouterr().out
    assert (
        f"{run.texts}: what it holds now (4 files) is recorded; it is what the run was" in reported
    )
    assert run.go() == []
    assert "recorded" not in capsys.readouterr().out
    moved(run)
    assert run.go() == []
    grown(run)
    assert run.go() == STAGES_OF_TEXT


def test_an_old_run_of_other_files_stays_and_says_so(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_old(run)
    added(run)
    assert run.go() == []
    reported = capsys.readouterr().out
    assert "(5 files) is recorded; the run was made of something else" in reported
    assert "--force data restarts with what is there now" in reported
    grown(run)
    assert run.go() == STAGES_OF_TEXT


# ----- many small files -----


class Counted(int):
    """A number that counts how often one is added."""

    added = 0

    def __add__(self, other: int) -> "Counted":
        Counted.added += 1
        return Counted(int(self) + int(other))

    __radd__ = __add__


class ManyFiles:
    """Stands for a folder of `count` small files."""

    count = 0
    listing = Listing((), {})

    def __init__(self, names: list[str]) -> None:
        (top,) = names
        self.paths = [Listed(top, f"{number:06d}.txt") for number in range(self.count)]
        self.sizes = [Counted(100) for _ in self.paths]
        self.size = 100 * self.count


class Listed(type(Path())):  # type: ignore[misc]
    """A file that need not be there."""

    def stat(self, **options: Any) -> Any:
        return os.stat_result((0, 0, 0, 0, 0, 0, Counted(100), 0, 0, 0))


def additions(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("jaxchat.data.own.TextFiles", ManyFiles)
    monkeypatch.setattr("jaxchat.data.own.hash_of", lambda paths, *_: "same")
    monkeypatch.setattr(ManyFiles, "count", count)
    Counted.added = 0
    found = local_inputs(folder, 17)
    assert sum(len(entry.paths) for entry in found) == count
    assert len(found) == 20
    return Counted.added


def test_many_small_files_are_grouped_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (additions(count, tmp_path, monkeypatch) for count in (1_000, 10_000))
    assert few >= 1_000, "nothing was counted"
    assert many <= 10.5 * few, f"{few:,} additions for 1,000 files, {many:,} for 10,000"


def test_a_rewrite_with_size_and_date_put_back_is_noticed_however_old_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be put back when the file's entry changed, and that is looked at, too."""
    monkeypatch.setattr(own, "YOUNG", -3600.0)  # every file counts as old
    file, kept = tmp_path / "a.txt", tmp_path / "kept.json"

    def checksum() -> str:
        with Checksums(kept, tmp_path) as known:
            return known.of(file)

    file.write_text("words")
    first, before = checksum(), file.stat()
    assert json.loads(kept.read_text()), "nothing was kept, so this shows nothing"
    file.write_text("birds")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert checksum() != first
