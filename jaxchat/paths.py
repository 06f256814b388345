"""Paths of artefacts, atomic writes and hashes; the one module that reads the environment.

A run's artefacts are under `HOME/runs/NAME/`. A file is written beside its final name and then
renamed, so that a file with its final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxchat.errors import ArtifactError, ConfigError

DEFAULT_HOME = "~/.cache/jaxchat"
DEFAULT_HUB = "https://huggingface.co"


def home(given: str | os.PathLike[str] | None = None) -> Path:
    """The root of all artefacts: `given`, else JAXCHAT_HOME, else ~/.cache/jaxchat."""
    return Path(given or os.environ.get("JAXCHAT_HOME") or DEFAULT_HOME).expanduser().absolute()


def tiktoken_cache() -> Path:
    """The folder where tiktoken keeps the vocabularies that it has downloaded."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(named or Path(tempfile.gettempdir()) / "data-gym-cache")


def hub_endpoint() -> str:
    """Where datasets are: HF_ENDPOINT, else the Hugging Face hub."""
    return os.environ.get("HF_ENDPOINT") or DEFAULT_HUB


def hub_token() -> str | None:
    """The user's token for the hub as huggingface_hub finds it: HF_TOKEN, else the token file."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token:
        return token
    folder = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    path = Path(os.environ.get("HF_TOKEN_PATH") or Path(folder) / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except (OSError, ValueError):
        return None


def process_env() -> tuple[str, str, str]:
    """JAXCHAT_COORDINATOR, JAXCHAT_PROCESSES, JAXCHAT_PROCESS; each empty where it is not set."""
    names = ("JAXCHAT_COORDINATOR", "JAXCHAT_PROCESSES", "JAXCHAT_PROCESS")
    coordinator, size, index = (os.environ.get(name, "").strip() for name in names)
    return coordinator, size, index


def api_key() -> str | None:
    """The server's key for its clients: JAXCHAT_API_KEY; None where it is empty or unset."""
    return os.environ.get("JAXCHAT_API_KEY", "").strip() or None


def hub_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def offline_by() -> str:
    """The setting that forbids the network, for messages."""
    return "HF_HUB_OFFLINE" if hub_offline() else "--offline"


def set_environment(settings: Mapping[str, str], names: Collection[str]) -> bool:
    """Sets environment variables, unless the user has set one of `names`; whether it did."""
    if any(os.environ.get(name) for name in names):
        return False
    os.environ.update(settings)
    return True


def set_default(name: str, value: str) -> bool:
    """Sets an environment variable that is not there, not even empty; whether it did."""
    unset = name not in os.environ
    os.environ.setdefault(name, value)
    return unset


def setting(name: str) -> str | None:
    """An environment variable; None where it is not there."""
    return os.environ.get(name)


def proxies() -> dict[str, str]:
    """Scheme -> proxy, as http_proxy, https_proxy or the system say; urllib reads no_proxy."""
    from urllib.request import getproxies

    return getproxies()


def runs(root: Path) -> Path:
    """The folder that holds one folder per run."""
    return root / "runs"


def ladders(root: Path) -> Path:
    """The folder that holds one folder per ladder."""
    return root / "ladders"


def data(root: Path) -> Path:
    """The folder of downloads, one folder per source."""
    return root / "data"


def check_folder(path: Path | None, flag: str) -> None:
    """Raises ConfigError where what should be a folder, or be made one, is a file or under one."""
    file = next((p for p in (path, *path.parents) if p.exists()), None) if path else None
    if path is not None and file is not None and not file.is_dir():
        under = "" if file == path else f" is under {file}, which"
        raise ConfigError(f"{flag} {path}{under} is a file; it must be a folder: name another.")


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; renames it to `path` when the block ends well.

    The temporary file is removed when the block fails, so a full disk leaves the old content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o755)
        remove(path)
        temporary.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Deletes a file or a folder with all it holds; nothing happens when it is not there.

    A folder is renamed first: killed half-way, its name is gone and `sweep` finds the rest.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes temporary files and folders that a killed process left in `folder`."""
    for path in list(folder.glob(".*.tmp")):
        remove(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_open(path) as file:
        json.dump(value, file, indent=1, sort_keys=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Reads JSON. Raises ArtifactError, naming the file, when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; run the stage that makes it.") from error
    except ValueError as error:
        raise ArtifactError(
            f"{path} is damaged (not JSON: {error}); delete it and give the same command again."
        ) from error


def sha256_text(*parts: str) -> str:
    """The hash of several strings, lengths included, so that parts cannot run into each other."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
