"""`jaxchat data`: which sources of data there are, and downloading them (layer 5).

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jaxchat import paths
from jaxchat.cli import data_prepare, data_show
from jaxchat.cli.args import at_once, positive
from jaxchat.errors import ConfigError

if TYPE_CHECKING:
    from jaxchat.data.download.hub import Hub
    from jaxchat.data.registry import Source

ALL = "all"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds list, download, prepare and show to the parser of `jaxchat data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_list(commands)
    add_download(commands)
    data_prepare.add_prepare(commands)
    data_show.add_show(commands)


def add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `jaxchat data list`."""
    parser = commands.add_parser("list", help="the sources of data, and what of them is here")
    _add_base_url(parser)
    parser.set_defaults(run_command=list_command)


def add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `jaxchat data download`."""
    parser = commands.add_parser("download", help="download sources; goes on where it stopped")
    parser.add_argument("names", nargs="+", metavar="NAME", help="as `jaxchat data list` has them")
    parser.add_argument(
        "--shards",
        type=_shards,
        metavar="N",
        help="of text: the first N, and the last for validation; or all",
    )
    parser.add_argument("--offline", action="store_true", help="only say whether all is here")
    parser.add_argument("--refresh", action="store_true", help="ask for the lists of files anew")
    parser.add_argument("--verify", action="store_true", help="check the bytes of what is here")
    parser.add_argument("--workers", type=at_once, default=4, metavar="N", help="at once (4)")
    _add_base_url(parser)
    parser.set_defaults(run_command=download_command)


def _add_base_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="a server that has the files under this address; {name} and {repo} stand for a "
        "source's (default: the hub, or HF_ENDPOINT)",
    )


def _shards(text: str) -> int | str:
    return text if text == ALL else positive(text)


def list_command(args: argparse.Namespace) -> int:
    """Prints a table of the sources; asks no server."""
    from jaxchat.data import registry
    from jaxchat.data.download import hub

    opened = hub.open_hub(paths.home(args.home), base_url=args.base_url, offline=True)
    rows = [("", "what", "rows", "size", "here", "licence", "where")]
    for source in registry.SOURCES.values():
        rows.append(
            (
                source.name,
                source.title,
                _rows(source),
                _size(source.size),
                _here(opened, source),
                source.licence,
                source.repo if args.base_url is None else opened.address(source),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"\nfiles are kept in {paths.data(opened.root)}; repositories are at {opened.endpoint}")
    return 0


def download_command(args: argparse.Namespace) -> int:
    """Downloads sources and says where they are."""
    from jaxchat.data import registry
    from jaxchat.data.download import cache, hub
    from jaxchat.data.download.transfer import download_all

    sources = [registry.find(name) for name in dict.fromkeys(args.names)]
    _check_shards(sources, args.shards)
    shards = None if args.shards == ALL else args.shards
    opened = hub.open_hub(
        paths.home(args.home), base_url=args.base_url, offline=args.offline, refresh=args.refresh
    )
    wanted = [(source, opened.files(source, shards)) for source in sources]
    files = [file for _, chosen in wanted for file in chosen]
    options = {"workers": args.workers, "verify": args.verify, "offline": opened.offline}
    download_all(files, opened.web, **options)
    for source, chosen in wanted:
        size = sum(file.local.stat().st_size for file in chosen)
        count = "1 file" if len(chosen) == 1 else f"{len(chosen):,} files"
        print(f"{source.name}: {count}, {_size(size)}, in {opened.listing(source).folder}")
    unchecked = [file for file in files if not file.sha256 and not file.blob]
    if unchecked:
        print(
            f"the server has no checksums: those of the {len(unchecked):,} files that came are "
            f"noted, such as {cache.sha256_of(unchecked[0])} of {unchecked[0].path}"
        )
    return 0


def _check_shards(sources: list[Source], shards: int | str | None) -> None:
    """A text source is downloaded whole only when that is what was said."""
    text = next((source for source in sources if source.kind == "text"), None)
    if text is not None and shards is None:
        raise ConfigError(
            f"{text.name} has {len(text.files):,} shards, {_size(text.size)}; say how many with "
            "--shards N, or --shards all."
        )
    if text is None and shards is not None:
        raise ConfigError(f"{', '.join(s.name for s in sources)} have no shards; leave --shards.")


def _rows(source: Source) -> str:
    if source.kind == "text":
        return f"{len(source.files):,} shards"
    return f"{sum(source.rows.values()):,}"


def _size(size: float) -> str:
    from jaxchat.runs.tables import size as told

    return told(size)


def _here(opened: Hub, source: Source) -> str:
    """What of a source is in the cache: `12 of 1,823 files`."""
    from jaxchat.data.download import cache

    listing = opened.saved(source)
    if listing is None:
        return "-"
    here = sum(cache.is_here(file) for file in listing.files)
    return "all" if here == len(listing.files) else f"{here:,} of {len(listing.files):,} files"
