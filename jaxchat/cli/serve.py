"""`jaxchat serve`: models over HTTP, for browsers and programs (layer 5).

Nothing heavy is imported before the arguments are read.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.cli.args import port, positive, real, seconds, whole
from jaxchat.config import numbers
from jaxchat.config.fields import build
from jaxchat.config.operations import ServeConfig
from jaxchat.data.files.compressed import Unreadable
from jaxchat.data.files.text import read_text
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs import run_dir

SETTINGS = (
    "host", "port", "slots", "queue", "temperature", "top_k", "max_tokens", "grace_seconds",
    "hosts", "origins", "behind_proxy", "warm_up",
)  # fmt: skip  # flags that are fields of ServeConfig
LEAST_KEY = 16  # characters of a key: fewer can be guessed


def add_serve(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Adds `serve` to the commands."""
    parser = commands.add_parser(
        "serve",
        parents=parents,
        help="serve models to browsers and programs",
        description="Serves models of runs: a page to chat with, and OpenAI's chat completions "
        "under /v1. Only this machine can reach it, unless --host says otherwise.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--run", metavar="NAME", help="default: the last")
    parser.add_argument("--stage", choices=("mid", "sft", "rl"), help="default: the last complete")
    parser.add_argument(
        "--model", action="append", metavar="RUN/STAGE", help="several at once; the first is the "
        "default",
    )  # fmt: skip
    parser.add_argument("--host", metavar="ADDRESS", help="to listen at (127.0.0.1)")
    parser.add_argument("--port", type=port, metavar="N", help="(8000; 0: any that is free)")
    parser.add_argument("--slots", type=positive, metavar="N", help="answers decoded at once")
    parser.add_argument("--queue", type=positive, metavar="N", help="requests that may wait (256)")
    parser.add_argument(
        "--temperature",
        type=real(numbers.API_TEMPERATURE),
        metavar="T",
        help="where a request names none (0.8)",
    )
    parser.add_argument("--top-k", type=whole, metavar="K", help="likewise (0: all)")
    parser.add_argument("--max-tokens", type=whole, metavar="N", help="of an answer, at most")
    parser.add_argument(
        "--grace-seconds", type=seconds, metavar="S", help="for answers under way at the end (10)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="with the key that clients must send; "
        "else that of the variable JAXCHAT_API_KEY",
    )  # fmt: skip
    parser.add_argument(
        "--no-key", action="store_true", help="listen elsewhere than on this machine without a key"
    )
    parser.add_argument(
        "--allow-host", action="append", dest="hosts", metavar="NAME",
        help="by which it is asked for, beside localhost: that of a proxy before it",
    )  # fmt: skip
    parser.add_argument(
        "--allow-origin", action="append", dest="origins", metavar="ORIGIN",
        help="of another site whose pages may ask, such as https://example.org",
    )  # fmt: skip
    parser.add_argument(
        "--behind-proxy", action="store_true",
        help="tell clients apart by the X-Forwarded-For of a proxy on this machine",
    )  # fmt: skip
    parser.add_argument(
        "--no-warm-up", action="store_false", dest="warm_up",
        help="be ready at once, and compile when the first requests come",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no line for each request")
    parser.set_defaults(run_command=serve_command)


def serve_command(args: argparse.Namespace) -> int:
    """Serves until a signal ends it."""
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    config = build(ServeConfig, given, "serve")
    key = read_key(getattr(args, "api_key_file", None))
    check_key(config, key, unless=hasattr(args, "no_key"))
    root = paths.home(getattr(args, "home", None))
    names = models_asked(args)
    talkers = ("mid", "sft", "rl")
    configs = [
        run_dir.read_config(run_dir.find(root, run, (stage,) if stage else talkers))
        for run, stage in names
    ]

    from jaxchat.serve.listening import listen, url_of

    with listen(config) as sock:
        start_jax(configs[0].mesh, root / "xla")
        from jaxchat.serve.app import create_app
        from jaxchat.serve.loading import load_models
        from jaxchat.serve.process import Server

        start_log(quiet=hasattr(args, "quiet"))
        models = load_models(root, names, config, tell)
        server = Server(create_app(models, config, key=key), config)
        tell(f"{', '.join(model.id for model in models)}: open {url_of(sock)} (Ctrl-C ends it)")
        server.serve_until_told(sock)
    return 0


def tell(sentence: str) -> None:
    """Prints a sentence at once."""
    print(f"jaxchat: {sentence}", flush=True)


def models_asked(args: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    """The runs and stages to serve. Raises ConfigError where they are named in two ways."""
    run, stage = getattr(args, "run", None), getattr(args, "stage", None)
    named = getattr(args, "model", [])
    if not named:
        return [(run, stage)]
    if run or stage:
        raise ConfigError("--model is given beside --run or --stage; name all models by --model.")
    return [parse_name(name) for name in named]


def parse_name(name: str) -> tuple[str, str | None]:
    """RUN/STAGE, or RUN alone for its best stage. Raises ConfigError for anything else."""
    run, slash, stage = name.partition("/")
    if not run or (slash and not stage) or "/" in stage:
        raise ConfigError(f"--model is {name!r}; it must be of the form RUN/STAGE, or RUN.")
    return run, stage or None


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
    """Raises ConfigError where others could ask without a key and nobody said that they may."""
    if key is None and not config.is_local and not unless:
        raise ConfigError(
            f"--host {config.host} lets other machines ask; give them a key by --api-key-file or "
            "JAXCHAT_API_KEY, or say --no-key if everyone may."
        )


def start_log(*, quiet: bool) -> None:
    """Sends warnings to the standard error output and, unless `quiet`, a line for each request.

    What uvicorn says of garbage that it was sent is left out: anyone could fill the disk.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jaxchat", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
        logger.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
