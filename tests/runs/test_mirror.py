"""The copy of a run elsewhere: only whole things come back, and the run resumes with its bits."""

import json
import shutil
import subprocess
import sys
import time

import fsspec
import pytest
from crashes import Crashing, Moment
from test_resume import SHRUNK, arguments

from jaxchat.config.operations import MirrorConfig
from jaxchat.errors import ConfigError
from jaxchat.runs.mirror import Mirror, units


def write(run, files):
    for path, text in files.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(text)


def content(run):
    return {p.relative_to(run).as_posix(): p.read_text() for p in run.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    """A run amid its base stage: two checkpoints, and one that is being saved."""
    run = tmp_path / "one" / "cpu"
    write(run, {
        "tokenizer/done.json": "{}", "tokenizer/begun.json": "t", "tokenizer/tokenizer.json": "T",
        "rows/done.json": "{}", "rows/large.bin": "made again",
        "base/begun.json": "b", "base/metrics.jsonl": "1\n2\n",
        "base/checkpoints/2/state": "S2", "base/checkpoints/4/state": "S4",
        "base/checkpoints/6.orbax-checkpoint-tmp/state": "half",
    })  # fmt: skip
    return run


@pytest.fixture(params=["memory", "folder"])
def config(request, tmp_path):
    if request.param == "folder":
        return MirrorConfig(url=str(tmp_path / "mirror"), every=1)
    fsspec.filesystem("memory").store.clear()
    return MirrorConfig(url="memory://bucket/runs", every=1)


def copied(config, run):
    with Mirror(config, run):
        pass


def fetched(config, tmp_path, **files):
    """An empty machine's run folder after it has looked at the mirror."""
    other = tmp_path / f"other{len(list(tmp_path.iterdir()))}" / "cpu"
    other.mkdir(parents=True)
    write(other, files)
    Mirror(config, other).fetch()
    assert not list(other.glob(".mirror*"))
    return other


def store(config):
    """The mirror's file system, and where it is there."""
    return fsspec.core.url_to_fs(f"{config.url}/cpu")


def test_an_empty_machine_gets_what_is_whole_and_newest(config, run, tmp_path):
    copied(config, run)
    assert content(fetched(config, tmp_path)) == {
        "tokenizer/done.json": "{}", "tokenizer/begun.json": "t", "tokenizer/tokenizer.json": "T",
        "base/begun.json": "b", "base/metrics.jsonl": "1\n2\n", "base/checkpoints/4/state": "S4",
    }  # fmt: skip


def test_what_the_run_has_is_not_replaced(config, run, tmp_path):
    copied(config, run)
    newer = {"base/begun.json": "b", "base/checkpoints/6/state": "S6"}
    assert "base/checkpoints/4/state" not in content(fetched(config, tmp_path, **newer))
    others = content(fetched(config, tmp_path, **{"base/begun.json": "other settings"}))
    assert others["base/begun.json"] == "other settings"
    assert "base/checkpoints/4/state" not in others


def test_a_complete_stage_takes_the_place_of_its_checkpoints(config, run, tmp_path):
    copied(config, run)
    shutil.rmtree(run / "base" / "checkpoints")
    write(run, {"base/done.json": "{}", "base/model/weights": "W"})
    copied(config, run)
    fs, base = store(config)
    fs.invalidate_cache()
    names = {path.rpartition("/")[2] for path in fs.ls(base, detail=False)}
    assert names == {"tokenizer", "tokenizer.json", "base", "base.json"}
    found = content(fetched(config, tmp_path))
    assert found["base/model/weights"] == "W"
    assert not any("checkpoints" in path for path in found)


@pytest.mark.parametrize("harm", ["damaged", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    config, run, tmp_path, harm, capsys
):
    copied(config, run)
    fs, base = store(config)
    state = f"{base}/base@4/base/checkpoints/4/state"
    if harm == "damaged":
        fs.pipe_file(state, b"X4")
    else:
        fs.rm_file(state if harm == "missing" else f"{base}/base@4.json")
    found = content(fetched(config, tmp_path))
    assert found["base/checkpoints/2/state"] == "S2"
    assert "base/checkpoints/4/state" not in found
    printed = "base@4 is damaged there (base/checkpoints/4/state), and not used."
    assert (printed in capsys.readouterr().err) == (harm != "no manifest")


@pytest.mark.parametrize("path", ["../../evil", "base/../../evil", "/evil", "mid/state"])
def test_a_manifest_cannot_name_a_file_elsewhere(config, run, tmp_path, path):
    copied(config, run)
    fs, base = store(config)
    manifest = {"format": "jaxchat-mirror-1", "files": {path: [1, "0" * 64]}}
    fs.pipe_file(f"{base}/base@9.json", json.dumps(manifest).encode())
    found = content(fetched(config, tmp_path))
    assert found["base/checkpoints/4/state"] == "S4"


def test_a_store_that_fails_is_reported_once_and_tried_again(config, run, capsys, monkeypatch):
    mirror = Mirror(config, run)
    mirror._every = 0.1  # and twice as long after each failure
    put, failures = mirror._fs.put_file, []

    def failing(*args, **kwargs):
        if len(failures) < 2:
            failures.append(args)
            raise OSError("no route to the bucket")
        return put(*args, **kwargs)

    monkeypatch.setattr(type(mirror._fs), "put_file", lambda fs, *a, **k: failing(*a, **k))
    with mirror:
        deadline = time.monotonic() + 60
        while len(mirror._sent) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    printed = capsys.readouterr().err
    assert printed.count("it cannot be written (no route to the bucket); it is tried again.") == 1
    assert "is not there yet" not in printed


def test_what_is_left_at_the_end_is_reported(config, run, capsys, monkeypatch):
    mirror = Mirror(config, run)

    def failing(*args, **kwargs):
        raise OSError("no route to the bucket")

    monkeypatch.setattr(type(mirror._fs), "put_file", failing)
    with mirror:
        pass
    assert "tokenizer, base@2, base@4 is not there yet" in capsys.readouterr().err


def test_what_was_copied_is_not_copied_again(config, run, monkeypatch):
    copied(config, run)
    mirror = Mirror(config, run)
    monkeypatch.setattr(type(mirror._fs), "put_file", lambda *a, **k: pytest.fail("copied again"))
    mirror.sync()
    assert {unit.name for unit in units(run)} == mirror._sent.keys()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere://x/y", "unknown to fsspec"),
        ("/proc/nowhere", "nothing can be written to mirror.url"),
    ],
)
def test_a_mirror_that_is_no_use_is_one_sentence(tmp_path, url, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Mirror(MirrorConfig(url=url), tmp_path)


def test_a_url_without_a_scheme_is_refused():
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX"):
        MirrorConfig(url="bucket/prefix")


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["folder", "s3"])
def test_a_run_resumes_on_an_empty_machine_bit_for_bit(tmp_path, storage, request):
    url, environment = str(tmp_path / "mirror"), {}
    if storage == "s3":
        url, environment = request.getfixturevalue("bucket")
    settings = SHRUNK | {"mirror.url": url, "mirror.every": 1}
    alone = Crashing(tmp_path / "alone", "cpu", arguments("cpu", SHRUNK))
    alone.finish()
    lost = Crashing(tmp_path / "lost", "cpu", arguments("cpu", settings), environment)
    assert lost.live(Moment("open", "/runs/cpu/mid/metrics.jsonl", delay=6.0)) is not None
    shutil.rmtree(lost.home)
    other = Crashing(tmp_path / "other", "cpu", arguments("cpu", settings), environment)
    printed = other.finish()
    assert "base comes from" in printed
    assert "base model: complete, skipped" in printed
    want, got = alone.figures(), other.figures()
    for stage in want:
        assert got[stage] == want[stage], f"{stage} differs"


@pytest.fixture
def bucket(tmp_path):
    """A server that speaks S3, of moto, and what a run needs to find it."""
    for package in ("moto", "s3fs", "flask"):
        pytest.importorskip(package)
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            import s3fs

            deadline = time.monotonic() + 60
            while True:
                try:
                    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("runs")
                    break
                except Exception:
                    assert time.monotonic() < deadline, "moto's server does not answer"
                    time.sleep(0.3)
        yield "s3://runs/mine", environment
    finally:
        server.kill()
        server.wait()
