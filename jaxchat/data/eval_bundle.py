"""Fetches nanochat's eval_bundle, a zip file with the data of CORE's tasks (I/O; layer 2)."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from jaxchat import home
from jaxchat.data import cache
from jaxchat.data.cache import RemoteFile
from jaxchat.data.download import download
from jaxchat.data.hub import measured
from jaxchat.data.web import Web, check_address
from jaxchat.home import ArtifactError
from jaxchat.progress import Progress

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # as nanochat has it
FOLDER = "eval_bundle"  # in HOME, and in the zip file
MAX_FILES, MAX_BYTES = 2_000, 4 << 30  # of what is unpacked
_WANTED = (".yaml", ".csv", ".jsonl")


def bundle_folder(root: Path) -> Path:
    """Where a home keeps the bundle."""
    return root / FOLDER


def fetch_bundle(root: Path, url: str = URL, web: Web | None = None) -> Path:
    """Downloads and unpacks the bundle, unless it is there. Raises ArtifactError when it cannot."""
    folder = bundle_folder(root)
    if folder.exists():
        return folder
    web = web or Web(proxies=home.proxies())
    local = home.data(root) / FOLDER / "eval_bundle.zip"
    remote = RemoteFile(FOLDER, local.name, check_address("the bundle's address", url), local)
    file = measured(web, remote)
    with Progress("downloading", file.size or 0, "B") as progress:
        for _, path in download([file], web, progress=progress.update):
            unpack(path, folder)
    cache.remove(file)
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Unpacks the tables and examples of the zip file `path`; nothing is written outside `folder`.

    Raises ArtifactError for a file that is no zip file, or that is not as a bundle should be.
    """
    try:
        with zipfile.ZipFile(path) as archive, home.atomic_folder(folder) as temporary:
            for entry, name in _members(archive, path):
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # Never more than the entry says; the checksum is checked at its end.
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path} is no usable zip file ({error}); delete it and give the same command again."
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The entries that are unpacked, and their names below the bundle's folder."""
    found = []
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        if entry.is_dir() or name.parts[:1] != (FOLDER,) or name.suffix not in _WANTED:
            continue  # macOS adds folders of its own
        if ".." in name.parts or "\\" in entry.filename:
            raise ArtifactError(f"{path} would write outside its folder: {entry.filename!r}.")
        found.append((entry, name.relative_to(FOLDER)))
    total = sum(entry.file_size for entry, _ in found)
    if not found or len(found) > MAX_FILES or total > MAX_BYTES:
        raise ArtifactError(
            f"{path} is no bundle of CORE's tasks: it has {len(found):,} files in {FOLDER}/, of "
            f"{total:,} bytes; there should be 1 to {MAX_FILES:,}, of at most {MAX_BYTES:,} bytes."
        )
    return found
