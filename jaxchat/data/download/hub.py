"""Lists of a source's files: from the hub's public API, or from a plain web server.

The hub (https://huggingface.co/docs/hub/api) lists a dataset repository at a commit (for one of a
model, `models` stands for the first `datasets` and nothing for the one before REPO/resolve):

    /api/datasets/REPO/revision/REVISION               {"sha": COMMIT}
    /api/datasets/REPO/tree/COMMIT?recursive=true      [{"type", "path", "size", "oid", "lfs"}]
                                                       in pages; a Link header has the next cursor
    /datasets/REPO/resolve/COMMIT/PATH                 the file, mostly by a redirect to a store

A plain server is any that has the files under a base URL; what they are is read from its index
pages, as `python -m http.server`, nginx and Apache make them, or else assumed from the registry.

A list is saved in the cache and used from then on, so that a branch stays at the commit where it
was first seen, and so that it is there without a network.

    HOME/data/SOURCE/list-KEY.json      KEY says of which repository and revision, or base URL
"""

from __future__ import annotations

import functools
import html
import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urljoin, urlsplit

from jaxchat.data import registry
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.web import (
    Response,
    RetryPolicy,
    Unsupported,
    Web,
    WebError,
    check_address,
    fetch,
    fetch_text,
)
from jaxchat.data.registry import Source
from jaxchat.errors import ArtifactError
from jaxchat.paths import (
    DEFAULT_HUB,
    data,
    hub_endpoint,
    hub_offline,
    hub_token,
    offline_by,
    proxies,
    read_json,
    sha256_text,
    write_json,
)

FORMAT = "jaxchat-list-1"
_ASKING = 8  # files whose sizes are asked for at the same time
_PAGES = {"datasets": "datasets/", "models": ""}  # where the page of a repository is
_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """The files of a source."""

    source: Source
    commit: str  # of the repository; for a plain server, a name made of its base URL
    folder: Path  # where the files are saved
    files: tuple[RemoteFile, ...]  # by path; sizes unknown for a plain server (see `Hub.files`)


class Hub:
    """Lists sources, and knows where their files are saved."""

    def __init__(
        self,
        root: Path,
        web: Web,
        *,
        endpoint: str = DEFAULT_HUB,
        base_url: str | None = None,
        offline: bool = False,
        refresh: bool = False,
    ) -> None:
        """`root`: the home. `base_url`: a plain server instead of the hub; {name} and {repo} in it
        stand for a source's. `offline`: no server is asked; what is not in the cache is an error.
        `refresh`: lists are fetched again.

        Raises ConfigError for an address that is none of HTTP.
        """
        self.root, self.web = root, web
        self.endpoint = check_address("HF_ENDPOINT", endpoint)
        self.base_url = None if base_url is None else check_address("the base URL", base_url)
        self.offline, self._refresh = offline, refresh
        self._lists: dict[str, Listing] = {}

    def listing(self, source: Source) -> Listing:
        """The files of a source: from the cache, or else fetched and saved there.

        Raises ArtifactError when they cannot be had, naming what to do.
        """
        if source.name not in self._lists:
            saved = None if self._refresh and not self.offline else self.saved(source)
            self._lists[source.name] = saved or self._ask(source)
        return self._lists[source.name]

    def files(
        self,
        source: Source,
        shards: int | None = None,
        splits: Sequence[str] | None = None,
        held_out: int = registry.LAST,
    ) -> tuple[RemoteFile, ...]:
        """The files that a run needs, in the order it needs them (`registry.choose`), with sizes.

        Raises ConfigError for shards or splits that there are not, ArtifactError as `listing`.
        """
        listing = self.listing(source)
        by_path = {file.path: file for file in listing.files}
        paths = registry.choose(source, tuple(by_path), shards, splits, held_out)
        if self.base_url is not None and not self.offline:
            unknown = [by_path[path] for path in paths if by_path[path].size is None]
            if unknown:
                with ThreadPoolExecutor(_ASKING) as pool:
                    known = pool.map(functools.partial(measured, self.web), unknown)
                    by_path.update((file.path, file) for file in known)
                self._save(replace(listing, files=tuple(by_path.values())))
        return tuple(by_path[path] for path in paths)

    def saved(self, source: Source) -> Listing | None:
        """The list in the cache, or None. Raises ArtifactError for a damaged one."""
        path = self._list_path(source)
        if not path.exists():
            return None
        raw = read_json(path)
        try:
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r}")
            return self._listing(source, raw["commit"], raw["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is damaged ({error}); delete it and give the same command again."
            ) from error

    def _ask(self, source: Source) -> Listing:
        if self.offline:
            raise ArtifactError(
                f"the list of files of {source.name} is not in {self.folder(source)}, and "
                f"{offline_by()} forbids asking for it; where there is a network, run: "
                f"{source.again or f'jaxchat data download {source.name}'}"
            )
        try:
            listed = self._plain(source) if self.base_url else self._repository(source)
            listing = self._listing(source, *listed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WebError(
                f"the list of files of {source.name} from {self.address(source)} is not as the "
                f"hub makes it ({error!r}); set HF_ENDPOINT or --base-url to another server."
            ) from error
        if not listing.files:
            wanted = ", ".join(source.splits.values())
            raise ArtifactError(
                f"{self.address(source)} has no file like {wanted}; it is not what the registry "
                f"knows as {source.name}."
            )
        self._save(listing)
        return listing

    def _listing(self, source: Source, commit: str, entries: Iterable[dict[str, Any]]) -> Listing:
        files = [self._file(source, commit, **entry) for entry in entries]
        files.sort(key=lambda file: file.path)
        return Listing(source, commit, self.folder(source) / commit, tuple(files))

    def sample(self, source: Source) -> RemoteFile:
        """The last of the files that the registry knows; whether it exists is not checked."""
        return self._file(source, source.revision, path=source.files[-1])

    def folder(self, source: Source) -> Path:
        """The folder of a source's lists and of each commit."""
        return data(self.root) / source.name

    def address(self, source: Source) -> str:
        """The source's page on the hub, or its base URL."""
        repository = f"{self.endpoint}/{_PAGES[source.space]}{source.repo}"
        return self._base(source.name, source.repo) or repository

    def plain(self, name: str, path: str) -> str:
        """The URL, below the base URL, of a file of no source; "" without a base URL."""
        base = self._base(name, name)
        return base and f"{base}/{path}"

    def _base(self, name: str, repo: str) -> str:
        return (self.base_url or "").replace("{name}", name).replace("{repo}", repo)

    def _list_path(self, source: Source) -> Path:
        """One list per repository and revision, whatever endpoint it came from."""
        origin = (
            (source.repo, source.revision) if self.base_url is None else (self.address(source),)
        )
        return self.folder(source) / f"list-{sha256_text(*origin)[:12]}.json"

    def _save(self, listing: Listing) -> None:
        fields = ("path", "size", "sha256", "blob", "tag")
        known = [{name: getattr(file, name) for name in fields} for file in listing.files]
        value = {
            "format": FORMAT,
            "address": self.address(listing.source),
            "revision": listing.source.revision,
            "commit": listing.commit,
            "files": [{k: v for k, v in entry.items() if v is not None} for entry in known],
        }
        write_json(self._list_path(listing.source), value)
        self._lists[listing.source.name] = listing

    def _file(
        self, source: Source, commit: str, path: str, size: int | None = None, **known: str | None
    ) -> RemoteFile:
        """Raises ValueError for a path that leads out of the folder: a list comes from outside."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise ValueError(f"a file cannot be called {path!r}")
        if not re.fullmatch(r"\w[\w.-]*", commit):
            raise ValueError(f"a commit cannot be called {commit!r}")
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"{path} cannot have {size!r} bytes")
        base = self.address(source)
        if self.base_url is None:
            base = f"{base}/resolve/{commit}"
        local = self.folder(source) / commit / Path(*parts)
        url = f"{base}/{quote(path)}"
        return RemoteFile(source.name, path, url, local, size, **known)

    def _repository(self, source: Source) -> tuple[str, list[dict[str, Any]]]:
        """The commit and the entries of the files that belong to the source."""
        api = f"{self.endpoint}/api/{source.space}/{source.repo}"
        commit = source.revision
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            url = f"{api}/revision/{quote(commit, safe='')}"
            commit = str(self._json(url, f"{source.repo} at {commit}")[0]["sha"])
        url, cursor = f"{api}/tree/{commit}?recursive=true", ""
        found: list[dict[str, Any]] = []
        while True:
            page = f"{url}&cursor={quote(cursor, safe='')}" if cursor else url
            entries, link = self._json(page, f"the list of files of {source.repo}")
            found += [_entry(e) for e in entries if e["type"] == "file" and source.has(e["path"])]
            if (following := _next_cursor(link)) is None:
                return commit, found
            cursor = following

    def _json(self, url: str, what: str) -> tuple[Any, str]:
        """A response as JSON, and its Link header."""
        body, headers = fetch_text(self.web, url, what)
        try:
            return json.loads(body), headers.get("Link", "")
        except ValueError as error:
            raise WebError(
                f"{what} cannot be read: {url} answers with something that is not JSON (a page of "
                "the network that wants you to log in?); see to it, or set HF_ENDPOINT."
            ) from error

    def _plain(self, source: Source) -> tuple[str, list[dict[str, Any]]]:
        """A name for the base URL, and what its index pages or the registry say."""
        base = self.address(source)
        folders = sorted({posixpath.dirname(pattern) for pattern in source.splits.values()})
        found = [name for folder in folders for name in self._index(base, folder)]
        paths = [path for path in dict.fromkeys(found) if source.has(path)] or source.files
        return f"url-{sha256_text(base)[:12]}", [{"path": path} for path in paths]

    def _index(self, base: str, folder: str) -> list[str]:
        """Paths that the index page of a folder links to; none when there is no such page."""
        url = f"{base}/{folder}/" if folder else f"{base}/"
        try:
            body, headers = fetch_text(self.web, url, f"the index of {url}")
        except WebError:
            if not self.web.reached:
                raise
            return []
        if headers.get_content_type() != "text/html":
            return []
        links = (html.unescape(match[1]) for match in _LINK.finditer(body))
        below = [target for href in links if (target := urljoin(url, href)).startswith(url)]
        names = [unquote(urlsplit(target).path[len(urlsplit(url).path) :]) for target in below]
        return [posixpath.join(folder, name) for name in names if name and "/" not in name]


def measured(web: Web, file: RemoteFile) -> RemoteFile:
    """A file of a plain server, with its size and a tag of its version.

    Raises WebError when the server does not have it.
    """

    def known(response: Response) -> RemoteFile:
        tag = response.headers.get("ETag", "")
        if tag.startswith("W/") or not tag:  # a weak tag may name different bytes
            tag = response.headers.get("Last-Modified", "")
        return replace(file, size=response.length, tag=tag or None)

    try:
        return fetch(web, file.url, str(file), known, method="HEAD")
    except Unsupported:  # it will be known when the file comes
        return file


def open_hub(
    root: Path,
    *,
    base_url: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    policy: RetryPolicy | None = None,
) -> Hub:
    """A Hub configured by the environment: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and proxies."""
    endpoint = hub_endpoint()
    web = Web(token=hub_token(), token_for=endpoint, proxies=proxies(), policy=policy)
    offline = offline or hub_offline()
    return Hub(root, web, endpoint=endpoint, base_url=base_url, offline=offline, refresh=refresh)


def _entry(raw: dict[str, Any]) -> dict[str, Any]:
    """A file of the hub's tree as it is saved: large ones have a sha256, others git's hash."""
    large = raw.get("lfs") or {}
    entry: dict[str, Any] = {"path": raw["path"], "size": large.get("size", raw["size"])}
    sha256 = str(large.get("oid", "")).removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", sha256):
        entry["sha256"] = sha256
    elif not large and re.fullmatch(r"[0-9a-f]{40}", str(raw.get("oid", ""))):
        entry["blob"] = raw["oid"]
    return entry


def _next_cursor(link: str) -> str | None:
    """The cursor of the next page. Not its address: a mirror may pass on that of the hub."""
    match = re.search(r'<([^>]*)>;\s*rel="?next"?', link)
    cursors = parse_qs(urlsplit(match[1]).query).get("cursor") if match else None
    return cursors[0] if cursors else None
