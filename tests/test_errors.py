"""What the user is reported, and the exit code, for everything that can go wrong."""

import errno
import os
import signal

import pytest

from jaxchat.errors import (
    ArtifactError,
    BusyError,
    ConfigError,
    ErrorHandler,
    TokenizerError,
    explain,
)
from jaxchat.signals import NOTICES, REQUEUE, Interrupted


@pytest.fixture(autouse=True)
def _signals():
    """`ErrorHandler` takes a scheduler's notices over; the test runner gets them back."""
    before = {number: signal.getsignal(number) for number in NOTICES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("base.steps is -1."), 2),
        (ArtifactError("x is damaged."), 1),
        (BusyError("another process."), 1),
        (FloatingPointError("the loss is nan."), 1),
        (TokenizerError("no usable tokenizer."), 1),
    ],
)
def test_our_own_errors_are_printed_as_they_are(error, code, tmp_path):
    assert explain(error, tmp_path) == (f"jaxchat: {error}", code)


def test_a_full_disk_names_the_file_or_the_home(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    reported, code = explain(full, tmp_path)
    assert code == 1
    assert f"a disk, most likely the disk of {tmp_path}, is full; free some space" in reported
    named = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "rows.npy"))
    assert f"the disk of {tmp_path / 'rows.npy'} is full" in explain(named, tmp_path)[0]


def test_a_full_disk_is_recognised_in_the_words_of_other_libraries(tmp_path):
    error = ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device; [source...")
    assert "is full" in explain(error, tmp_path)[0]


def test_a_read_only_disk_is_named_with_what_to_do(tmp_path):
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "runs"))
    reported, code = explain(error, tmp_path)
    assert code == 1
    assert "Read-only file system" in reported
    assert str(tmp_path / "runs") in reported
    assert "--home" in reported


def test_an_interruption_by_the_user_gives_the_shell_the_signal(tmp_path):
    assert explain(KeyboardInterrupt(), tmp_path)[1] == 130
    assert explain(Interrupted(signal.SIGINT), tmp_path)[1] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_notice_ends_what_runs_with_the_code_to_requeue(tmp_path, capsys, number):
    with ErrorHandler(tmp_path) as handler:
        os.kill(os.getpid(), number)
    assert handler.exit_code == REQUEUE == 75  # EX_TEMPFAIL
    assert capsys.readouterr().err == "Interrupted; give the same command again to resume.\n"


def test_a_package_that_is_missing_is_no_traceback(tmp_path):
    reported, code = explain(ModuleNotFoundError("No module named 'grain'", name="grain"), tmp_path)
    assert code == 1
    assert "No module named 'grain'" in reported
    assert "bootstrap.py" in reported


def test_a_bug_keeps_its_traceback(tmp_path):
    for bug in (ZeroDivisionError(), ValueError("x"), ImportError("y", name="jaxchat.runs.stages")):
        assert explain(bug, tmp_path) is None
    with pytest.raises(ZeroDivisionError), ErrorHandler(tmp_path):
        raise ZeroDivisionError


def test_every_sentence_is_one_line(tmp_path):
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "denied"), Interrupted(2)):
        assert "\n" not in explain(error, tmp_path)[0]


def test_a_file_in_the_place_of_a_folder_is_not_the_homes_fault(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for work in (lambda: (file / "a" / "b").mkdir(), file.mkdir, lambda: tmp_path.open()):
        with pytest.raises((NotADirectoryError, FileExistsError, IsADirectoryError)) as caught:
            work()
        reported, code = explain(caught.value, tmp_path / "home")
        assert code == 1
        assert " cannot be used: " in reported
        assert "--home" not in reported
