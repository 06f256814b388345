"""`jaxchat serve`: models over HTTP, for browsers and programs.

Nothing heavy is imported before the arguments are read.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path

from jaxchat import paths
from jaxchat.cli.args import Parser, add_field, add_model
from jaxchat.config.fields import build
from jaxchat.config.machine import garbage_kept
from jaxchat.config.operations import ServeConfig
from jaxchat.config.schema import CHAT_STAGES, MODELS
from jaxchat.data.files.compressed import Unreadable
from jaxchat.data.files.text import read_text
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs import run_dir

LEAST_KEY = 16  # characters of a key: fewer can be guessed
# flags that are fields of ServeConfig: field, metavar, help, and the flag where it has another name
FLAGS = (
    ("host", "ADDRESS", "to listen at (127.0.0.1)"),
    ("port", "N", "(8000; 0: any that is free)"),
    ("slots", "N", "answers decoded at once (0: suits the device)"),
    ("weights", None, "of large matrices: int8 reads a quarter of the bytes a token (auto)"),
    ("prefix_mb", "MB", "memory for what prompts began with, not read again (512; 0: none)"),
    ("queue", "N", "requests that may wait (256)"),
    ("temperature", "T", "where a request names none (0.8)"),
    ("top_k", "K", "likewise (0: all)"),
    ("max_tokens", "N", "of an answer, at most"),
    ("grace_seconds", "S", "for answers under way at shutdown (10)"),
    ("hosts", "NAME", "a host name of the server beside localhost: a proxy's", "--allow-host"),
    (
        "origins",
        "ORIGIN",
        "of another site whose pages may ask: https://example.org",
        "--allow-origin",
    ),
    ("behind_proxy", None, "tell clients apart by X-Forwarded-For of a proxy on this machine"),
    ("any_name", None, "the model answers to any name: programs that ask for gpt-4o, say"),
    ("warm_up", None, "be ready at once, and compile on the first requests", "--no-warm-up"),
)


def add_serve(parser: Parser) -> None:
    """The options of `jaxchat serve`."""
    parser.description = (
        "Serves models of runs: a page to chat with, and OpenAI's chat completions under /v1. Only "
        "this machine can reach it, unless --host says otherwise."
    )
    add_model(parser, MODELS)
    several = "several at once; the first is the default. =NAME is how clients see it"
    parser.option("--model", str, "RUN/STAGE[=NAME]", several, [], action="append")
    parser.option("--alias", str, "NAME", "of the first model, too", [], action="append")
    for flag in FLAGS:
        add_field(parser, ServeConfig, *flag)
    key = "with the key that clients must send; else that of the variable JAXCHAT_API_KEY"
    parser.option("--api-key-file", Path, "FILE", key)
    parser.switch("--no-key", "listen elsewhere than on this machine without a key")
    parser.switch("--quiet", "no line for each request")
    parser.set_defaults(run_command=serve_command)


def serve_command(args: argparse.Namespace) -> int:
    """Serves until a signal."""
    given = {name: getattr(args, name) for name, *_ in FLAGS if hasattr(args, name)}
    config = build(ServeConfig, given, "serve")
    key = read_key(args.api_key_file)
    check_key(config, key, unless=args.no_key)
    root = paths.home(args.home)
    if args.model and (args.run or args.stage):
        raise ConfigError("--model is given beside --run or --stage; name all models by --model.")
    names = [parse_name(name) for name in args.model] or [(args.run, args.stage, "")]
    if config.any_name and len(names) > 1:
        raise ConfigError("--any-name is for one model; with several, a name must say which.")
    names[1:1] = [(*names[0][:2], alias) for alias in args.alias]
    configs = [
        run_dir.read_config(run_dir.find(root, run, (stage,) if stage else CHAT_STAGES))
        for run, stage, _ in names
    ]

    from jaxchat.serve.process import listen, url_of

    with listen(config) as sock, contextlib.ExitStack() as starting:
        starting.enter_context(garbage_kept())
        start_jax(configs[0].mesh, root / "xla")
        from jaxchat.serve.app import create_app
        from jaxchat.serve.models import load_models
        from jaxchat.serve.process import Server

        start_log(quiet=args.quiet)
        models = load_models(root, names, config, notify)
        served, url = ", ".join(model.id for model in models), url_of(sock)
        ready = f"{served}: open {url} (Ctrl-C ends it)"

        def say_ready() -> None:
            starting.close()
            notify(ready)

        server = Server(create_app(models, config, key=key), config, say_ready)
        if config.warm_up:
            notify(f"{served}: compiling, minutes the first time; {url}/ready says how far it is")
        server.serve_until_signal(sock)
    return 0


def notify(sentence: str) -> None:
    """Prints a sentence at once."""
    print(f"jaxchat: {sentence}", flush=True)


def parse_name(name: str) -> tuple[str | None, str | None, str]:
    """RUN/STAGE, or RUN alone for its best stage, and behind = an alias, "" for none.

    Raises ConfigError for anything else.
    """
    source, equals, alias = name.partition("=")
    run, slash, stage = source.partition("/")
    if not run or (slash and not stage) or "/" in stage or (equals and not alias.strip()):
        raise ConfigError(
            f"--model is {name!r}; it must be of the form RUN/STAGE, RUN, or with =NAME behind it."
        )
    return run, stage or None, alias


def read_key(path: Path | None) -> str | None:
    """The key of a file, else of the environment. Raises ConfigError for one that is none."""
    if path is None:
        key, where = paths.api_key(), "JAXCHAT_API_KEY"
    else:
        try:
            key, where = read_text(path).strip(), str(path)
        except (OSError, Unreadable) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"--api-key-file {path} cannot be read ({why}).") from error
    if key is None:
        return None
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the key in {where} must be one word of at least {LEAST_KEY} ASCII characters; "
            "make one with: openssl rand -hex 32"
        )
    return key


def check_key(config: ServeConfig, key: str | None, *, unless: bool) -> None:
    """Raises ConfigError where other machines could ask without a key, unless that is allowed."""
    if key is None and not config.is_local and not unless:
        raise ConfigError(
            f"--host {config.host} lets other machines ask; give them a key by --api-key-file or "
            "JAXCHAT_API_KEY, or say --no-key if everyone may."
        )


def start_log(*, quiet: bool) -> None:
    """Sends warnings to the standard error output and, unless `quiet`, a line for each request.

    uvicorn's lines about malformed requests are left out: anyone could fill the disk.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jaxchat", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
        logger.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
