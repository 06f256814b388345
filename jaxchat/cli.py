"""The `jaxchat` command (layer 5). Nothing heavy is imported before the arguments are read."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jaxchat
from jaxchat import (
    bench_cli,
    chat_cli,
    data_cli,
    eval_cli,
    home,
    interop_cli,
    machine,
    report_cli,
    runs,
    runs_cli,
    serve_cli,
    tokenizer_cli,
)
from jaxchat.arguments import positive, whole
from jaxchat.errors import EXIT_CODES, explain, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `errors`)."""
    args = parse(argv)
    return guarded(lambda: args.run_command(args), home.home(args.home))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; exits with 2 for bad ones and 0 after --help."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home",
        type=Path,
        help="where all artefacts are (default JAXCHAT_HOME or ~/.cache/jaxchat)",
    )
    parser = argparse.ArgumentParser(
        "jaxchat", description="Talk to what run_speedrun.py trained.", epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"jaxchat {jaxchat.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chat_cli.add_chat(commands.add_parser("chat", parents=[common], help="talk to a model"))
    runs_cli.add_runs(commands.add_parser("runs", parents=[common], help="list the runs"))
    runs_cli.add_watch(commands.add_parser("watch", parents=[common], help="see a run at work"))
    serve_cli.add_serve(commands, [common])
    report_cli.add_report(commands, [common])
    _add_profile(commands.add_parser("profile", parents=[common], help="say where time went"))
    tokenizer = commands.add_parser(
        "tokenizer", parents=[common], help="train and compare tokenizers"
    )
    tokenizer_cli.add_commands(tokenizer)
    data_cli.add_commands(
        commands.add_parser("data", parents=[common], help="download and prepare datasets")
    )
    eval_cli.add_commands(commands.add_parser("eval", parents=[common], help="measure models"))
    interop_cli.add_commands(commands, [common])
    bench_cli.add_commands(commands.add_parser("bench", parents=[common], help="measure speed"))
    doctor = commands.add_parser("doctor", parents=[common], help="check this machine")
    doctor.set_defaults(run_command=doctor_command)
    return parser.parse_args(argv)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="the folder that --profile made, or a *.xplane.pb"
    )
    parser.add_argument("--top", type=positive, default=20, help="operations listed (20)")
    parser.add_argument("--device", type=whole, default=0, help="which of the trace's devices (0)")
    parser.add_argument("--json", action="store_true", help="as JSON, times in ms a step")
    parser.set_defaults(run_command=profile_command)


def profile_command(args: argparse.Namespace) -> int:
    """Prints where the time of recorded steps went."""
    from jaxchat.profiling import summary

    profile = summary.read_profile(args.path, args.device)
    if args.json:
        print(json.dumps(summary.to_json(profile, args.top), indent=1))
    else:
        print(summary.render(profile, args.top))
    return 0


def doctor_command(args: argparse.Namespace) -> int:
    """Prints what this machine offers; 1 when something that is needed is missing."""
    root = home.home(args.home)
    checks = [
        ("python", platform.python_version(), sys.version_info >= (3, 11)),
        ("packages", *_check_packages()),
        ("tokenizer", *_check_extension()),
        ("devices", *_check_devices()),
        ("processor", f"{machine.processor()}, {machine.cores()} cores", True),
        ("memory", f"{machine.memory_bytes() / 1e9:.1f} GB", True),
        ("home", *_check_home(root)),
        ("sandbox", _sandbox(), True),
    ]
    for name, told, good in checks:
        print(f"{'ok ' if good else 'BAD'}  {name:<10} {told}")
    return 0 if all(good for _, _, good in checks) else 1


def _check_packages() -> tuple[str, bool]:
    versions = machine.versions()
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return told, "missing" not in versions.values()


def _check_extension() -> tuple[str, bool]:
    try:
        from jaxchat import _bpe
    except ImportError as error:
        return (
            f"the Rust extension is missing ({error}); run python3 bootstrap.py run --help",
            False,
        )
    return f"{Path(str(_bpe.__file__)).name}", True


def _check_devices() -> tuple[str, bool]:
    try:
        import jax

        devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
    except Exception as error:  # whatever a broken driver raises is what the doctor is for
        return f"JAX finds no device ({str(error).splitlines()[0]})", False
    return ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)), True


def _sandbox() -> str:
    from jaxchat.tools import levels

    level = levels.detect()
    without = f"; missing: {', '.join(level.missing)}" if level.missing else ""
    refused = "; programs of a model are refused" if level.name == "none" else ""
    return f"{level.name}{without}{refused}"


def _check_home(root: Path) -> tuple[str, bool]:
    try:
        runs.check_writable(root)
    except OSError as error:
        told = explain(error, root)
        return told[0].removeprefix("jaxchat: ") if told else str(error), False
    names = sorted(path.parent.name for path in home.runs(root).glob(f"*/{runs.CONFIG}"))
    free = shutil.disk_usage(root).free / 1e9
    return f"{root}, {free:.1f} GB free, runs: {', '.join(names) or 'none'}", True
