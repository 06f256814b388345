"""Fetches nanochat's eval_bundle, a zip file with the data of CORE's tasks."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from jaxchat import paths
from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub, measured
from jaxchat.data.download.transfer import download_all
from jaxchat.data.download.web import Web, WebError, check_address
from jaxchat.errors import ArtifactError

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # as nanochat has it
FOLDER = "eval_bundle"  # in HOME, and in the zip file
RECORD = "eval_bundle.json"  # in HOME: what came at the first fetch
FORMAT = "jaxchat-eval-bundle-1"
ADVICE = "Another address is given with eval.bundle_url, or jaxchat eval core --download URL."
MAX_FILES, MAX_BYTES = 2_000, 4 << 30  # of what is unpacked
_WANTED = (".yaml", ".csv", ".jsonl")


def bundle_folder(root: Path) -> Path:
    """The bundle's folder in a home."""
    return root / FOLDER


def address(hub: Hub, url: str) -> str:
    """The URL of a run's bundle: `url`; if that is "", at --base-url, else nanochat's."""
    return url or hub.plain(FOLDER, f"{FOLDER}.zip") or URL


def fetch_bundle(root: Path, url: str = URL, web: Web | None = None) -> Path:
    """Downloads and unpacks the bundle, unless it is there.

    HOME/eval_bundle.json notes the size and the checksum of what came first, and those of its
    files. Raises WebError when it cannot be had, ArtifactError when it is not what came first.
    """
    folder = bundle_folder(root)
    if folder.exists():
        return check_bundle(root)
    web = web or Web(proxies=paths.proxies())
    local = paths.data(root) / FOLDER / "eval_bundle.zip"
    remote = RemoteFile(FOLDER, local.name, check_address("the bundle's address", url), local)
    try:
        file = measured(web, remote)
        download_all([file], web)
    except WebError as error:
        raise WebError(error.why, ADVICE) from error
    _note(root, file, local)
    unpack(local, folder)
    check_bundle(root)
    cache.remove(file)
    return folder


def check_bundle(root: Path) -> Path:
    """The home's bundle, with unchanged files; the checksums of a new one are recorded.

    Raises ArtifactError where they are not.
    """
    folder, record = bundle_folder(root), _read_record(root)
    files = {
        path.relative_to(folder).as_posix(): paths.sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in _WANTED
    }
    known = record.get("files")
    if known is None:
        paths.write_json(root / RECORD, {"format": FORMAT, **record, "files": files})
    elif known != files:
        changed = sorted(dict(known.items() ^ files.items()))
        raise ArtifactError(
            f"the bundle {folder} is not as it first was: {changed[0]} has changed (of "
            f"{len(changed):,} in all); delete the folder to have it fetched again, or "
            f"{root / RECORD} to take it as it is."
        )
    return folder


def _note(root: Path, file: RemoteFile, path: Path) -> None:
    """Records the first download. Raises ArtifactError when an earlier one was another file."""
    size, digest = path.stat().st_size, cache.sha256_of(file) or paths.sha256_file(path)
    record = _read_record(root)
    if "sha256" not in record:
        came = {"url": file.url, "size": size, "sha256": digest}
        paths.write_json(root / RECORD, {"format": FORMAT, **record, **came})
    elif record["sha256"] != digest:
        cache.remove(file)
        raise ArtifactError(
            f"the bundle at {file.url} is not the one that came first: {size:,} bytes with sha256 "
            f"{digest}, and not {record['size']:,} with {record['sha256']}; results of both do not "
            f"compare: to take the new one, delete {root / RECORD}."
        )


def _read_record(root: Path) -> dict[str, Any]:
    path = root / RECORD
    if not path.exists():
        return {}
    record = paths.read_json(path)
    if not isinstance(record, dict) or record.pop("format", "") != FORMAT:
        raise ArtifactError(
            f"{path} is no record of format {FORMAT}; delete it and give the same command again."
        )
    return record


def unpack(path: Path, folder: Path) -> None:
    """Unpacks the tables and examples of the zip file `path`; nothing is written outside `folder`.

    Raises ArtifactError for a file that is no zip file, or that is not as a bundle should be.
    """
    try:
        with zipfile.ZipFile(path) as archive, paths.atomic_folder(folder) as temporary:
            # Never more bytes than the entries say; their checksums are checked.
            archive.extractall(temporary, _members(archive, path))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path} is no usable zip file ({error}); delete it and give the same command again."
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The entries that are unpacked, by their names below the bundle's folder."""
    found = []
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        if entry.is_dir() or name.parts[:1] != (FOLDER,) or name.suffix.lower() not in _WANTED:
            continue  # macOS adds folders of its own
        if ".." in name.parts or "\\" in entry.filename:
            raise ArtifactError(f"{path} would write outside its folder: {entry.filename!r}.")
        entry.filename = name.relative_to(FOLDER).as_posix()
        found.append(entry)
    total = sum(entry.file_size for entry in found)
    if not found or len(found) > MAX_FILES or total > MAX_BYTES:
        raise ArtifactError(
            f"{path} is no bundle of CORE's tasks: it has {len(found):,} files in {FOLDER}/, of "
            f"{total:,} bytes; there should be 1 to {MAX_FILES:,}, of at most {MAX_BYTES:,} bytes."
        )
    return found
