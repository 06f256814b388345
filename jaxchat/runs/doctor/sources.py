"""Whether the datasets of a tier are here, and whether those that are not can be had."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs, registry
from jaxchat.data.download import cache
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import RetryPolicy, TransientError, Unsupported, WebError
from jaxchat.data.registry import Source, is_own
from jaxchat.errors import ArtifactError
from jaxchat.runs.doctor.check import Check

RETRY_POLICY = RetryPolicy(stall=5.0)  # seconds without an answer
_AT_ONCE = 8


@dataclass(frozen=True)
class Response:
    """What came of asking for a source: `refused` says why it cannot be had."""

    seconds: float
    refused: str = ""


@dataclass(frozen=True)
class Found:
    """A source: its answer (None: nobody asked), and its files. `damaged`: a sentence."""

    source: Source
    answer: Response | None
    here: int
    wanted: int
    damaged: str = ""

    @property
    def missing(self) -> int:
        """Files that the run needs and that are not here."""
        return self.wanted - self.here


def check_sources(config: RunConfig, hub: Hub) -> list[Check]:
    """One check for each dataset that the tier names, and one for files of one's own."""
    names = [*inputs.chat_names(config)]
    if config.data.source in registry.SOURCES:
        names.insert(0, config.data.source)
    sources = [registry.SOURCES[name] for name in names if name in registry.SOURCES]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda source: ask(hub, source), sources))
    shards = config.data.shards or None
    wanted = shards, config.data.held_out_shard
    found = [_look(hub, *asked, *wanted) for asked in zip(sources, answers, strict=True)]
    missing = [one for one in found if one.missing]
    checks = [_check(hub, one, _wrong(missing, one, shards)) for one in found]
    checks += _own_files(config, names)
    return checks or [Check("data", "nothing to download")]


def _own_files(config: RunConfig, names: Sequence[str]) -> list[Check]:
    """Whether files and folders of the user's own are there, where a run names some."""
    own = [Path(name).expanduser() for name in names if is_own(name)]
    own += [Path(config.data.folder).expanduser()] if config.data.folder else []
    missing = [path for path in own if not path.exists()]
    told = f"{len(own) - len(missing)} of {len(own)} files and folders of one's own are there"
    wrong = tuple(f"{path} does not exist; correct its name." for path in missing)
    return [Check("own data", told, wrong)] if own else []


def ask(hub: Hub, source: Source) -> Response | None:
    """Asks for one of the source's files, as a download would, without its bytes; None: offline."""
    if hub.offline:
        return None
    file, began = hub.sample(source), time.monotonic()
    try:
        with hub.web.open(file.url, source.name, method="HEAD"):
            pass
    except Unsupported:
        pass  # it answers, and a download does not ask like this
    except TransientError as error:
        cause = error.__cause__
        # A store's signed address may be good for a GET alone; it was reached all the same.
        if not (isinstance(cause, urllib.error.HTTPError) and cause.code == 403):
            return Response(time.monotonic() - began, str(error))
    except WebError as error:
        return Response(time.monotonic() - began, str(error))
    return Response(time.monotonic() - began)


def _look(
    hub: Hub, source: Source, answer: Response | None, shards: int | None, held_out: int
) -> Found:
    try:
        return Found(source, answer, *count_here(hub, source, shards, held_out))
    except ArtifactError as error:
        return Found(source, answer, 0, 0, str(error))


def _check(hub: Hub, found: Found, wrong: str) -> Check:
    answer, host = found.answer, urlsplit(hub.address(found.source)).netloc
    if answer is None:
        network = "nobody asked"
    elif answer.refused:
        network = f"not to be had from {host} ({answer.refused.rstrip('.')})"
    else:
        network = f"{host} answers in {answer.seconds:.1f} s"
    address = hub.address(found.source)
    files = "1 file" if found.wanted == 1 else f"{found.wanted:,} files"
    told = f"{found.here:,} of {files} here; {network}"
    facts = {"here": found.here, "wanted": found.wanted, "address": address}
    if answer is not None:
        facts |= {"answers": not answer.refused, "seconds": round(answer.seconds, 3)}
    return Check(found.source.name, told, (wrong,) if wrong else (), facts=facts)


def count_here(
    hub: Hub, source: Source, shards: int | None, held_out: int = registry.LAST
) -> tuple[int, int]:
    """(files that are here, files that the run needs); without a list, as the registry has them."""
    listing = hub.saved(source)
    if listing is None:
        return 0, len(registry.choose(source, source.files, shards, held_out=held_out))
    by_path = {file.path: file for file in listing.files}
    wanted = registry.choose(source, tuple(by_path), shards, held_out=held_out)
    return sum(cache.is_here(by_path[path]) for path in wanted), len(wanted)


def _wrong(missing: Sequence[Found], one: Found, shards: int | None) -> str:
    """A sentence for files that are not here and cannot be had, with all that lack for the same
    reason; "" when they can."""
    if one.damaged:
        return one.damaged
    answer = one.answer
    if not one.missing or (answer is not None and not answer.refused):
        return ""
    alike = [other for other in missing if _reason(other) == _reason(one)]
    names = [found.source.name for found in alike]
    commands = download_commands([found.source for found in alike], shards)
    count = sum(found.missing for found in alike)
    files = f"{count:,} files" if count > 1 else "1 file"
    of = f"{files} of {', '.join(names)}"
    if answer is None:
        return (
            f"{of} cannot be had without a network (--offline or HF_HUB_OFFLINE); where there is "
            f"one, run: {commands}"
        )
    return (
        f"{of} cannot be had ({answer.refused.rstrip('.')}); see to the network, HF_ENDPOINT or "
        f"https_proxy, or copy the folder data from a home where this was run: {commands}"
    )


def _reason(found: Found) -> str | None:
    return None if found.answer is None else found.answer.refused


def download_commands(sources: Sequence[Source], shards: int | None) -> str:
    """What downloads them: text in a command of its own, since that alone has shards."""
    chats = [source.name for source in sources if source.kind == "chat"]
    commands = [
        f"jaxchat data download {source.name} --shards {shards or 'all'}"
        for source in sources
        if source.kind == "text"
    ]
    commands += [f"jaxchat data download {' '.join(chats)}"] if chats else []
    return " && ".join(commands)
