"""Preparing shards: what they hold, going on after a kill, and what is refused."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_shards
from tiny_shards import ROW, TOKENIZER, contents, prepare, write_texts

from jaxchat.data import shards
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.own import InputFile, local_inputs
from jaxchat.data.packing import join, pack_text
from jaxchat.data.shard_folder import ShardFolder, training_tokens
from jaxchat.data.shards import prepare_shards
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import read_json, write_json
from jaxchat.tokenizer import Tokenizer


@pytest.fixture
def inputs(tmp_path: Path) -> list[InputFile]:
    return write_texts(tmp_path / "text")


def test_a_shard_holds_the_packed_documents_of_its_file(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    reported = prepare(inputs, tmp_path / "out")
    folder = ShardFolder(tmp_path / "out")
    total = 0
    for number, entry in enumerate(inputs):
        texts = list(TextFiles([str(entry.paths[0])]))
        encoded = TOKENIZER.encode_batch(texts, prepend="<|bos|>")
        rows, statistics = pack_text(*join([encoded]), ROW, TOKENIZER.bos)
        array = np.load(folder.file(number), allow_pickle=False)
        assert (array.dtype, array.tolist()) == (np.uint16, rows.tolist())
        manifest = folder.read_manifest(number)
        assert manifest is not None
        assert manifest.statistics == statistics
        assert manifest.input.name == entry.name
        total += len(rows)
    assert reported.training.rows + reported.held_out.rows == total
    assert reported.held_out == statistics, "the last file is held out"
    assert (reported.shards, reported.made, folder.manifest.validation) == (6, 6, 5)


def test_the_text_that_is_trained_on_is_counted_once_all_of_it_is_there(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    assert training_tokens(tmp_path / "out") is None
    reported = prepare(inputs, tmp_path / "out")
    assert training_tokens(tmp_path / "out") == reported.training.rows * ROW
    ShardFolder(tmp_path / "out").file(2).with_suffix(".json").unlink()
    assert training_tokens(tmp_path / "out") is None


def test_the_number_of_workers_changes_nothing(inputs: list[InputFile], tmp_path: Path) -> None:
    reported = [prepare(inputs, tmp_path / str(n), workers=n) for n in (1, 3)]
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert reported[0].training == reported[1].training


def test_what_is_whole_is_not_made_again(inputs: list[InputFile], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(inputs, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare(inputs, out)
    assert (again.made, again.training, again.held_out) == (0, first.training, first.held_out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_long_file_is_packed_in_segments(
    inputs: list[InputFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(shards, "SEGMENT_TOKENS", 400)
    reported = prepare(inputs, tmp_path / "out")
    assert reported.training.documents == sum(30 + 5 * n for n in range(5))
    assert 0 < reported.training.dropped < reported.training.tokens / 20
    for number in range(6):
        array = np.load(tmp_path / "out" / f"shard_{number:05d}.npy")
        assert (array[:, 0] == TOKENIZER.bos).all()


KILLED = """
import sys, time
from pathlib import Path
import tiny_shards
from jaxchat.data import packing, shard_folder, shards

where, folder, flag = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
shards.BATCH_CHARACTERS, shards.SEGMENT_TOKENS = 100, 400
inputs = tiny_shards.write_texts(folder / "text")
pack, declare, calls = packing.pack_text, shard_folder.ShardFolder.write_manifest, [0]

def wait_for_the_end():
    flag.touch()
    time.sleep(600)

def slow_pack(*args, **kwargs):
    calls[0] += 1
    if where == "while a shard is written" and calls[0] == 9:
        wait_for_the_end()
    return pack(*args, **kwargs)

def slow_declare(self, number, statistics):
    if where == "before a shard is declared whole" and number == 2:
        wait_for_the_end()
    return declare(self, number, statistics)

packing.pack_text, shard_folder.ShardFolder.write_manifest = slow_pack, slow_declare
tiny_shards.prepare(inputs, folder / "out", workers=1)
"""


@pytest.mark.parametrize("where", ["while a shard is written", "before a shard is declared whole"])
def test_a_killed_process_is_resumed_to_the_same_bytes(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "reached"
    path = os.pathsep.join([str(Path(tiny_shards.__file__).parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, where, str(tmp_path), str(flag)],
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        while not flag.exists():
            assert child.poll() is None, "the child ended too early"
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    out = tmp_path / "out"
    left = contents(out)
    assert "manifest.json" in left, "readers could not have begun"
    assert 0 < sum(name.endswith(".npy") for name in left) < 6
    assert any(name.endswith(".tmp") for name in left) == (where == "while a shard is written")

    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(shards, "SEGMENT_TOKENS", 400)
    inputs = write_texts(tmp_path / "text")
    reported = prepare(inputs, out)
    assert 0 < reported.made < 6
    assert reported.training == prepare(inputs, tmp_path / "uninterrupted").training
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_the_held_out_shard_comes_first_then_the_others_in_order(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    asked = []

    def fetch(entry: InputFile) -> Path:
        assert (tmp_path / "out" / "manifest.json").exists(), "nothing to begin reading with"
        asked.append(entry.name)
        return tmp_path / "text" / entry.name

    remote = [replace(entry, paths=(), size=0) for entry in inputs]
    prepare(remote, tmp_path / "out", workers=1, fetch=fetch)
    assert asked == ["f.jsonl", "a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "e.jsonl"]
    prepare(remote, tmp_path / "out", fetch=fetch)
    assert len(asked) == 6, "what is prepared was fetched again"


def test_an_error_of_one_shard_ends_all_and_keeps_what_is_whole(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    others = threading.Event()

    def fetch(entry: InputFile) -> Path:
        if entry.name == "c.jsonl":
            raise ArtifactError("the server has gone")
        if entry.name > "c.jsonl" and entry.name != "f.jsonl":
            others.set()
        return tmp_path / "text" / entry.name

    remote = [replace(entry, paths=()) for entry in inputs]
    with pytest.raises(ArtifactError, match="the server has gone"):
        prepare(remote, tmp_path / "out", workers=1, fetch=fetch)
    reported = prepare(inputs, tmp_path / "out")
    assert reported.made == 3
    assert not others.is_set(), "shards after the failed one were begun"


# ----- what is refused -----


def test_a_folder_made_for_something_else_is_refused_with_what_differs(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(inputs, out)
    before = contents(out)
    with pytest.raises(ArtifactError, match=r"\(row_tokens: 17, now 33\); delete the folder"):
        prepare_shards(inputs, TOKENIZER, 33, out, workers=1)
    other = Tokenizer([bytes([byte]) for byte in range(256)], r"\w+|\W")
    said = f"tokenizer: {TOKENIZER.hash[:12]}, now {other.hash[:12]}"
    with pytest.raises(ArtifactError, match=said):
        prepare_shards(inputs, other, ROW, out, workers=1)
    changed = [*inputs[:2], replace(inputs[2], sha256="0" * 64), *inputs[3:]]
    said = f"input 3: c.jsonl {inputs[2].sha256[:12]}, now c.jsonl 000000000000"
    with pytest.raises(ArtifactError, match=said):
        prepare(changed, out)
    with pytest.raises(ArtifactError, match=r"inputs: 6, now 5; input 6: f\.jsonl .*, now none"):
        prepare(inputs[:5], out)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tokenizer", "f" * 64, "tokenizer: ffffffffffff, now"),
        ("row_tokens", 33, "row_tokens: 33, now 17"),
        ("packing", 1, "packing: 1, now"),
        ("input", {"name": "z.jsonl", "sha256": "0" * 64}, "input: z.jsonl 000000000000, now b"),
    ],
)
def test_a_shard_of_another_folder_is_refused_with_what_differs(
    inputs: list[InputFile], tmp_path: Path, field: str, value: object, said: str
) -> None:
    prepare(inputs, tmp_path / "out")
    path = tmp_path / "out" / "shard_00001.json"
    write_json(path, read_json(path) | {field: value})
    with pytest.raises(ArtifactError, match=rf"shard_00001.json does not belong .*\({said}"):
        prepare(inputs, tmp_path / "out")


@pytest.mark.parametrize(
    "damage", ["flipped bit", "cut off", "gone", "no manifest", "odd manifest"]
)
def test_a_damaged_shard_is_named_and_made_again(
    inputs: list[InputFile], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare(inputs, out)
    before = contents(out)
    path = out / "shard_00003.npy"
    if damage == "gone":
        path.unlink()
    elif damage == "no manifest":
        path.with_suffix(".json").write_text("{")
    elif damage == "odd manifest":
        manifest = read_json(path.with_suffix(".json"))
        manifest["statistics"]["rows"] = "many"
        write_json(path.with_suffix(".json"), manifest)
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if damage == "flipped bit" else data[:-1])
    assert prepare(inputs, out).made == 1
    assert contents(out) == before
    reported = capsys.readouterr().err
    assert "shard_00003" in reported
    assert "It is made again now." in reported


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "jaxchat-shards-0"}'])
def test_a_folder_manifest_that_is_none_is_refused(
    inputs: list[InputFile], tmp_path: Path, content: str
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json is no manifest of shards .* delete"):
        prepare(inputs, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("row_tokens", "33", "row_tokens: Input should be a valid integer"),
        ("row_tokens", True, "row_tokens: Input should be a valid integer"),
        ("tokenizer", None, "tokenizer: Input should be a valid string"),
        ("inputs", [{"name": "a.txt", "sha256": 1}], "inputs.0.sha256: Input should be a valid"),
        (
            "inputs",
            [{"name": "a.txt"}],
            r"inputs.0.sha256: .*[Mm]issing|inputs.0.sha256: .*required",
        ),
        ("surprise", 1, "surprise: Unexpected keyword"),
        ("format", "jaxchat-shards-0", "its format is jaxchat-shards-0, not jaxchat-shards-1"),
        ("validation", 9, "it holds out shard 9 of 6"),
    ],
)
def test_a_folder_manifest_with_a_bad_field_is_refused_by_its_name(
    inputs: list[InputFile], tmp_path: Path, key: str, value: object, reason: str
) -> None:
    prepare(inputs, tmp_path)
    path = tmp_path / "manifest.json"
    write_json(path, read_json(path) | {key: value})
    with pytest.raises(ArtifactError, match=rf"is no manifest of shards \(.*({reason}).*delete"):
        prepare(inputs, tmp_path)


def test_a_file_that_is_not_what_was_announced_is_refused(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    inputs[1].paths[0].write_text('{"text": "something else"}\n')
    with pytest.raises(ArtifactError, match=r"shard 2 of 6 \(b\.jsonl\) is not what was announced"):
        prepare(inputs, tmp_path / "out")


def test_too_few_files_are_refused(inputs: list[InputFile], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is 1 file .* at least 2"):
        prepare(inputs[:1], tmp_path / "out")


def test_text_that_fills_no_row_is_refused(inputs: list[InputFile], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not fill one row of 100000 tokens"):
        prepare_shards(inputs, TOKENIZER, 100_000, tmp_path / "out", workers=1)


def test_two_processes_do_not_prepare_into_one_folder(
    inputs: list[InputFile], tmp_path: Path
) -> None:
    prepare(inputs, tmp_path / "out")
    with (tmp_path / "out" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another process prepares the shards"):
            prepare(inputs, tmp_path / "out")


# ----- a folder of the user's own text -----


def test_small_files_of_a_folder_share_shards_in_the_order_of_names(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_text("word " * 1_000)
    (tmp_path / "99.txt").write_text("word " * 100_000)
    inputs = local_inputs(tmp_path, row_tokens=257)
    names = [path.name for entry in inputs for path in entry.paths]
    assert names == [f"{number:02d}.txt" for number in range(40)] + ["99.txt"]
    assert [len(entry.paths) for entry in inputs] == [7, 7, 7, 7, 7, 6]
    assert inputs[0].name == "00.txt to 06.txt"
    assert inputs[-1].name == "35.txt to 99.txt"
    reported = prepare_shards(inputs, TOKENIZER, 257, tmp_path / "out", workers=2)
    assert reported.training.share_kept > 0.95
    assert reported.training.documents == 35


def test_two_small_files_are_one_to_train_on_and_one_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert [entry.name for entry in local_inputs(tmp_path, 257)] == ["a.txt", "b.txt"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing does not exist; name the folder"):
        local_inputs(tmp_path / "missing", 257)
