"""Whether the datasets of a tier are here, and whether those that are not can be downloaded."""

from __future__ import annotations

import time
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
    """The answer of a source."""

    seconds: float = 0.0
    refused: str | None = None  # why it cannot be downloaded; "": it can; None: offline


@dataclass(frozen=True)
class Found:
    """A source: its answer and its files."""

    source: Source
    answer: Response
    here: int
    wanted: int
    damaged: str = ""  # a sentence


def check_sources(config: RunConfig, hub: Hub) -> list[Check]:
    """One check for each dataset that the tier names, and one for the user's own files."""
    text = [config.data.source] if config.data.source in registry.SOURCES else []
    names = [*text, *inputs.chat_names(config)]
    sources = [registry.SOURCES[name] for name in names if name in registry.SOURCES]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda source: ask(hub, source), sources))
    shards, found = config.data.shards or None, []
    for source, answer in zip(sources, answers, strict=True):
        try:
            counts = count_here(hub, source, shards, config.data.held_out_shard)
            found.append(Found(source, answer, *counts))
        except ArtifactError as error:
            found.append(Found(source, answer, 0, 0, str(error)))
    checks = [_check(hub, one, _problem(found, one, shards)) for one in found]
    own = [Path(name).expanduser() for name in names if is_own(name)]
    own += [Path(config.data.folder).expanduser()] if config.data.folder else []
    if own:
        missing = [path for path in own if not path.exists()]
        count = f"{len(own) - len(missing)} of {len(own)} files and folders of one's own are there"
        wrong = tuple(f"{path} does not exist; correct its name." for path in missing)
        checks.append(Check("own data", count, wrong))
    return checks or [Check("data", "nothing to download")]


def ask(hub: Hub, source: Source) -> Response:
    """Asks for one of the source's files, as a download would, without its bytes."""
    if hub.offline:
        return Response()
    file, began, refused = hub.sample(source), time.monotonic(), ""
    try:
        with hub.web.open(file.url, source.name, method="HEAD"):
            pass
    except Unsupported:
        pass  # it answers, and a download does not ask like this
    except (TransientError, WebError) as error:
        # A store's signed address may be good for a GET alone; it was reached all the same.
        forbidden = (
            isinstance(error, TransientError) and getattr(error.__cause__, "code", None) == 403
        )
        refused = "" if forbidden else str(error)
    return Response(time.monotonic() - began, refused)


def _check(hub: Hub, found: Found, problem: str) -> Check:
    answer, address = found.answer, hub.address(found.source)
    host = urlsplit(address).netloc
    facts = {"here": found.here, "wanted": found.wanted, "address": address}
    if answer.refused is None:
        network = "offline"
    else:
        network = f"{host} answers in {answer.seconds:.1f} s"
        if answer.refused:
            network = f"not to be had from {host} ({answer.refused.rstrip('.')})"
        facts |= {"answers": not answer.refused, "seconds": round(answer.seconds, 3)}
    text = f"{found.here:,} of {_files(found.wanted)} here; {network}"
    return Check(found.source.name, text, (problem,) if problem else (), facts=facts)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


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


def _problem(found: Sequence[Found], one: Found, shards: int | None) -> str:
    """A sentence for files that are not here and cannot be downloaded, "" where there are none.

    It names all sources whose files are missing for the same reason.
    """
    if one.damaged:
        return one.damaged
    refused = one.answer.refused
    if one.here == one.wanted or refused == "":
        return ""
    lacking = (other for other in found if other.here < other.wanted)
    alike = [other for other in lacking if other.answer.refused == refused]
    names = ", ".join(other.source.name for other in alike)
    commands = download_commands([other.source for other in alike], shards)
    of = f"{_files(sum(other.wanted - other.here for other in alike))} of {names}"
    if refused is None:
        return (
            f"{of} cannot be had without a network (--offline or HF_HUB_OFFLINE); where there is "
            f"one, run: {commands}"
        )
    return (
        f"{of} cannot be had ({refused.rstrip('.')}); see to the network, HF_ENDPOINT or "
        f"https_proxy, or copy the folder data from a home where this was run: {commands}"
    )


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
