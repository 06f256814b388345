"""Signals that come where Python ignores exceptions are not lost."""

import signal
import subprocess
import sys

import pytest

CODE = """
import gc, signal, sys, time
from pathlib import Path
from jaxchat.errors import ErrorHandler

number, place = int(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background ignores it

def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(number)

class Dying:
    def __del__(self):
        signal.raise_signal(number)

with ErrorHandler(Path()) as handler:
    if place == "callback":
        gc.callbacks.append(callback)
        gc.collect()
    else:
        Dying()
    print("it was ignored", flush=True)
    time.sleep(60)
    print("it was lost")
sys.exit(handler.exit_code)
"""


@pytest.mark.parametrize("place", ["callback", "__del__"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_during_the_garbage_collection_stops_the_command(number, code, place):
    command = [sys.executable, "-c", CODE, str(int(number)), place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stdout == "it was ignored\n"
    assert done.returncode == code, done.stderr


def test_other_exceptions_there_are_reported_as_ever():
    code = (
        "from pathlib import Path\nfrom jaxchat.errors import ErrorHandler\n"
        "class Dying:\n    def __del__(self):\n        raise ValueError('of its own')\n"
        "with ErrorHandler(Path()):\n    Dying()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Exception ignored in" in done.stderr
    assert "ValueError: of its own" in done.stderr
