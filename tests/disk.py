"""What can happen to a disk while somebody writes to it; for the fixture `small_disk`."""

import subprocess
from pathlib import Path


def remount(place: Path, options: str) -> None:
    """Changes a mounted file system: "ro", "rw", "size=64m"."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
