"""What is on the disk: whole files, their records, parts, and locks on them."""

import hashlib
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.web import Stopped

DATA = b"some bytes"


def remote(folder, **known):
    known = known or {"sha256": hashlib.sha256(DATA).hexdigest()}
    return RemoteFile("s", "a.txt", "http://x/a.txt", folder / "a.txt", len(DATA), **known)


def record_of(file):
    return file.local.with_name(f".{file.local.name}.json")


def test_a_file_that_somebody_copied_here_is_read_once_and_then_known(tmp_path):
    file = remote(tmp_path)
    assert not cache.is_whole(file)
    file.local.write_bytes(DATA)
    assert cache.is_whole(file)
    stat = file.local.stat()
    file.local.write_bytes(b"other byte")  # not looked into again while size and time are the same
    os.utime(file.local, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.is_whole(file)
    assert not cache.is_whole(file, verify=True)
    assert cache.is_here(file)
    file.local.write_bytes(b"short")
    assert not cache.is_here(file)
    assert not cache.is_whole(file)


@pytest.mark.parametrize("known", [{"blob": "0" * 40}, {"sha256": "0" * 64}])
def test_a_file_with_other_bytes_is_not_whole(tmp_path, known):
    file = remote(tmp_path, **known)
    file.local.write_bytes(DATA)
    assert not cache.is_whole(file)
    assert not record_of(file).exists()


def test_a_record_of_another_version_does_not_count(tmp_path):
    file = remote(tmp_path, tag='"1"')
    file.local.write_bytes(DATA)
    assert cache.is_whole(file)
    assert not cache.is_whole(replace(file, tag='"2"'))
    noted = record_of(file).read_text()
    assert '"checked": false' in noted
    other = replace(file, tag=None, sha256="0" * 64)  # the server has learnt of checksums
    assert not cache.is_whole(other)
    file.local.write_bytes(DATA[::-1])
    assert not cache.is_whole(file)  # its time is new, and its bytes are not those that were noted


def test_a_cache_that_may_only_be_read_is_good(tmp_path):
    file = remote(tmp_path)
    file.local.write_bytes(DATA)
    record_of(file).mkdir()  # nothing can be written there, not even by root
    assert cache.is_whole(file)


def test_a_damaged_record_is_made_again(tmp_path):
    file = remote(tmp_path)
    file.local.write_bytes(DATA)
    record_of(file).write_text("{")
    assert cache.is_whole(file)
    assert cache.sha256_of(file) == file.sha256
    assert file.sha256 in record_of(file).read_text()


def test_a_part_that_is_held_is_waited_for(tmp_path):
    file = remote(tmp_path)
    stop = threading.Event()
    with cache.part(file, stop) as part:
        part.write(DATA)
        stopped = threading.Event()

        def second():
            with pytest.raises(Stopped), cache.part(file, stop):
                pass
            stopped.set()

        threading.Thread(target=second, daemon=True).start()
        assert not stopped.wait(2 * cache.POLL)
        stop.set()
        assert stopped.wait(60)
    assert cache.part_size(file) == len(DATA)


def test_a_part_that_became_the_file_while_it_was_waited_for_is_not_written_into(tmp_path):
    file = remote(tmp_path)
    digest = cache.Digest(file)
    digest.update(DATA)
    found = []

    def second():
        with cache.part(file, threading.Event()) as part:
            found.append((cache.is_whole(file), part.read()))

    with cache.part(file, threading.Event()) as part:
        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()
        waiting.join(2 * cache.POLL)
        part.write(DATA)
        cache.finish(file, part, digest)
    waiting.join(60)
    assert found == [(True, b"")]
    assert file.local.read_bytes() == DATA
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.txt.json", "a.txt"]


def test_removing_takes_the_file_its_record_and_its_parts_and_no_others(tmp_path):
    file = remote(tmp_path)
    file.local.write_bytes(DATA)
    cache.is_whole(file)
    cache.part_path(file).write_bytes(b"x")
    cache.part_path(replace(file, sha256="0" * 64)).write_bytes(b"x")
    others = {"a.txt.gz", "a.txt.gz.0123.part", "b.txt"}
    for name in others:
        (tmp_path / name).write_text("x")
    cache.remove(file)
    assert {path.name for path in tmp_path.iterdir()} == others
    cache.remove(file)  # nothing there: nothing happens
    cache.remove(replace(file, local=tmp_path / "none" / "a.txt"))


def test_parts_of_older_versions_are_dropped_but_not_while_somebody_writes_them(tmp_path):
    old, new = remote(tmp_path, tag="1"), remote(tmp_path, tag="2")
    for file in (old, new):
        cache.part_path(file).write_bytes(b"x")
    with cache.part(old, threading.Event()):
        assert not cache.part_path(new).exists()
        with cache.part(new, threading.Event()) as part:
            assert cache.part_path(old).exists()
            part.write(b"y")
    with cache.part(new, threading.Event()):
        assert not cache.part_path(old).exists()


def test_an_unknown_version_has_no_part_to_resume(tmp_path):
    file = replace(remote(tmp_path, tag="1"), tag=None)
    cache.part_path(file).write_bytes(b"x")
    assert cache.part_size(file) == 0


def test_room_is_counted_without_what_has_come(tmp_path):
    file = remote(tmp_path)
    free = 2**60
    big = replace(file, size=free, local=Path(tmp_path / "not" / "there" / "yet"))
    with pytest.raises(cache.ArtifactError, match=r"1 file needs 1,152,921,504.6 GB"):
        cache.check_space([big])
    few = replace(file, size=shutil.disk_usage(tmp_path).free + 10**9)
    with pytest.raises(cache.ArtifactError):
        cache.check_space([few])
    cache.part_path(few).touch()
    os.truncate(cache.part_path(few), few.size - 1_000)  # takes no room, as it is all holes
    cache.check_space([few])
    cache.check_space([])
    cache.check_space([replace(file, size=None)])
