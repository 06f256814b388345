"""Downloads from a real server that fails in all the ways that servers do."""

import contextlib
import email.utils
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import COMMIT, Fault, HubServer, until

from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import bytes_here, download
from jaxchat.data.download.web import RetryPolicy, Web, WebError
from jaxchat.data.registry import Source
from jaxchat.errors import ArtifactError

REPO = "someone/shards"
# not quick to see a stall: a busy machine may do nothing for seconds
QUICK = RetryPolicy(tries=4, first_tries=2, wait=0.01, longest_wait=0.02, stall=120)
SIZE = 200_000


def shards(count, size=SIZE):
    random.seed(count)
    return {f"shard_{index:05d}.parquet": random.randbytes(size) for index in range(count)}


def source(revision=COMMIT, files=()):
    splits = {"text": "shard_*"}
    return Source("shards", "text", "", REPO, revision, "mit", splits, tuple(files), 0)


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


def open_hub(server, root, policy=QUICK, **options):
    return Hub(root, Web(policy=policy), endpoint=server.url, **options)


def get(server, root, policy=QUICK, **options):
    """Downloads all shards and returns their paths."""
    hub = open_hub(server, root, policy)
    return [path for _, path in download(hub.files(source()), hub.web, **options)]


def parts(root):
    return sorted(root.rglob("*.part"))


def assert_same(paths, files):
    assert [path.name for path in paths] == sorted(files)
    assert all(path.read_bytes() == files[path.name] for path in paths)
    assert not parts(paths[0].parent)


def test_files_come_whole_and_in_order_from_the_store_behind_the_hub(server, tmp_path):
    files = shards(5)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(pause=0.02))  # the first is the slowest
    reported = []
    assert_same(get(server, tmp_path, progress=reported.append), files)
    assert reported[-1] == 5 * SIZE
    # and are not asked for again
    before = len(server.asked)
    assert_same(get(server, tmp_path), files)
    assert len(server.asked) == before


def test_bytes_that_have_come_are_not_asked_for_again_when_an_answer_breaks_off(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(cut=70_000), Fault(cut=50_000))
    assert_same(get(server, tmp_path), files)
    assert [asked.start for asked in server.of("shard_00000.parquet")] == [0, 70_000, 120_000]
    assert server.sent["shard_00000.parquet"] == SIZE


def test_a_server_that_always_breaks_off_but_gets_on_is_followed_to_the_end(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", *[Fault(cut=20_000)] * 9)  # more often than there are tries
    assert_same(get(server, tmp_path), files)


def test_a_server_without_ranges_starts_from_the_beginning(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(cut=70_000), Fault(no_range=True))
    reported = []
    assert_same(get(server, tmp_path, progress=reported.append), files)
    assert reported[-1] == SIZE


def test_a_server_without_ranges_that_breaks_off_is_given_up(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", *[Fault(cut=70_000, no_range=True)] * 20)
    with pytest.raises(WebError, match=r"shard_00000.parquet of shards cannot be had: the answer"):
        get(server, tmp_path)
    assert len(server.of("shard_00000.parquet")) == QUICK.tries


def test_a_stalled_answer_is_dropped_and_asked_for_from_there(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(cut=64_000, stall=True))
    assert_same(get(server, tmp_path, replace(QUICK, tries=30, stall=0.5)), files)
    assert {0, 64_000} <= {asked.start for asked in server.of("shard_00000.parquet")}


def test_a_server_that_never_sends_a_byte_is_an_error(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", *[Fault(cut=0, stall=True)] * 9)
    with pytest.raises(WebError, match="no byte came for too long"):
        get(server, tmp_path, replace(QUICK, tries=2, stall=0.2))


def test_wrong_bytes_are_thrown_away_and_asked_for_again(server, tmp_path):
    files = shards(2)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(wrong=True), Fault(wrong=True))
    assert_same(get(server, tmp_path), files)
    assert [asked.start for asked in server.of("shard_00000.parquet")] == [0, 0, 0]


@pytest.mark.parametrize("fault", [Fault(wrong=True), Fault(longer=1), Fault(longer=-1)])
def test_bytes_that_stay_wrong_are_an_error_that_names_the_file(server, tmp_path, fault):
    files = shards(1)
    server.add(REPO, files)
    if fault.longer < 0:  # one too few, and the server says so
        fault = Fault(cut=SIZE - 1)
        hub = open_hub(server, tmp_path)
        listed = [replace(f, size=SIZE + 1) for f in hub.files(source())]
        with pytest.raises(WebError, match="came wrong 3 times: 200,000 bytes"):
            list(download(listed, hub.web))
        return
    server.fail("shard_00000.parquet", *[fault] * 5)
    with pytest.raises(WebError, match=r"shard_00000.parquet of shards came wrong 3 times"):
        get(server, tmp_path)
    assert len(server.of("shard_00000.parquet")) == 3
    assert not [path for path in tmp_path.rglob("*.parquet*") if path.is_file()]


def test_a_page_of_the_network_instead_of_the_file_does_not_cost_what_has_come(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(cut=70_000), Fault(404))
    with pytest.raises(WebError):
        get(server, tmp_path)
    server.portal = True
    with pytest.raises(WebError, match="came wrong 3 times: 19 bytes"):
        get(server, tmp_path)
    server.portal = False
    assert_same(get(server, tmp_path), files)
    assert server.sent["shard_00000.parquet"] == SIZE


def test_small_files_are_checked_by_the_hash_that_git_has_of_them(server, tmp_path):
    files = {"shard_0.txt": b"a few words\n", "shard_1.txt": b""}
    server.add(REPO, files)
    server.fail("shard_0.txt", Fault(wrong=True))
    assert_same(get(server, tmp_path), files)
    assert len(server.of("shard_0.txt")) == 2
    hub = open_hub(server, tmp_path)
    assert hub.files(source())[0].blob
    noted = cache.sha256_of(hub.files(source())[0])
    assert noted == hashlib.sha256(b"a few words\n").hexdigest()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(server, tmp_path, status):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(status), Fault(status))
    assert_same(get(server, tmp_path), files)


def test_a_server_that_stays_in_trouble_is_an_error(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", *[Fault(503)] * 9)
    with pytest.raises(WebError, match="503 Service Unavailable, 4 times in a row"):
        get(server, tmp_path)


@pytest.mark.parametrize("after", ["1", "date", "ratelimit"])
def test_too_many_requests_wait_as_long_as_the_server_asks(server, tmp_path, after):
    server.add(REPO, shards(1))
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    headers = {"Retry-After": date if after == "date" else after}
    if after == "ratelimit":
        headers = {"RateLimit": '"resolvers";r=0;t=1'}
    server.fail("shard_00000.parquet", Fault(429, headers))
    began = time.monotonic()
    get(server, tmp_path)
    assert time.monotonic() - began > 0.8  # a date has whole seconds: at least one is left of two


def test_a_server_that_asks_for_hours_is_an_error(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", Fault(429, {"Retry-After": "7200"}))
    with pytest.raises(WebError, match="asks to wait 7,200 seconds"):
        get(server, tmp_path)


def test_a_signed_address_that_ran_out_is_made_again(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(403))  # of the store, not of the hub
    assert_same(get(server, tmp_path), files)


def test_a_part_longer_than_the_file_restarts(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    (file,) = open_hub(server, tmp_path).files(source())
    cache.part_path(file).parent.mkdir(parents=True)
    cache.part_path(file).write_bytes(b"x" * (SIZE + 5))
    assert_same(get(server, tmp_path), files)


def test_416_restarts(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(cut=70_000), Fault(416))
    assert_same(get(server, tmp_path), files)
    assert [asked.start for asked in server.of("shard_00000.parquet")] == [0, 70_000, 0]


def test_a_part_of_other_content_is_not_resumed(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", Fault(cut=70_000), *[Fault(status=404)] * 2)
    with pytest.raises(WebError):
        get(server, tmp_path)
    assert len(parts(tmp_path)) == 1
    (old,) = parts(tmp_path)
    files = {"shard_00000.parquet": random.randbytes(SIZE)}  # another version at the same place
    server.faults.clear()
    server.add(REPO, files)
    hub = open_hub(server, tmp_path, refresh=True)
    assert_same([path for _, path in download(hub.files(source()), hub.web)], files)
    assert server.of("shard_00000.parquet")[-1].start == 0
    assert not old.exists()


def test_a_part_with_damaged_bytes_is_found_out(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    (file,) = open_hub(server, tmp_path).files(source())
    cache.part_path(file).parent.mkdir(parents=True)
    cache.part_path(file).write_bytes(b"x" * 1_000)  # as after a power cut
    assert_same(get(server, tmp_path), files)


def test_all_bytes_there_but_not_yet_the_name(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    (file,) = open_hub(server, tmp_path).files(source())
    cache.part_path(file).parent.mkdir(parents=True)
    cache.part_path(file).write_bytes(files[file.path])
    assert_same(get(server, tmp_path), files)
    assert not server.of("shard_00000.parquet")


def test_several_workers_download_at_the_same_time(server, tmp_path):
    server.add(REPO, shards(3))
    barrier = threading.Barrier(3, timeout=60)  # each answer waits until all three are asked for
    wait = server.wait
    server.wait = lambda seconds: barrier.wait() < 0 or wait(0) if seconds == 7 else wait(seconds)
    for index in range(3):
        server.fail(f"shard_{index:05d}.parquet", Fault(pause=7, cut=1), *[Fault()] * 3)
    get(server, tmp_path, RetryPolicy(wait=0.01), workers=3)
    assert not barrier.broken


def test_at_most_n_files_ahead(server, tmp_path):
    files = shards(6, 1_000)
    server.add(REPO, files)
    hub = open_hub(server, tmp_path)
    coming = download(hub.files(source()), hub.web, workers=4, ahead=2)
    next(coming)
    until(lambda: server.of("shard_00002.parquet"))
    time.sleep(0.2)  # nothing says that nothing more will come
    assert not server.of("shard_00003.parquet")
    assert [file.path for file, _ in coming] == sorted(files)[1:]


def test_what_was_asked_for_before_an_error_is_still_given_out(server, tmp_path):
    files = shards(4, 1_000)
    server.add(REPO, files)
    server.fail("shard_00002.parquet", *[Fault(404)] * 9)
    hub = open_hub(server, tmp_path)
    got = []
    with pytest.raises(WebError, match=r"shard_00002.parquet of shards is not there"):
        got.extend(file.path for file, _ in download(hub.files(source()), hub.web))
    assert got == ["shard_00000.parquet", "shard_00001.parquet"]


def test_after_an_error_no_further_file_is_begun(server, tmp_path):
    server.add(REPO, shards(4, 1_000))
    server.fail("shard_00001.parquet", Fault(404))
    hub = open_hub(server, tmp_path)
    coming = download(hub.files(source()), hub.web, workers=1)
    next(coming)
    until(lambda: server.of("shard_00001.parquet"))
    time.sleep(0.2)  # nothing says that nothing more will come
    assert not server.of("shard_00002.parquet")
    with pytest.raises(WebError):
        next(coming)


def test_leaving_the_loop_stops_the_workers_and_keeps_the_parts(server, tmp_path):
    files = shards(3)
    server.add(REPO, files)
    for name in files:
        server.fail(name, *([] if name.endswith("0.parquet") else [Fault(pause=0.05)]))
    hub = open_hub(server, tmp_path)
    coming = download(hub.files(source()), hub.web, workers=3)
    next(coming)
    until(lambda: server.sent.get("shard_00002.parquet"))
    coming.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("download-")])
    assert parts(tmp_path)
    came = sum(map(bytes_here, hub.files(source())))
    assert SIZE < came < 3 * SIZE
    server.faults.clear()
    assert_same(get(server, tmp_path), files)


def test_too_small_a_disk_is_reported_before_anything_is_asked(server, tmp_path):
    server.add(REPO, shards(2))
    hub = open_hub(server, tmp_path)
    huge = [replace(file, size=10**17) for file in hub.files(source())]
    with pytest.raises(ArtifactError, match=r"2 files need 200,000,000.0 GB, and 1.1 GB are to"):
        download(huge, hub.web)
    assert not server.of("parquet")
    # with files removed as they are used, only those that are there at once count
    with pytest.raises(ArtifactError, match=r"2 files need 200,000,000.0 GB"):
        download(huge * 5, hub.web, ahead=1, keep=False)


def test_offline_uses_what_is_there_and_tells_what_is_missing(server, tmp_path):
    files = shards(2, 1_000)
    server.add(REPO, files)
    paths = get(server, tmp_path)
    offline = Hub(tmp_path, Web(policy=QUICK), endpoint="http://127.0.0.1:1", offline=True)
    wanted = offline.files(source())
    asked = len(server.asked)
    assert_same([p for _, p in download(wanted, offline.web, offline=True)], files)
    cache.remove(wanted[1])
    assert not list(paths[0].parent.glob("*00001*"))
    with pytest.raises(
        ArtifactError, match=r"1 file is not there, the first is shard_00001"
    ) as reported:
        download(wanted, offline.web, offline=True)
    assert "jaxchat data download shards" in str(reported.value)
    assert len(server.asked) == asked


def test_verify_finds_a_file_that_was_changed_behind_our_back(server, tmp_path):
    files = shards(2, 1_000)
    server.add(REPO, files)
    damaged = get(server, tmp_path)[0]
    stat = damaged.stat()
    damaged.write_bytes(b"y" * 1_000)
    os.utime(damaged, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert get(server, tmp_path)[0].read_bytes() == b"y" * 1_000  # same size, same time
    offline = {"verify": True, "offline": True}
    with pytest.raises(ArtifactError, match="1 file is not there"):
        get(server, tmp_path, **offline)
    assert_same(get(server, tmp_path, verify=True), files)
    damaged.write_bytes(b"z" * 1_000)  # another time: seen without --verify
    assert_same(get(server, tmp_path), files)


def test_a_file_that_was_found_damaged_is_not_used_when_no_other_can_be_had(server, tmp_path):
    server.add(REPO, shards(1, 1_000))
    (path,) = get(server, tmp_path)
    stat = path.stat()
    path.write_bytes(b"y" * 1_000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    server.fail("shard_00000.parquet", *[Fault(404)] * 2)
    for verify in (True, False):
        with pytest.raises(WebError, match="is not there"):
            get(server, tmp_path, verify=verify)


def test_two_processes_do_not_write_into_each_others_part(server, tmp_path):
    files = shards(1)
    server.add(REPO, files)
    server.fail("shard_00000.parquet", Fault(pause=0.02))
    hubs = [open_hub(server, tmp_path), open_hub(server, tmp_path)]
    both = [
        threading.Thread(target=lambda h=hub: list(download(h.files(source()), h.web)))
        for hub in hubs
    ]  # locks are between open files: threads stand for processes
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert_same(sorted(tmp_path.rglob("shard_*")), files)
    assert len(server.of("shard_00000.parquet")) == 1


CHILD = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a job in the background
sys.path.insert(0, sys.argv[3])
from test_download import Hub, QUICK, Web, download, source
hub = Hub(Path(sys.argv[2]), Web(policy=QUICK), endpoint=sys.argv[1])
for file, path in download(hub.files(source()), hub.web):
    print(path, flush=True)
"""


def start_child(server, root):
    command = [sys.executable, "-c", CHILD, server.url, str(root), str(Path(__file__).parent)]
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes_where_it_was(server, tmp_path, number):
    files = shards(2)
    server.add(REPO, files)
    server.fail("shard_00001.parquet", Fault(cut=80_000, stall=True))
    child = start_child(server, tmp_path)
    until(lambda: any(p.stat().st_size > 60_000 for p in parts(tmp_path) if "00001" in p.name))
    until(lambda: list(tmp_path.rglob("shard_00000.parquet")))
    child.send_signal(number)
    child.communicate(timeout=60)  # at once, not when the stall is noticed
    (part,) = parts(tmp_path)
    came = part.stat().st_size
    assert 60_000 < came <= 80_000
    asked = len(server.asked)
    child = start_child(server, tmp_path)
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert_same([Path(line) for line in out.split()], files)
    again = [a for a in server.asked[asked:] if a.host == "store"]
    assert [(a.path[-19:], a.start) for a in again] == [("shard_00001.parquet", came)]


def test_nothing_is_left_of_a_file_that_cannot_be_had(server, tmp_path):
    server.add(REPO, shards(1))
    server.fail("shard_00000.parquet", *[Fault(404)] * 3)
    with contextlib.suppress(WebError):
        get(server, tmp_path)
    assert not [path for path in tmp_path.rglob("*shard*") if path.is_file()]


def test_the_version_of_a_file_is_its_checksum_or_else_its_tag():
    file = RemoteFile("s", "p", "http://x", Path("p"), 5, tag='"a"')
    assert file.version == '"a"/5'
    assert replace(file, blob="b").version == "b/5"
    assert replace(file, sha256="c", blob="b").version == "c/5"
    assert replace(file, tag=None).version == ""
