"""Real clients against a real `jaxchat serve`: a table client x feature, expected and seen.

    python bench/clients/run.py --home HOME --work FOLDER                    # every client
    python bench/clients/run.py openai-python litellm --home HOME --work FOLDER --json
    python bench/clients/run.py --home HOME --work FOLDER --write docs/clients.md

Each client gets an environment of its own in `--work`, which is kept for the next time; pinned
versions are in environments.py. A check must see what a plain HTTP request at temperature 0 is
answered, or what its file in checks/ says. Exits with 1 where anything else was seen. A client that
cannot be installed is named with the end of its log, and has not passed. Needs uv's and npm's
registries, npm, and for Open WebUI a Chromium. All environments take 10 GB, more than half of which
are guidellm's torch; Open WebUI's is without torch, which only its own embeddings need.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from environments import CLIENTS, Client, NotInstalled, command
from server import make_home, plain_answers, served
from table import Result, Row, aligned, as_json, checks, features, page, row

HERE = Path(__file__).resolve().parent
QUIET = {  # nothing is asked of the network but this server
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
    "ANONYMIZED_TELEMETRY": "False", "GRADIO_ANALYTICS_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "NO_COLOR": "1", "NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1",
}  # fmt: skip


def run_client(client: Client, settings: dict[str, Any], work: Path, seconds: float) -> Row:
    """The row of a client, installed first."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    try:
        words = command(client, work)
    except NotInstalled as problem:
        return Row(client.title, client.version, date, (), str(problem))
    folder = work / "scratch" / client.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given, results, log = (folder / name for name in ("settings.json", "results.jsonl", "log"))
    environment = work / "environments" / client.name
    given.write_text(
        json.dumps(settings | {"folder": str(folder), "environment": str(environment)})
    )
    results.touch()
    worker = HERE / ("worker.mjs" if client.file.endswith(".mjs") else "worker.py")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*words, str(worker), str(HERE / "checks" / client.file), *map(str, (given, results))],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | QUIET | {
                "HOME": str(folder), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
                "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": settings["url"],
            },
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end(process)
    tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-4:])[-600:]
    lines = results.read_text().splitlines()
    return row(client.title, client.version, date, lines, tail or f"no word in {seconds:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kept(work: Path) -> list[Row]:
    """The last rows of all clients, in their order; one that never ran has no row."""
    rows = []
    for name in CLIENTS:
        path = work / "rows" / f"{name}.json"
        if path.exists():
            fields = json.loads(path.read_text())
            results = tuple(Result(**one) for one in fields.pop("results"))
            rows.append(Row(**fields, results=results))
    return rows


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=", ".join(CLIENTS))
    parser.add_argument("--home", type=Path, required=True, help="with a trained run")
    parser.add_argument("--run", default="cpu")
    parser.add_argument("--stage", default="rl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for environments")
    parser.add_argument("--seconds", type=float, default=900, help="for the checks of a client")
    parser.add_argument("--url", help="of a server that already serves the model, and `long`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, help="a page; clients not asked for keep their rows")
    args = parser.parse_args()
    if unknown := set(args.clients) - set(CLIENTS):
        parser.error(f"{', '.join(unknown)}: no such client; there are {', '.join(CLIENTS)}")
    work = args.work.resolve()
    (work / "rows").mkdir(parents=True, exist_ok=True)
    rows = []
    with contextlib.ExitStack() as stack:
        base, home = args.url, make_home(args.home, args.run, args.stage, work)
        if not base:
            base = stack.enter_context(served(home, args.run, args.stage, work / "server.log"))
        model = f"{args.run}/{args.stage}"
        settings = plain_answers(base, model)
        if plain_answers(base, "long") != settings:
            raise SystemExit("the model with a longer context answers otherwise")
        settings |= {"base": base, "url": f"{base}/v1", "model": model, "long": "long"}
        settings["export"] = str(work / "export")
        for name in args.clients or CLIENTS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(run_client(CLIENTS[name], settings, work, args.seconds))
            (work / "rows" / f"{name}.json").write_text(json.dumps(asdict(rows[-1])))
    if args.write:
        args.write.write_text(page(args.write.read_text(), kept(work)))
    if args.json:
        print(json.dumps(as_json(rows)))
    else:
        print(f"{aligned(checks(rows))}\n\n{aligned(features(rows))}")
    return int(not all(one.passed for one in rows))


if __name__ == "__main__":
    raise SystemExit(main())
