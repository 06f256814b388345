"""What can happen to a disk while somebody writes to it; for the fixture `small_disk`."""

import os
import subprocess
import time
from pathlib import Path

BUSY = 60  # seconds for which a file that is being written may keep a disk from becoming read-only


def remount(place: Path, options: str) -> None:
    """Changes a mounted file system: "ro", "rw", "size=64m".

    Linux refuses "ro" while any file is open for writing, and training writes in the background
    (Orbax its checkpoints): asks again until all are closed. Raises CalledProcessError with what
    mount says.
    """
    command = ["mount", "-o", f"remount,{options}", str(place)]
    english = os.environ | {"LC_ALL": "C"}
    until = time.monotonic() + BUSY
    while True:
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, env=english, text=True)
        if "busy" not in done.stderr or time.monotonic() > until:
            break
        time.sleep(0.01)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
