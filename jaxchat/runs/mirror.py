"""A copy of a run elsewhere, in object storage or on another disk, by fsspec.

    URL/RUN/base/...      the files of a complete stage      URL/RUN/base.json     its manifest
    URL/RUN/base@1500/... of a checkpoint, with its records  URL/RUN/base@1500.json

What has its final name in a run's folder is whole, so a thread only has to look what is new there.
A manifest, with sizes and SHA-256, is written last: without one nothing is read. Text, rows and
downloads are not copied: they are made again, with the same bits, from what is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from jaxchat.config.operations import MirrorConfig
from jaxchat.errors import ConfigError, first_line
from jaxchat.paths import remove, sha256_file
from jaxchat.runs.stages import STAGES

FORMAT = "jaxchat-mirror-1"
MIRRORED = tuple(stage.name for stage in STAGES if stage.mirrored)
MOVING = "metrics.jsonl"  # the one file that grows under its final name
LONGEST_PAUSE = 600.0  # seconds between attempts where all fail
GRACE = 120.0  # seconds for what is left at the end of the run
INSTALL = 'pip install "jaxchat[cloud]"'


@dataclass(frozen=True)
class Unit:
    """What is copied and fetched together: a complete stage, or a checkpoint with its records."""

    stage: str
    step: int | None  # None: the complete stage
    files: tuple[str, ...]  # below the run's folder

    @property
    def name(self) -> str:
        """What it is called in the mirror."""
        return self.stage if self.step is None else f"{self.stage}@{self.step}"


def units(run: Path) -> Iterator[Unit]:
    """What there is to copy. Text of the hub is fetched from there again."""
    for stage in MIRRORED:
        folder = run / stage
        if stage == "data" and not (folder / "corpus").exists():
            continue
        if (folder / "done.json").exists():
            yield Unit(stage, None, _files(run, folder))
            continue
        records = [folder / name for name in ("begun.json", "micro_rows.json", MOVING)]
        known = tuple(f"{stage}/{path.name}" for path in records if path.exists())
        for step in _steps(folder):
            yield Unit(stage, step, (*known, *_files(run, folder / "checkpoints" / str(step))))


def _steps(folder: Path) -> list[int]:
    """Of a stage's whole checkpoints."""
    with contextlib.suppress(OSError):
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())
    return []


def _files(run: Path, folder: Path) -> tuple[str, ...]:
    """Those below a folder, but temporary ones."""
    found = (path.relative_to(run).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(p for p in found if "/." not in p and ".orbax-checkpoint-tmp" not in p))


class Mirror:
    """The copy of one run. While open, a thread keeps it up to date."""

    def __init__(self, config: MirrorConfig, run: Path) -> None:
        """Raises ConfigError when nothing can be written there."""
        self.run, self.url = run, f"{config.url.rstrip('/')}/{run.name}"
        self._every, self._warned = float(config.every), False
        self._sent: dict[str, Any] = {}  # unit -> sizes and dates of its files when it was copied
        self._fs, self._base = _connect(self.url)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        """Fetches what the run's folder lacks, then keeps the copy up to date."""
        try:
            self.fetch()
        except Exception as error:  # of many packages
            raise ConfigError(
                f"the mirror {self.url} cannot be read ({first_line(error)}); see to it, or leave "
                "mirror.url out."
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Copies what is left, and says what could not be."""
        self._end.set()
        self._thread.join(GRACE)
        missing = [unit.name for unit in units(self.run) if unit.name not in self._sent]
        if missing:
            self._print(f"{', '.join(missing)} is not there yet; the next session copies it.")

    def sync(self) -> None:
        """Copies what is new, and removes checkpoints that the run no longer has."""
        there = list(units(self.run))
        for unit in there:
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that was just removed
                self._send(unit)
        names = {unit.name for unit in there}
        for name in self._manifests().keys() - names:
            stage, _, step = name.partition("@")
            sent = [unit for unit in there if unit.stage == stage and unit.name in self._sent]
            if step and any(unit.step is None or unit.step > int(step) for unit in sent):
                self._remove(name)

    def fetch(self) -> None:
        """Brings what is newer there than in the run's folder; what is damaged is said."""
        manifests = self._manifests()
        for stage in MIRRORED:
            folder = self.run / stage
            if (folder / "done.json").exists():
                continue
            steps = [int(n.partition("@")[2]) for n in manifests if n.startswith(f"{stage}@")]
            newer = [step for step in steps if step > max(_steps(folder), default=-1)]
            names = [f"{stage}@{step}" for step in sorted(newer, reverse=True)]
            for name in [stage] * (stage in manifests) + names:
                if self._fetch(name, manifests[name]):
                    print(f"{name} comes from {self.url}", file=sys.stderr, flush=True)
                    break

    def _send(self, unit: Unit) -> None:
        paths = {path: self.run / path for path in unit.files}
        still = {p: f for p, f in paths.items() if not p.endswith(f"/{MOVING}")}
        stats = {path: file.stat() for path, file in still.items()}
        stamp = [(path, s.st_size, s.st_mtime_ns) for path, s in stats.items()]
        if self._sent.get(unit.name) == stamp:
            return
        moving = {path: file.read_bytes() for path, file in paths.items() if path not in still}
        files = {path: [stats[path].st_size, sha256_file(still[path])] for path in still}
        old = self._manifests().get(unit.name, {})
        if any(old.get(path) != entry for path, entry in files.items()):
            self._remove(unit.name)
            target = f"{self._base}/{unit.name}"
            for path, file in still.items():
                self._fs.put_file(str(file), f"{target}/{path}")
            for path, data in moving.items():
                files[path] = [len(data), hashlib.sha256(data).hexdigest()]
                self._fs.pipe_file(f"{target}/{path}", data)
            manifest = json.dumps({"format": FORMAT, "files": files}).encode()
            self._fs.pipe_file(f"{target}.json", manifest)
        self._sent[unit.name] = stamp

    def _fetch(self, name: str, files: Mapping[str, Any]) -> bool:
        """Whether a unit is now in the run's folder."""
        stage, _, step = name.partition("@")
        begun = self.run / stage / "begun.json"
        with tempfile.TemporaryDirectory(dir=self.run, prefix=".mirror.", suffix=".tmp") as folder:
            for path, (size, digest) in files.items():
                copy = Path(folder, path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    self._fs.get_file(f"{self._base}/{name}/{path}", str(copy))
                    if copy.stat().st_size == size and sha256_file(copy) == digest:
                        continue
                self._print(f"{name} is damaged there ({path}), and not used.")
                return False
            new = Path(folder, stage)
            if begun.exists() and begun.read_bytes() != (new / "begun.json").read_bytes():
                return False  # the run has begun this stage with other settings
            if not step:
                remove(self.run / stage)
                shutil.move(new, self.run / stage)
                return True
            target = self.run / stage / "checkpoints" / step
            target.parent.mkdir(parents=True, exist_ok=True)
            for record in (path for path in new.iterdir() if path.is_file()):
                record.replace(self.run / stage / record.name)
            (new / "checkpoints" / step).rename(target)  # last: it is what the stage resumes from
            return True

    def _remove(self, name: str) -> None:
        """The manifest first: without it the rest is nothing."""
        for path, recursive in ((f"{name}.json", False), (name, True)):
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(f"{self._base}/{path}", recursive=recursive)

    def _manifests(self) -> dict[str, dict[str, Any]]:
        """The files of each unit that is whole there: path -> [size, SHA-256]."""
        self._fs.invalidate_cache()
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._fs.ls(self._base, detail=False):
                name = PurePosixPath(path).name.removesuffix(".json")
                if not path.endswith(".json") or name.partition("@")[0] not in MIRRORED:
                    continue
                with contextlib.suppress(ValueError, TypeError, KeyError):  # it is no manifest
                    manifest = json.loads(self._fs.cat_file(path))
                    if manifest["format"] == FORMAT and _safe(name, manifest["files"]):
                        found[name] = manifest["files"]
        return found

    def _work(self) -> None:
        pause = self._every
        while True:
            last = self._end.wait(pause)
            try:
                self.sync()
                pause = self._every
            except Exception as error:  # whatever the storage raises, training continues
                pause = min(2 * pause, LONGEST_PAUSE)
                if not self._warned:
                    self._warned = True
                    self._print(f"it cannot be written ({first_line(error)}); it is tried again.")
            if last:
                return

    def _print(self, what: str) -> None:
        print(f"jaxchat: the mirror {self.url}: {what}", file=sys.stderr, flush=True)


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises ConfigError where it is no use."""
    try:
        import fsspec

        fs, base = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(
            f"mirror.url is {url!r}, which needs more: {INSTALL} ({error})."
        ) from error
    except ValueError as error:
        raise ConfigError(f"mirror.url is {url!r}, unknown to fsspec: {error}.") from error
    try:
        fs.auto_mkdir = True  # on a disk; storage of objects has no folders
        fs.pipe_file(f"{base}/.writable", b"x")
        fs.rm_file(f"{base}/.writable")
    except Exception as error:  # of many packages
        raise ConfigError(
            f"nothing can be written to mirror.url, {url} ({first_line(error)}); see to the bucket "
            "and its credentials, or leave mirror.url out."
        ) from error
    return fs, base


def _safe(name: str, files: Mapping[str, Any]) -> bool:
    """Whether all paths of a manifest are of its stage: it comes from outside."""
    parts = [PurePosixPath(path).parts for path in files]
    stage = name.partition("@")[0]
    return all(p[:1] == (stage,) and len(p) > 1 and ".." not in p for p in parts)
